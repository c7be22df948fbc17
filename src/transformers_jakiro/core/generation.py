# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The decoding loop: draft a tree, let the target process it in one forward, walk it with the target's own choices, keep
the accepted path.

Symbols in shape comments: B batch, T tokens of the prompt, n nodes of a tree, H hidden size, V vocabulary.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from . import compat
from .adaptive import AdaptiveSchedule
from .batch import Batch, JakiroGenerateOutput
from .candidate_generator import JakiroCandidateGenerator
from .configuration_jakiro import JakiroDraftConfig
from .device import reads_wait
from .noise import BatchCoupling, SamplingCoupling, can_couple
from .target import Target
from .tree import DraftTree, TreeShape
from .tree_attention import why_no_trees
from .tree_forward import TreeForward


@runtime_checkable
class StepStreamer(Protocol):
    """
    A streamer that wants to know what each forward of the target brought. Its `put_step` is called in place of `put`
    for generated tokens.
    """

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        """
        Args:
            tokens (`[k]`): emitted tokens; all but the last were drafted and accepted.
            tree ([`DraftTree`]): the tree, None for the token that the prompt's forward gave.
            visited (`list[int]`): nodes of the tree that were accepted, the root first.
        """

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


def is_jakiro_drafter(model: Any) -> bool:
    """Whether an assistant model is a [`JakiroDraftModel`], possibly wrapped by PEFT."""
    return isinstance(getattr(model, "config", None), JakiroDraftConfig)


