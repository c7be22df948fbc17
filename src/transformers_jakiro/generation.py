# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The decoding loop: draft a tree, let the target process it in one forward, walk it with the target's own choices, keep
the accepted path.

Symbols in shape comments: B batch, T tokens of the prompt, n nodes of a tree, H hidden size, V vocabulary.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from . import _compat
from .adaptive import AdaptiveSchedule
from .candidate_generator import JakiroCandidateGenerator, TreeShape
from .configuration_jakiro import JakiroDraftConfig
from .coupling import SamplingCoupling, can_couple
from .target import Target
from .tree import DraftTree
from .tree_attention import TreeAttentionMask, why_no_trees
from .verification import walk_tree


@dataclass
class JakiroGenerateOutput(GenerateDecoderOnlyOutput):
    """
    What `generate(..., return_dict_in_generate=True)` returns with a Jakiro drafter: everything that plain `generate`
    returns, in the same shapes, and

    Args:
        accept_lengths (`list[list[int]]`):
            Per row the number of drafted tokens that were accepted in each forward of the target after the prefill.
            Such a forward emits one token more than it accepts.
        num_drafted_tokens (`int`):
            Drafted tokens that were sent to the target.
        num_verified_tokens (`int`):
            Those of them that the target accepted: the sum of `accept_lengths`.
    """

    accept_lengths: list[list[int]] | None = None
    num_drafted_tokens: int | None = None
    num_verified_tokens: int | None = None


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
    if _compat.is_stateful(model):
        raise NotImplementedError(
            f"{name} carries a recurrent state that cannot be rolled back to the last accepted token, so nothing can "
            "be drafted for it. Leave out `assistant_model`."
        )
    Target(model).check_fits(draft_model.config)
    if generation_config.num_beams > 1:
        raise ValueError(
            f"Drafting needs `num_beams=1`, got {generation_config.num_beams}: beam search would run without the "
            "drafter. Leave out `num_beams` or `assistant_model`."
        )
    if generation_config.num_return_sequences > 1:
        raise NotImplementedError(
            "`num_return_sequences > 1` makes a batch, which a Jakiro drafter cannot serve yet: got "
            f"{generation_config.num_return_sequences}. Call `generate` once per sequence."
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
        NotImplementedError: for batches, and for caches and heads that cannot be drafted for (yet).
    """
    if input_ids.shape[0] != 1:
        raise NotImplementedError(
            f"A Jakiro drafter serves one sequence at a time for now, got a batch of {input_ids.shape[0]}. Call "
            "`generate` once per prompt."
        )
    if input_ids.shape[1] == 0 and model_kwargs.get("inputs_embeds") is None:
        raise ValueError(
            "The prompt is empty: the drafter reads the target's hidden states of the prompt, so there must be at "
            "least one token, for example the tokenizer's `bos_token`."
        )
    if num_assistant_tokens is None:
        num_assistant_tokens = _compat.explicit_num_assistant_tokens(generation_config)
    cache = model_kwargs.get("past_key_values")
    _compat.check_cache(cache)

    target = Target(model, assistant_model.config.feature_layers)
    temperature = (generation_config.temperature or 1.0) if generation_config.do_sample else 0.0
    coupling = None
    if temperature > 0 and assistant_model.config.couple_sampling and can_couple(input_ids.device):
        coupling = SamplingCoupling(temperature, logits_processor, target.config.vocab_size, input_ids.device)
    shape = TreeShape.from_config(
        assistant_model.config, num_assistant_tokens, temperature if coupling is None else 0.0
    )
    drafter = JakiroCandidateGenerator(assistant_model, target, shape, coupling=coupling)
    row = _Row(input_ids, generation_config, logits_processor, stopping_criteria)
    outputs = _prefill(target, drafter, input_ids, generation_config, model_kwargs)
    forward = _TreeForward(target, cache, generation_config, model_kwargs, prompt_length=cache.get_seq_length())
    schedule = AdaptiveSchedule() if _compat.wants_adaptive_trees(generation_config) else None
    token = row.choose(outputs.logits[:, -1])
    row.emit(token)
    row.record_prefill(outputs)
    put_step = _step_putter(streamer)
    put_step([token], None, [])
    del outputs

    while _compat.has_unfinished_sequences(model, row.finished, synced_gpus, input_ids.device):
        if row.finished:  # other processes still generate and need this one's share of the forwards
            forward.run(DraftTree.root_only(row.last_token))
            forward.keep([])
            continue
        max_depth = row.tokens_left - 1 if schedule is None or schedule.wants_tree() else 0
        tree = drafter.propose(row.last_token, max_depth=max_depth, chain=forward.chain_only)
        if schedule is not None:
            tree = schedule.resize(tree)
        outputs = forward.run(tree)
        visited, emitted = row.walk(tree, outputs)
        nodes = forward.keep(visited)
        drafter.observe(
            target.read(outputs.hidden_states).index_select(1, nodes),
            target.embed(tree.tokens.index_select(1, nodes.to(tree.tokens.device))),
        )
        if schedule is not None:
            schedule.record(tree, len(emitted))
        put_step(emitted, tree, visited)
    forward.close()
    if streamer is not None:
        streamer.end()
    return row.result(cache)


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
    Jakiro drafter. Other assistants behave as before. Idempotent; importing the package does it.

    Raises:
        IncompatibleTransformersError: if the installed transformers lacks what the hook relies on.
    """
    _compat.install_hook(is_jakiro_drafter, check_request, jakiro_decode)


def remove_generation_hook() -> None:
    """Takes [`install_generation_hook`] back."""
    _compat.remove_hook(is_jakiro_drafter)


def _prefill(
    target: Target,
    drafter: JakiroCandidateGenerator,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> Any:
    """Runs the target over the prompt, as plain `generate` does, and lets the drafter read it. The last outputs."""
    cache: Cache = model_kwargs["past_key_values"]
    prompt_embeddings = model_kwargs.get("inputs_embeds")
    attention_mask = model_kwargs.get("attention_mask")
    wanted = generation_config.output_hidden_states or target.output_hidden_states
    kwargs = {**model_kwargs, "output_hidden_states": wanted}
    processed = int(cache.get_seq_length())
    already_cached = processed
    outputs = None
    for outputs, num_tokens in _compat.prefill(target.model, input_ids, generation_config, kwargs):
        end = processed + num_tokens
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


class _TreeForward:
    """The target's forwards over trees in one generation, and its cache between them."""

    def __init__(
        self,
        target: Target,
        cache: Cache,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        prompt_length: int,
    ):
        model = target.model
        self._model, self._cache = model, cache
        # only now: a cache that records the past keeps the whole prompt in layers with a sliding window
        self._recording = _compat.start_recording(cache)
        reason = _compat.check_cache(cache) or why_no_trees(model)
        self.chain_only = reason is not None
        if self.chain_only:
            warnings.warn(
                f"The drafter proposes chains instead of trees for {type(model).__name__}: {reason}.", stacklevel=5
            )
        padding = model_kwargs.get("attention_mask")
        if padding is not None:
            padding = torch.nn.functional.pad(padding, (0, int(prompt_length) - padding.shape[1]), value=1)
        self._padding = padding
        self._device = model.get_input_embeddings().weight.device
        self._mask = None if self.chain_only else TreeAttentionMask(model, padding, self._device)
        positions = model_kwargs.get("position_ids")
        # position of the next token less the number of cached tokens: nonzero with left padding
        self._position_offset = None
        if positions is not None:
            self._position_offset = positions[..., -1:].to(self._device) + 1 - int(prompt_length)
        self._kwargs = {
            "past_key_values": cache,
            "use_cache": True,
            "return_dict": True,
            "output_hidden_states": generation_config.output_hidden_states or target.output_hidden_states,
        }
        if generation_config.output_attentions:
            self._kwargs["output_attentions"] = True
        self._num_nodes = 0

    def run(self, tree: DraftTree) -> Any:
        """The target's outputs for all nodes: logits `[B, n, V]`, hidden states `[B, n, H]`. Extends the cache."""
        self._num_nodes = tree.num_nodes
        prefix_length = int(self._cache.get_seq_length())
        kwargs = dict(self._kwargs)
        if self._position_offset is not None:
            kwargs["position_ids"] = tree.depths.to(self._device) + (self._position_offset + prefix_length)
        if self._mask is not None:
            kwargs["attention_mask"] = self._mask.build(tree, self._cache)
        elif self._padding is not None:  # a chain: the model's own causal mask does
            missing = prefix_length + tree.num_nodes - self._padding.shape[1]
            kwargs["attention_mask"] = torch.nn.functional.pad(self._padding, (0, missing), value=1)
        return self._model(input_ids=tree.tokens.to(self._device), **kwargs)

    def keep(self, visited: list[int]) -> torch.LongTensor:
        """Keeps the accepted path of the last tree in the cache. Returns its nodes as a tensor `[k]`."""
        nodes = torch.tensor(visited, dtype=torch.long, device=self._device)
        is_prefix = not visited or visited[-1] == len(visited) - 1
        if self.chain_only:
            self._cache.crop(len(visited) - self._num_nodes)
        else:
            _compat.keep_nodes(self._cache, self._num_nodes, nodes, is_prefix)
        return nodes

    def close(self) -> None:
        """Leaves the cache as plain `generate` leaves it."""
        _compat.stop_recording(self._recording)


class _Row:
    """
    One sequence of the batch: its tokens, how the next one is chosen, when it ends, and what is recorded of it.
    """

    def __init__(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
    ):
        self._config = generation_config
        self._processor = logits_processor
        self._max_length, self._end_tokens, self._criteria = _compat.host_criteria(stopping_criteria)
        if self._max_length is None:
            self._max_length = generation_config.max_length
        self._length = input_ids.shape[1]
        # `input_ids` of the processors and criteria are views of this buffer
        self._ids = input_ids.new_empty((1, max(self._max_length, self._length + 1)))
        self._ids[:, : self._length] = input_ids
        self.finished = False
        self.accept_lengths: list[int] = []
        self.num_drafted_tokens = 0
        wants = generation_config.return_dict_in_generate
        self._scores: tuple | None = () if wants and generation_config.output_scores else None
        self._logits: tuple | None = () if wants and generation_config.output_logits else None
        self._attentions: tuple | None = () if wants and generation_config.output_attentions else None
        self._hidden_states: tuple | None = () if wants and generation_config.output_hidden_states else None
        # nothing but an argmax per node: all nodes at once
        self._plain_argmax = (
            not generation_config.do_sample
            and len(logits_processor) == 0
            and self._scores is None
            and self._logits is None
        )

    @property
    def last_token(self) -> torch.LongTensor:
        """`[1]`"""
        return self._ids[:, self._length - 1]

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated."""
        return self._max_length - self._length

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from the logits `[1, V]` at the last one, as plain generation chooses it."""
        logits = logits.to(copy=True, dtype=torch.float32, device=self._ids.device)
        raw_logits = logits.clone() if self._logits is not None else None
        scores = self._processor(self._ids[:, : self._length], logits)
        if self._scores is not None:
            self._scores += (scores,)
        if raw_logits is not None:
            self._logits += (raw_logits,)
        if self._config.do_sample:
            return int(torch.multinomial(nn.functional.softmax(scores, dim=-1), num_samples=1))
        return int(scores.argmax(dim=-1))

    def emit(self, token: int) -> bool:
        """Appends a token. Returns whether it ends the generation."""
        self._ids[:, self._length] = token
        self._length += 1
        self.finished = self._length >= self._max_length or token in self._end_tokens
        if self._criteria:
            self.finished |= bool(self._criteria(self._ids[:, : self._length], self._scores).all())
        return self.finished

    def walk(self, tree: DraftTree, outputs: Any) -> tuple[list[int], list[int]]:
        """Walks the tree with the target's choices. Returns the visited nodes and the emitted tokens."""
        logits = outputs.logits
        if self._plain_argmax and logits.device.type != "cpu":
            # all nodes at once, for the only synchronisation of a step (adaptive trees take another)
            choices = logits[0].argmax(dim=-1)
            host = torch.stack((tree.tokens[0].to(choices.device), tree.parents[0].to(choices.device), choices))
            tokens, parents, chosen = host.tolist()

            def choose(node: int) -> int:
                return chosen[node]
        else:
            tokens, parents = torch.stack((tree.tokens[0], tree.parents[0])).tolist()

            def choose(node: int) -> int:
                return self.choose(logits[:, node])

        visited, emitted = walk_tree(tokens, parents, choose, self.emit)
        self.accept_lengths.append(len(emitted) - 1)
        self.num_drafted_tokens += len(tokens) - 1
        self._record(outputs, visited, tree.num_nodes)
        return visited, emitted

    def record_prefill(self, outputs: Any) -> None:
        """Keeps the prompt's attentions and hidden states, if asked for."""
        if self._attentions is not None:
            self._attentions += (outputs.attentions,)
        if self._hidden_states is not None:
            self._hidden_states += (outputs.hidden_states,)

    def _record(self, outputs: Any, visited: list[int], num_nodes: int) -> None:
        """One element per emitted token, shaped as if it had been computed alone."""
        for step, node in enumerate(visited):
            if self._hidden_states is not None:
                self._hidden_states += (tuple(states[:, node : node + 1] for states in outputs.hidden_states),)
            if self._attentions is not None:
                path = visited[: step + 1]
                windows = [getattr(layer, "sliding_window", None) for layer in outputs.past_key_values.layers]
                self._attentions += (
                    tuple(
                        _path_attention(weights, node, path, num_nodes, window)
                        for weights, window in zip(outputs.attentions, windows, strict=True)
                    ),
                )

    def result(self, cache: Cache) -> JakiroGenerateOutput | torch.LongTensor:
        sequences = self._ids[:, : self._length].clone()
        if not self._config.return_dict_in_generate:
            return sequences
        return JakiroGenerateOutput(
            sequences=sequences,
            scores=self._scores,
            logits=self._logits,
            attentions=self._attentions,
            hidden_states=self._hidden_states,
            past_key_values=cache,
            accept_lengths=[self.accept_lengths],
            num_drafted_tokens=self.num_drafted_tokens,
            num_verified_tokens=sum(self.accept_lengths),
        )


def _path_attention(
    weights: torch.Tensor | None, node: int, path: list[int], num_nodes: int, window: int | None
) -> torch.Tensor | None:
    """
    A node's attention `[B, heads, 1, prefix + len(path)]` out of the tree's `[B, heads, n, prefix + n]`; with a
    sliding window at most that many columns.
    """
    if weights is None:
        return None
    prefix_length = weights.shape[-1] - num_nodes
    columns = [*range(prefix_length), *(prefix_length + ancestor for ancestor in path)]
    columns = columns if window is None else columns[-window:]
    return weights[:, :, node : node + 1, columns]


def _step_putter(streamer: BaseStreamer | None) -> Callable[[list[int], DraftTree | None, list[int]], None]:
    """Hands a step's tokens to the streamer: at once to a [`StepStreamer`], else one by one as `generate` does."""
    if streamer is None:
        return lambda tokens, tree, visited: None
    if isinstance(streamer, StepStreamer):
        return lambda tokens, tree, visited: streamer.put_step(torch.tensor(tokens), tree, visited)

    def put(tokens: list[int], tree: DraftTree | None, visited: list[int]) -> None:
        for token in tokens:
            streamer.put(torch.tensor([token]))

    return put


__all__ = [
    "JakiroGenerateOutput",
    "StepStreamer",
    "install_generation_hook",
    "is_jakiro_drafter",
    "jakiro_decode",
    "jakiro_generate",
    "remove_generation_hook",
]
