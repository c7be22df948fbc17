# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Sizes trees while generating, from the drafter's confidence and the cost of the steps so far. Where drafting loses
time, it decodes plainly (`num_assistant_tokens_schedule="heuristic"`). In float32 the text stays the same. In half
precision, the last bits of the logits depend on the size of a forward.
"""

import time
from collections.abc import Sequence

import torch

from .drafting import Budget
from .tree import DraftTree

# weight of the past when a mean takes in a step
_MEMORY = 0.9
# plain steps that are timed; the first step of a generation is slower than the others
_PLAIN_STEPS = (2, 3)
# What drafting may lose, in plain steps: at the start, added by each plain step, and at most. What drafting gains is
# added too. Drafting pauses when nothing is left, and resumes when there is enough for one step that fails.
_ALLOWANCE, _ALLOWANCE_PER_STEP, _MOST_ALLOWANCE = 2.0, 0.012, 8.0
# drafted steps that measure the cost of a tree: one that is not timed, because it reads the prompt, and a whole tree
_TRIALS = 2
# levels of their trees; after them, every eighth tree gets one level more than pays, to learn what it would bring
_TRIAL_DEPTH, _DEEPER_EVERY = 3, 8


class ConstantSchedule:
    """Leaves trees as the drafter makes them."""

    def budget(self, tokens_left: int, chain: bool = False) -> Budget:
        """Starts a step. Returns the budget of its tree; `tokens_left` tokens may still be generated."""
        return Budget(max_depth=tokens_left - 1, chain=chain)

    def resize(self, tree: DraftTree) -> DraftTree:
        """Returns the part of a tree to verify."""
        return tree

    def record(self, tree: DraftTree, emitted: Sequence[Sequence[int]]) -> None:
        """Ends a step, in which the target verified `tree` and each row emitted the tokens in `emitted`."""


class AdaptiveSchedule(ConstantSchedule):
    """
    Sizes trees by the gains and costs of the steps so far.

    The model of a step: the tree has L levels, and its M likeliest nodes are verified. The step lasts `a + b · M`
    seconds, plus `f` for each forward of the drafter, and emits `1 + c · Σ p` tokens, where p are the probabilities of
    the nodes' paths. a, b, c and f are fitted to the steps so far. L follows from the average gain of each level, M
    from the tree that was drafted; both maximize tokens per second.

    Args:
        depth (`int`): levels of a whole tree.
        levels_without_forward (`int`): the number of levels that need no forward of the drafter.
    """

    def __init__(self, depth: int, levels_without_forward: int = 0):
        self.depth = min(depth, _TRIAL_DEPTH)
        self._levels_without_forward = levels_without_forward
        self._steps = 0
        self._trials = 0  # drafted steps
        self._allowance, self._paused = _ALLOWANCE, False
        # seconds of a plain step, of a drafted step, of a drafted step without the drafting, of a drafter forward
        self._plain, self._drafted, self._verified, self._forward = _Mean(), _Mean(), _Mean(), _Mean()
        self._planned = 0.0  # seconds of the next drafted step
        self._gains = [_Mean() for _ in range(depth)]  # Σ p of each level
        self._expected, self._accepted = _Mean(), _Mean()
        # M, M², seconds without the drafting, and M · seconds
        self._nodes, self._squares, self._seconds, self._products = _Mean(), _Mean(), _Mean(), _Mean()
        self._expectation: float | None = None
        self._start = self._drafting = 0.0

    def budget(self, tokens_left: int, chain: bool = False) -> Budget:
        self._start, self._drafting = time.perf_counter(), 0.0
        self._steps += 1
        is_plain = self._steps in _PLAIN_STEPS or self._paused
        return Budget(max_depth=0 if is_plain else tokens_left - 1, depth=self.depth, chain=chain)

    def resize(self, tree: DraftTree) -> DraftTree:
        """Returns the part of a tree that pays best, `[B, M + 1]` nodes."""
        self._expectation = None
        if tree.scores is None or tree.num_nodes == 1:
            return tree
        probabilities = tree.scores[:, 1:].float().cpu().exp()
        self._drafting = time.perf_counter() - self._start
        self._learn_levels(tree, probabilities)
        probabilities, order = probabilities.sort(descending=True, stable=True)
        # accepted tokens of the M best nodes by the drafter's probabilities; in a batch, the mean of the rows
        expected = probabilities.cumsum(dim=-1).mean(dim=0)
        size = len(expected)
        if self._trials >= _TRIALS:
            base, slope = self._cost()
            nodes = torch.arange(1, size + 1, device=expected.device)
            rates = (1 + self._calibration() * expected) / (self._drafting + base + slope * nodes)
            size = int(rates.argmax()) + 1
        self._expectation = float(expected[size - 1])
        return _best_nodes(tree, order[:, :size]) if size < len(expected) else tree

    def record(self, tree: DraftTree, emitted: Sequence[Sequence[int]]) -> None:
        seconds, nodes = time.perf_counter() - self._start, tree.num_nodes - 1
        counts = [len(tokens) for tokens in emitted if tokens]
        num_emitted = sum(counts) / len(counts)  # mean of the rows that had not ended
        if nodes == 0:
            if self._steps > 1:
                self._plain.add(seconds)
                self._learn_cost(0, seconds)
                self._allow(_ALLOWANCE_PER_STEP)
            return
        self._trials += 1
        if self._trials == 1:  # this step read the whole prompt
            return
        if self._trials > _TRIALS:  # a step slowed down by other work on the machine says little
            seconds = min(seconds, 3 * self._drafted.value)
        drafting = min(self._drafting, seconds)
        self._drafted.add(seconds)
        self._verified.add(seconds - drafting)
        self._forward.add(drafting / self._num_forwards(tree.max_depth))
        self._learn_cost(nodes, seconds - drafting)
        if self._expectation is not None:
            self._expected.add(self._expectation)
            self._accepted.add(num_emitted - 1)
        self._plan()
        if self._plain.value > 0:
            self._allow(num_emitted - seconds / self._plain.value)

    def _allow(self, num_steps: float) -> None:
        """Adds to what drafting may lose, in plain steps; pauses or resumes drafting."""
        self._allowance = min(max(self._allowance + num_steps, 0.0), _MOST_ALLOWANCE)
        if self._allowance < _ALLOWANCE_PER_STEP:
            self._paused = True
        elif self._paused:
            self._paused = self._allowance < self._planned / self._plain.value - 1

    def _learn_levels(self, tree: DraftTree, probabilities: torch.Tensor) -> None:
        depths = tree.depths[:, 1:].to(probabilities.device)
        sums = probabilities.new_zeros(tree.max_depth + 1).scatter_add_(0, depths.flatten(), probabilities.flatten())
        for gain, total in zip(self._gains, sums[1:].tolist(), strict=False):
            gain.add(total / len(depths))

    def _learn_cost(self, nodes: int, seconds: float) -> None:
        for mean, value in (
            (self._nodes, nodes),
            (self._squares, nodes**2),
            (self._seconds, seconds),
            (self._products, nodes * seconds),
        ):
            mean.add(value)

    def _cost(self) -> tuple[float, float]:
        """a and b: the least-squares line through the steps."""
        variance = self._squares.value - self._nodes.value**2
        if variance < 1:
            return self._seconds.value, 0.0
        slope = (self._products.value - self._nodes.value * self._seconds.value) / variance
        slope = min(max(slope, 0.0), self._seconds.value / max(1.0, self._nodes.value))
        return self._seconds.value - slope * self._nodes.value, slope

    def _calibration(self) -> float:
        """c, between 0.1 and 2."""
        if self._expected.count == 0 or self._expected.value == 0:
            return 1.0
        return min(max(self._accepted.value / self._expected.value, 0.1), 2.0)

    def _num_forwards(self, depth: int) -> int:
        return max(1, depth - self._levels_without_forward)

    def _plan(self) -> None:
        """Chooses L."""
        factor, expected, best_rate, best = self._calibration(), 0.0, 0.0, 1
        last, ratio = 1.0, 1.0
        for depth, gain in enumerate(self._gains, start=1):
            if gain.count > 0:
                last, ratio = gain.value, min(1.0, gain.value / max(last, 1e-9))
            else:  # not measured: the gain is assumed to shrink as it did at the level above
                last *= ratio
            expected += last
            seconds = self._verified.value + self._forward.value * self._num_forwards(depth)
            rate = (1 + factor * expected) / max(seconds, 1e-9)
            if rate > best_rate:
                best_rate, best, self._planned = rate, depth, seconds
        self.depth = min(best + (self._trials % _DEEPER_EVERY == 0), len(self._gains))


class _Mean:
    """An exponential moving average, and a plain mean of the first values."""

    def __init__(self):
        self.count, self.value = 0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        share = max(1 - _MEMORY, 1 / self.count)
        self.value += share * (value - self.value)


def _best_nodes(tree: DraftTree, nodes: torch.Tensor) -> DraftTree:
    """
    The root and the given nodes of a tree. `nodes`, `[B, M]`, are numbered without the root and include the ancestors
    of each node.
    """
    kept = torch.nn.functional.pad(nodes.sort(dim=-1).values + 1, (1, 0)).to(tree.tokens.device)
    place = torch.zeros_like(tree.parents).scatter_(
        1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    )
    return DraftTree(
        tokens=tree.tokens.gather(1, kept),
        parents=place.gather(1, tree.parents.gather(1, kept)),
        max_depth=tree.max_depth,
        scores=None if tree.scores is None else tree.scores.gather(1, kept),
    )


__all__ = ["AdaptiveSchedule", "ConstantSchedule"]
