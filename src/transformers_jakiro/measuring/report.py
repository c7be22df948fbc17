# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What `jakiro bench` measured, for people: tables in the terminal, Markdown for a model card, plots, and one HTML page
that holds them all.

`payload` is throughout what `results.json` holds; `bench/results.schema.json` describes it.
"""

import base64
import html
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from ..files import write_json
from .summary import PARTS, acceptance_by_branch

SCHEMA_VERSION = 1

_COLOURS = {
    "plain": "#6e7781",
    "static": "#1b7c83",
    "jakiro": "#0969da",
    "jakiro_static": "#cf222e",
    "published": "#0a3069",
    "adaptive": "#80ccff",
    "chain": "#2da44e",
    "eagle2": "#bc4c00",
    "prompt_lookup": "#bf8700",
    "prompt_lookup_static": "#7d4e00",
    "assistant": "#8250df",
    "assistant_static": "#512a97",
    "early_exit": "#bf3989",
    "mtp": "#82071e",
}
_PART_COLOURS = {
    "drafter": "#54aeff",
    "tree": "#bc4c00",
    "target": "#0969da",
    "verification": "#bf8700",
    "cache": "#8250df",
    "other": "#afb8c1",
}
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


def _rows(payload: dict[str, Any], temperature: float, task: str | None = None) -> list[dict[str, Any]]:
    return [
        row
        for row in payload["summary"]
        if row["temperature"] == temperature and (task is None or row["task"] == task)
    ]


def _temperatures(payload: dict[str, Any]) -> list[float]:
    return list(dict.fromkeys(row["temperature"] for row in payload["summary"]))


def _methods(payload: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in payload["summary"]))


def _tasks(payload: dict[str, Any]) -> list[str]:
    """The mean last, and only where there are several."""
    tasks = list(dict.fromkeys(row["task"] for row in payload["summary"] if row["task"] != "mean"))
    return [*tasks, "mean"] if len(tasks) > 1 else tasks


def _number(value: float | None, spec: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{spec}}{unit}"


def _spread(speed: dict[str, float]) -> str:
    return f"{speed['median']:.2f} ({speed['q1']:.2f}–{speed['q3']:.2f})"


# -- tables ----------------------------------------------------------------------------------------------------------

# a table is a title, its columns, and its rows: all text
_Table = tuple[str, list[str], list[list[str]]]


def _all_tables(payload: dict[str, Any]) -> Iterator[_Table]:
    for temperature in _temperatures(payload):
        title = f"T = {temperature:g}"
        yield _overview(payload, temperature, f"{title}, mean of the tasks")
        if len(_tasks(payload)) > 1:
            yield _by_task(payload, temperature, f"{title}, speed-up by task, and tokens per target forward")
        if any(row["step_ms"] for row in _rows(payload, temperature, "mean")):
            yield _step_times(payload, temperature, f"{title}, milliseconds of a step")
        if any(row["levels"] for row in _rows(payload, temperature, "mean")):
            yield _acceptance(payload, temperature, f"{title}, share of accepted drafts by level of the tree")
    if payload["context"]:
        rows = [
            [str(row["context"]), *(f"{row[name]:.2f}" for name in ("step_ms", "target_ms", "rest_ms"))]
            for row in payload["context"]
        ]
        columns = ["context", "step", "target forward", "rest"]
        yield "milliseconds of a step by tokens of context, medians", columns, rows


def _overview(payload: dict[str, Any], temperature: float, title: str) -> _Table:
    columns = ["method", "tokens/s", "speed-up", "tokens/forward", "drafted/step", "first token"]
    columns += ["ceiling", "reached", "identical"]
    rows = []
    chosen = _rows(payload, temperature, "mean")
    of_device = any(row["peak_memory"] and row["peak_memory"]["scope"] == "device" for row in chosen)
    for row in chosen:
        first = row["first_token_seconds"]
        identical = f"{row['identical']:.0%}"
        if row["rounding"]:
            off = row["rounding"]
            identical += f" ({off['differing']:.0f} of {off['tokens']:.0f} off by ≤ {off['largest_gap']:.1%})"
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
                identical,
            ]
        )
        if of_device:
            rows[-1].append(_mebibytes(row["peak_memory"]))
    return title, columns + ["peak memory"] * of_device, rows


def _mebibytes(memory: dict[str, Any] | None) -> str:
    return _number(memory and memory["bytes"] / 2**20, ".0f", " MiB")


def _by_task(payload: dict[str, Any], temperature: float, title: str) -> _Table:
    methods = _methods(payload)
    rows = []
    for task in _tasks(payload):
        cells = {row["method"]: row for row in _rows(payload, temperature, task)}
        rows.append(
            [
                task,
                str(cells["plain"]["prompts"]),
                *(
                    f"{_number(cells[name]['speed_up']['median'], '.2f')}"
                    + ("" if name == "plain" else f" / {_number(cells[name]['tokens_per_forward'], '.2f')}")
                    for name in methods
                ),
            ]
        )
    return title, ["task", "prompts", *methods], rows


def _step_times(payload: dict[str, Any], temperature: float, title: str) -> _Table:
    rows = [
        [row["method"], *(f"{row['step_ms'][part]:.2f}" for part in PARTS), f"{sum(row['step_ms'].values()):.2f}"]
        for row in _rows(payload, temperature, "mean")
        if row["step_ms"]
    ]
    return title, ["method", *PARTS, "step"], rows


def _acceptance(payload: dict[str, Any], temperature: float, title: str) -> _Table:
    drafted = [row for row in _rows(payload, temperature, "mean") if row["levels"]]
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
    return title, ["method", *map(str, range(1, depth + 1)), "autoregressive", "contrastive (*)"], rows


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
    """What all figures depend on, in a sentence."""
    made = payload["provenance"]
    device = (
        made["accelerator"] or f"{made['processor']}, {made['threads']} thread{'s' if made['threads'] > 1 else ''}"
    )
    commit = (
        f" ({made['commit'][:12]}{'-dirty' if made['commit'].endswith('-dirty') else ''})" if made["commit"] else ""
    )
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
    """Prompts that were answered at a time; what was measured before batches could be does not say."""
    return payload["provenance"]["arguments"].get("batch_size", 1)


def cannot_run(payload: dict[str, Any]) -> str:
    """What is said of methods that were left out, before the reason."""
    size = batch_size(payload)
    return "cannot run for this target" + (f" with batches of {size}" if size > 1 else "")


def _left_out(payload: dict[str, Any]) -> list[str]:
    return [
        f"{method['name']} ({method['description']}) {cannot_run(payload)}: {method['skipped']}"
        for method in payload["methods"]
        if method["skipped"]
    ]


def markdown(payload: dict[str, Any]) -> str:
    """All tables for a model card, with what they depend on."""
    lines = [f"## {payload['label']}", "", f"Measured with `jakiro bench` on {conditions(payload)}", ""]
    lines += [markdown_tables(payload), ""]
    lines += [f"- `{method['name']}`: {method['description']}" for method in payload["methods"]]
    lines += ["", *(f"- {text}" for text in (*NOTES, *_left_out(payload)))]
    return "\n".join(lines) + "\n"


def markdown_tables(payload: dict[str, Any], heading: str = "###") -> str:
    """All tables, each below a heading of its own."""
    return "\n\n".join(
        f"{heading} {title}\n\n{markdown_table(columns, rows)}" for title, columns, rows in _all_tables(payload)
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [_markdown_row(columns), "|" + " --- |" + " ---: |" * (len(columns) - 1), *map(_markdown_row, rows)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# -- plots -----------------------------------------------------------------------------------------------------------


def draw_plots(payload: dict[str, Any], folder: Path) -> dict[str, Path]:
    """
    Draws what there is to draw as PNG files.

    Returns:
        The files by their titles.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    style = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    plots: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("speed_up", "Speed-up over plain generate", _draw_speed_up),
        ("acceptance", "Acceptance by level of the tree", _draw_acceptance),
        ("step_time", "Where a step's time goes", _draw_step_time),
        ("tree_size", "Speed-up by size of the tree", _draw_tree_size),
    )
    paths = {}
    with plt.rc_context(style):
        for name, title, draw in plots:
            path = folder / f"{name}.png"
            path.unlink(missing_ok=True)
            figure = draw(payload, plt)
            if figure is None:
                continue
            figure.savefig(path, dpi=150)
            plt.close(figure)
            paths[title] = path
    return paths


