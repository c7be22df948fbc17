# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Trees sized while generating: the same text, sizes that pay, and plain decoding where drafting loses."""

import random
from unittest import mock

import pytest
import torch

from helpers.comparing import compare
from helpers.drafting import LoneDrafter
from helpers.prompts import make_prompt
from helpers.targets import make_drafter, make_target
from helpers.trees import scored_tree
from transformers_jakiro.core import adaptive
from transformers_jakiro.core.adaptive import AdaptiveSchedule
from transformers_jakiro.core.tree import DraftTree

ADAPTIVE = {"num_assistant_tokens_schedule": "heuristic"}


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "top_k": 0, "temperature": 0.8}])
@pytest.mark.parametrize("always_drafts", [False, True])
def test_the_text_is_the_same(sampling, always_drafts):
    target = make_target("gemma2", window=9)
    draft = make_drafter(target, tree_depth=4, tree_top_k=4, num_draft_tokens=20)
    options = {"seed": 3 if sampling else None, "max_new_tokens": 90, **ADAPTIVE, **sampling}
    clock = {"return_value": 0.0} if always_drafts else {"wraps": adaptive.time.perf_counter}
    with mock.patch.object(adaptive.time, "perf_counter", **clock) as now:
        output = compare(target, draft, {"input_ids": make_prompt(12)}, knows=always_drafts, **options)
    assert now.call_count > 3
    assert output.num_drafted_tokens > 0


@pytest.mark.parametrize("options", [{}, {"num_assistant_tokens_schedule": "constant"}])
def test_only_where_it_is_asked_for(options):
    target = make_target()
    made = AdaptiveSchedule.__init__
    with mock.patch.object(AdaptiveSchedule, "__init__", autospec=True, side_effect=made) as schedule:
        target.generate(make_prompt(6), assistant_model=make_drafter(target), max_new_tokens=5, **options)
        schedule.assert_not_called()
        target.generate(make_prompt(6), assistant_model=make_drafter(target), max_new_tokens=5, **ADAPTIVE)
        schedule.assert_called_once()


def star(scores: list[float]) -> DraftTree:
    """A tree of one level."""
    size = len(scores)
    return DraftTree(
        tokens=torch.arange(size + 1)[None],
        parents=torch.zeros(1, size + 1, dtype=torch.long),
        max_depth=1,
        scores=torch.tensor([[0.0, *scores]]),
    )


def upper_levels(tree: DraftTree, depth: int) -> DraftTree:
    kept = (tree.depths[0] <= depth).nonzero().flatten()  # parents stand before their children, levels one by one
    return DraftTree(
        tree.tokens[:, kept], tree.parents[:, kept], max_depth=min(depth, tree.max_depth), scores=tree.scores[:, kept]
    )


class World:
    """
    A clock, and a machine on which steps have a price: `plain` seconds, or `base + slope * nodes` with a tree, the
    first tree ten times that, and `forward` seconds for each of its levels.
    """

    def __init__(self, plain: float, base: float, slope: float, forward: float = 0.0, depth: int = 1):
        self.plain, self.base, self.slope, self.forward, self.now = plain, base, slope, forward, 0.0
        self.schedule, self.sizes, self.tokens, self.depths = AdaptiveSchedule(depth), [], 0, []

    def run(self, tree: DraftTree, accepted: int, num_tokens: int) -> None:
        with mock.patch.object(adaptive.time, "perf_counter", side_effect=lambda: self.now):
            while self.tokens < num_tokens:
                drafted = DraftTree.root_only(tree.tokens[:, 0])
                budget = self.schedule.budget(num_tokens)
                if budget.max_depth > 0:
                    self.depths.append(budget.depth)
                    self.now += self.forward * self.depths[-1]
                    drafted = self.schedule.resize(upper_levels(tree, self.depths[-1]))
                nodes = drafted.num_nodes - 1
                self.sizes.append(nodes)
                price = self.base + self.slope * nodes if nodes else self.plain
                self.now += price if any(self.sizes[:-1]) else 10 * price
                emitted = 1 + (accepted if nodes else 0)
                self.schedule.record(drafted, [[0] * emitted])
                self.tokens += emitted


def test_a_bad_drafter_costs_little():
    """Sure of itself, never right, and each of its steps as long as two."""
    world = World(plain=1.0, base=1.5, slope=0.01)
    world.run(star([-0.1] * 50), accepted=0, num_tokens=400)
    assert world.now - 9 * 2.0 < 1.03 * 400  # the drafter reads the prompt once
    assert sum(size > 0 for size in world.sizes) >= 3


def test_a_good_drafter_is_used():
    world = World(plain=1.0, base=1.2, slope=0.002)
    world.run(star([-0.1] + [-3.0] * 40), accepted=2, num_tokens=600)
    assert world.sizes.count(0) == 2  # to know what plain decoding costs
    assert world.now - 9 * 1.3 < 600 * 1.4 / 3 * 1.05


