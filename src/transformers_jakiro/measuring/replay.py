# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The first two parts of tuning: the target's answers, and trees grown at every position of them.

A replay tells what trees of any number of nodes would have accepted, without generating with any of them.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, set_seed

from ..core.drafting import Budget, DraftingContext, Observation
from ..core.jakiro_drafter import JakiroDrafter
from ..core.noise import NoiseInStep, SamplingCoupling, can_couple, random_state, set_random_state
from ..core.rows import Rows
from ..core.target import Target
from ..core.tree import DraftTree, TreeShape
from .acceptance import sampling_options
from .benchmark import Benchmark
from .profiling import synchronize
from .tree_fields import TOP_K

# -- text ------------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """
    An answer of the target, and what the drafter reads of it.

    Args:
        temperature (`float`): 0 is greedy.
        input_ids (`torch.Tensor` of shape `(1, T)`): the prompt and the answer.
        prompt_length (`int`): tokens of the prompt.
        max_length (`int`): the most tokens that prompt and answer were allowed to have.
        features (`torch.Tensor` of shape `(1, T, F)`): what the drafter reads of the target at each token.
        logits_processor (`LogitsProcessorList`): that of the generation.
        random_states (`list[torch.Tensor]`, *optional*): states of the random generator, one before each new token is
            drawn. None unless the drafter knows the target's random numbers.
    """

    temperature: float
    input_ids: torch.Tensor
    prompt_length: int
    max_length: int
    features: torch.Tensor
    logits_processor: LogitsProcessorList
    random_states: list[torch.Tensor] | None

    @property
    def num_positions(self) -> int:
        """Tokens at which a step can start and still has one to draft: all of the answer but the last."""
        return self.input_ids.shape[1] - self.prompt_length - 1


class _RandomStates:
    """A streamer that records the state of the random generator before each new token is drawn."""

    def __init__(self, device: torch.device):
        self._device = device
        self.states: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:  # the prompt first
        self.states.append(random_state(self._device))

    def end(self) -> None:
        pass


def logits_processors(target: PreTrainedModel, **options: Any) -> LogitsProcessorList:
    """The logits processors of `target.generate(**options)`, those of the target's generation config included."""
    found = LogitsProcessorList()

    def decode(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        found.extend(logits_processor)
        return input_ids

    model: Any = target  # `PreTrainedModel` does not declare `generate`
    model.generate(**options, custom_generate=decode)
    return found


@torch.no_grad()
def answer_prompts(benchmark: Benchmark, prompts: Sequence[str], temperatures: Sequence[float]) -> Iterator[Answer]:
    """The target's answer to each prompt at each temperature."""
    model: Any = benchmark.target
    view = Target.of(benchmark.target, benchmark.draft)
    for temperature, prompt in itertools.product(temperatures, prompts):
        inputs = benchmark.encode(prompt)
        prompt_length = inputs["input_ids"].shape[1]
        device = inputs["input_ids"].device
        options = {**inputs, "max_new_tokens": benchmark.max_new_tokens, **sampling_options(temperature)}
        coupled = temperature > 0 and benchmark.draft.config.couple_sampling and can_couple(device)
        streamer = _RandomStates(device) if coupled else None
        set_seed(0)
        output = model.generate(**options, streamer=streamer)
        yield Answer(
            temperature=temperature,
            input_ids=output,
            prompt_length=prompt_length,
            max_length=prompt_length + benchmark.max_new_tokens,
            features=view.features(output),
            logits_processor=logits_processors(benchmark.target, **options),
            random_states=None if streamer is None else streamer.states,
        )


# -- replay ----------------------------------------------------------------------------------------------------------


class Replay:
    """
    Trees at every position of the answers.

    Args:
        target, draft: the two models.
        answers (`Sequence[Answer]`): see [`answer_prompts`].

    Attributes:
        seconds: by depth and width, how long it took to grow each whole tree.
    """

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel, answers: Sequence[Answer]):
        self._target = Target.of(target, draft)
        self._draft = draft
        self._answers = answers
        self.seconds: dict[tuple[int, int], list[float]] = {}

    @property
    def num_positions(self) -> int:
        """Trees that one depth and width take."""
        return sum(answer.num_positions for answer in self._answers)

    def ranks(self, depth: int, width: int) -> Iterator[list[int]]:
        """
        Grows a tree at each position of each answer, in order.

        Yields:
            The ranks (from 0) of the following tokens among the tree's candidates. A tree of N nodes accepts the
            tokens whose rank is below N, up to the first whose rank is not.
        """
        for answer in self._answers:
            yield from self._ranks(answer, depth, width)

    def _ranks(self, answer: Answer, depth: int, width: int) -> Iterator[list[int]]:
        position = answer.prompt_length
        device = answer.input_ids.device
        coupling = None
        if answer.random_states is not None:
            noise = NoiseInStep(1, self._draft.config.vocab_size, device)
            coupling = SamplingCoupling(noise, answer.temperature, answer.logits_processor, device)
        sampling_temperature = answer.temperature if coupling is None else 0.0
        shape = whole_tree(self._draft, depth, width, sampling_temperature)
        drafter = make_drafter(self._draft, self._target, shape, answer.input_ids, coupling)
        tokens = answer.input_ids[0].tolist()
        drafter.observe(observation(answer.input_ids[:, :position], answer.features[:, :position]))
        while position < len(tokens) - 1:
            limit = min(depth, answer.max_length - 2 - position)  # a step emits one token more than it drafts
            if answer.random_states is not None:
                set_random_state(answer.random_states[position - answer.prompt_length + 1], device)
            synchronize(device)
            start = time.perf_counter()
            tree = drafter.propose(answer.input_ids[:, position], Budget(limit))
            synchronize(device)
            if limit == depth:
                self.seconds.setdefault((depth, width), []).append(time.perf_counter() - start)
            yield path_ranks(tree, tokens[position + 1 : -1])  # the last one is emitted, never accepted
            here = slice(position, position + 1)
            drafter.observe(observation(answer.input_ids[:, here], answer.features[:, here]))
            position += 1

    def accepted_lengths(self, ranks: Sequence[list[int]], num_draft_tokens: int) -> list[int]:
        """The tokens that each step accepts when steps follow one another through the answers."""
        lengths = []
        start = 0
        for answer in self._answers:
            end = start + answer.num_positions
            position = start
            while position < end:
                following = ranks[position]
                accepted = next((i for i, rank in enumerate(following) if rank >= num_draft_tokens), len(following))
                lengths.append(accepted)
                position += accepted + 1
            start = end
        return lengths


