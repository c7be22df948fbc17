# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What is recorded of a generation, and all figures that are derived from it. Each is defined once, here.

- *tokens per target forward* (τ): see [`tokens_per_forward`].
- *speed-up* of a prompt, or of a batch: see [`speed_up`]. That of a task is the median of its prompts, with quartiles.
- *ceiling* of a profiled prompt: see [`ceiling`]. The share *reached* is the prompt's speed-up in the runs without
  timers, divided by its ceiling. Both are medians for a task.
- *acceptance* of a level: the walks that accepted a node on that level, divided by the walks that came to a node with
  children on it. For a drafter with two branches, the last level of a whole tree is the contrastive one.
- *mean*: the mean of the tasks, unweighted.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .acceptance import tokens_per_forward

# where a step's time goes, in the order of a step
PARTS = ("drafter", "tree", "target", "verification", "cache", "other")


@dataclass
class Run:
    """
    One method's answer to one turn, without timers inside. In a batch, its answers to all rows.

    Args:
        method (`str`): name of the method.
        turn (`int`): number of the turn, from 0 on.
        prompt_tokens, new_tokens (`int`): tokens of the context, and of the answer including its end token. Summed
            over the rows, without padding.
        seconds (`float`): duration of the whole call of `generate`.
        identical (`float`): share of the rows whose answer equals that of plain `generate` with the same seed.
        accept_lengths (`list[int]`, *optional*): drafted tokens accepted in each target forward after the prefill;
            only from our own loop. In a batch, one row after the other, each with the forwards it took part in.
        num_drafted_tokens (`int`, *optional*): tokens sent to the target, summed over the rows.
        rounding (`dict`, *optional*): how greedy answers in half precision differ; see
            [`~transformers_jakiro.measuring.benchmark.rounding_report`].
    """

    method: str
    turn: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    identical: float
    accept_lengths: list[int] | None = None
    num_drafted_tokens: int | None = None
    rounding: dict[str, float] | None = None


@dataclass
class Profile:
    """
    One method's answer to one turn, with timers inside. They cost time themselves, so a profile tells where the time
    goes, not how fast the method is.

    Args:
        method (`str`): name of the method.
        turn (`int`): number of the turn, from 0 on.
        first_token_seconds (`float`): time until the prompt's forward has emitted its token.
        seconds (`float`): time after that.
        accept_lengths (`list[int]`): for each target forward after the prefill, the emitted tokens minus one. In a
            batch, those of a row that took part in all forwards.
        num_prefill_tokens (`int`): tokens that the prefill's forward emitted. This is more than one if transformers'
            own assisted loop verifies a first draft in it.
        parts (`dict[str, float]`, *optional*): seconds after the prefill by [`PARTS`]; None if the method has no
            timers.
        levels (`list[dict]`): `level`, `branch`, `reached` and `accepted` of each level of the tree.
        peak_memory (`dict`, *optional*): `bytes` and `scope`; see
            [`~transformers_jakiro.measuring.profiling.peak_memory`].
    """

    method: str
    turn: int
    first_token_seconds: float
    seconds: float
    accept_lengths: list[int]
    num_prefill_tokens: int
    parts: dict[str, float] | None = None
    levels: list[dict[str, Any]] = field(default_factory=list)
    peak_memory: dict[str, Any] | None = None


@dataclass
class PromptRecord:
    """
    All methods' answers to one prompt at one temperature, or to a batch of `num_prompts` prompts of a task. The `id`
    of a batch joins those of its prompts by `+`.
    """

    task: str
    id: str
    temperature: float
    runs: list[Run]
    profiles: list[Profile] = field(default_factory=list)
    num_prompts: int = 1

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PromptRecord":
        """The inverse of [`dataclasses.asdict`]."""
        runs = [Run(**run) for run in values["runs"]]
        return cls(**{**values, "runs": runs, "profiles": [Profile(**profile) for profile in values["profiles"]]})


def tokens_per_second(runs: Sequence[Run]) -> float:
    """Emitted tokens per second of `generate`, prefills included."""
    return sum(run.new_tokens for run in runs) / sum(run.seconds for run in runs)