def _colours(methods: list[str]) -> dict[str, Any]:
    """A colour per method; trees of several sizes in shades of one."""
    import matplotlib

    colours: dict[str, Any] = {}
    for name in methods:
        kind, size = _kind_and_size(name)
        if size is None:
            colours[name] = _COLOURS[kind]
        else:
            others = sorted(
                other for each, other in map(_kind_and_size, methods) if each == kind and other is not None
            )
            shade = 0.4 + 0.55 * others.index(size) / max(1, len(others) - 1)
            colours[name] = matplotlib.colormaps["Blues" if kind == "jakiro" else "Oranges"](shade)
    return colours


def _kind_and_size(method: str) -> tuple[str, int | None]:
    """`jakiro-24` is `jakiro` with 24 nodes per tree; others have no size."""
    kind, _, size = method.partition("-")
    return kind, int(size) if size else None


def _draw_speed_up(payload: dict[str, Any], plt: Any) -> Any:
    """Bars per task and method, the quartiles as lines."""
    temperatures, tasks = _temperatures(payload), _tasks(payload)
    methods = [name for name in _methods(payload) if name != "plain"]
    if not methods:
        return None
    colours = _colours(methods)
    width = 0.84 / len(methods)
    figure, panels = plt.subplots(
        *(len(temperatures), 1),
        figsize=(max(6.5, 1.6 + len(tasks) * (0.35 + 0.27 * len(methods))), 0.7 + 2.7 * len(temperatures)),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axes, temperature in zip(panels[:, 0], temperatures, strict=True):
        for index, name in enumerate(methods):
            speeds = [
                row["speed_up"] for task in tasks for row in _rows(payload, temperature, task) if row["method"] == name
            ]
            median = [speed["median"] for speed in speeds]
            spread = [
                [max(0.0, speed["median"] - speed["q1"]) for speed in speeds],
                [max(0.0, speed["q3"] - speed["median"]) for speed in speeds],
            ]
            places = [place + (index - (len(methods) - 1) / 2) * width for place in range(len(tasks))]
            axes.bar(places, median, 0.92 * width, color=colours[name], label=name)
            axes.errorbar(places, median, spread, fmt="none", ecolor="#24292f", elinewidth=1)
            axes.annotate(  # the last group is the mean
                *(f"{median[-1]:.2f}", (places[-1], max(median[-1], speeds[-1]["q3"]))),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.axhline(1, color=_COLOURS["plain"], linewidth=1, linestyle="--")
        axes.annotate(
            *("plain generate", (1, 1)),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=_COLOURS["plain"],
            fontsize=8,
        )
        if tasks[-1] == "mean" and len(tasks) > 1:
            axes.axvline(len(tasks) - 1.5, color="#d0d7de", linewidth=1)
        axes.set_title(f"T = {temperature:g}")
        axes.set_ylabel("speed-up")
        axes.grid(axis="y", color="#eaeef2")
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, len(tasks) - 0.5)
    panels[-1, 0].set_xticks(range(len(tasks)), tasks)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(methods)))
    return figure


