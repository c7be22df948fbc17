# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Draws the pictures of docs/how_it_works.md and docs/code_layout.md, for light and dark pages, into docs/pictures, and
docs/how_it_works.png for the README. Trees, masks and probabilities are those of a run of the pair that ships, times
those of docs/results.

    python docs/how_it_works.py
"""

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.core.noise import SamplingCoupling
from transformers_jakiro.core.tree import DraftTree
from transformers_jakiro.measuring.prompts import read_prompts
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET

DOCS = Path(__file__).parent
RESULTS = DOCS / "results" / "target_results.json"


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    text: str
    dim: str
    line: str
    paper: str  # of boxes
    cell: str  # what is not seen
    cache: str
    green: str
    pale_green: str
    blue: str
    pale_blue: str
    orange: str
    pale_orange: str


LIGHT = Theme(
    *("#1f2328", "#6e7781", "#8c959f", "white", "#eef1f4", "#c3cbd4"),
    *("#1a7f37", "#dafbe1", "#0969da", "#ddf4ff", "#bc4c00", "#fff1e5"),
)
DARK = Theme(
    *("#e6edf3", "#9198a1", "#6e7681", "#22262e", "#2b303a", "#4b5563"),
    *("#3fb950", "#12361c", "#58a6ff", "#0c2d52", "#f0883e", "#45230c"),
)


# -- what is drawn ---------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One step of a generation: the tree, what was accepted of it, and the mask that the target was given."""

    tree: DraftTree
    visited: list[int]
    mask: torch.Tensor  # [1, 1, n, P + n]
    own_token: int


class Recorder:
    """A streamer that keeps the steps, with the masks of the target's forwards."""

    def __init__(self, target: torch.nn.Module):
        self.steps: list[Step] = []
        self._mask: torch.Tensor | None = None
        target.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def put(self, value: torch.Tensor) -> None: ...

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        if tree is not None:
            rows_per_node = self._mask.shape[2] // tree.num_nodes
            self.steps.append(Step(tree, visited, self._mask[:, :, ::rows_per_node].clone(), int(tokens[-1])))

    def end(self) -> None: ...


def load_pair() -> tuple[Any, Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    return tokenizer, target, JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32)


def prompts(tokenizer: Any, count: int) -> list[Any]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        for _, _, (prompt,) in read_prompts(PROMPTS, count)
    ]


def telling_step(tokenizer: Any, target: Any, draft: Any) -> Step:
    """A step of greedy answers, of words, that accepts a long path in which not all is the drafter's first choice."""
    recorder = Recorder(target)
    for inputs in prompts(tokenizer, 8):
        target.generate(**inputs, assistant_model=draft, do_sample=False, max_new_tokens=100, streamer=recorder)

    def worth(step: Step) -> tuple[int, int]:
        parents, scores = step.tree.parents[0].tolist(), step.tree.scores[0]
        surprises = 0
        for parent, node in zip(step.visited, step.visited[1:], strict=False):
            siblings = [child for child in range(1, len(parents)) if parents[child] == parent]
            surprises += int(node != max(siblings, key=lambda child: float(scores[child])))
        words = sum(shown_token(tokenizer, token).isalpha() for token in step.tree.tokens[0].tolist())
        return int(surprises > 0 and 4 <= len(step.visited) - 1 < step.tree.max_depth), words

    return max((step for step in recorder.steps if step.tree.scores is not None), key=worth)


@dataclass
class Draw:
    """What a draw of the target is made of, for the tokens that matter."""

    tokens: list[str]
    target: torch.Tensor  # log-probabilities
    draft: torch.Tensor
    noise: torch.Tensor


