# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Where a generation's time goes, measured from outside: timers in forwards and methods, streamers that note steps."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedModel

from ..core.choosing import TokenChooser
from ..core.jakiro_drafter import JakiroDrafter
from ..core.target import DraftHead
from ..core.tree import DraftTree, TreeShape
from ..core.tree_forward import TreeForward
from .summary import PARTS

# What each method does apart from the forwards in it. The mask of a tree counts as building it.
TIMED_METHODS: tuple[tuple[type, str, str], ...] = (
    (JakiroDrafter, "propose", "tree"),
    (TreeForward, "run", "tree"),
    (TokenChooser, "walk", "verification"),
    (TreeForward, "keep", "cache"),
)


def synchronize(device: torch.device) -> None:
    """Waits for the device's queued work, so that a timer around it tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class ForwardTimer:
    """
    Adds up the time spent in modules' forwards, in `seconds` by name. What they call counts as theirs. With a module
    `head`, heads of a part of the vocabulary, which each generation makes for itself, count as that.

    Args:
        device: to wait for at each change from one to another.
        methods: classes, names of their methods, and what to count these as, apart from what is timed within them.
        **modules: the modules by name.
    """

    def __init__(
        self, device: torch.device, methods: Sequence[tuple[type, str, str]] = (), **modules: torch.nn.Module
    ):
        self.seconds = dict.fromkeys((*modules, *(name for _, _, name in methods)), 0.0)
        self._device, self._methods, self._modules = device, methods, modules
        self._open: list[str] = []  # a forward, if any, is the last of them
        self._in_forward = 0  # nested forwards
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator["ForwardTimer"]:
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
        """Counts the time since the last change as that of the innermost open one."""
        synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def calls_of(owner: type, name: str) -> Iterator[list[tuple[float, Any]]]:
    """The calls of a method within it: when each began, and of which object."""
    original, calls = getattr(owner, name), []

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
    A streamer that notes how many tokens came at a time, for each row of a batch as many: the prompt's forward gives
    one, and each of plain `generate`.

    Args:
        on_prefill: called once the prompt's forward has given its token.
    """

    def __init__(self, on_prefill: Callable[[], None]):
        self._on_prefill = on_prefill
        self._prompt_seen = False
        self.num_tokens: list[int] = []  # the prefill's first
        self.levels: list[dict[str, Any]] = []

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # `generate` hands over the prompt first
            self._prompt_seen = True
            return
        self._count_tokens(value)
        if len(self.num_tokens) == 1:
            self._on_prefill()

    def _count_tokens(self, value: torch.Tensor) -> None:
        self.num_tokens.append(1)

    def end(self) -> None:
        pass


class StepRecorder(BatchRecorder):
    """
    A streamer that notes how many tokens each forward of the target brought, and how far into the tree each walk went.
    For every kind of `generate` of one sequence; of our own loop a [`~transformers_jakiro.StepStreamer`].

    Args:
        on_prefill: called once the prompt's forward has given its token.
        shape ([`TreeShape`], *optional*): of whole trees; levels of others are not counted, as the last one of a tree
            comes from another branch.
    """

    def __init__(self, on_prefill: Callable[[], None], shape: TreeShape | None = None):
        super().__init__(on_prefill)
        self._shape = shape

    def _count_tokens(self, value: torch.Tensor) -> None:
        self.num_tokens.append(value.numel())

    def put_step(self, tokens: torch.Tensor, tree: DraftTree | None, visited: list[int]) -> None:
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
    The parts of a generation ([`~transformers_jakiro.measuring.summary.PARTS`]) in seconds: what was timed, the
    drafter's head counted as drafter, and the rest of the total as `other`.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for name, value in seconds.items():
        parts["drafter" if name in ("draft", "head") else name] += value
    parts["other"] = total - sum(parts.values())
    return parts


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new peak where the device keeps one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, Any] | None:
    """
    Most memory used: on CUDA allocated since [`reset_peak_memory`] (`scope` "device"), else by this process so far
    ("process"), whatever ran before. None where it cannot be told.
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
    """A [`~transformers_jakiro.StepStreamer`] that notes when each step ended."""

    def __init__(self, on_step: Callable[[], None]):
        self._on_step = on_step

    def put(self, value: torch.Tensor) -> None:
        pass

    def put_step(self, tokens: torch.Tensor, tree: DraftTree | None, visited: list[int]) -> None:
        self._on_step()

    def end(self) -> None:
        pass


def _after_steps(marks: list[tuple[float, float]], steps: int) -> Callable[..., torch.Tensor]:
    """A stopping criterion: enough steps were marked."""
    return lambda input_ids, scores: torch.full((input_ids.shape[0],), len(marks) >= steps, device=input_ids.device)


def context_growth(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    lengths: Sequence[int] = (1024, 8192),
    steps: int = 20,
    rounds: int = 3,
) -> list[dict[str, float]]:
    """
    How a step's time grows with the context, on random tokens, the lengths taking turns.

    Returns:
        Per context length the median milliseconds of a step, of the target's forward in it, and of the rest.
    """
    device: Any = target.get_input_embeddings().weight.device
    generate: Any = target.generate
    records: dict[int, list[tuple[float, float]]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, record in records.items():
            input_ids = torch.randint(5, target.config.get_text_config().vocab_size, (1, length), device=device)
            timer = ForwardTimer(device, target=target)
            marks: list[tuple[float, float]] = []

            def mark(timer=timer, marks=marks):
                synchronize(device)
                marks.append((time.perf_counter(), timer.seconds["target"]))

            with timer.running():
                generate(
                    input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    assistant_model=draft,
                    streamer=StepClock(mark),
                    do_sample=False,
                    eos_token_id=None,
                    max_new_tokens=(steps + 3) * (draft.config.tree_depth + 1),
                    stopping_criteria=[_after_steps(marks, steps + 3)],
                )
            for before, after in pairwise(marks[2:]):  # the first steps warm up
                record.append((after[0] - before[0], after[1] - before[1]))
    rows = []
    for length, record in records.items():
        total = 1e3 * statistics.median(total for total, _ in record)
        in_target = 1e3 * statistics.median(seconds for _, seconds in record)
        rows.append({"context": length, "step_ms": total, "target_ms": in_target, "rest_ms": total - in_target})
    return rows


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
