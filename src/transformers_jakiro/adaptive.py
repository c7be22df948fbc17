# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trees sized while generating: by the drafter's confidence and by what steps have cost so far, with plain decoding where
drafting loses (`num_assistant_tokens_schedule="heuristic"`). In float32 the text is the same; in half precision
the size of a forward decides in its last bits.
"""

import time

import torch

from .tree import DraftTree

# weight of the past when a step is added to a mean
_MEMORY = 0.9
# steps that tell what a plain step costs; the first step of a generation is slower than others
_PLAIN_STEPS = (2, 3)
# What drafting may lose, in plain steps: so many to begin with, more as plain steps go by and by what it gains, but at
# most so many. Drafting pauses when that is used up, and goes on when there is enough for a step that fails.
_ALLOWANCE, _ALLOWANCE_PER_STEP, _MOST_ALLOWANCE = 2.0, 0.012, 8.0
# drafted steps in which to learn what a tree costs: one that is not timed, a whole tree, half a tree
_TRIALS = 3


class AdaptiveSchedule:
    """
    State of one generation. Per step: [`~AdaptiveSchedule.wants_tree`], then [`~AdaptiveSchedule.resize`] the tree,
    then [`~AdaptiveSchedule.record`] what came out.

    A step with M drafted nodes is taken to last `a + b · M` seconds and to emit `1 + c · Σ p` tokens, with p the
    probabilities of the M likeliest paths; a, b and c are fitted to the steps so far. The M that emits most tokens per
    second is chosen.
    """

    def __init__(self):
        self._steps = 0
        self._trials = 0  # drafted steps
        self._allowance, self._paused = _ALLOWANCE, False
        self._plain = _Mean()
        self._drafted_seconds = _Mean()
        self._expected, self._accepted = _Mean(), _Mean()
        self._nodes, self._squares, self._products = _Mean(), _Mean(), _Mean()  # of M, M², M · seconds
        self._expectation: float | None = None
        self._start = 0.0

    def wants_tree(self) -> bool:
        """Starts a step. Whether to draft in it; if not, the target is run on the last token alone."""
        self._start = time.perf_counter()
        self._steps += 1
        return self._steps not in _PLAIN_STEPS and not self._paused

    def resize(self, tree: DraftTree) -> DraftTree:
        """The part of a tree that pays best, `[B, M + 1]` nodes."""
        self._expectation = None
        if tree.scores is None or tree.num_nodes == 1:
            return tree
        scores, order = tree.scores[:, 1:].float().cpu().sort(descending=True, stable=True)
        # accepted tokens of the M best, by the drafter's own account; of a batch, the mean of its rows
        expected = scores.exp().cumsum(dim=-1).mean(dim=0)
        if self._trials < _TRIALS - 1:
            size = len(expected)
        elif self._trials == _TRIALS - 1:  # another size, to tell a from b
            size = max(1, len(expected) // 2)
        else:
            base, slope = self._cost()
            rates = (1 + self._calibration() * expected) / (
                base + slope * torch.arange(1, len(expected) + 1, device=expected.device)
            )
            size = int(rates.argmax()) + 1
        self._expectation = float(expected[size - 1])
        return _best_nodes(tree, order[:, :size]) if size < len(expected) else tree

    def record(self, tree: DraftTree, num_emitted: float) -> None:
        """Ends a step: it sent `tree` to the target and emitted so many tokens; of a batch, the mean of its rows."""
        seconds, nodes = time.perf_counter() - self._start, tree.num_nodes - 1
        if nodes == 0:
            if self._steps > 1:
                self._plain.add(seconds)
                self._allow(_ALLOWANCE_PER_STEP)
            return
        self._trials += 1
        if self._trials == 1:  # this step read the whole prompt
            return
        if self._trials > _TRIALS:  # what else ran on the machine is not the tree's fault
            seconds = min(seconds, 3 * self._drafted_seconds.value)
        self._drafted_seconds.add(seconds)
        for mean, value in ((self._nodes, nodes), (self._squares, nodes**2), (self._products, nodes * seconds)):
            mean.add(value)
        if self._expectation is not None:
            self._expected.add(self._expectation)
            self._accepted.add(num_emitted - 1)
        if self._plain.value > 0:
            self._allow(num_emitted - seconds / self._plain.value)

    def _allow(self, num_steps: float) -> None:
        """Adds to what drafting may lose, in plain steps, and lets it pause or go on."""
        self._allowance = min(max(self._allowance + num_steps, 0.0), _MOST_ALLOWANCE)
        if self._allowance == 0:
            self._paused = True
        elif self._paused:
            self._paused = self._allowance < self._drafted_seconds.value / self._plain.value - 1

    def _cost(self) -> tuple[float, float]:
        """a and b: the line of least squares through the drafted steps."""
        variance = self._squares.value - self._nodes.value**2
        if variance < 1:
            return self._drafted_seconds.value, 0.0
        slope = (self._products.value - self._nodes.value * self._drafted_seconds.value) / variance
        slope = min(max(slope, 0.0), self._drafted_seconds.value / max(1.0, self._nodes.value))
        return self._drafted_seconds.value - slope * self._nodes.value, slope

    def _calibration(self) -> float:
        """c"""
        if self._expected.count == 0 or self._expected.value == 0:
            return 1.0
        return min(max(self._accepted.value / self._expected.value, 0.1), 2.0)


class _Mean:
    """A mean that forgets."""

    def __init__(self):
        self.count, self.value = 0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        share = max(1 - _MEMORY, 1 / self.count)
        self.value += share * (value - self.value)


def _best_nodes(tree: DraftTree, nodes: torch.LongTensor) -> DraftTree:
    """The root and the given nodes `[B, M]` (counted without it) of a tree. They must hold their ancestors."""
    kept = torch.nn.functional.pad(nodes.sort(dim=-1).values + 1, (1, 0)).to(tree.tokens.device)
    place = torch.zeros_like(tree.parents).scatter_(
        1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    )
    return DraftTree(
        tokens=tree.tokens.gather(1, kept),
        parents=place.gather(1, tree.parents.gather(1, kept)),
        max_depth=tree.max_depth,
        scores=tree.scores.gather(1, kept),
    )


__all__ = ["AdaptiveSchedule"]
