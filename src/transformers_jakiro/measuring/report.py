# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Shows what `jakiro bench` measured: tables in the terminal, Markdown for a model card, and one HTML page with all
tables and plots.

`payload` is always the content of `results.json`, which `results.schema.json` describes.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from rich.table import Table

from ..files import write_json
from .payload import methods_of, rows_of, tasks_of, temperatures_of
from .plots import draw_plots
from .summary import PARTS, acceptance_by_branch

SCHEMA_VERSION = 1

NOTES = (
    "Speed-up: tokens per second over those of plain `generate` on the same prompt, prefill included; median of the "
    "prompts (first to third quartile). Means are of the tasks, each counting the same.",
    "Tokens per target forward: tokens emitted after the prefill / target forwards after the prefill; in a batch, "
    "those of a row / those it took part in.",
    "Ceiling: the speed-up if only forwards took time: tokens per target forward × plain target forward / (target "
    "forward over the draft + drafter's forwards). Reached: the speed-up of the same prompts / their ceiling.",
    "Step times are from separate runs with timers inside, which speeds are not.",
    "Identical: answers that are plain `generate`'s, token for token, from the same seed. Transformers' own assisted "
    "methods draw other random numbers: when sampling, theirs differ though the distribution is the same.",
    "Off: of the greedy answers in half precision that differ, the tokens that are not the argmax of the target's "
    "forward over the whole answer, and how far they fall short, as a share of the largest logit.",
)


def _number(value: float | None, spec: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{spec}}{unit}"


def _spread(speed: dict[str, float]) -> str:
    return f"{speed['median']:.2f} ({speed['q1']:.2f}–{speed['q3']:.2f})"


# -- tables ----------------------------------------------------------------------------------------------------------