def telling_draw(tokenizer: Any, target: Any, draft: Any, count: int = 8) -> Draw:
    """A draw in which the noise overrules the likeliest token, as the target and the drafter see it."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    best = SamplingCoupling.best

    def noted(self: SamplingCoupling, logits: torch.Tensor, noise: torch.Tensor, *args: Any) -> Any:
        if logits.shape[1] == 1:  # level 1
            seen.append((logits[0, 0].clone(), noise[0, 0].clone()))
        return best(self, logits, noise, *args)

    for inputs in prompts(tokenizer, 8):
        seen.clear()
        torch.manual_seed(0)
        recorder = Recorder(target)
        with mock.patch.object(SamplingCoupling, "best", noted):
            output = target.generate(
                **inputs,
                **{"assistant_model": draft, "do_sample": True, "top_k": 0, "max_new_tokens": 100},
                **{"streamer": recorder, "return_dict_in_generate": True, "output_logits": True},
            )
        place = 1  # the first token came from the prompt's forward
        for (draft_logits, noise), step in zip(seen, recorder.steps, strict=False):
            log_probs = output.logits[place][0].log_softmax(-1)
            place += len(step.visited)
            sampled = int((log_probs + noise).argmax())
            first, second = (log_probs + noise).topk(2).values
            if (
                sampled != int(log_probs.argmax())
                and sampled == int((draft_logits + noise).argmax())
                and first - second > 0.7
                and shown_token(tokenizer, sampled).isalpha()
            ):
                likely = (log_probs.topk(count // 2 + 1).indices, (log_probs + noise).topk(count).indices)
                shown = torch.tensor(list(dict.fromkeys(torch.cat(likely).tolist()))[:count])
                shown = shown[log_probs[shown].argsort(descending=True)]
                names = [shown_token(tokenizer, token) for token in shown.tolist()]
                return Draw(names, log_probs[shown], draft_logits.log_softmax(-1)[shown], noise[shown])
    raise RuntimeError("no draw of these answers is one to show")


def shown_token(tokenizer: Any, token: int) -> str:
    text = tokenizer.decode([token]).replace("\n", "↵")
    return text.strip() or "␣"


# -- parts of pictures -----------------------------------------------------------------------------------------------


def box(ax: Axes, x: float, y: float, width: float, height: float, face: str, edge: str, line: float = 1.4) -> None:
    """A box around (x, y)."""
    style = "round,pad=0.02,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle=style, fc=face, ec=edge, lw=line, zorder=2
        )
    )


def arrow(
    ax: Axes, start: tuple, end: tuple, color: str, bend: float = 0.0, style: str = "-|>", zorder: int = 1
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=11,
            color=color,
            lw=1.3,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=2,
            shrinkB=2,
            zorder=zorder,
        )
    )


def heights(parents: Sequence[int]) -> list[float]:
    """The place of each node: leaves one below the other, the others in the middle of their children."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        if node:
            children.setdefault(parent, []).append(node)
    places, leaves = [0.0] * len(parents), iter(range(len(parents)))

    def place(node: int) -> None:
        for child in children.get(node, ()):
            place(child)
        below = [places[child] for child in children.get(node, ())]
        places[node] = (below[0] + below[-1]) / 2 if below else -float(next(leaves))

    place(0)
    return places


def draw_tree(
    ax: Axes,
    theme: Theme,
    labels: Sequence[str],
    parents: Sequence[int],
    accepted: Sequence[int],
    width: float = 0.66,
    contrastive_level: int | None = None,
    places: Sequence[float] | None = None,
) -> list[tuple[float, float]]:
    """Nodes and edges, the accepted ones in green. Returns where each node is."""
    depths = [0] * len(parents)
    for node in range(1, len(parents)):
        depths[node] = depths[parents[node]] + 1
    points = list(zip(depths, places or heights(parents), strict=True))
    for node in range(1, len(parents)):
        (x, y), (px, py) = points[node], points[parents[node]]
        good = node in accepted
        color = theme.green if good else theme.line
        ax.plot([px + width / 2, x - width / 2], [py, y], color=color, lw=2.2 if good else 1.0, zorder=1)
    for node, (x, y) in enumerate(points):
        good = node in accepted and node > 0
        edge = theme.green if good else theme.blue if node == 0 else theme.line
        face = theme.pale_green if good else theme.pale_blue if node == 0 else theme.paper
        if contrastive_level == x:
            face = theme.pale_green if good else theme.pale_orange
            edge = theme.green if good else theme.orange
        box(ax, x, y, width, 0.62, face, edge)
        dim = accepted and not good and node > 0
        ax.text(
            x,
            y - 0.03,
            labels[node],
            ha="center",
            va="center",
            color=theme.dim if dim else theme.text,
            fontsize=9.5,
            zorder=3,
        )
    return points


# -- pictures --------------------------------------------------------------------------------------------------------


