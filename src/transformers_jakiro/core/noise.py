# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The target's random numbers, and coupled sampling: the drafter guesses with the numbers that the target is about to
sample with.

`torch.multinomial` draws q ~ Exp(1) for each token and takes the token with the largest p / q. With g = -log q (Gumbel
noise) that is the largest of log p + g. Once the noise is known, a sample is as certain as a greedy choice, except for
what the drafter does not know of p. The state of the random generator reveals the noise in advance.

The target samples as ever, from its own probabilities and with its own draws; the noise only decides which tokens are
drafted. So the text is that of plain sampling, seed by seed and in distribution. (The same coupling between two models
that share their random numbers: Daliri et al., arXiv 2408.07978.)

Symbols in shape comments: B batch, R some of its rows, W nodes, V vocabulary, D tokens that can be drafted, K children
per node.
"""

from abc import ABC, abstractmethod
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

from .device import reads_wait
from .rows import Row, Rows
from .tree import DraftTree

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
# Draws of rows in step that can be taken back: those of a step at least.
_LAST_DRAWS = 256
# Draws of rows that are not, which are kept; the others are drawn again from the state that was noted.
_DRAWN_BYTES = 256 * 1024**2


class TargetNoise(ABC):
    """
    The random numbers of the target's next draws: the one source for what the target samples and for what the drafter
    expects it to sample. All draws are the global generator's, as in plain generation, so what others draw meanwhile
    (other threads, processors) is drawn once and by them alone.

    Args:
        batch_size (`int`): rows that `generate` was called with.
        vocab_size (`int`): V.
        device (`torch.device`): where the target samples.
    """

    samples_nodes = False  # whether all nodes of a tree can be sampled at once

    def __init__(self, batch_size: int, vocab_size: int, device: torch.device):
        self._shape = (batch_size, vocab_size)
        self._device = device
        self._generator = torch.Generator(device)  # to look ahead, and back

    @staticmethod
    def of(rows: Rows, vocab_size: int, draws_between: bool) -> "TargetNoise":
        """
        The kind for a generation.

        Args:
            rows ([`Rows`]): the generation's.
            vocab_size (`int`): V.
            draws_between (`bool`): whether something may draw between the target's draws, a processor for example.
        """
        in_step = rows.in_step and (draws_between or not reads_wait(rows.device))
        return (NoiseInStep if in_step else NoiseByRow)(len(rows.all), vocab_size, rows.device)

    @abstractmethod
    def gumbel(self, rows: Sequence[Row], num_draws: int) -> torch.Tensor:
        """Gumbel noise `[R, num_draws, V]` (float32) of the next draws of some rows."""

    @abstractmethod
    def sample(self, rows: Sequence[Row], probabilities: torch.Tensor) -> torch.Tensor:
        """The tokens `[R]` of the next draw of some rows, from probabilities `[R, V]`."""

    def sample_nodes(self, rows: Sequence[Row], probabilities: torch.Tensor, tree: DraftTree) -> torch.Tensor:
        """The tokens `[R, n]` after each node of the rows' trees, from probabilities `[R, n, V]`."""
        raise NotImplementedError(f"{type(self).__name__} draws when a token is chosen, one node at a time.")

    @abstractmethod
    def finish(self, rows: Rows) -> None:
        """
        Takes back what was drawn for tokens that plain generation has not come to, unless others have drawn since.
        """


class NoiseInStep(TargetNoise):
    """
    For rows in step, one row for example. `torch.multinomial` draws for all rows when their tokens are chosen, so
    processors may draw between; what is to come is read off a copy of the generator.
    """

    def __init__(self, batch_size: int, vocab_size: int, device: torch.device):
        super().__init__(batch_size, vocab_size, device)
        # Gumbel noise drawn in advance, each with the state of the random generator before it.
        self._drawn: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._num_draws = 0
        self._states = deque([random_state(device)], maxlen=_LAST_DRAWS)  # after each of the last draws

    def gumbel(self, rows: Sequence[Row], num_draws: int) -> torch.Tensor:
        state = random_state(self._device)
        while self._drawn and not torch.equal(self._drawn[0][0], state):  # used up, or made worthless by other draws
            self._drawn.popleft()
        if not self._drawn:
            self._generator.set_state(state)
        while len(self._drawn) < num_draws:
            state = self._generator.get_state()
            self._drawn.append((state, -exponential(self._shape, self._generator).log()))
        return torch.stack([self._drawn[index][1] for index in range(num_draws)], dim=1)

    def sample(self, rows: Sequence[Row], probabilities: torch.Tensor) -> torch.Tensor:
        tokens = torch.multinomial(probabilities, num_samples=1).squeeze(1)
        self._num_draws += 1
        self._states.append(random_state(self._device))
        return tokens

    def finish(self, rows: Rows) -> None:
        surplus = self._num_draws - rows.num_chosen
        if surplus > 0 and torch.equal(random_state(self._device), self._states[-1]):
            set_random_state(self._states[-1 - surplus], self._device)