def test_bad_luck_is_not_a_bad_drafter():
    """Each step of chance: none accepted in one of seven, else two or more. Drafting goes on all the same."""
    for seed in range(10):
        chance, world = random.Random(seed), World(plain=1.0, base=1.6, slope=0.005)
        tree = star([-0.3 - 0.2 * index for index in range(24)])
        while world.tokens < 300:
            accepted = 0 if chance.random() < 0.15 else chance.choice([1, 1, 2, 2, 3, 5])
            world.run(tree, accepted, world.tokens + 1)
        assert world.sizes.count(0) < 0.15 * len(world.sizes)


def test_it_comes_back_when_the_text_gets_easier():
    world = World(plain=1.0, base=1.5, slope=0.01)
    tree = star([-0.5] * 20)
    world.run(tree, accepted=0, num_tokens=100)
    world.run(tree, accepted=3, num_tokens=1200)
    assert 0 not in world.sizes[-100:]


def test_dear_nodes_make_small_trees():
    tree = star([-1.0 - index for index in range(30)])
    sizes = []
    for slope in (0.0, 0.05):
        world = World(plain=1.0, base=1.0, slope=slope)
        world.run(tree, accepted=1, num_tokens=200)
        sizes.append(world.sizes[-1])
    assert sizes[0] > 12  # the rest adds nothing that float32 could tell
    assert 1 <= sizes[1] < 10


@pytest.mark.parametrize(("forward", "expected"), [(0.001, {7}), (0.01, {5}), (0.2, {2}), (0.8, {1})])
def test_levels_that_pay(forward, expected):
    """Each level of a chain is reached half as often as the one above; one tree in eight looks a level deeper."""
    scores = (0.5 ** torch.arange(8.0)).log()[None]
    tree = DraftTree(torch.arange(8)[None], torch.tensor([[0, *range(7)]]), max_depth=7, scores=scores)
    world = World(plain=1.0, base=1.1, slope=0.001, forward=forward, depth=7)
    world.run(tree, accepted=1, num_tokens=600)
    assert set(world.depths[-7:]) - {max(expected) + 1} == expected


def test_a_default_device_does_not_matter():
    world, tree = World(plain=1.0, base=1.2, slope=0.002), star([-0.1, -3.0, -3.0])
    with torch.device("meta"):
        world.run(tree, accepted=2, num_tokens=40)
    assert tree.num_nodes - 1 in world.sizes


def test_unknown_schedules():
    target = make_target()
    with pytest.raises(ValueError, match=r"'heuristic'.*got 'tpyo'"):
        target.generate(
            make_prompt(6),
            assistant_model=make_drafter(target),
            num_assistant_tokens_schedule="tpyo",
            max_new_tokens=3,
        )


def test_the_best_nodes_keep_their_ancestors():
    tree = scored_tree()
    order = tree.scores[0, 1:].sort(descending=True).indices
    for size, tokens, parents in ((1, [7, 9], [0, 0]), (2, [7, 4, 9], [0, 0, 0]), (3, [7, 4, 9, 2], [0, 0, 0, 1])):
        part = adaptive._best_nodes(tree, order[None, :size])
        assert part.tokens[0].tolist() == tokens
        assert part.parents[0].tolist() == parents
        assert part.depths[0].max() <= part.max_depth
    assert AdaptiveSchedule(1).resize(DraftTree.root_only(torch.tensor([5]))).num_nodes == 1


@pytest.mark.parametrize("padding", [0, 2])
def test_what_is_read_without_drafting_is_not_lost(padding):
    """Plain steps between two trees: the drafter takes them in all at once, up to some number, then in parts."""
    target = make_target()
    draft = make_drafter(target, tree_depth=3, tree_top_k=3, num_draft_tokens=9)
    ids = make_prompt(150)
    with torch.no_grad():
        features = target.model(ids).last_hidden_state
    mask = torch.ones(1, 10, dtype=torch.long)
    mask[:, :padding] = 0
    stepwise, paused = (LoneDrafter(draft, target) for _ in range(2))
    for drafter in (stepwise, paused):
        drafter.observe(features[:, :10], ids[:, :10], mask)
        drafter.propose(ids[:, 10])
    for position in range(10, 140):
        for drafter in (stepwise, paused):
            drafter.observe(features[:, position : position + 1], ids[:, position : position + 1])
        tree = stepwise.propose(ids[:, position + 1])
        if position in (12, 30, 139):
            other = paused.propose(ids[:, position + 1])
            assert torch.equal(tree.tokens, other.tokens)
            assert torch.equal(tree.parents, other.parents)