def overview(theme: Theme) -> Figure:
    """One step: a tree, its mask, the walk."""
    labels = ("The", "cat", "dog", "sat", "is", "ran", "on", "down", "black")
    parents, path = (0, 0, 0, 1, 1, 2, 3, 3, 4), (0, 1, 3, 6)
    places = [0, 1.15, -1.15, 1.75, 0.55, -1.15, 2.2, 1.35, 0.5]
    fig, axes = plt.subplots(1, 3, figsize=(11.6, 4.1), gridspec_kw={"width_ratios": [1.25, 1.0, 1.25]})
    titles = (
        "1  The drafter grows a tree",
        "2  One forward of the target",
        "3  Walk it with the target's own choices",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.axis("off")
        ax.set_title(title, loc="left", fontsize=12, fontweight="bold", color=theme.text)
    for ax, accepted in ((axes[0], ()), (axes[2], path)):
        draw_tree(ax, theme, labels, parents, accepted, contrastive_level=None if accepted else 3, places=places)
        ax.set_xlim(-0.6, 4.3)
        ax.set_ylim(-2.6, 2.9)
    ax = axes[0]
    for x, label, color in (
        (0, "root:\nthe last token", theme.blue),
        (1, "level 1", theme.text),
        (2, "level 2", theme.text),
        (3, "level 3", theme.orange),
    ):
        ax.text(x, -1.75, label, ha="center", va="top", fontsize=9.5, color=color)
    branch = "contrastive branch:\nno forward of its own"
    ax.text(3, -2.1, branch, ha="center", va="top", fontsize=8.5, color=theme.orange)

    ax = axes[1]
    tree = DraftTree(torch.zeros(1, len(parents), dtype=torch.long), torch.tensor([parents]), max_depth=3)
    sees, count = tree.ancestor_mask[0].tolist(), len(labels)
    for row, label in enumerate(labels):
        y = count - 1 - row
        for column in range(3):
            ax.add_patch(Rectangle((column, y), 0.92, 0.92, fc=theme.cache, ec="none"))
        for column in range(count):
            color = theme.blue if sees[row][column] else theme.cell
            ax.add_patch(Rectangle((column + 3.4, y), 0.92, 0.92, fc=color, ec="none"))
        ax.text(-0.3, y + 0.45, label, ha="right", va="center", fontsize=9.5, color=theme.text)
        ax.text(row + 3.86, count + 0.2, label, ha="left", va="bottom", fontsize=9, rotation=55, color=theme.text)
    ax.text(1.45, count + 0.2, "cache", ha="center", va="bottom", fontsize=9.5, color=theme.dim)
    caption = "a node sees the cached text and\nits own ancestors, nothing else"
    ax.text(6.2, -0.5, caption, ha="center", va="top", fontsize=9.5, color=theme.text)
    ax.set_xlim(-2.2, 13)
    ax.set_ylim(-2.4, count + 2.6)

    ax = axes[2]
    ax.plot([3.33, 3.72], [2.2, 2.2], color=theme.blue, lw=2.4)
    box(ax, 3.99, 2.2, 0.5, 0.62, theme.pale_blue, theme.blue)
    ax.text(3.99, 2.17, "the", ha="center", va="center", fontsize=9.5, color=theme.text)
    caption = (
        "3 drafted tokens accepted (green), 1 of the target's own (blue):\n"
        "4 tokens for one forward, the same 4 as without a drafter"
    )
    ax.text(1.85, -1.75, caption, ha="center", va="top", fontsize=9, color=theme.text)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.02, wspace=0.05)
    return fig