def check_request(model: PreTrainedModel, draft_model: PreTrainedModel, generation_config: GenerationConfig) -> None:
    """
    Refuses what a drafter cannot do for a target, before anything is prepared.

    Raises:
        ValueError: vocabulary or hidden size that differ, beams, constraints.
        NotImplementedError: kinds of targets and caches that cannot be drafted for (yet).
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"A Jakiro drafter needs a decoder-only target, {name} is an encoder-decoder model.")
    if compat.is_stateful(model):
        raise NotImplementedError(
            f"{name} carries a recurrent state that cannot be rolled back to the last accepted token, so nothing can "
            "be drafted for it. Leave out `assistant_model`."
        )
    Target(model).check_fits(draft_model.config)
    if (generation_config.num_beams or 1) > 1:
        raise ValueError(
            f"Drafting needs `num_beams=1`, got {generation_config.num_beams}: beam search would run without the "
            "drafter. Leave out `num_beams` or `assistant_model`."
        )
    if not isinstance(generation_config.output_hidden_states or False, bool):
        raise NotImplementedError(
            "With a drafter, `output_hidden_states` gives those of all layers or none, got "
            f"{generation_config.output_hidden_states}. Pass True and take what you need of them."
        )
    if generation_config.use_cache is False:
        raise ValueError("Drafting needs the key/value cache, got `use_cache=False`. Pass `use_cache=True`.")


@torch.no_grad()
def jakiro_decode(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    assistant_model: PreTrainedModel,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    num_assistant_tokens: int | None = None,
    inputs_tensor: torch.Tensor | None = None,
    tokenizer: Any = None,
    **model_kwargs: Any,
) -> JakiroGenerateOutput | torch.LongTensor:
    """
    The decoding loop of `generate(assistant_model=<Jakiro drafter>)`, with the arguments of transformers' own loops.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        assistant_model ([`JakiroDraftModel`]): the drafter.
        num_assistant_tokens (`int`, *optional*): nodes per tree; default: the call's `num_assistant_tokens`, else the
            drafter's `num_draft_tokens`.
        inputs_tensor, tokenizer: what `generate` passes to every assisted loop; not needed here.

    Returns:
        The token ids `[B, T + new]`, or a [`JakiroGenerateOutput`] with `return_dict_in_generate=True`.

    Raises:
        ValueError: if the prompt is empty, the two models do not fit, or the drafter's features are not finite.
        NotImplementedError: for caches and heads that cannot be drafted for (yet), and for batches where trees cannot
            be verified.
    """
    if input_ids.shape[1] == 0 and model_kwargs.get("inputs_embeds") is None:
        raise ValueError(
            "The prompt is empty: the drafter reads the target's hidden states of the prompt, so there must be at "
            "least one token, for example the tokenizer's `bos_token`."
        )
    if num_assistant_tokens is None:
        num_assistant_tokens = compat.explicit_num_assistant_tokens(generation_config)
    cache = model_kwargs.get(compat.CACHE)
    batch_size, device = input_ids.shape[0], input_ids.device
    chain_only = _only_chains(model, cache, generation_config, batch_size)

    target = Target.of(model, assistant_model)
    temperature = (generation_config.temperature or 1.0) if generation_config.do_sample else 0.0
    noise: SamplingCoupling | None = None  # what the target's draws come from, if that can be known
    if temperature > 0 and can_couple(device):
        # one row on the host is sampled by `torch.multinomial` itself; else its draws are made here, several at a time
        one_by_one = batch_size == 1 and not reads_wait(device)
        kind = SamplingCoupling if one_by_one else partial(BatchCoupling, batch_size)
        noise = kind(temperature, logits_processor, target.config.vocab_size, device)
    coupling = noise if assistant_model.config.couple_sampling else None
    shape_for = partial(
        TreeShape.from_config, assistant_model.config, num_assistant_tokens, temperature if coupling is None else 0.0
    )
    shape, static = shape_for(batch_size), {}
    if compat.is_static(cache):
        cache = compat.fit_static_cache(model, cache, generation_config, shape.num_draft_tokens)
        model_kwargs[compat.CACHE] = cache
        compile_config = compat.compile_config_of(model, model_kwargs, generation_config)
        static = {"capacity": compat.static_capacity(cache), "compile_config": compile_config}
    drafter = JakiroCandidateGenerator(assistant_model, target, shape, coupling=coupling, **static)
    batch = Batch(input_ids, generation_config, logits_processor, stopping_criteria, noise)
    put_step = _step_putter(streamer, batch)
    outputs = _prefill(target, drafter, input_ids, generation_config, model_kwargs)
    compat.check_croppable(model, cache)
    schedule = None
    if compat.wants_adaptive_trees(generation_config):
        whole = shape_for(1)
        schedule = AdaptiveSchedule(whole.depth, whole.two_levels)
    largest = shape.num_draft_tokens + 1
    sizes = (largest,) if schedule is None else (1, -(-largest // 4), -(-largest // 2), largest)
    forward = TreeForward(
        target, cache, generation_config, model_kwargs, batch_size, cache.get_seq_length(), sizes, chain_only
    )
    put_step(batch.start(outputs), None, [[]])
    del outputs
    # who gets to see the cache gets all rows in it, and a static one keeps its shape
    may_drop_rows = not (
        generation_config.return_dict_in_generate
        or compat.is_user_defined(cache, generation_config)
        or compat.is_static(cache)
    )

    with compat.optimized_for_decoding(model):
        while compat.has_unfinished_sequences(model, batch.finished, synced_gpus, device):
            if batch.finished:  # other processes still generate and need this one's share of the forwards
                forward.run(DraftTree.root_only(batch.last_tokens))
                forward.keep([[]] * len(batch.rows))
                continue
            unfinished = batch.unfinished
            if may_drop_rows and len(unfinished) < len(batch.rows):
                batch.select(unfinished)
                drafter.select(unfinished)
                drafter.shape = shape = shape_for(len(unfinished))
                forward.select(unfinished)
            max_depth = batch.tokens_left - 1
            if schedule is not None:
                max_depth = max_depth if schedule.wants_tree() else 0
                drafter.shape = shape if static else shape.with_depth(schedule.depth)
            tree = drafter.propose(batch.last_tokens, max_depth=max_depth, chain=chain_only)
            if schedule is not None:
                tree = schedule.resize(tree)
            outputs = forward.run(tree)
            visited, emitted = batch.walk(tree, outputs)
            nodes = forward.keep(visited)
            drafter.observe(
                _gather_nodes(target.read(outputs.hidden_states), nodes),
                target.embed(tree.tokens.gather(1, nodes.to(tree.tokens.device))),
                num_tokens=[len(path) for path in visited],
            )
            if schedule is not None:
                schedule.record(tree, sum(map(len, emitted)) / sum(map(bool, emitted)))
            put_step(emitted, tree, visited)
    forward.close()
    if isinstance(noise, BatchCoupling):
        noise.finish()
    if streamer is not None:
        streamer.end()
    return batch.result(cache)


def jakiro_generate(
    draft_model: PreTrainedModel,
    streamer: BaseStreamer | None = None,
    num_assistant_tokens: int | None = None,
    synced_gpus: bool = False,
) -> Callable[..., JakiroGenerateOutput | torch.LongTensor]:
    """
    The decoding loop as a callable for transformers' public `custom_generate`, which needs no hook:

    ```python
    >>> target.generate(**inputs, custom_generate=jakiro_generate(draft))
    ```

    `generate` hands a callable neither `streamer` nor `synced_gpus`: pass them here. For stop strings pass a
    [`~transformers.StopStringCriteria`] in `stopping_criteria`, since the tokenizer does not get through either.

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): gets the prompt, then the tokens.
        num_assistant_tokens (`int`, *optional*): nodes per tree; default: the drafter's `num_draft_tokens`.
    """

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        check_request(model, draft_model, generation_config)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        return jakiro_decode(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            assistant_model=draft_model,
            synced_gpus=synced_gpus,
            streamer=streamer,
            num_assistant_tokens=num_assistant_tokens,
            **model_kwargs,
        )

    return decode


def install_generation_hook() -> None:
    """
    Lets `target.generate(assistant_model=draft)` of every causal language model use the tree loop when `draft` is a
    Jakiro drafter, and `pipeline(..., assistant_model=draft)` take it, also as a folder or Hub id. `sdpa` attention
    learns to read the masks of its trees. Other assistants and masks are treated as before. Idempotent; importing the
    package does it.

    Raises:
        IncompatibleTransformersError: if the installed transformers lacks what the hook relies on.
    """
    compat.install_hook(is_jakiro_drafter, check_request, jakiro_decode)


def remove_generation_hook() -> None:
    """Takes [`install_generation_hook`] back."""
    compat.remove_hook(is_jakiro_drafter)


def _only_chains(model: PreTrainedModel, cache: Cache, generation_config: GenerationConfig, batch_size: int) -> bool:
    """
    Whether a target cannot verify trees, but only chains; then it takes one sequence and a dynamic cache, and is
    refused others before it reads the prompt.
    """
    reason = compat.check_cache(cache, generation_config) or why_no_trees(model)
    if reason is None:
        return False
    name = type(model).__name__
    if batch_size > 1:
        raise NotImplementedError(
            f"In a batch, rows get ahead of one another, for which {name} must take masks as trees need them, but "
            f"{reason}. Pass one prompt at a time, or leave out `assistant_model`."
        )
    if compat.is_static(cache):
        raise NotImplementedError(
            f"With a static cache, {name} must take masks as trees need them, but {reason}. Use the default dynamic "
            "cache."
        )
    warnings.warn(f"The drafter proposes chains instead of trees for {name}: {reason}.", stacklevel=5)
    return True


def _prefill(
    target: Target,
    drafter: JakiroCandidateGenerator,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> Any:
    """Runs the target over the prompt, as plain `generate` does, and lets the drafter read it. The last outputs."""
    cache: Cache = model_kwargs[compat.CACHE]
    prompt_embeddings = model_kwargs.get("inputs_embeds")
    attention_mask = model_kwargs.get("attention_mask")
    wanted = generation_config.output_hidden_states or target.output_hidden_states
    kwargs = {**model_kwargs, "output_hidden_states": wanted}
    processed = int(cache.get_seq_length())
    already_cached = processed
    outputs = None
    for outputs, num_tokens in compat.prefill(target.model, input_ids, generation_config, kwargs):
        end = processed + num_tokens
        if prompt_embeddings is not None and not target.lends_embeddings:
            raise NotImplementedError(
                "This drafter has token embeddings of its own, and cannot read a prompt given as `inputs_embeds`. "
                "Give `input_ids`."
            )
        if prompt_embeddings is not None:
            embeddings = prompt_embeddings[:, processed:end]
        elif input_ids.shape[1] >= end:  # the ids of the whole prompt, cached part included
            embeddings = target.embed(input_ids[:, processed:end])
        else:  # the ids of what is not cached
            embeddings = target.embed(input_ids[:, processed - already_cached : end - already_cached])
        mask = None if attention_mask is None else attention_mask[:, processed:end]
        drafter.observe(target.read(outputs.hidden_states), embeddings, mask)
        processed = end
    target.check_head(outputs.hidden_states[-1][:, -1], outputs.logits[:, -1])
    return outputs


def _gather_nodes(states: torch.Tensor, nodes: torch.LongTensor) -> torch.Tensor:
    """`[B, n, X]` and `[B, k]` → `[B, k, X]`."""
    index = nodes.to(states.device)[..., None]
    return states.gather(1, index.expand(-1, -1, states.shape[-1]))


def _step_putter(
    streamer: BaseStreamer | None, batch: Batch
) -> Callable[[list[list[int]], DraftTree | None, list[list[int]]], None]:
    """
    Hands a step's tokens to the streamer: at once to a [`StepStreamer`], else one by one as `generate` does. Those of
    a batch when all its rows have got there.
    """
    if streamer is None:
        return lambda tokens, tree, visited: None
    batch_size = len(batch.rows)
    if isinstance(streamer, StepStreamer):
        if batch_size > 1:
            raise ValueError(
                f"A streamer with `put_step` takes one sequence, got a batch of {batch_size}. Pass one prompt at a "
                "time, or a streamer without it."
            )
        return lambda tokens, tree, visited: streamer.put_step(torch.tensor(tokens[0]), tree, visited[0])
    num_put = 0

    def put(tokens: list[list[int]], tree: DraftTree | None, visited: list[list[int]]) -> None:
        nonlocal num_put
        for index in range(num_put, batch.num_complete):
            streamer.put(torch.tensor([batch.padded_token(row, index) for row in range(batch_size)]))
        num_put = max(num_put, batch.num_complete)

    return put


__all__ = [
    "StepStreamer",
    "install_generation_hook",
    "is_jakiro_drafter",
    "jakiro_decode",
    "jakiro_generate",
    "remove_generation_hook",
]
