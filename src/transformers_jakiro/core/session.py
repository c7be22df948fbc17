# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The set-up of a generation: everything that the decoding loop works with, made once.

Symbols in shape comments: B batch, T tokens of the prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from . import compat
from .adaptive import AdaptiveSchedule, ConstantSchedule
from .choosing import TokenChooser
from .drafting import Drafter, DraftingContext, Observation, check_proposal, require_drafter_class
from .hook import explicit_num_assistant_tokens
from .inputs import TargetInputs
from .noise import SamplingCoupling, TargetNoise, can_couple
from .outputs import Recorder
from .requests import accept_chains, check_borders, check_prompt, why_only_chains
from .rotary import RotaryBorders
from .rows import Rows
from .streaming import StreamFeeder
from .target import Target
from .target_cache import check_croppable, fit_static_cache, is_static, is_user_defined, static_capacity
from .tree import DraftTree
from .tree_forward import TreeForward


@dataclass
class Session:
    """
    One generation.

    Args:
        target ([`Target`]): the target, as its drafter sees it.
        rows ([`Rows`]): the sequences.
        chooser ([`TokenChooser`]): chooses the target's tokens.
        drafter ([`Drafter`]): proposes trees.
        schedule ([`ConstantSchedule`]): says what a tree may cost.
        recorder ([`Recorder`]): keeps what is asked for, and packs the output.
        stream ([`StreamFeeder`]): hands tokens on.
        noise ([`TargetNoise`], *optional*): the target's random numbers, where it samples and they can be known.
        why_only_chains (`str`, *optional*): why the target verifies chains only.
        borders ([`RotaryBorders`]): where the target's rotary embeddings change.
        shows_cache (`bool`): whether the caller gets to see the cache.
        input_ids (`[B, T]`), cache, generation_config, model_kwargs: the call's.
    """

    target: Target
    rows: Rows
    chooser: TokenChooser
    drafter: Drafter
    schedule: ConstantSchedule
    recorder: Recorder
    stream: StreamFeeder
    noise: TargetNoise | None
    why_only_chains: str | None
    borders: RotaryBorders
    shows_cache: bool
    input_ids: torch.Tensor
    cache: Cache
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    _inputs: TargetInputs | None = None  # once the prompt has been read

    @property
    def inputs(self) -> TargetInputs:
        """The arguments of the target's forwards after the prompt's."""
        assert self._inputs is not None, "the prompt comes first"
        return self._inputs

    @classmethod
    def start(
        cls,
        model: PreTrainedModel,
        assistant: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None,
        num_assistant_tokens: int | None,
        model_kwargs: dict[str, Any],
    ) -> "Session":
        """
        Checks a call and prepares it. The arguments are those of
        [`~transformers_jakiro.core.generation.jakiro_decode`].

        Raises:
            ValueError, NotImplementedError: see there.
        """
        check_prompt(input_ids, model_kwargs)
        cache: Any = model_kwargs.get(compat.CACHE)
        reason = why_only_chains(model, cache, generation_config)
        if reason is not None:
            accept_chains(model, cache, reason)
        drafter_class = require_drafter_class(assistant)
        target = drafter_class.view(assistant, model)
        rows = Rows(input_ids, generation_config, stopping_criteria, logits_processor)
        noise, coupling = _noise_for(target, rows, generation_config, logits_processor)
        if reason is not None or (generation_config.do_sample and noise is None):
            rows.in_step = True
        if num_assistant_tokens is None:
            num_assistant_tokens = explicit_num_assistant_tokens(generation_config)
        context = DraftingContext(
            target,
            rows,
            num_assistant_tokens,
            temperature=(generation_config.temperature or 1.0) if generation_config.do_sample else 0.0,
            coupling=coupling,
        )
        drafter = drafter_class(assistant, context)
        borders = RotaryBorders(model, rows.max_length)
        if borders:
            check_borders(model, cache, borders)
            rows.in_step = True
        if is_static(cache):
            cache = fit_static_cache(model, cache, generation_config, drafter.num_draft_tokens)
            model_kwargs[compat.CACHE] = cache
            compile_config = compat.compile_config_of(model, model_kwargs, generation_config)
            drafter.make_static(static_capacity(cache), compile_config)
        adaptive = compat.wants_adaptive_trees(generation_config)
        shows_cache = bool(generation_config.return_dict_in_generate) or is_user_defined(cache, generation_config)
        return cls(
            target=target,
            rows=rows,
            chooser=TokenChooser(rows, generation_config, logits_processor, noise),
            drafter=drafter,
            schedule=AdaptiveSchedule(drafter.depth, drafter.levels_without_forward)
            if adaptive
            else ConstantSchedule(),
            recorder=Recorder(rows),
            stream=StreamFeeder(streamer, rows),
            noise=noise,
            why_only_chains=reason,
            borders=borders,
            shows_cache=shows_cache,
            input_ids=input_ids,
            cache=cache,
            generation_config=generation_config,
            model_kwargs=model_kwargs,
        )

    def tree_forward(self) -> TreeForward:
        """The target's forwards over trees, once the prompt is in its cache."""
        largest = self.drafter.num_draft_tokens + 1
        adaptive = isinstance(self.schedule, AdaptiveSchedule)
        sizes = (1, -(-largest // 4), -(-largest // 2), largest) if adaptive else (largest,)
        return TreeForward(
            self.target,
            self.cache,
            self.rows,
            self.inputs,
            self.generation_config,
            self.model_kwargs,
            sizes=sizes,
            chain_only=self.inputs.why_no_trees is not None,
            borders=self.borders.borders,
        )

    @cached_property
    def may_drop_rows(self) -> bool:
        """
        Whether rows that have ended leave the batch. Rows in step do not, nor does a row that something else may count
        on: whoever gets to see the cache, an argument or hook of the target. A static cache keeps its shape.
        """
        return not (
            self.rows.in_step
            or self.shows_cache
            or is_static(self.cache)
            or self.inputs.has_row_values
            or compat.knows_rows(self.target.model)
        )

    def propose(self) -> DraftTree:
        """The drafter's next trees, checked."""
        rows = self.rows
        tokens_left = rows.tokens_left
        if self.borders:
            limit = self.borders.tokens_left(self.inputs.num_tokens, rows.all[0].length)
            tokens_left = min(tokens_left, limit)
        budget = self.schedule.budget(tokens_left, self.inputs.why_no_trees is not None)
        tree = self.drafter.propose(rows.last_tokens, budget)
        check_proposal(self.drafter, tree, len(rows.active), budget, self.target.num_logits)
        tree = self.schedule.resize(tree)
        if self.borders and tree.max_depth > budget.max_depth:
            tree = DraftTree.root_only(rows.last_tokens)
        if rows.in_step and rows.padding is not None and len(rows.unfinished) < len(rows.active):
            ended = [place for place, row in enumerate(rows.active) if row.finished]
            tree = tree.with_chains(ended, rows.padding)
        return tree

    def prefill(self) -> Any:
        """
        Runs the target over the prompt, as plain `generate` does, and lets the drafter observe it. Returns the last
        outputs.

        Raises:
            NotImplementedError: if the target's cache holds a state that cannot be cropped, or its head is of a kind
                that drafters cannot use.
        """
        outputs: Any = None
        for outputs, observation in self._prompt_chunks():  # noqa: B007 - the last ones are returned
            self.drafter.observe(observation)
        self.cache = cache = cast(Cache, compat.cache_of(outputs))
        if self.target.reads_hidden_states:
            self.target.check_head(outputs.hidden_states[-1][:, -1], outputs.logits[:, -1])
        check_croppable(self.target.model, self.cache)
        self.rows.begin(int(self.cache.get_seq_length()))
        self._inputs = TargetInputs(
            self.target.model,
            self.rows,
            outputs,
            {**self.model_kwargs, compat.CACHE: self.cache},
            self.why_only_chains,
        )
        if self.why_only_chains is None and self.inputs.why_no_trees is not None:
            accept_chains(self.target.model, cache, self.inputs.why_no_trees)
            self.rows.in_step = True
        if self.borders:
            self.inputs.check_rereads(self.borders.borders)
        elif self.inputs.why_no_trees is None:
            self.inputs.forget_outputs()
        return outputs

    def _prompt_chunks(self) -> Iterator[tuple[Any, Observation]]:
        """The prompt's forwards, and what there is to observe in each."""
        embeddings = self.model_kwargs.get("inputs_embeds")
        attention_mask = self.model_kwargs.get("attention_mask")
        wanted = self.generation_config.output_hidden_states or self.target.output_hidden_states
        kwargs = {**self.model_kwargs, "output_hidden_states": wanted}
        given = self.input_ids if embeddings is None else embeddings
        already_cached = int(self.cache.get_seq_length())
        for outputs, start in compat.prefill(self.target.model, self.input_ids, self.generation_config, kwargs):
            end = int(cast(Cache, compat.cache_of(outputs)).get_seq_length())
            # what was given is the whole prompt, or what is not cached yet
            skipped = 0 if given.shape[1] >= end else already_cached
            features = self.target.read(outputs.hidden_states) if self.target.reads_hidden_states else None
            # a model may put tokens of its own before the text: images, soft prompts
            texts = given[:, max(0, start - skipped) : end - skipped]
            num_tokens = texts.shape[1]
            yield (
                outputs,
                Observation(
                    num_tokens=[num_tokens] * len(self.rows.all),
                    tokens=texts if embeddings is None else None,
                    embeddings=None if embeddings is None else texts,
                    features=None if features is None else features[:, -num_tokens:],
                    attention_mask=None if attention_mask is None else attention_mask[:, start:end][:, -num_tokens:],
                ),
            )


def _noise_for(
    target: Target, rows: Rows, generation_config: GenerationConfig, logits_processor: LogitsProcessorList
) -> tuple[TargetNoise | None, SamplingCoupling | None]:
    """The random numbers that the target will draw, and how a drafter uses them; None if they cannot be known."""
    if not generation_config.do_sample or not can_couple(rows.device):
        return None, None
    draws_between = not rows.judged_alone
    noise = TargetNoise.of(rows, target.num_logits, draws_between)
    return noise, SamplingCoupling(noise, generation_config.temperature or 1.0, logits_processor, rows.device)


__all__ = ["Session"]
