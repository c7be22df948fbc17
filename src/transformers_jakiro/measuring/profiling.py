# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Where a generation's time goes, measured from outside: timers around forwards and methods, and streamers that record
steps.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from transformers import GenerationMixin, PreTrainedModel

from ..core.choosing import TokenChooser
from ..core.jakiro_drafter import JakiroDrafter
from ..core.target import DraftHead
from ..core.tree import DraftTree, TreeShape
from ..core.tree_forward import TreeForward
from .summary import PARTS

# Methods, and the part that their time counts as, without the forwards in them. Making a tree's mask is part of
# building the tree.
TIMED_METHODS: tuple[tuple[type, str, str], ...] = (
    (JakiroDrafter, "propose", "tree"),
    (TreeForward, "run", "tree"),
    (TokenChooser, "walk", "verification"),
    (TreeForward, "keep", "cache"),
)


def synchronize(device: torch.device) -> None:
    """Waits for the device's queued work, so that timers include it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class ForwardTimer:
    """
    Adds up the time spent in the forwards of modules, in `seconds` by name. A forward includes everything it calls.
    Heads for a part of the vocabulary, which each generation makes for itself, count as the module `head` if it is
    given.

    Args:
        device (`torch.device`): synchronized at each change from one timed part to another.
        methods: triples of a class, the name of its method, and the name to count it under. Timed calls within the
            method count under their own names only.
        **modules: the modules by name.
    """

    def __init__(
        self, device: torch.device, methods: Sequence[tuple[type, str, str]] = (), **modules: torch.nn.Module
    ):
        self.seconds = dict.fromkeys((*modules, *(name for _, _, name in methods)), 0.0)
        self._device, self._methods, self._modules = device, methods, modules
        self._open: list[str] = []  # running parts, the innermost last; nothing is opened within a forward
        self._in_forward = 0  # number of nested forwards
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator["ForwardTimer"]:
        """Measures within the context, and removes all hooks at its end."""
        patched: list[tuple[type, str, Any]] = []
        handles = []

        def patch(owner: type, attribute: str, name: str, forward: bool) -> None:
            original = getattr(owner, attribute)

            def timed(*args: Any, **kwargs: Any) -> Any:
                self._start(name, forward)
                try:
                    return original(*args, **kwargs)
                finally:
                    self._stop(forward)

            patched.append((owner, attribute, original))
            setattr(owner, attribute, timed)

        try:
            for owner, attribute, name in self._methods:
                patch(owner, attribute, name, forward=False)
            if "head" in self._modules:
                patch(DraftHead, "__call__", "head", forward=True)
            for name, module in self._modules.items():
                handles += [
                    module.register_forward_pre_hook(lambda *_, name=name: self._start(name, forward=True)),
                    module.register_forward_hook(lambda *_: self._stop(forward=True)),
                ]
            yield self
        finally:
            for owner, attribute, original in patched:
                setattr(owner, attribute, original)
            for handle in handles:
                handle.remove()

    def _start(self, name: str, forward: bool) -> None:
        if not self._in_forward:
            self._charge()
            self._open.append(name)
        self._in_forward += forward

    def _stop(self, forward: bool) -> None:
        self._in_forward -= forward
        if not self._in_forward:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        """Adds the time since the last change to the innermost running part."""
        synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def calls_of(owner: type, name: str) -> Iterator[list[tuple[float, Any]]]:
    """Records the calls of a method within the context: when each began, and on which object."""
    original = getattr(owner, name)
    calls: list[tuple[float, Any]] = []

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((time.perf_counter(), self))
        return original(self, *args, **kwargs)

    setattr(owner, name, noted)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


class BatchRecorder:
    """
    A streamer that counts the tokens of each step in a batch: one per row, from the prompt's forward and from each
    later one of plain `generate`.

    Args:
        on_prefill: called once the prompt's forward has emitted its token.
    """

    def __init__(self, on_prefill: Callable[[], None]):
        self._on_prefill = on_prefill
        self._prompt_seen = False
        self.num_tokens: list[int] = []  # beginning with the prefill's
        self.levels: list[dict[str, Any]] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, then the tokens of each step."""
        if not self._prompt_seen:  # `generate` hands over the prompt first
            self._prompt_seen = True
            return
        self._count_tokens(value)
        if len(self.num_tokens) == 1:
            self._on_prefill()

    def _count_tokens(self, value: torch.Tensor) -> None:
        self.num_tokens.append(1)

    def end(self) -> None:
        """Called after the last token; nothing is left to do."""


