# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The plots of what `jakiro bench` measured. They need matplotlib, which is imported only to draw them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .payload import methods_of, rows_of, tasks_of, temperatures_of
from .summary import PARTS

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


def draw_plots(payload: dict[str, Any], folder: Path) -> dict[str, Path]:
    """
    Draws the plots that the payload has figures for, as PNG files in `folder`.

    Returns:
        The path of each plot by its title.

    Raises:
        ImportError: if matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    paths = {}
    with plt.rc_context(style):
        for name, title, draw in _PLOTS:
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
    """A colour for each method. Trees of several sizes get shades of one colour."""
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
    """`jakiro-24` is `jakiro` with 24 nodes per tree. Other names have no size."""
    kind, _, size = method.partition("-")
    return kind, int(size) if size else None


def _draw_speed_up(payload: dict[str, Any], plt: Any) -> Any:
    """A bar for each task and method, with a line from the first to the third quartile."""
    temperatures = temperatures_of(payload)
    tasks = tasks_of(payload)
    methods = [name for name in methods_of(payload) if name != "plain"]
    if not methods:
        return None
    colours = _colours(methods)
    width = 0.84 / len(methods)
    figure, panels = plt.subplots(
        nrows=len(temperatures),
        figsize=(max(6.5, 1.6 + len(tasks) * (0.35 + 0.27 * len(methods))), 0.7 + 2.7 * len(temperatures)),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axes, temperature in zip(panels[:, 0], temperatures, strict=True):
        for index, name in enumerate(methods):
            speeds = [
                row["speed_up"]
                for task in tasks
                for row in rows_of(payload, temperature, task)
                if row["method"] == name
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
                text=f"{median[-1]:.2f}",
                xy=(places[-1], max(median[-1], speeds[-1]["q3"])),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        _mark_plain_speed(axes)
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


def _mark_plain_speed(axes: Any) -> None:
    """A dashed line at the speed of plain `generate`."""
    axes.axhline(1, color=_COLOURS["plain"], linewidth=1, linestyle="--")
    axes.annotate(
        text="plain generate",
        xy=(1, 1),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=_COLOURS["plain"],
        fontsize=8,
    )


def _draw_acceptance(payload: dict[str, Any], plt: Any) -> Any:
    """A line for each drafter: the share of accepted drafts by level. The contrastive level has a hollow marker."""
    rows = [row for row in payload["summary"] if row["task"] == "mean" and row["levels"]]
    if not rows:
        return None
    temperatures = temperatures_of(payload)
    colours = _colours(methods_of(payload))
    figure, panels = plt.subplots(
        ncols=len(temperatures),
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
    """A stacked bar for each method: the milliseconds of a step, and the tokens it emits."""
    rows = [row for row in payload["summary"] if row["task"] == "mean" and row["step_ms"]]
    if not rows:
        return None
    temperatures = [value for value in temperatures_of(payload) if any(row["temperature"] == value for row in rows)]
    count = max(sum(row["temperature"] == value for row in rows) for value in temperatures)
    figure, panels = plt.subplots(
        nrows=len(temperatures),
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
    """A line for each drafter and temperature: speed-up and tokens per forward by nodes per tree, if several ran."""
    lines: dict[tuple[str, float], list[tuple[int, dict[str, Any]]]] = {}
    for row in payload["summary"]:
        kind, size = _kind_and_size(row["method"])
        if row["task"] == "mean" and size is not None:
            lines.setdefault((kind, row["temperature"]), []).append((size, row))
    if not lines:
        return None
    temperatures = temperatures_of(payload)
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


# file name, title, and the function that returns a figure, or None if there is nothing to draw
_PLOTS: tuple[tuple[str, str, Callable[[dict[str, Any], Any], Any]], ...] = (
    ("speed_up", "Speed-up over plain generate", _draw_speed_up),
    ("acceptance", "Acceptance by level of the tree", _draw_acceptance),
    ("step_time", "Where a step's time goes", _draw_step_time),
    ("tree_size", "Speed-up by size of the tree", _draw_tree_size),
)

__all__ = ["draw_plots"]