def _draw_acceptance(payload: dict[str, Any], plt: Any) -> Any:
    """A line per drafter: share of accepted drafts by level, the contrastive level hollow."""
    rows = [row for row in payload["summary"] if row["task"] == "mean" and row["levels"]]
    if not rows:
        return None
    temperatures = _temperatures(payload)
    colours = _colours(_methods(payload))
    figure, panels = plt.subplots(
        *(1, len(temperatures)),
        figsize=(1.6 + 4.2 * len(temperatures), 3.6),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axes, temperature in zip(panels[0], temperatures, strict=True):
        for row in rows:
            if row["temperature"] != temperature:
                continue
            levels = [level["level"] for level in row["levels"]]
            shares = [level["accepted"] / level["reached"] for level in row["levels"]]
            colour = colours[row["method"]]
            axes.plot(levels, shares, color=colour, label=row["method"], marker="o", markersize=5)
            for level, share in zip(row["levels"], shares, strict=True):
                if level["branch"] == "contrastive":
                    axes.plot(level["level"], share, "o", color=colour, markerfacecolor="white", markersize=8, mew=1.8)
        axes.set_title(f"T = {temperature:g}")
        axes.set_xlabel("level of the tree")
        axes.set_ylim(0, 1.05)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="y", color="#eaeef2")
    panels[0, 0].set_ylabel("accepted, where reached")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if any(level["branch"] == "contrastive" for row in rows for level in row["levels"]):
        handles += axes.plot([], [], "o", color="#24292f", markerfacecolor="white", markersize=8, mew=1.8)
        labels.append("contrastive branch")
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))
    return figure


