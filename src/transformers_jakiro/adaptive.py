# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trees sized while generating: by the drafter's confidence and by what steps have cost so far, with plain decoding where
drafting loses (`num_assistant_tokens_schedule="heuristic"`). In float32 the text is the same; in half precision
the size of a forward decides in its last bits.
"""

import time
from collections import deque

import torch

from .tree import DraftTree

# weight of the past when a step is added to a mean
_MEMORY = 0.9
# plain steps after drafting has lost; twice as many each time it loses again, in one step
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 1024
# drafted steps before drafting may lose: one that is not timed, a whole tree, half a tree, two more
_TRIALS = 5
# drafting loses when the last so many drafted steps gave less than this share of what plain ones give
_WINDOW, _LEAST_GAIN = 16, 0.95


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
        self._timed = False  # whether a drafted step was timed; the first one is not
        self._pause, self._next_pause = 0, _FIRST_PAUSE
        self._plain = _Mean()
        self._drafted_seconds = _Mean()
        self._recent: deque[tuple[float, float]] = deque(maxlen=_WINDOW)  # tokens and seconds of drafted steps
        self._expected, self._accepted = _Mean(), _Mean()
        self._nodes, self._squares, self._products = _Mean(), _Mean(), _Mean()  # of M, M², M · seconds
        self._expectation: float | None = None
        self._start = 0.0

    def wants_tree(self) -> bool:
        """Starts a step. Whether to draft in it; if not, the target is run on the last token alone."""
        self._start = time.perf_counter()
        self._steps += 1
        if self._steps == 2:  # to know what a plain step costs; the first step of a generation is slower than others
            return False
        if self._pause > 0:
            self._pause -= 1
            return False
        return True

    def resize(self, tree: DraftTree) -> DraftTree:
        """The part of a tree that pays best, `[B, M + 1]` nodes."""
        self._expectation = None
        if tree.scores is None or tree.num_nodes == 1:
            return tree
        scores, order = tree.scores[:, 1:].float().cpu().sort(descending=True, stable=True)
        # accepted tokens of the M best, by the drafter's own account; of a batch, the mean of its rows
        expected = scores.exp().cumsum(dim=-1).mean(dim=0)
        if self._trials < 2:
            size = len(expected)
        elif self._trials == 2:  # another size, to tell a from b
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
            return
        self._trials += 1
        if not self._timed:  # this step read the whole prompt
            self._timed = True
            return
        if self._drafted_seconds.count > _TRIALS:  # what else ran on the machine is not the tree's fault
            seconds = min(seconds, 3 * self._drafted_seconds.value)
        self._drafted_seconds.add(seconds)
        self._recent.append((num_emitted, seconds))
        for mean, value in ((self._nodes, nodes), (self._squares, nodes**2), (self._products, nodes * seconds)):
            mean.add(value)
        if self._expectation is not None:
            self._expected.add(self._expectation)
            self._accepted.add(num_emitted - 1)
        if self._plain.count == 0 or self._trials < _TRIALS:
            return
        tokens, spent = (sum(values) for values in zip(*self._recent, strict=True))
        if tokens * self._plain.value < _LEAST_GAIN * spent:
            self._recent.clear()
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)
        elif len(self._recent) == _WINDOW:
            self._next_pause = _FIRST_PAUSE

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
