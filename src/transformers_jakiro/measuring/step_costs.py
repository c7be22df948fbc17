# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The third part of tuning: what a step with a tree costs, as the sum of three measured times."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from ..core import compat
from ..core.drafting import Budget
from ..core.inputs import TargetInputs
from ..core.masks import why_no_trees
from ..core.rows import Rows
from ..core.target import Target
from ..core.tree import DraftTree
from ..core.tree_forward import TreeForward
from .benchmark import Benchmark
from .profiling import calls_of, synchronize
from .replay import Answer, Replay, make_drafter, observation, whole_tree
from .tree_fields import TreeFields

MAX_NODES = 96
TREE_SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 60, 72, 84, MAX_NODES + 1)  # the root included


@dataclass(frozen=True)
class Costs:
    """
    Median times of a step's parts, in seconds.

    Args:
        draft: growing a tree, by depth and width.
        target: a forward of the target, by nodes, the root included.
        rest: what else a step does.
    """

    draft: dict[tuple[int, int], float]
    target: dict[int, float]
    rest: float

    def target_seconds(self, num_nodes: int) -> float:
        """A forward of the target. Between two measured numbers of nodes the time is linear."""
        below = max(n for n in self.target if n <= num_nodes)
        above = min((n for n in self.target if n >= num_nodes), default=below)
        if above == below:
            return self.target[below]
        share = (num_nodes - below) / (above - below)
        return (1 - share) * self.target[below] + share * self.target[above]

    def step_seconds(self, depth: int, width: int, num_draft_tokens: int) -> float:
        """A step with such a tree."""
        return self.draft[depth, width] + self.target_seconds(num_draft_tokens + 1) + self.rest


def measure_costs(
    benchmark: Benchmark,
    prompts: Sequence[str],
    replay: Replay,
    answer: Answer,
    shapes: Sequence[tuple[int, int]],
    batch_size: int,
) -> Costs:
    """
    Measures what the steps of a batch cost.

    Args:
        benchmark ([`Benchmark`]): the models.
        prompts: to generate for.
        replay ([`Replay`]): of `shapes` (depths and widths). It has timed how trees grow for one sequence.
        answer ([`Answer`]): the text below which forwards are timed.
        batch_size: sequences generated at a time.
    """
    if batch_size == 1:
        draft_seconds = {shape: statistics.median(seconds) for shape, seconds in replay.seconds.items()}
        rounds = 7
    else:
        draft_seconds = draft_costs(benchmark.target, benchmark.draft, answer, shapes, batch_size)
        rounds = 3
    texts = answer.input_ids.expand(batch_size, -1)
    costs = Costs(draft_seconds, target_costs(benchmark.target, texts, TREE_SIZES, rounds), rest=0.0)
    # the rest of a step: the time of one tree's steps, less what was measured of their parts
    depth, width = max(costs.draft)
    tree = TreeFields(depth, width, num_draft_tokens=24)
    whole = step_seconds(benchmark, full_batches(prompts, batch_size)[0], tree)
    return replace(costs, rest=max(0.0, whole - costs.step_seconds(depth, width, tree.num_draft_tokens)))


@torch.no_grad()
def draft_costs(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    answer: Answer,
    shapes: Sequence[tuple[int, int]],
    batch_size: int,
    rounds: int = 3,
) -> dict[tuple[int, int], float]:
    """
    Median seconds of growing greedy trees for a batch whose rows are all the same answer.

    Args:
        shapes: depths and widths, which take turns.
        rounds: how often each is timed.
    """
    view = Target.of(target, draft)
    text = answer.input_ids.expand(batch_size, -1)
    features = answer.features.expand(batch_size, -1, -1)[:, :-1]
    drafters = {
        (depth, width): make_drafter(draft, view, whole_tree(draft, depth, width, sampling_temperature=0.0), text)
        for depth, width in shapes
    }
    for drafter in drafters.values():
        drafter.observe(observation(text[:, :-1], features))
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(rounds + 1):
        for shape, drafter in drafters.items():
            synchronize(text.device)
            start = time.perf_counter()
            drafter.propose(text[:, -1], Budget(drafter.depth))
            synchronize(text.device)
            seconds[shape].append(time.perf_counter() - start)
            drafter.observe(observation(text[:, -2:-1], features[:, -1:]))
    return {shape: statistics.median(times[1:]) for shape, times in seconds.items()}  # the first one read the answer


@torch.no_grad()
def target_costs(
    target: PreTrainedModel, input_ids: torch.Tensor, sizes: Sequence[int], rounds: int = 7
) -> dict[int, float]:
    """
    Median seconds of the target's forward over a tree.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`): the texts below which the trees lie.
        sizes: nodes, the root included. The sizes take turns.
        rounds: how often each is timed.
    """
    batch_size, prompt_length = input_ids.shape
    cache: Any = DynamicCache(config=target.config)
    positions = torch.arange(prompt_length, device=input_ids.device)[None]
    model_kwargs = {compat.CACHE: cache, "position_ids": positions, "use_cache": True}
    outputs = target(input_ids, logits_to_keep=1, **model_kwargs)
    rows = Rows.of_texts(input_ids)
    rows.begin(prompt_length)
    inputs = TargetInputs(target, rows, outputs, model_kwargs, why_no_trees(target))
    chain_only = inputs.why_no_trees is not None
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    view, config = Target(target), GenerationConfig()
    with TreeForward(view, cache, rows, inputs, config, model_kwargs, chain_only=chain_only) as forward:
        for _ in range(rounds + 1):
            for size in sizes:
                parents = torch.zeros((batch_size, size), dtype=torch.long, device=input_ids.device)
                tree = DraftTree(input_ids[:, :1].expand(-1, size).contiguous(), parents, max_depth=1)
                synchronize(input_ids.device)
                start = time.perf_counter()
                forward.run(tree)
                synchronize(input_ids.device)
                seconds[size].append(time.perf_counter() - start)
                forward.keep()
    return {size: statistics.median(times[1:]) for size, times in seconds.items()}


def step_seconds(benchmark: Benchmark, prompts: Sequence[str], tree: TreeFields) -> float:
    """
    Median seconds of a step of greedy generation for a batch of prompts, from one forward of the target to the next.
    """
    model: Any = benchmark.target  # `PreTrainedModel` does not declare `generate`
    method = tree.method(benchmark.draft, len(prompts))
    with method.ready(), calls_of(TreeForward, "run") as forwards:
        model.generate(
            **benchmark.encode_batch(prompts),
            **method.options,
            do_sample=False,
            max_new_tokens=max(benchmark.max_new_tokens, 32),
        )
    steps = [after - before for (before, _), (after, _) in itertools.pairwise(forwards)]
    return statistics.median(steps) if steps else 0.0


def full_batches(prompts: Sequence[str], batch_size: int) -> list[list[str]]:
    """All prompts in batches of one size. The first prompts fill the last batch."""
    endless = itertools.cycle(prompts)
    return [list(itertools.islice(endless, batch_size)) for _ in range(math.ceil(len(prompts) / batch_size))]


__all__ = ["Costs", "draft_costs", "full_batches", "measure_costs", "step_seconds", "target_costs"]