def drafter(theme: Theme) -> Figure:
    """The drafter's parts, and how its two branches give the last two levels."""
    fig, (ax, levels) = plt.subplots(2, 1, figsize=(9.6, 6.4), gridspec_kw={"height_ratios": [1.25, 1]})
    for each in (ax, levels):
        each.axis("off")
    ax.set_title("Two branches", loc="left", fontsize=13, fontweight="bold", color=theme.text)
    ax.set_xlim(-0.9, 11.6)
    ax.set_ylim(-2.4, 2.3)

    def part(x, y, label, width=1.3, height=0.72, face=None, edge=None):
        box(ax, x, y, width, height, face or theme.paper, edge or theme.line)
        ax.text(x, y - 0.02, label, ha="center", va="center", fontsize=9.5, color=theme.text, zorder=3)

    part(0, 0.9, "$E(x_{t+1})$", face=theme.pale_blue, edge=theme.blue)
    part(0, -0.9, "$f_t$", face=theme.pale_blue, edge=theme.blue)
    ax.text(0, 1.45, "embedding of\nthe next token", ha="center", va="bottom", fontsize=8.5, color=theme.dim)
    ax.text(0, -1.45, "target's last\nhidden state", ha="center", va="top", fontsize=8.5, color=theme.dim)
    part(1.85, 0, "fc")
    part(3.6, 0, "attention")
    arrow(ax, (0.68, 0.9), (1.5, 0.4), theme.line)
    arrow(ax, (0.68, -0.9), (1.5, -0.4), theme.line)
    arrow(ax, (2.53, 0), (2.93, 0), theme.line)
    part(5.5, 1.35, "expert $i$")
    part(5.5, 0, "gate", width=1.0)
    part(5.5, -1.35, "expert $j$")
    arrow(ax, (4.28, 0.1), (4.83, 1.25), theme.line)
    arrow(ax, (4.28, 0), (4.98, 0), theme.line)
    arrow(ax, (4.28, -0.1), (4.83, -1.25), theme.line)
    part(8.3, 1.35, "$r + w_iE_i + w_jE_j$", width=1.95, face=theme.pale_green, edge=theme.green)
    part(8.3, -1.35, r"$r + v_{hi}E_{hi} - v_{lo}E_{lo}$", width=2.25, face=theme.pale_orange, edge=theme.orange)
    for y in (1.35, -1.35):
        for source in (1.35, -1.35):
            end = (7.29 if y > 0 else 7.14, y)
            arrow(ax, (6.18, source), end, theme.green if y > 0 else theme.orange)
    ax.text(8.3, 1.85, "autoregressive: the mixture", ha="center", va="bottom", fontsize=9, color=theme.green)
    ax.text(8.3, -1.85, "contrastive: the difference", ha="center", va="top", fontsize=9, color=theme.orange)
    part(10.75, 1.35, "$g_t ≈ f_{t+1}$", width=1.5, face=theme.pale_green, edge=theme.green)
    part(10.75, -1.35, "$c_t ≈ f_{t+2}$", width=1.5, face=theme.pale_orange, edge=theme.orange)
    arrow(ax, (9.31, 1.35), (9.97, 1.35), theme.green)
    arrow(ax, (9.46, -1.35), (9.97, -1.35), theme.orange)
    ax.text(
        10.75, 0, "the target's head\nmakes tokens\nof both", ha="center", va="center", fontsize=9, color=theme.dim
    )
    arrow(ax, (10.75, 0.95), (10.75, 0.45), theme.line)
    arrow(ax, (10.75, -0.95), (10.75, -0.45), theme.line)

    ax = levels
    ax.set_title("One forward, two levels", loc="left", fontsize=13, fontweight="bold", color=theme.text)
    ax.set_xlim(-1.4, 4.6)
    ax.set_ylim(-2.35, 2.05)
    nodes = {"p": (0, 0.5), "a": (1, 1.4), "b": (1, -0.4)}
    leaves = [(2, 1.75), (2, 1.05), (2, -0.05), (2, -0.75)]
    for name in ("a", "b"):
        ax.plot([0.24, 0.76], [nodes["p"][1], nodes[name][1]], color=theme.green, lw=1.6)
    for index, (x, y) in enumerate(leaves):
        source = nodes["ab"[index // 2]]
        ax.plot([1.24, x - 0.24], [source[1], y], color=theme.orange, lw=1.6)
        box(ax, x, y, 0.46, 0.5, theme.pale_orange, theme.orange)
        ax.text(x, y - 0.02, "uv"[index % 2], ha="center", va="center", fontsize=9.5, color=theme.text, zorder=3)
    for name, (x, y) in nodes.items():
        root = name == "p"
        box(ax, x, y, 0.46, 0.5, theme.paper if root else theme.pale_green, theme.line if root else theme.green)
        ax.text(x, y - 0.02, name, ha="center", va="center", fontsize=9.5, color=theme.text, zorder=3)
    for x, text, color in (
        (0, "level L − 2:\nthe last forward", theme.text),
        (1, "level L − 1:\nfrom $g$ of p", theme.green),
        (2, "level L:\nfrom $c$ of p,\nthe same for a and b", theme.orange),
    ):
        ax.text(x, -1.35, text, ha="center", va="top", fontsize=9, color=color)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.95, bottom=0.01, hspace=0.1)
    return fig


def tree(theme: Theme, step: Step, token: Callable[[int], str], last_level: int) -> Figure:
    """A tree of the pair that ships, and what the target accepted."""
    labels = [token(int(each)) for each in step.tree.tokens[0]]
    parents, depths = step.tree.parents[0].tolist(), step.tree.depths[0].tolist()
    rows = max(1, 1 - int(min(heights(parents))))
    fig, ax = plt.subplots(figsize=(9.6, 0.4 * rows + 1.0))
    ax.axis("off")
    points = draw_tree(ax, theme, labels, parents, step.visited, width=0.74, contrastive_level=last_level)
    x, y = points[step.visited[-1]]
    taken = [height for level, height in points if level == x + 1]
    free = min((y - slot for slot in range(-9, 9) if y - slot not in taken), key=lambda place: abs(place - y - 0.1))
    own = (x + 1, free)
    ax.plot([x + 0.37, own[0] - 0.37], [y, free], color=theme.blue, lw=2.2, zorder=0)
    box(ax, *own, 0.74, 0.62, theme.pale_blue, theme.blue)
    ax.text(
        own[0], free - 0.03, token(step.own_token), ha="center", va="center", fontsize=9.5, color=theme.text, zorder=3
    )
    ax.text(own[0] + 0.45, free - 0.03, "the target's own", ha="left", va="center", fontsize=9, color=theme.blue)
    bottom = min(height for _, height in points) - 0.9
    for level in range(max(depths) + 1):
        label, color = f"level {level}", theme.dim
        if level == 0:
            label, color = "root", theme.blue
        elif level == last_level:
            label, color = f"level {level}\ncontrastive", theme.orange
        ax.text(level, bottom, label, ha="center", va="top", fontsize=9, color=color)
    ax.set_xlim(-0.5, max(max(depths), own[0]) + 1.4)
    ax.set_ylim(bottom - 1.3, 0.6)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return fig


def mask(theme: Theme, step: Step, token: Callable[[int], str]) -> Figure:
    """The attention mask of the same step."""
    labels = [token(int(each)) for each in step.tree.tokens[0]]
    size = len(labels)
    seen = (step.mask[0, 0] == 0).tolist()
    prefix, shown = len(seen[0]) - size, 5
    fig, ax = plt.subplots(figsize=(9, 7.6))
    ax.axis("off")
    ax.set_aspect("equal")
    for row in range(size):
        y = size - 1 - row
        assert all(seen[row][:prefix]), "a node does not see a token of the text"
        for column in range(shown):
            ax.add_patch(Rectangle((column, y), 0.9, 0.9, fc=theme.cache, ec="none"))
        for column in range(size):
            path = row in step.visited and column in step.visited
            color = theme.cell
            if seen[row][prefix + column]:
                color = theme.green if path else theme.blue
            ax.add_patch(Rectangle((column + shown + 0.6, y), 0.9, 0.9, fc=color, ec="none"))
        color = theme.green if row in step.visited else theme.text
        ax.text(-0.3, y + 0.42, labels[row], ha="right", va="center", fontsize=9, color=color)
        ax.text(
            row + shown + 0.95, size + 0.2, labels[row], rotation=60, ha="left", va="bottom", fontsize=8.5, color=color
        )
    ax.text(
        shown / 2,
        size + 0.2,
        f"text: {prefix} tokens\nin the cache",
        ha="center",
        va="bottom",
        fontsize=9,
        color=theme.dim,
    )
    ax.text(-4.0, size / 2, "nodes of the tree", rotation=90, ha="center", va="center", fontsize=9, color=theme.dim)
    ax.set_xlim(-4.5, size + shown + 2)
    ax.set_ylim(-0.3, size + 3.0)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return fig


def draw(theme: Theme, chosen: Draw) -> Figure:
    """A draw of the target, and the drafter's guess with the same noise."""
    fig, axes = plt.subplots(1, 3, figsize=(9.8, 3.5), sharey=True)
    count = len(chosen.tokens)
    panels = (
        ("The target: log-probabilities", chosen.target, None),
        ("Plus noise: what it samples", chosen.target + chosen.noise, theme.green),
        ("Drafter, same noise: its guess", chosen.draft + chosen.noise, theme.orange),
    )
    for ax, (title, values, color) in zip(axes, panels, strict=True):
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=theme.text)
        lowest = float(values.min()) - 0.8
        best = int(values.argmax())
        colors = [theme.blue if color is None else theme.cache] * count
        if color is not None:
            colors[best] = color
        ax.barh(range(count), [float(value) - lowest for value in values], left=lowest, color=colors, height=0.72)
        ax.set_yticks(range(count), chosen.tokens, fontsize=9.5, color=theme.text)
        ax.invert_yaxis() if ax is axes[0] else None
        ax.tick_params(axis="x", colors=theme.dim, labelsize=8.5)
        ax.tick_params(axis="y", length=0)
        for side, spine in ax.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(theme.line)
        ax.set_facecolor("none")
    fig.tight_layout(w_pad=2.0)
    return fig