class StepRecorder(BatchRecorder):
    """
    A streamer that records how many tokens each forward of the target emitted, and how deep each walk went into its
    tree. It works with every kind of `generate` for one sequence. For our own loop it is a
    [`~transformers_jakiro.StepStreamer`].

    Args:
        on_prefill: called once the prompt's forward has emitted its token.
        shape ([`TreeShape`], *optional*): shape of whole trees. The levels of shallower trees are not counted, because
            their last level may come from another branch than that level of a whole tree.
    """

    def __init__(self, on_prefill: Callable[[], None], shape: TreeShape | None = None):
        super().__init__(on_prefill)
        self._shape = shape

    def _count_tokens(self, value: torch.Tensor) -> None:
        self.num_tokens.append(value.numel())

    def put_step(self, tokens: torch.Tensor, tree: DraftTree | None, visited: list[int]) -> None:
        """Takes a step of our own loop: its tokens, its tree, and the nodes that the walk visited."""
        self.put(tokens)
        if tree is None or (self._shape is not None and tree.max_depth < self._shape.depth):
            return
        parents = set(tree.parents[0, 1:].tolist())
        for level, node in enumerate(visited, start=1):
            if node in parents:
                self._count(level, accepted=level < len(visited))

    def _count(self, level: int, accepted: bool) -> None:
        if level > len(self.levels):
            contrastive = self._shape is not None and self._shape.two_levels and level == self._shape.depth
            branch = "contrastive" if contrastive else "autoregressive"
            self.levels.append({"level": level, "branch": branch, "reached": 0, "accepted": 0})
        self.levels[level - 1]["reached"] += 1
        self.levels[level - 1]["accepted"] += accepted


def parts_of(seconds: dict[str, float], total: float) -> dict[str, float]:
    """
    Seconds of each part of a generation ([`~transformers_jakiro.measuring.summary.PARTS`]). The drafter's head counts
    as drafter, and what was not timed as `other`.

    Args:
        seconds: from a [`ForwardTimer`].
        total: duration of the generation.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for name, value in seconds.items():
        parts["drafter" if name in ("draft", "head") else name] += value
    parts["other"] = total - sum(parts.values())
    return parts


def reset_peak_memory(device: torch.device) -> None:
    """Resets the peak if the device keeps one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, Any] | None:
    """
    The peak of memory in `bytes`, and its `scope`. On CUDA this is the memory allocated since [`reset_peak_memory`]
    ("device"); elsewhere the peak of this process since it started ("process"). None if it is unknown.
    """
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "scope": "device"}
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": peak if sys.platform == "darwin" else 1024 * peak, "scope": "process"}


class StepClock:
    """A [`~transformers_jakiro.StepStreamer`] that calls a function at the end of each step."""

    def __init__(self, on_step: Callable[[], None]):
        self._on_step = on_step

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt."""

    def put_step(self, tokens: torch.Tensor, tree: DraftTree | None, visited: list[int]) -> None:
        """Takes a step."""
        self._on_step()

    def end(self) -> None:
        """Called after the last token; nothing is left to do."""


def _after_steps(marks: list[tuple[float, float]], steps: int) -> Callable[..., torch.Tensor]:
    """A stopping criterion: `steps` steps have been marked."""
    return lambda input_ids, scores: torch.full((input_ids.shape[0],), len(marks) >= steps, device=input_ids.device)


def context_growth(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    lengths: Sequence[int] = (1024, 8192),
    steps: int = 20,
    rounds: int = 3,
) -> list[dict[str, float]]:
    """
    How a step's time grows with the context. The context is of random tokens, and the lengths take turns.

    Args:
        target, draft: the two models.
        lengths: tokens of context.
        steps (`int`): steps to measure per length and round.
        rounds (`int`): how often each length is measured.

    Returns:
        For each length, the median milliseconds of a step, of the target's forward in it, and of the rest.
    """
    records: dict[int, list[tuple[float, float]]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, record in records.items():
            record += _time_steps(target, draft, length, steps)
    rows = []
    for length, record in records.items():
        total = 1e3 * statistics.median(total for total, _ in record)
        in_target = 1e3 * statistics.median(seconds for _, seconds in record)
        rows.append({"context": length, "step_ms": total, "target_ms": in_target, "rest_ms": total - in_target})
    return rows


def _time_steps(target: PreTrainedModel, draft: PreTrainedModel, length: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of steps after a context of random tokens: of each whole step, and of the target's forward in it."""
    device = cast(torch.Tensor, target.get_input_embeddings().weight).device
    input_ids = torch.randint(5, target.config.get_text_config().vocab_size, (1, length), device=device)
    timer = ForwardTimer(device, target=target)
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        synchronize(device)
        marks.append((time.perf_counter(), timer.seconds["target"]))

    with timer.running():
        cast(GenerationMixin, target).generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            assistant_model=draft,
            streamer=StepClock(mark),
            do_sample=False,
            eos_token_id=None,
            max_new_tokens=(steps + 3) * (draft.config.tree_depth + 1),
            stopping_criteria=[_after_steps(marks, steps + 3)],
        )
    # the first steps warm up
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(marks[2:])]


__all__ = [
    "TIMED_METHODS",
    "BatchRecorder",
    "ForwardTimer",
    "StepRecorder",
    "calls_of",
    "context_growth",
    "parts_of",
    "peak_memory",
    "reset_peak_memory",
    "synchronize",
]