def speed_up(runs: Sequence[Run], plain: Sequence[Run]) -> float:
    """Tokens per second of a method, divided by those of plain `generate`, over the turns of one prompt."""
    return tokens_per_second(runs) / tokens_per_second(plain)


def ceiling(tau: float, plain_forward: float, tree_forward: float, drafter: float) -> float:
    """
    The speed-up if only the forwards took time: τ · plain_forward / (tree_forward + drafter).

    If a forward over a tree takes as long as one over a single token, this is τ / (1 + drafter / target). The prefill
    and everything outside the forwards is left out, in plain `generate` too.

    Args:
        tau: tokens per target forward.
        plain_forward, tree_forward: seconds of a target forward in plain `generate`, and of one over a draft.
        drafter: seconds of the drafter's forwards per step, including its head.
    """
    return tau * plain_forward / (tree_forward + drafter)


def acceptance_by_branch(levels: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Accepted levels divided by reached levels, for each branch."""
    totals: dict[str, list[int]] = {}
    for level in levels:
        total = totals.setdefault(level["branch"], [0, 0])
        total[0] += level["accepted"]
        total[1] += level["reached"]
    return {branch: accepted / reached for branch, (accepted, reached) in totals.items() if reached}


def summarize(records: Sequence[PromptRecord]) -> list[dict[str, Any]]:
    """
    The figures of all records: for each temperature one row per task and method, then one row per method with the
    task `mean`. Values that were not measured are None. `results.schema.json` describes the fields.
    """
    rows: list[dict[str, Any]] = []
    for temperature in dict.fromkeys(record.temperature for record in records):
        chosen = [record for record in records if record.temperature == temperature]
        methods = dict.fromkeys(run.method for record in chosen for run in record.runs)
        tasks = dict.fromkeys(record.task for record in chosen)
        task_rows = [
            _task_row([record for record in chosen if record.task == task], task, temperature, method)
            for task in tasks
            for method in methods
        ]
        rows.extend(task_rows)
        for method in methods:
            rows.append(_mean_row([row for row in task_rows if row["method"] == method]))
    return rows


def _task_row(records: Sequence[PromptRecord], task: str, temperature: float, method: str) -> dict[str, Any]:
    """The row of one temperature, task and method."""

    def of(method: str, items: Iterable[Any]) -> list[Any]:
        return [item for item in items if item.method == method]

    runs = [of(method, record.runs) for record in records]
    ratios = [speed_up(own, of("plain", record.runs)) for own, record in zip(runs, records, strict=True)]
    flat = [run for own in runs for run in own]
    profiles = of(method, (profile for record in records for profile in record.profiles))
    own_lengths = [length for run in flat for length in run.accept_lengths or ()]
    lengths = own_lengths or [length for profile in profiles for length in profile.accept_lengths]
    tau = tokens_per_forward(lengths) if lengths else None
    steps = sum(len(profile.accept_lengths) for profile in profiles)
    parts = None
    if steps and all(profile.parts is not None for profile in profiles):
        parts = {part: 1e3 * sum(profile.parts[part] for profile in profiles) / steps for part in PARTS}
    ceilings = [_measured_ceiling(of(method, record.profiles), of("plain", record.profiles)) for record in records]
    reached = [ratio / top for ratio, top in zip(ratios, ceilings, strict=True) if top is not None]
    lower, upper = quartiles(ratios)
    drafted = [run.num_drafted_tokens for run in flat if run.num_drafted_tokens is not None]
    memory = [profile.peak_memory for profile in profiles if profile.peak_memory is not None]
    return {
        "task": task,
        "temperature": temperature,
        "method": method,
        "prompts": sum(record.num_prompts for record in records),
        "tokens_per_second": tokens_per_second(flat),
        "speed_up": {"median": statistics.median(ratios), "q1": lower, "q3": upper},
        "tokens_per_forward": tau,
        "drafted_per_step": sum(drafted) / len(own_lengths) if own_lengths else None,
        "first_token_seconds": _if_any(statistics.median, [profile.first_token_seconds for profile in profiles]),
        "step_ms": parts,
        "ceiling": _if_any(statistics.median, [top for top in ceilings if top is not None]),
        "ceiling_reached": _if_any(statistics.median, reached),
        "levels": _add_levels(profile.levels for profile in profiles),
        "peak_memory": max(memory, key=lambda each: each["bytes"]) if memory else None,
        "identical": sum(run.identical for run in flat) / len(flat),
        "rounding": add_rounding(run.rounding for run in flat),
    }


def _measured_ceiling(profiles: Sequence[Profile], plain: Sequence[Profile]) -> float | None:
    """The [`ceiling`] of a profiled prompt; None for plain `generate`, and if it was not measured."""
    if any(profile.parts is None for profile in (*profiles, *plain)):
        return None
    lengths = [length for profile in profiles for length in profile.accept_lengths]
    plain_steps = sum(len(profile.accept_lengths) for profile in plain)
    parts = [profile.parts for profile in profiles if profile.parts is not None]
    plain_parts = [profile.parts for profile in plain if profile.parts is not None]
    if not lengths or not plain_steps or profiles == plain:
        return None
    tree_forward = sum(part["target"] for part in parts) / len(lengths)
    drafter = sum(part["drafter"] for part in parts) / len(lengths)
    plain_forward = sum(part["target"] for part in plain_parts) / plain_steps
    return ceiling(tokens_per_forward(lengths), plain_forward, tree_forward, drafter)


def _mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the task `mean` from one method's rows of all tasks."""

    def mean(values: Iterable[float | None]) -> float | None:
        return _if_any(statistics.fmean, [value for value in values if value is not None])

    parts = [row["step_ms"] for row in rows if row["step_ms"] is not None]
    memory = [row["peak_memory"] for row in rows if row["peak_memory"] is not None]
    numbers = ("tokens_per_second", "tokens_per_forward", "drafted_per_step", "first_token_seconds")
    return {
        "task": "mean",
        "temperature": rows[0]["temperature"],
        "method": rows[0]["method"],
        "prompts": sum(row["prompts"] for row in rows),
        "speed_up": {key: statistics.fmean(row["speed_up"][key] for row in rows) for key in ("median", "q1", "q3")},
        **{name: mean(row[name] for row in rows) for name in numbers},
        "step_ms": {part: mean(each[part] for each in parts) for part in PARTS} if parts else None,
        **{name: mean(row[name] for row in rows) for name in ("ceiling", "ceiling_reached", "identical")},
        "levels": _add_levels(row["levels"] for row in rows),
        "peak_memory": max(memory, key=lambda each: each["bytes"]) if memory else None,
        "rounding": add_rounding(row["rounding"] for row in rows),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile. A single value is both."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def _if_any(function: Callable[[list[float]], float], values: list[float]) -> float | None:
    return function(values) if values else None


def _add_levels(profiles: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Sums of `reached` and `accepted` by level and branch."""
    totals: dict[tuple[int, str], dict[str, Any]] = {}
    for levels in profiles:
        for level in levels:
            key = (level["level"], level["branch"])
            total = totals.setdefault(key, {**level, "reached": 0, "accepted": 0})
            total["reached"] += level["reached"]
            total["accepted"] += level["accepted"]
    return [totals[key] for key in sorted(totals)]


def add_rounding(reports: Iterable[dict[str, float] | None]) -> dict[str, float] | None:
    """Joins reports of rounding: adds up tokens and differing ones, and keeps the largest gap."""
    found = [report for report in reports if report is not None]
    if not found:
        return None
    sums = {name: sum(report[name] for report in found) for name in ("tokens", "differing")}
    return {**sums, "largest_gap": max(report["largest_gap"] for report in found)}


__all__ = [
    "PARTS",
    "Profile",
    "PromptRecord",
    "Run",
    "add_rounding",
    "ceiling",
    "speed_up",
    "summarize",
]