def timeline(theme: Theme) -> Figure:
    """Where the time goes, with and without a drafter, as `jakiro bench` measured it."""
    payload = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in payload["summary"] if (row["task"], row["temperature"]) == ("mean", 0.0)}
    config = payload["provenance"]["draft_config"]
    forwards = config["tree_depth"] - (config["head_mode"] == "contrastive")
    plain, ours = rows["plain"]["step_ms"], rows["jakiro"]["step_ms"]
    ours_total, plain_total = sum(ours.values()), sum(plain.values())
    end = 2 * ours_total
    fig, ax = plt.subplots(figsize=(9.8, 2.9))
    names = {
        "drafter": (theme.orange, "the drafter's forwards"),
        "tree": (theme.dim, "growing the tree"),
        "target": (theme.blue, "the target's forward"),
        "rest": (theme.cache, "verification, cache, other"),
    }

    def bar(y: float, start: float, length: float, kind: str) -> float:
        ax.add_patch(Rectangle((start, y - 0.26), length, 0.52, fc=names[kind][0], ec=theme.paper, lw=0.8))
        return start + length

    at, tokens = 0.0, 0
    while at + plain_total <= end + 1e-6:
        at = bar(1, bar(1, at, plain["target"], "target"), plain_total - plain["target"], "rest")
        tokens += 1
        ax.text(at, 1.33, f"{tokens}", ha="center", va="bottom", fontsize=9, color=theme.text)
    at, tokens = 0.0, 0.0
    for _ in range(2):
        for _ in range(forwards):
            at = bar(0, at, ours["drafter"] / forwards, "drafter")
        at = bar(0, at, ours["tree"], "tree")
        at = bar(0, at, ours["target"], "target")
        at = bar(0, at, ours["verification"] + ours["cache"] + ours["other"], "rest")
        tokens += rows["jakiro"]["tokens_per_forward"]
        ax.text(at, 0.33, f"{tokens:.1f}", ha="center", va="bottom", fontsize=9, color=theme.text)
    ax.text(-0.8, 1, "plain `generate`".replace("`", ""), ha="right", va="center", fontsize=10, color=theme.text)
    ax.text(-0.8, 0, "with the drafter", ha="right", va="center", fontsize=10, color=theme.text)
    ax.text(0, 1.33, "tokens so far:", ha="left", va="bottom", fontsize=9, color=theme.dim)
    ax.set_xlim(-13.5, end + 2)
    ax.set_ylim(-0.55, 1.7)
    ax.set_yticks([])
    ax.set_xticks(range(0, int(end) + 1, 10))
    ax.tick_params(axis="x", colors=theme.dim, labelsize=8.5)
    ax.set_xlabel("milliseconds", fontsize=9, color=theme.dim)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    ax.set_facecolor("none")
    handles = [Rectangle((0, 0), 1, 1, fc=color) for color, _ in names.values()]
    ax.legend(
        handles,
        [label for _, label in names.values()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.28),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=theme.text,
    )
    fig.subplots_adjust(left=0.01, right=0.99, top=0.98, bottom=0.33)
    return fig