def _draw_step_time(payload: dict[str, Any], plt: Any) -> Any:
    """A stacked bar per method: milliseconds of a step, with the tokens that it brings."""
    rows = [row for row in payload["summary"] if row["task"] == "mean" and row["step_ms"]]
    if not rows:
        return None
    temperatures = [value for value in _temperatures(payload) if any(row["temperature"] == value for row in rows)]
    count = max(sum(row["temperature"] == value for row in rows) for value in temperatures)
    figure, panels = plt.subplots(
        *(len(temperatures), 1),
        figsize=(8, 0.9 + (0.6 + 0.4 * count) * len(temperatures)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axes, temperature in zip(panels[:, 0], temperatures, strict=True):
        chosen = [row for row in rows if row["temperature"] == temperature]
        left = [0.0] * len(chosen)
        for part in PARTS:
            values = [row["step_ms"][part] for row in chosen]
            axes.barh(range(len(chosen)), values, 0.66, left, color=_PART_COLOURS[part], label=part)
            left = [start + value for start, value in zip(left, values, strict=True)]
        for place, (row, end) in enumerate(zip(chosen, left, strict=True)):
            tau = row["tokens_per_forward"]
            text = f" {end:.1f} ms" if tau is None else f" {end:.1f} ms, {tau:.2f} tokens"
            axes.text(end, place, text, va="center", fontsize=8, color="#57606a")
        axes.set_yticks(range(len(chosen)), [row["method"] for row in chosen])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(sum(row["step_ms"].values()) for row in rows))  # room for the text
        axes.set_title(f"T = {temperature:g}")
        axes.grid(axis="x", color="#eaeef2")
    panels[-1, 0].set_xlabel("milliseconds of a step")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(PARTS))
    return figure


