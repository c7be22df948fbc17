# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Coupled sampling: the drafter guesses with the random numbers that the target is about to sample with.

`torch.multinomial` draws q ~ Exp(1) for each token and takes the token with the largest p / q. With g = -log q (Gumbel
noise) that is the largest of log p + g: once the noise is known, what the target samples is as certain as what it
decodes greedily, but for what the drafter does not know of p. The random generator's state tells the noise in advance.

The target samples as ever, from its own probabilities and with its own draws; only which tokens are drafted depends on
the noise. Hence the text is that of plain sampling, seed by seed and in distribution. (The same coupling between two
models that share their random numbers: Daliri et al., arXiv 2408.07978.)

In a batch, `torch.multinomial` draws for all rows at once, the finished ones too. Here rows get ahead of one another,
so each takes its own part of the draw that it has come to.

Symbols in shape comments: B batch, R some rows of it, W nodes, V vocabulary, D tokens that can be drafted, K children
per node.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import cache

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# those that leave tokens out, judging by one distribution alone (what subclasses do is not known)
WARPERS = (
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
# Tokens that warpers look at, without top-k: sorting a whole vocabulary for each node would cost more than it brings.
_NUM_CANDIDATES = 256
# What a token loses in log-probability that warpers leave out of the *drafter's* distribution: the target's may well
# keep it. Tokens per forward of a chat model of 44M parameters at temperature 0.7, top-k 20, top-p 0.8: 3.6 at 0, 4.1
# at 1.5, 4.0 at 3, 3.8 at infinity.
_LEFT_OUT_PENALTY = 1.5
# Draws of a batch that are kept; the others are drawn again from the state that was noted.
_DRAWN_BYTES = 256 * 1024**2


class SamplingCoupling:
    """
    The noise of one generation that samples.

    Args:
        temperature (`float`): the target's.
        logits_processor (`Sequence[LogitsProcessor]`): the generation's; of these top-k, top-p and the like are taken
            into account.
        vocab_size (`int`): V.
        device (`torch.device`): where the target samples.
    """

    def __init__(
        self,
        temperature: float,
        logits_processor: Sequence[LogitsProcessor],
        vocab_size: int,
        device: torch.device,
    ):
        self.temperature = temperature
        self._warpers = [processor for processor in logits_processor if type(processor) in WARPERS]
        self._top_k = max(
            (warper.top_k for warper in self._warpers if isinstance(warper, TopKLogitsWarper)), default=0
        )
        self._vocab_size, self._device = vocab_size, device
        self._generator = torch.Generator(device)
        # noise drawn in advance, each with the state of the random generator before it
        self._drawn: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def noise(self, num_draws: int) -> torch.Tensor:
        """
        Gumbel noise `[num_draws, V]` (float32) of the next tokens to be sampled. Leaves the random generator as it is.
        """
        state = random_state(self._device)
        while self._drawn and not torch.equal(self._drawn[0][0], state):  # what has been used up, or is of no use
            self._drawn.popleft()
        if not self._drawn:
            self._generator.set_state(state)
        while len(self._drawn) < num_draws:
            state = self._generator.get_state()
            self._drawn.append((state, -_exponential((1, self._vocab_size), self._generator).log()))
        return torch.cat([self._drawn[index][1] for index in range(num_draws)])

    def best(
        self, logits: torch.Tensor, noise: torch.Tensor, tree_temperature: float, top_k: int
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """
        The tokens that the target will most likely sample.

        Args:
            logits (`[B, W, D]`, float32): the drafter's.
            noise (`[D]` or `[B, 1, D]`): of the draw.
            tree_temperature (`float`): how far the drafter's logits may be from the target's.
            top_k (`int`): K.

        Returns:
            Log-probabilities and indices among the D, best first, `[B, W, K]`.
        """
        scores, candidates = logits + self.temperature * noise, None
        if self._warpers:
            limit = min(logits.shape[-1], max(self._top_k or _NUM_CANDIDATES, top_k))
            likeliest, candidates = logits.topk(limit, dim=-1)
            kept = (likeliest / self.temperature).flatten(0, -2).to(self._device)  # where warpers hold tensors
            for warper in self._warpers:
                kept = warper(None, kept)
            scores = scores.gather(-1, candidates)
            penalty = (_LEFT_OUT_PENALTY * tree_temperature) * kept.isneginf().to(logits.device)
            scores = scores - penalty.view_as(scores)
        log_probs, best = (scores / tree_temperature).log_softmax(dim=-1).topk(top_k, dim=-1)
        return log_probs, best if candidates is None else candidates.gather(-1, best)


class BatchCoupling(SamplingCoupling):
    """
    The noise of a batch whose rows have come to different draws. It makes the draws of plain sampling itself, so that
    each row gets the tokens it would get there.

    Args:
        batch_size (`int`): B.
        Others: as for [`SamplingCoupling`].
    """

    def __init__(self, batch_size: int, *args):
        super().__init__(*args)
        self.rows = list(range(batch_size))  # those that are still generated
        self._shape = (batch_size, self._vocab_size)
        self._next_draw = [0] * batch_size
        self._states = [random_state(self._device)]  # before each draw
        self._draws: OrderedDict[int, torch.Tensor] = OrderedDict()  # the last ones used
        self._max_draws = max(16, _DRAWN_BYTES // (4 * batch_size * self._vocab_size))

    def take(self, rows: Sequence[int]) -> torch.Tensor:
        """The exponential numbers `[R, V]` of the next draw of each row (counted among all B), which is done then."""
        numbers = torch.stack([self._draw(self._next_draw[row])[row] for row in rows])
        for row in rows:
            self.advance(row, 1)
        return numbers

    def numbers(self, num_draws: int) -> torch.Tensor:
        """The exponential numbers `[R, num_draws, V]` of the next draws of each of the `rows`."""
        draws = [
            torch.stack([self._draw(self._next_draw[row] + step)[row] for step in range(num_draws)])
            for row in self.rows
        ]
        return torch.stack(draws)

    def advance(self, row: int, num_draws: int) -> None:
        """So many draws of a row (counted among all B) are done."""
        self._next_draw[row] += num_draws

    def noise(self, num_draws: int) -> torch.Tensor:
        """Gumbel noise `[R, num_draws, V]` (float32) of the next tokens of each of the `rows`."""
        return -self.numbers(num_draws).log()

    def finish(self) -> None:
        """Leaves the random generator as plain sampling does, which goes on until the last row has ended."""
        set_random_state(self._states[max(self._next_draw)], self._device)

    def _draw(self, index: int) -> torch.Tensor:
        """All numbers of a draw, `[B, V]`."""
        if index in self._draws:
            self._draws.move_to_end(index)
            return self._draws[index]
        for number in range(min(index, len(self._states) - 1), index + 1):
            self._generator.set_state(self._states[number])
            self._draws[number] = _exponential(self._shape, self._generator)
            if number + 1 == len(self._states):
                self._states.append(self._generator.get_state())
        while len(self._draws) > self._max_draws:
            self._draws.popitem(last=False)
        return self._draws[index]


@cache
def can_couple(device: torch.device) -> bool:
    """Whether a device samples as described above, and lets its random state be read."""
    if device.type not in ("cpu", "cuda", "xpu"):
        return False
    ours, theirs = torch.Generator(device), torch.Generator(device)
    for batch_size in (1, 1, 3):  # by chance: one in 2^50
        probabilities = torch.full((batch_size, 1024), 1 / 1024, device=device)
        ours.set_state(theirs.get_state())
        tokens = torch.multinomial(probabilities, num_samples=1, generator=theirs).flatten()
        if not torch.equal((probabilities / _exponential((batch_size, 1024), ours)).argmax(dim=-1), tokens):
            return False
    return True


def _exponential(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, device=generator.device).exponential_(generator=generator)


def random_state(device: torch.device) -> torch.Tensor:
    """State of the random generator that a device samples with."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Takes a device's random generator back to a state that [`random_state`] gave."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


__all__ = ["BatchCoupling", "SamplingCoupling", "can_couple", "random_state", "set_random_state"]