def batch(theme: Theme) -> Figure:
    """Where the tokens of a batch stand in the cache."""
    fig, ax = plt.subplots(figsize=(9.6, 2.4))
    ax.axis("off")
    ax.set_aspect("equal")
    padding, lengths, longest, nodes = (2, 0, 4), (11, 8, 10), 11, 5
    for row, (pads, length) in enumerate(zip(padding, lengths, strict=True)):
        y = 2 - row
        for column in range(longest + nodes):
            if column < pads or length <= column < longest:
                face, label = theme.cell, ""
            elif column < length:
                face, label = theme.cache, str(column)
            else:
                face, label = theme.pale_blue if column == longest else theme.pale_orange, ""
            ax.add_patch(Rectangle((column, y), 0.9, 0.82, fc=face, ec="none"))
            ax.text(column + 0.45, y + 0.4, label, ha="center", va="center", fontsize=9, color=theme.text)
        ax.text(-0.4, y + 0.4, f"row {row}", ha="right", va="center", fontsize=9.5, color=theme.text)
    for x, text, color in (
        (5.5, "token t of a row stands in column t; pale columns are hidden by masks", theme.dim),
        (13.5, "the trees, after the longest row", theme.orange),
    ):
        ax.text(x, -0.25, text, ha="center", va="top", fontsize=9, color=color)
    ax.set_xlim(-1.6, longest + nodes + 0.6)
    ax.set_ylim(-0.9, 3.1)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return fig