def make_drafter(
    draft: PreTrainedModel,
    target: Target,
    shape: TreeShape,
    input_ids: torch.Tensor,
    coupling: SamplingCoupling | None = None,
) -> JakiroDrafter:
    """A drafter for texts `[B, T]` that grows trees of a given shape."""
    return JakiroDrafter(draft, DraftingContext(target, Rows.of_texts(input_ids), coupling=coupling), shape)


def observation(tokens: torch.Tensor, features: torch.Tensor) -> Observation:
    """An observation of `tokens` (`[B, T]`) with their `features` (`[B, T, F]`)."""
    return Observation([tokens.shape[1]] * tokens.shape[0], tokens, features=features)


def whole_tree(draft: PreTrainedModel, depth: int, width: int, sampling_temperature: float) -> TreeShape:
    """The shape of trees that keep all of their candidates."""
    config: Any = draft.config  # which `PreTrainedModel` declares as its base class
    shape = TreeShape.from_config(config, sampling_temperature=sampling_temperature)
    return replace(
        shape,
        depth=depth,
        width=width,
        top_k=TOP_K,
        num_draft_tokens=num_candidates(depth, width),
        two_levels=config.head_mode == "contrastive" and depth >= 2,
        static_tree=None,
    )


def num_candidates(depth: int, width: int) -> int:
    """Candidates of a tree: the children of the root, then those of `width` nodes on each further level."""
    return TOP_K * (1 + (depth - 1) * width)


def path_ranks(tree: DraftTree, following: Sequence[int]) -> list[int]:
    """The ranks of a text's tokens among a tree's candidates, as far as the tree holds the text."""
    if tree.scores is None:  # the root alone
        return []
    parents = tree.parents[0].tolist()
    tokens = tree.tokens[0].tolist()
    order = tree.scores[0, 1:].sort(descending=True, stable=True).indices.tolist()
    rank = {node + 1: place for place, node in enumerate(order)}
    children = {
        (parent, token): node for node, (parent, token) in enumerate(zip(parents, tokens, strict=True)) if node
    }
    node = 0
    ranks = []
    for token in following:
        child = children.get((node, token))
        if child is None:
            break
        ranks.append(rank[child])
        node = child
    return ranks


__all__ = ["Answer", "Replay", "answer_prompts", "path_ranks"]