def _draw_tree_size(payload: dict[str, Any], plt: Any) -> Any:
    """A line per drafter and temperature: speed-up and tokens per forward over nodes per tree, if several ran."""
    lines: dict[tuple[str, float], list[tuple[int, dict[str, Any]]]] = {}
    for row in payload["summary"]:
        kind, size = _kind_and_size(row["method"])
        if row["task"] == "mean" and size is not None:
            lines.setdefault((kind, row["temperature"]), []).append((size, row))
    if not lines:
        return None
    temperatures = _temperatures(payload)
    figure, (speed_axes, tau_axes) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for (kind, temperature), points in lines.items():
        points.sort(key=lambda point: point[0])
        sizes = [size for size, _ in points]
        speeds = [row["speed_up"] for _, row in points]
        lower, upper = ([speed[name] for speed in speeds] for name in ("q1", "q3"))
        style = {
            "color": ("#0969da", "#bc4c00", "#2da44e", "#8250df")[temperatures.index(temperature) % 4],
            "linestyle": "-" if kind == "jakiro" else "--",
            "marker": "o",
            "label": f"{kind}, T = {temperature:g}",
        }
        speed_axes.fill_between(sizes, lower, upper, color=style["color"], alpha=0.1, linewidth=0)
        speed_axes.plot(sizes, [speed["median"] for speed in speeds], **style)
        tau_axes.plot(sizes, [row["tokens_per_forward"] for _, row in points], **style)
    speed_axes.axhline(1, color=_COLOURS["plain"], linewidth=1, linestyle=":", label="plain generate")
    speed_axes.set_ylabel("speed-up")
    tau_axes.set_ylabel("tokens per target forward")
    tau_axes.set_ylim(bottom=1)
    for axes in (speed_axes, tau_axes):
        axes.set_xticks(sorted({size for points in lines.values() for size, _ in points}))
        axes.set_xlabel("drafted tokens per tree")
        axes.grid(axis="y", color="#eaeef2")
    handles, labels = speed_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    return figure


# -- HTML ------------------------------------------------------------------------------------------------------------

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1060px; margin: 2em auto; padding: 0 1em;
  overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5em; }} h2 {{ font-size: 1.15em; margin-top: 2em; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #d0d7de; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ border-bottom: 2px solid #8c959f; }}
.mean td {{ font-weight: 600; }}
.note {{ color: #57606a; }}
code {{ font-size: .9em; background: #f6f8fa; padding: .1em .3em; border-radius: 3px; }}
pre {{ overflow-x: auto; background: #f6f8fa; padding: 1em; font-size: 12px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def html_page(payload: dict[str, Any], plots: dict[str, Path]) -> str:
    """One page with all tables and plots inside, which needs nothing else to be shown."""
    import json

    escape = html.escape
    body = [f"<h1>{escape(payload['label'])}</h1>", f'<p class="note">{escape(conditions(payload))}</p>']
    for title, path in plots.items():
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        body.append(f"<h2>{escape(title)}</h2>")
        body.append(f'<p><img alt="{escape(title)}" src="data:image/png;base64,{data}"></p>')
    for title, columns, rows in _all_tables(payload):
        body.append(f'<h2>{escape(title)}</h2>\n<div class="wide"><table>')
        body.append(
            "<thead><tr>" + "".join(f"<th>{escape(column)}</th>" for column in columns) + "</tr></thead><tbody>"
        )
        for row in rows:
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
            body.append(f'<tr class="mean">{cells}</tr>' if row[0] == "mean" else f"<tr>{cells}</tr>")
        body.append("</tbody></table></div>")
    body.append("<h2>What the figures mean</h2>\n<ul>")
    methods = [f"{method['name']}: {method['description']}" for method in payload["methods"]]
    texts = [escape(text) for text in (*methods, *NOTES, *_left_out(payload))]
    body += ["<li>" + re.sub("`([^`]+)`", r"<code>\1</code>", text) + "</li>" for text in texts]
    made = json.dumps(payload["provenance"], indent=1)
    body.append(f"</ul>\n<details><summary>Provenance</summary><pre>{escape(made)}</pre></details>")
    return _PAGE.format(title=escape(payload["label"]), body="\n".join(body))


def write_report(folder: Path, payload: dict[str, Any]) -> str | None:
    """
    Writes `results.json`, `results.md`, `results.html` and the plots.

    Returns:
        Why there are no plots, or None.
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
    "conditions",
    "draw_plots",
    "html_page",
    "markdown",
    "markdown_table",
    "markdown_tables",
    "tables",
    "write_report",
]