FOLDERS = {  # name, place, width, what it is for
    "training": (2.6, 6.0, 4.4, "the Trainer, losses, data,\nstored features"),
    "hub": (2.6, 4.0, 4.4, "conversion, reading and\npublishing checkpoints"),
    "apps": (8.4, 4.0, 4.4, "demo, chat, page, server"),
    "measuring": (4.6, 2.0, 4.4, "benchmark, tuning,\nprofiling, reports"),
    "pair": (9.3, 2.0, 2.6, "the bundled\ntoy pair"),
    "core": (5.5, 0.0, 10.2, "config, model, trees, masks, caches, decoding:\nwhat travels to the Hub with a drafter"),
}


def layout(theme: Theme) -> Figure:
    """The folders of the package, and which may import which."""
    fig, ax = plt.subplots(figsize=(9.6, 6.2))
    ax.axis("off")
    ax.set_xlim(0, 11)
    ax.set_ylim(-1.4, 8.8)
    box(ax, 5.5, 8.2, 10.2, 0.7, theme.paper, theme.line)
    centered = {"ha": "center", "va": "center", "zorder": 3}
    ax.text(5.5, 8.18, "jakiro_cli: the command line, above all folders", fontsize=10, color=theme.text, **centered)
    for name, (x, y, width, duty) in FOLDERS.items():
        face, edge = (theme.pale_green, theme.green) if name == "core" else (theme.paper, theme.line)
        box(ax, x, y, width, 1.34, face, edge)
        ax.text(x, y + 0.36, name, fontsize=12, fontweight="bold", color=theme.text, **centered)
        ax.text(x, y - 0.22, duty, fontsize=9.5, color=theme.dim, **centered)
    for start, end in (
        ((2.6, 5.3), (2.6, 4.72)),
        ((3.4, 3.3), (4.1, 2.72)),
        ((7.4, 3.3), (5.6, 2.72)),
        ((8.8, 3.3), (9.1, 2.72)),
        ((4.6, 1.3), (4.6, 0.72)),
    ):
        arrow(ax, start, end, theme.blue)
    arrow(ax, (5.5, 7.8), (5.5, 7.2), theme.blue)
    box(ax, 8.4, 6.0, 4.4, 1.34, theme.paper, theme.line)
    ax.text(8.4, 6.36, "next to the folders", fontsize=12, fontweight="bold", color=theme.text, **centered)
    files = "public names, the drafter class of users,\nconversations, files: for all folders"
    ax.text(8.4, 5.78, files, fontsize=9.5, color=theme.dim, **centered)
    legend = "An arrow: imports from. A folder may also import what is further down along the arrows."
    ax.text(5.5, -1.1, legend, ha="center", va="center", fontsize=9.5, color=theme.blue)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return fig