class NoiseByRow(TargetNoise):
    """
    For rows that get ahead of one another, and where reading a tensor means waiting for the device. Each draw is one
    for all rows, like that of `torch.multinomial`, and each row takes its own part of the draw that it has come to,
    counted by its tokens.
    """

    samples_nodes = True

    def __init__(self, batch_size: int, vocab_size: int, device: torch.device):
        super().__init__(batch_size, vocab_size, device)
        self._states: list[torch.Tensor] = []  # before each draw
        self._last_state = random_state(device)  # after the last one
        self._draws: OrderedDict[int, torch.Tensor] = OrderedDict()  # the last ones used, each `[B, V]`
        self._max_draws = max(16, _DRAWN_BYTES // (4 * batch_size * vocab_size))

    def _numbers(self, rows: Sequence[Row], num_draws: int) -> torch.Tensor:
        """The exponential numbers `[R, num_draws, V]` (float32) of the next draws of some rows."""
        numbers = [
            torch.stack([self._draw(row.num_new_tokens + step)[row.index] for step in range(num_draws)])
            for row in rows
        ]
        return torch.stack(numbers)

    def gumbel(self, rows: Sequence[Row], num_draws: int) -> torch.Tensor:
        return -self._numbers(rows, num_draws).log()

    def sample(self, rows: Sequence[Row], probabilities: torch.Tensor) -> torch.Tensor:
        if not reads_wait(self._device) and probabilities[:, 0].isnan().any():  # then all of a row's are
            return torch.multinomial(probabilities, num_samples=1)  # which raises
        return (probabilities / self._numbers(rows, 1).squeeze(1)).argmax(dim=-1)

    def sample_nodes(self, rows: Sequence[Row], probabilities: torch.Tensor, tree: DraftTree) -> torch.Tensor:
        numbers = self._numbers(rows, tree.max_depth + 1)  # one draw per level
        depths = tree.depths.to(probabilities.device)[..., None]
        return (probabilities / numbers.gather(1, depths.expand_as(probabilities))).argmax(dim=-1)

    def finish(self, rows: Rows) -> None:
        # plain sampling draws for all rows until the last one has ended
        num_draws = rows.num_chosen
        if num_draws < len(self._states) and torch.equal(random_state(self._device), self._last_state):
            set_random_state(self._states[num_draws], self._device)

    def _draw(self, index: int) -> torch.Tensor:
        """All numbers of a draw, `[B, V]`."""
        while index >= len(self._states):
            self._states.append(random_state(self._device))
            self._draws[len(self._states) - 1] = exponential(self._shape, None, self._device)
            self._last_state = random_state(self._device)
        if index not in self._draws:
            self._generator.set_state(self._states[index])
            self._draws[index] = exponential(self._shape, self._generator)
        self._draws.move_to_end(index)
        while len(self._draws) > self._max_draws:
            self._draws.popitem(last=False)
        return self._draws[index]


class SamplingCoupling:
    """
    What a drafter makes of the target's noise: the tokens that the target will most likely sample.

    Args:
        noise ([`TargetNoise`]): the target's.
        temperature (`float`): the target's.
        logits_processor (`Sequence[LogitsProcessor]`): the generation's; top-k, top-p and the like are taken into
            account.
        device (`torch.device`): where the target samples.
    """

    def __init__(
        self,
        noise: TargetNoise,
        temperature: float,
        logits_processor: Sequence[LogitsProcessor],
        device: torch.device,
    ):
        self.noise = noise
        self.temperature = temperature
        self._device = device
        self._warpers = [processor for processor in logits_processor if type(processor) in WARPERS]
        self._top_k = max(
            (warper.top_k for warper in self._warpers if isinstance(warper, TopKLogitsWarper)), default=0
        )

    def best(
        self, logits: torch.Tensor, gumbel: torch.Tensor, tree_temperature: float, top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The tokens that the target will most likely sample.

        Args:
            logits (`[B, W, D]`, float32): the drafter's.
            gumbel (`[B, 1, D]`): noise of the draw.
            tree_temperature (`float`): how far the drafter's logits may be from the target's.
            top_k (`int`): K.

        Returns:
            Log-probabilities and indices among the D, best first, `[B, W, K]`.
        """
        scores, candidates = logits + self.temperature * gumbel, None
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
        if not torch.equal((probabilities / exponential((batch_size, 1024), ours)).argmax(dim=-1), tokens):
            return False
    return True


def exponential(
    shape: tuple[int, int], generator: torch.Generator | None, device: torch.device | None = None
) -> torch.Tensor:
    """Exponential numbers `[B, V]` (float32), as `torch.multinomial` draws them. None: from the global generator."""
    device = device if generator is None else generator.device
    return torch.empty(shape, device=device).exponential_(generator=generator)


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


__all__ = [
    "WARPERS",
    "NoiseByRow",
    "NoiseInStep",
    "SamplingCoupling",
    "TargetNoise",
    "can_couple",
    "exponential",
    "random_state",
    "set_random_state",
]
