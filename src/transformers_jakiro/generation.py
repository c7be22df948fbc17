# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The decoding loop: draft a tree, let the target process it in one forward, walk it with the target's own choices, keep
the accepted path.

Symbols in shape comments: B batch, T tokens of the prompt, n nodes of a tree, H hidden size, V vocabulary.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from . import _compat
from .adaptive import AdaptiveSchedule
from .candidate_generator import JakiroCandidateGenerator, TreeShape
from .configuration_jakiro import JakiroDraftConfig
from .coupling import WARPERS, BatchCoupling, SamplingCoupling, can_couple
from .target import Target
from .tree import DraftTree
from .tree_attention import TreeAttentionMask, why_no_trees
from .verification import walk_trees


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
    if (generation_config.num_beams or 1) > 1:
        raise ValueError(
            f"Drafting needs `num_beams=1`, got {generation_config.num_beams}: beam search would run without the "
            "drafter. Leave out `num_beams` or `assistant_model`."
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
        num_assistant_tokens = _compat.explicit_num_assistant_tokens(generation_config)
    cache = model_kwargs.get("past_key_values")
    _compat.check_cache(cache)

    target = Target.of(model, assistant_model)
    batch_size, device = input_ids.shape[0], input_ids.device
    temperature = (generation_config.temperature or 1.0) if generation_config.do_sample else 0.0
    noise: SamplingCoupling | None = None  # what the target's draws come from, if that can be known
    if temperature > 0 and can_couple(device):
        kind = SamplingCoupling if batch_size == 1 else partial(BatchCoupling, batch_size)
        noise = kind(temperature, logits_processor, target.config.vocab_size, device)
    coupling = noise if assistant_model.config.couple_sampling else None
    shape_for = partial(
        TreeShape.from_config, assistant_model.config, num_assistant_tokens, temperature if coupling is None else 0.0
    )
    shape, static = shape_for(batch_size), {}
    if _compat.is_static(cache):
        cache = _compat.fit_static_cache(model, cache, generation_config.max_length, shape.num_draft_tokens)
        model_kwargs["past_key_values"] = cache
        compile_config = _compat.compile_config_of(model, model_kwargs, generation_config)
        static = {"capacity": _compat.static_capacity(cache), "compile_config": compile_config}
    drafter = JakiroCandidateGenerator(assistant_model, target, shape, coupling=coupling, **static)
    batch = _Batch(input_ids, generation_config, logits_processor, stopping_criteria, noise)
    put_step = _step_putter(streamer, batch)
    outputs = _prefill(target, drafter, input_ids, generation_config, model_kwargs)
    schedule = AdaptiveSchedule() if _compat.wants_adaptive_trees(generation_config) else None
    largest = shape.num_draft_tokens + 1
    sizes = (largest,) if schedule is None else (1, -(-largest // 4), -(-largest // 2), largest)
    forward = _TreeForward(
        target, cache, generation_config, model_kwargs, batch_size, cache.get_seq_length(), static_sizes=sizes
    )
    put_step(batch.start(outputs), None, [[]])
    del outputs
    # who gets to see the cache gets all rows in it, and a static one keeps its shape
    may_drop_rows = not (
        generation_config.return_dict_in_generate or _compat.is_user_defined(cache) or _compat.is_static(cache)
    )

    while _compat.has_unfinished_sequences(model, batch.finished, synced_gpus, device):
        if batch.finished:  # other processes still generate and need this one's share of the forwards
            forward.run(DraftTree.root_only(batch.last_tokens))
            forward.keep([[]] * len(batch.rows))
            continue
        unfinished = batch.unfinished
        if may_drop_rows and len(unfinished) < len(batch.rows):
            batch.select(unfinished)
            kept = torch.tensor(unfinished, device=device)
            drafter.select(kept)
            drafter.shape = shape_for(len(unfinished))
            forward.select(kept)
        max_depth = batch.tokens_left - 1 if schedule is None or schedule.wants_tree() else 0
        tree = drafter.propose(batch.last_tokens, max_depth=max_depth, chain=forward.chain_only)
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
    Jakiro drafter, and `pipeline(..., assistant_model=draft)` take it, also as a folder or Hub id. Other assistants
    behave as before. Idempotent; importing the package does it.

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


def _filled_up(tree: DraftTree, num_nodes: int) -> DraftTree:
    """A tree with at least so many nodes: further ones below the root."""
    missing = num_nodes - tree.num_nodes
    if missing <= 0:
        return tree
    tokens, parents = (nn.functional.pad(values, (0, missing)) for values in (tree.tokens, tree.parents))
    return DraftTree(tokens, parents, max_depth=max(1, tree.max_depth))


class _TreeForward:
    """The target's forwards over trees in one generation, and its cache between them."""

    def __init__(
        self,
        target: Target,
        cache: Cache,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        batch_size: int,
        prompt_length: int,
        static_sizes: Sequence[int] = (),
    ):
        model = target.model
        self._model, self._cache = model, cache
        self._is_static = _compat.is_static(cache)
        # with a static cache forwards have few shapes: trees are filled up to one of these numbers of nodes
        self._sizes = static_sizes if self._is_static else ()
        self._forward = model
        if self._is_static:
            compile_config = _compat.compile_config_of(model, model_kwargs, generation_config)
            self._forward = model if compile_config is None else _compat.compiled_call(model, compile_config)
        self._lengths = [int(prompt_length)] * batch_size  # cached tokens of each row
        self._is_batch = batch_size > 1  # when it began
        reason = _compat.check_cache(cache) or why_no_trees(model)
        self.chain_only = reason is not None
        if self.chain_only and self._is_batch:
            raise NotImplementedError(
                f"In a batch, rows get ahead of one another, for which {type(model).__name__} must take masks as "
                f"trees need them, but {reason}. Pass one prompt at a time, or leave out `assistant_model`."
            )
        if self.chain_only and self._is_static:
            raise NotImplementedError(
                f"With a static cache, {type(model).__name__} must take masks as trees need them, but {reason}. Use "
                "the default dynamic cache."
            )
        if self.chain_only:
            warnings.warn(
                f"The drafter proposes chains instead of trees for {type(model).__name__}: {reason}.", stacklevel=5
            )
        # only now: a cache that records the past keeps the whole prompt in layers with a sliding window
        self._recording = _compat.start_recording(cache, self._is_batch)
        padding = model_kwargs.get("attention_mask")
        if padding is not None:
            padding = torch.nn.functional.pad(padding, (0, int(prompt_length) - padding.shape[1]), value=1)
        self._padding = padding
        self._device = _compat.execution_device(model.get_input_embeddings())
        capacity = _compat.static_capacity(cache) if self._is_static else None
        self._mask = None if self.chain_only else TreeAttentionMask(model, padding, self._device, capacity)
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
        """
        The target's outputs for all nodes: logits `[B, n, V]`, hidden states `[B, n, H]`; with a static cache there
        may be more, which mean nothing. Extends the cache.
        """
        tree = _filled_up(tree, min((size for size in self._sizes if size >= tree.num_nodes), default=0))
        self._num_nodes = tree.num_nodes
        shortest, longest = min(self._lengths), max(self._lengths)
        kwargs = dict(self._kwargs)
        if self._position_offset is not None:
            first = self._position_offset + longest
            if shortest < longest:
                first = first - longest + torch.tensor(self._lengths, device=self._device)[:, None]
            kwargs["position_ids"] = tree.depths.to(self._device) + first
        if self._mask is not None:
            kwargs["attention_mask"] = self._mask.build(tree, self._cache, self._lengths)
        elif self._padding is not None:  # a chain: the model's own causal mask does
            missing = longest + tree.num_nodes - self._padding.shape[1]
            kwargs["attention_mask"] = torch.nn.functional.pad(self._padding, (0, missing), value=1)
        return self._forward(input_ids=tree.tokens.to(self._device), **kwargs)

    def keep(self, visited: list[list[int]]) -> torch.LongTensor:
        """
        Keeps each row's accepted path of the last tree in the cache. Returns their nodes as a tensor `[B, k]`; what a
        row has less than k is 0.
        """
        longest = max(map(len, visited))
        nodes = torch.tensor([path + [0] * (longest - len(path)) for path in visited], dtype=torch.long)
        nodes = nodes.to(self._device)
        lengths = self._lengths
        self._lengths = [length + len(path) for length, path in zip(lengths, visited, strict=True)]
        if self.chain_only:
            self._cache.crop(longest - self._num_nodes)
        elif not (self._is_batch or self._is_static):
            is_prefix = not visited[0] or visited[0][-1] == longest - 1
            _compat.keep_nodes(self._cache, self._num_nodes, nodes[0], is_prefix)
        else:
            _compat.keep_rows(self._cache, self._num_nodes, nodes, lengths, self._lengths)
        return nodes

    def select(self, rows: torch.LongTensor) -> None:
        """Goes on with these rows of the batch."""
        longest = max(self._lengths)
        self._lengths = [self._lengths[row] for row in rows.tolist()]
        _compat.select_rows(self._cache, rows, longest - max(self._lengths))
        self._mask.select(rows)
        if self._position_offset is not None and self._position_offset.shape[-2] > 1:
            self._position_offset = self._position_offset.index_select(-2, rows.to(self._device))

    def close(self) -> None:
        """Leaves the cache as plain `generate` leaves it."""
        _compat.stop_recording(self._cache, self._recording)


class _Row:
    """One sequence of the batch: its tokens, when it ends, and what is recorded of it."""

    def __init__(
        self,
        index: int,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
    ):
        self.index = index  # in the batch that `generate` was called with
        self.processor = logits_processor
        self._max_length, self._end_tokens, self._criteria = _compat.host_criteria(stopping_criteria)
        if self._max_length is None:
            self._max_length = generation_config.max_length
        self.length = input_ids.shape[1]
        # `input_ids` of the processors and criteria are views of this buffer
        self._ids = input_ids.new_empty((1, max(self._max_length, self.length + 1)))
        self._ids[:, : self.length] = input_ids
        self.tokens: list[int] = []  # generated
        self.finished = False
        self.stop_length: int | None = None  # where a criterion or the limit was met first
        self.accept_lengths: list[int] = []
        wants = generation_config.return_dict_in_generate
        self.scores: tuple | None = () if wants and generation_config.output_scores else None
        self.logits: tuple | None = () if wants and generation_config.output_logits else None
        self.attentions: tuple | None = () if wants and generation_config.output_attentions else None
        self.hidden_states: tuple | None = () if wants and generation_config.output_hidden_states else None

    @property
    def ids(self) -> torch.LongTensor:
        """`[1, T]`"""
        return self._ids[:, : self.length]

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated."""
        return self._max_length - self.length

    def emit(self, token: int) -> bool:
        """Appends a token. Returns whether it ends the sequence."""
        self._ids[:, self.length] = token
        self.tokens.append(token)
        self.length += 1
        stops = self.length >= self._max_length or token in self._end_tokens
        if self._criteria:
            stops |= bool(self._criteria(self.ids, self.scores).all())
        if stops and self.stop_length is None:
            self.stop_length = self.length
        return stops

    def record(self, outputs: Any, row: int, visited: list[int], first_node: int, num_behind: int) -> None:
        """
        One element per emitted token, shaped as if it had been computed alone. `row`: in the outputs; `first_node`:
        column of the root in the attentions, of the last ones if negative; `num_behind`: columns before it that are
        not the row's own.
        """
        self.accept_lengths.append(len(visited) - 1)
        for step, node in enumerate(visited):
            if self.hidden_states is not None:
                self.hidden_states += (
                    tuple(states[row : row + 1, node : node + 1].clone() for states in outputs.hidden_states),
                )
            if self.attentions is not None:
                path = visited[: step + 1]
                windows = [getattr(layer, "sliding_window", None) for layer in outputs.past_key_values.layers]
                self.attentions += (
                    tuple(
                        _path_attention(weights, row, node, path, first_node, window, num_behind)
                        for weights, window in zip(outputs.attentions, windows, strict=True)
                    ),
                )


class _Batch:
    """The sequences of a generation, how their next tokens are chosen, and what is returned in the end."""

    def __init__(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        noise: SamplingCoupling | None,
    ):
        batch_size = input_ids.shape[0]
        self._config, self._processor = generation_config, logits_processor
        self._prompt_length, self._device = input_ids.shape[1], input_ids.device
        self._draws = noise if isinstance(noise, BatchCoupling) else None
        self._all_rows = [
            _Row(
                index,
                input_ids[index : index + 1],
                generation_config,
                _compat.row_processors(logits_processor, index, batch_size),
                stopping_criteria,
            )
            for index in range(batch_size)
        ]
        self.rows = list(self._all_rows)  # those that are still in the target's batch
        self.num_drafted_tokens = 0
        self._prefill: dict[str, Any] = {"attentions": None, "hidden_states": None}  # of the prompt, if asked for
        self._pads = batch_size == 1 or _compat.pads_ended_rows(stopping_criteria)
        # processors that look at a row's logits alone take the rows together
        self._together = all(type(processor) in (TemperatureLogitsWarper, *WARPERS) for processor in logits_processor)
        # nothing but an argmax per node: all nodes at once
        self._plain_argmax = (
            not generation_config.do_sample
            and len(logits_processor) == 0
            and self.rows[0].scores is None
            and self.rows[0].logits is None
        )

    @property
    def last_tokens(self) -> torch.LongTensor:
        """`[R]`"""
        return torch.cat([row.ids[:, -1] for row in self.rows])

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated, at most."""
        return max(row.tokens_left for row in self.rows if not row.finished)

    @property
    def unfinished(self) -> list[int]:
        """Of `rows`, those that still generate."""
        return [index for index, row in enumerate(self.rows) if not row.finished]

    @property
    def finished(self) -> bool:
        return not self.unfinished

    def select(self, rows: list[int]) -> None:
        """Goes on with these rows."""
        self.rows = [self.rows[index] for index in rows]
        if self._draws is not None:
            self._draws.rows = [row.index for row in self.rows]

    def start(self, outputs: Any) -> list[list[int]]:
        """Chooses the first tokens from the prompt's outputs."""
        rows = self.unfinished
        tokens = self._choose(rows, outputs.logits[:, -1])
        for row, token in zip(rows, tokens, strict=True):
            self._emit(row, token)
        self._finish_rows()
        for name in self._prefill:
            if getattr(self.rows[0], name) is not None:
                self._prefill[name] = getattr(outputs, name)
        return [[token] for token in tokens]

    def walk(self, tree: DraftTree, outputs: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Walks the trees with the target's choices. Returns each row's visited nodes and emitted tokens."""
        logits = outputs.logits[:, : tree.num_nodes]
        if self._plain_argmax and logits.device.type != "cpu":
            # all nodes at once, for the only synchronisation of a step (adaptive trees take another)
            choices = logits.argmax(dim=-1)
            host = torch.stack((tree.tokens.to(choices.device), tree.parents.to(choices.device), choices))
            tokens, parents, chosen = host.tolist()

            def choose(rows: list[int], nodes: list[int]) -> list[int]:
                return [chosen[row][node] for row, node in zip(rows, nodes, strict=True)]
        else:
            tokens, parents = torch.stack((tree.tokens, tree.parents)).tolist()

            def choose(rows: list[int], nodes: list[int]) -> list[int]:
                if len(self.rows) == 1:
                    return self._choose(rows, logits[:, nodes[0]])
                return self._choose(rows, logits[rows, nodes])

        walking = self.unfinished
        longest = max(row.length for row in self.rows)
        num_behind = [longest - row.length for row in self.rows]
        is_static = _compat.is_static(outputs.past_key_values)
        visited, emitted = walk_trees(walking, tokens, parents, choose, self._emit)
        for row in walking:
            first_node = longest - 1 if is_static else -tree.num_nodes
            self.rows[row].record(outputs, row, visited[row], first_node, num_behind[row])
            self.num_drafted_tokens += tree.num_nodes - 1
        self._finish_rows()
        return visited, emitted

    def _choose(self, rows: list[int], logits: torch.Tensor) -> list[int]:
        """The next tokens of some rows from the logits `[R, V]` at their last ones, as plain generation chooses."""
        chosen = [self.rows[row] for row in rows]
        logits = logits.to(copy=True, dtype=torch.float32, device=self._device)
        if chosen[0].logits is not None:
            for row, raw_logits in zip(chosen, logits.clone().split(1), strict=True):
                row.logits += (raw_logits,)
        if len(chosen) == 1:
            scores = chosen[0].processor(chosen[0].ids, logits)
        elif self._together:
            scores = self._processor(None, logits)
        else:
            scores = torch.cat(
                [row.processor(row.ids, row_logits) for row, row_logits in zip(chosen, logits.split(1), strict=True)]
            )
        if chosen[0].scores is not None:
            for row, row_scores in zip(chosen, scores.split(1), strict=True):
                row.scores += (row_scores,)
        if not self._config.do_sample:
            return scores.argmax(dim=-1).tolist()
        probabilities = nn.functional.softmax(scores, dim=-1)
        if self._draws is not None:  # as `torch.multinomial` does it for the whole batch
            return (probabilities / self._draws.take([row.index for row in chosen])).argmax(dim=-1).tolist()
        return torch.multinomial(probabilities, num_samples=1).flatten().tolist()

    def _emit(self, row: int, token: int) -> bool:
        """Appends a token to a row. Returns whether the row ends with it."""
        stops = self.rows[row].emit(token)
        return stops if self._pads else self.rows[row].tokens_left == 0

    def _finish_rows(self) -> None:
        end = self._end if self._all_stopped else None
        for row in self.rows:
            if self._pads:
                row.finished = row.stop_length is not None
            else:  # without padding, rows go on until the last one stops
                row.finished = row.tokens_left == 0 or (end is not None and row.length >= end)

    @property
    def _all_stopped(self) -> bool:
        return all(row.stop_length is not None for row in self._all_rows)

    @property
    def _end(self) -> int:
        """Length of what is returned."""
        return max(row.stop_length for row in self._all_rows)

    def padded_token(self, row: int, index: int) -> int:
        """A generated token of one of all rows, or what stands in its place after the row's end."""
        tokens = self._all_rows[row].tokens
        return tokens[index] if index < len(tokens) else _compat.padding_token(self._config)

    @property
    def accept_lengths(self) -> list[list[int]]:
        """See [`JakiroGenerateOutput`]."""
        return [row.accept_lengths for row in self._all_rows]

    @property
    def num_complete(self) -> int:
        """Tokens that have been generated for all rows."""
        if self.finished:
            return self._end - self._prompt_length
        return min(row.length for row in self._all_rows if not row.finished) - self._prompt_length

    def result(self, cache: Cache) -> JakiroGenerateOutput | torch.LongTensor:
        """What `generate` returns."""
        rows, end = self._all_rows, self._end
        sequences = rows[0].ids.new_full((len(rows), end), _compat.padding_token(self._config))
        for row, sequence in zip(rows, sequences, strict=True):
            sequence[: row.length] = row.ids[0, :end]
        if not self._config.return_dict_in_generate:
            return sequences
        num_tokens = end - self._prompt_length
        attentions, hidden_states = (
            None if prefill is None else (prefill, *_join([getattr(row, name) for row in rows], num_tokens - 1))
            for name, prefill in self._prefill.items()
        )
        return JakiroGenerateOutput(
            sequences=sequences,
            scores=_join([row.scores for row in rows], num_tokens),
            logits=_join([row.logits for row in rows], num_tokens),
            attentions=attentions,
            hidden_states=hidden_states,
            past_key_values=cache,
            accept_lengths=self.accept_lengths,
            num_drafted_tokens=self.num_drafted_tokens,
            num_verified_tokens=sum(sum(row.accept_lengths) for row in rows),
        )


def _join(records: list[tuple | None], num_tokens: int) -> tuple | None:
    """The rows' records of each token as one of the batch; zeros for rows that have ended."""
    if records[0] is None or len(records) == 1:
        return records[0]

    def join(parts: list[Any]) -> Any:
        example = next(part for part in parts if part is not None)
        if isinstance(example, torch.Tensor):
            return torch.cat([torch.zeros_like(example) if part is None else part for part in parts])
        layers = range(len(example))
        return tuple(join([None if part is None else part[layer] for part in parts]) for layer in layers)

    return tuple(
        join([record[token] if token < len(record) else None for record in records]) for token in range(num_tokens)
    )


def _path_attention(
    weights: torch.Tensor | None,
    row: int,
    node: int,
    path: list[int],
    first_node: int,
    window: int | None,
    num_behind: int,
) -> torch.Tensor | None:
    """
    A node's attention `[1, heads, 1, prefix + len(path)]` out of the trees' `[B, heads, n, columns]`, where a row's
    prefix is followed by `num_behind` columns that are not its own, then the tree's; with a sliding window at most
    that many.
    """
    if weights is None:
        return None
    root = first_node % weights.shape[-1]
    columns = [*range(root - num_behind), *(root + ancestor for ancestor in path)]
    columns = columns if window is None else columns[-window:]
    return weights[row : row + 1, :, node : node + 1, columns]


def _step_putter(
    streamer: BaseStreamer | None, batch: _Batch
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
    "JakiroGenerateOutput",
    "StepStreamer",
    "install_generation_hook",
    "is_jakiro_drafter",
    "jakiro_decode",
    "jakiro_generate",
    "remove_generation_hook",
]