STEPS = (  # of the loop: what happens, and the files of core that do it
    ("1  prefill: read the prompt", "session, target, compat"),
    ("2  rows that have ended leave", "rows"),
    ("3  propose a tree", "jakiro_drafter, draft_forward, growing, tree, adaptive"),
    ("4  verify it", "tree_forward, masks, attention"),
    ("5  accept a path", "choosing, verification, noise"),
    ("6  keep it in the cache", "tree_forward, target_cache"),
    ("7  observe", "jakiro_drafter"),
)


def way(theme: Theme) -> Figure:
    """The path of a `generate` call through the files of core."""
    fig, ax = plt.subplots(figsize=(9.6, 5.4))
    ax.axis("off")
    ax.set_xlim(0, 11)
    ax.set_ylim(0.3, 7.8)
    left = {"ha": "left", "va": "center", "zorder": 3}
    before = (
        ("generate(assistant_model=draft)", "hook"),
        ("check the call", "requests"),
        ("set everything up", "session, drafting, noise"),
    )
    for place, (what, files) in enumerate(before):
        y = 7.1 - 1.4 * place
        box(ax, 2.3, y, 4.2, 0.9, theme.paper, theme.line)
        ax.text(0.4, y + 0.18, what, fontsize=10, color=theme.text, **left)
        ax.text(0.4, y - 0.2, files, fontsize=9, color=theme.blue, **left)
        if place:
            arrow(ax, (2.3, y + 0.95), (2.3, y + 0.47), theme.line)
    box(ax, 7.85, 4.05, 5.9, 7.1, theme.pale_green, theme.green)
    ax.text(5.15, 7.35, "decode in generation", fontsize=10, fontweight="bold", color=theme.green, **left)
    for place, (what, files) in enumerate(STEPS):
        y = 6.72 - 0.96 * place
        box(ax, 7.7, y, 5.1, 0.74, theme.paper, theme.line)
        ax.text(5.35, y + 0.15, what, fontsize=10, color=theme.text, **left)
        ax.text(5.35, y - 0.18, files, fontsize=9, color=theme.blue, **left)
    # from the last step back to the second
    ax.plot((10.27, 10.65, 10.65), (0.96, 0.96, 5.76), color=theme.green, lw=1.3, zorder=3)
    arrow(ax, (10.68, 5.76), (10.2, 5.76), theme.green, zorder=3)
    arrow(ax, (4.4, 4.3), (4.88, 4.3), theme.line)
    box(ax, 2.3, 1.1, 4.2, 0.9, theme.paper, theme.line)
    ax.text(0.4, 1.28, "pack what generate returns", fontsize=10, color=theme.text, **left)
    ax.text(0.4, 0.9, "outputs", fontsize=9, color=theme.blue, **left)
    arrow(ax, (4.88, 1.1), (4.42, 1.1), theme.line)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return fig


def main() -> None:
    argparse.ArgumentParser(description=textwrap.dedent(__doc__).strip().split("\n\n")[0]).parse_args()
    plt.rcParams.update({"svg.hashsalt": "jakiro", "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"})
    tokenizer, target, draft = load_pair()
    step, chosen = telling_step(tokenizer, target, draft), telling_draw(tokenizer, target, draft)

    def token(each: int) -> str:
        return shown_token(tokenizer, each)

    (DOCS / "pictures").mkdir(exist_ok=True)
    pictures: dict[str, Callable[[Theme], Figure]] = {
        "overview": overview,
        "drafter": drafter,
        "tree": lambda theme: tree(theme, step, token, draft.config.tree_depth),
        "mask": lambda theme: mask(theme, step, token),
        "draw": lambda theme: draw(theme, chosen),
        "timeline": timeline,
        "batch": batch,
        "layout": layout,
        "way": way,
    }
    for name, picture in pictures.items():
        for theme, suffix in ((LIGHT, "light"), (DARK, "dark")):
            fig = picture(theme)
            fig.savefig(DOCS / "pictures" / f"{name}-{suffix}.svg", transparent=True, metadata={"Date": None})
            plt.close(fig)
    overview(LIGHT).savefig(DOCS / "how_it_works.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