class ResultTable(NamedTuple):
    """A table in no particular format. The first column is text, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def _all_tables(payload: dict[str, Any]) -> Iterator[ResultTable]:
    for temperature in temperatures_of(payload):
        title = f"T = {temperature:g}"
        yield _overview(payload, temperature, f"{title}, mean of the tasks")
        if len(tasks_of(payload)) > 1:
            yield _by_task(payload, temperature, f"{title}, speed-up by task, and tokens per target forward")
        if any(row["step_ms"] for row in rows_of(payload, temperature, "mean")):
            yield _step_times(payload, temperature, f"{title}, milliseconds of a step")
        if any(row["levels"] for row in rows_of(payload, temperature, "mean")):
            yield _acceptance(payload, temperature, f"{title}, share of accepted drafts by level of the tree")
    if payload["context"]:
        yield _by_context(payload, "milliseconds of a step by tokens of context, medians")


def _overview(payload: dict[str, Any], temperature: float, title: str) -> ResultTable:
    columns = ["method", "tokens/s", "speed-up", "tokens/forward", "drafted/step", "first token"]
    columns += ["ceiling", "reached", "identical"]
    means = rows_of(payload, temperature, "mean")
    rows = []
    for row in means:
        first = row["first_token_seconds"]
        rows.append(
            [
                row["method"],
                f"{row['tokens_per_second']:.1f}",
                _spread(row["speed_up"]),
                _number(row["tokens_per_forward"], ".2f"),
                _number(row["drafted_per_step"], ".1f"),
                _number(None if first is None else 1e3 * first, ".0f", " ms"),
                _number(row["ceiling"], ".2f"),
                _number(row["ceiling_reached"], ".0%"),
                _identical(row),
            ]
        )
    if any(row["peak_memory"] and row["peak_memory"]["scope"] == "device" for row in means):
        columns.append("peak memory")
        for row, cells in zip(means, rows, strict=True):
            cells.append(_mebibytes(row["peak_memory"]))
    return ResultTable(title, columns, rows)


def _identical(row: dict[str, Any]) -> str:
    """The share of identical answers and, where it was measured, how far the others are off."""
    share = f"{row['identical']:.0%}"
    off = row["rounding"]
    if not off:
        return share
    return f"{share} ({off['differing']:.0f} of {off['tokens']:.0f} off by ≤ {off['largest_gap']:.1%})"


def _mebibytes(memory: dict[str, Any] | None) -> str:
    return _number(None if memory is None else memory["bytes"] / 2**20, ".0f", " MiB")


def _by_task(payload: dict[str, Any], temperature: float, title: str) -> ResultTable:
    methods = methods_of(payload)
    rows = []
    for task in tasks_of(payload):
        cells = {row["method"]: row for row in rows_of(payload, temperature, task)}
        rows.append([task, str(cells["plain"]["prompts"]), *(_speed_and_tokens(cells[name]) for name in methods)])
    return ResultTable(title, ["task", "prompts", *methods], rows)


def _speed_and_tokens(row: dict[str, Any]) -> str:
    """The speed-up and, but for plain `generate`, the tokens per target forward."""
    speed = f"{row['speed_up']['median']:.2f}"
    return speed if row["method"] == "plain" else f"{speed} / {_number(row['tokens_per_forward'], '.2f')}"


def _step_times(payload: dict[str, Any], temperature: float, title: str) -> ResultTable:
    rows = [
        [row["method"], *(f"{row['step_ms'][part]:.2f}" for part in PARTS), f"{sum(row['step_ms'].values()):.2f}"]
        for row in rows_of(payload, temperature, "mean")
        if row["step_ms"]
    ]
    return ResultTable(title, ["method", *PARTS, "step"], rows)


def _acceptance(payload: dict[str, Any], temperature: float, title: str) -> ResultTable:
    drafted = [row for row in rows_of(payload, temperature, "mean") if row["levels"]]
    depth = max(level["level"] for row in drafted for level in row["levels"])
    rows = []
    for row in drafted:
        cells = ["–"] * depth
        for level in row["levels"]:
            mark = "*" if level["branch"] == "contrastive" else ""
            cells[level["level"] - 1] = f"{level['accepted'] / level['reached']:.0%}{mark}"
        branches = acceptance_by_branch(row["levels"])
        both = [_number(branches.get(name), ".0%") for name in ("autoregressive", "contrastive")]
        rows.append([row["method"], *cells, *both])
    columns = ["method", *map(str, range(1, depth + 1)), "autoregressive", "contrastive (*)"]
    return ResultTable(title, columns, rows)


def _by_context(payload: dict[str, Any], title: str) -> ResultTable:
    rows = [
        [str(row["context"]), *(f"{row[name]:.2f}" for name in ("step_ms", "target_ms", "rest_ms"))]
        for row in payload["context"]
    ]
    return ResultTable(title, ["context", "step", "target forward", "rest"], rows)


def tables(payload: dict[str, Any]) -> Iterator[Table]:
    """The tables for a terminal."""
    for title, columns, rows in _all_tables(payload):
        table = Table(title=title)
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == "mean" else None)
        yield table


def conditions(payload: dict[str, Any]) -> str:
    """What all figures depend on, in one sentence."""
    made = payload["provenance"]
    threads = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''}"
    device = made["accelerator"] or f"{made['processor']}, {threads}"
    commit = ""
    if made["commit"]:
        commit = f" ({made['commit'][:12]}{'-dirty' if made['commit'].endswith('-dirty') else ''})"
    arguments = made["arguments"]
    size = batch_size(payload)
    prompts = "one prompt at a time" if size == 1 else f"batches of {size} prompts, the first turn of each"
    memories = [row["peak_memory"] for row in payload["summary"] if row["peak_memory"]]
    of_process = [memory for memory in memories if memory["scope"] == "process"]
    memory = ""
    if of_process:  # of all methods together
        memory = f"peak memory of the process {_mebibytes(max(of_process, key=lambda each: each['bytes']))}; "
    return (
        f"{device}; {prompts}, {arguments['max_new_tokens']} new tokens at most per turn; {memory}"
        f"transformers {made['transformers']}, torch {made['torch']}, "
        f"transformers_jakiro {made['transformers_jakiro']}{commit}."
    )


def batch_size(payload: dict[str, Any]) -> int:
    """Prompts answered at a time. Results from before batches could be measured do not say; it was one."""
    return payload["provenance"]["arguments"].get("batch_size", 1)


def cannot_run(payload: dict[str, Any]) -> str:
    """The words that come before the reason why a method was left out."""
    size = batch_size(payload)
    return "cannot run for this target" + (f" with batches of {size}" if size > 1 else "")


def _left_out(payload: dict[str, Any]) -> list[str]:
    return [
        f"{method['name']} ({method['description']}) {cannot_run(payload)}: {method['skipped']}"
        for method in payload["methods"]
        if method["skipped"]
    ]


def markdown(payload: dict[str, Any]) -> str:
    """All tables for a model card, and what the figures depend on."""
    lines = [f"## {payload['label']}", "", f"Measured with `jakiro bench` on {conditions(payload)}", ""]
    lines += [markdown_tables(payload), ""]
    lines += [f"- `{method['name']}`: {method['description']}" for method in payload["methods"]]
    lines += ["", *(f"- {text}" for text in (*NOTES, *_left_out(payload)))]
    return "\n".join(lines) + "\n"


def markdown_tables(payload: dict[str, Any], heading: str = "###") -> str:
    """All tables, each below its own heading."""
    return "\n\n".join(
        f"{heading} {title}\n\n{markdown_table(columns, rows)}" for title, columns, rows in _all_tables(payload)
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    header, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows))
    return "\n".join([header, "| --- |" + " ---: |" * (len(columns) - 1), *body])


# -- HTML ------------------------------------------------------------------------------------------------------------


def html_page(payload: dict[str, Any], plots: dict[str, Path]) -> str:
    """One page with all tables and plots. It refers to no other file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    methods = [f"{method['name']}: {method['description']}" for method in payload["methods"]]
    return environment.get_template("results.html.jinja").render(
        label=payload["label"],
        conditions=conditions(payload),
        plots=[(title, base64.b64encode(path.read_bytes()).decode("ascii")) for title, path in plots.items()],
        tables=_all_tables(payload),
        # each note as text and code in turn: what stands between backticks is code
        notes=[re.split("`([^`]+)`", note) for note in (*methods, *NOTES, *_left_out(payload))],
        provenance=json.dumps(payload["provenance"], indent=1),
    )


# -- files -----------------------------------------------------------------------------------------------------------


def write_report(folder: Path, payload: dict[str, Any]) -> str | None:
    """
    Writes `results.json`, `results.md`, `results.html` and the plots to `folder`.

    Returns:
        Why there are no plots, or None if they were drawn.
    """
    write_json(folder / "results.json", payload)
    (folder / "results.md").write_text(markdown(payload), encoding="utf-8")
    has_matplotlib = find_spec("matplotlib") is not None
    plots = draw_plots(payload, folder) if has_matplotlib and payload["summary"] else {}
    (folder / "results.html").write_text(html_page(payload, plots), encoding="utf-8")
    if has_matplotlib:
        return None
    return "No plots: they need matplotlib. `pip install matplotlib`, then run the same command again."


__all__ = [
    "NOTES",
    "SCHEMA_VERSION",
    "ResultTable",
    "batch_size",
    "cannot_run",
    "conditions",
    "html_page",
    "markdown",
    "markdown_table",
    "markdown_tables",
    "tables",
    "write_report",
]
