# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Draws docs/how_it_works.png: one step of decoding with a draft tree."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

GREEN, GREY, BLUE, ORANGE = "#1a7f37", "#8c959f", "#0969da", "#bc4c00"
nodes = {  # index: (x, y, token, parent)
    0: (0, 0, "The", None),
    1: (1, 1.1, "cat", 0),
    2: (1, -1.1, "dog", 0),
    3: (2, 1.7, "sat", 1),
    4: (2, 0.5, "is", 1),
    5: (2, -1.1, "ran", 2),
    6: (3, 2.2, "on", 3),
    7: (3, 1.3, "down", 3),
    8: (3, 0.4, "black", 4),
}
path = [0, 1, 3, 6]
fig, axes = plt.subplots(1, 3, figsize=(13, 4.3), gridspec_kw={"width_ratios": [1.25, 1.0, 1.25]})
for ax in axes:
    ax.axis("off")


def box(ax, x, y, width, face, edge):
    style = "round,pad=0.02,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), width, 0.4, boxstyle=style, fc=face, ec=edge, lw=1.6, zorder=2))


def tree(ax, accepted):
    for i, (x, y, _, parent) in nodes.items():
        if parent is not None:
            px, py = nodes[parent][:2]
            good = accepted and i in path and i != 0
            ax.plot([px + 0.33, x - 0.33], [py, y], color=GREEN if good else GREY, lw=2.4 if good else 1.2, zorder=1)
    for i, (x, y, token, _) in nodes.items():
        good = accepted and i in path and i != 0
        dim = accepted and i not in path
        edge = GREEN if good else (BLUE if i == 0 else GREY)
        face = "#dafbe1" if good else ("#ddf4ff" if i == 0 else "white")
        box(ax, x - 0.31, y - 0.2, 0.62, face, edge)
        ax.text(x, y, token, ha="center", va="center", fontsize=11, color=GREY if dim else "#1f2328", zorder=3)
    ax.set_xlim(-0.6, 4.3)
    ax.set_ylim(-2.6, 2.9)


ax = axes[0]
ax.set_title("1  The drafter grows a tree", loc="left", fontsize=13, fontweight="bold")
tree(ax, False)
for x, label, color in (
    (0, "root:\nthe last token", BLUE),
    (1, "level 1", "#1f2328"),
    (2, "level 2", "#1f2328"),
    (3, "level 3", ORANGE),
):
    ax.text(x, -1.75, label, ha="center", va="top", fontsize=9.5, color=color)
ax.text(3, -2.1, "contrastive branch:\nno forward of its own", ha="center", va="top", fontsize=8.5, color=ORANGE)

ax = axes[1]
ax.set_title("2  One forward of the target", loc="left", fontsize=13, fontweight="bold")
order = list(nodes)
n = len(order)
anc = {i: set() for i in order}
for i in order:
    j = i
    while j is not None:
        anc[i].add(j)
        j = nodes[j][3]
for r, i in enumerate(order):
    for c in range(3):
        ax.add_patch(plt.Rectangle((c, n - 1 - r), 0.92, 0.92, fc="#d0d7de", ec="none"))
    for c, j in enumerate(order):
        ax.add_patch(plt.Rectangle((c + 3.4, n - 1 - r), 0.92, 0.92, fc=BLUE if j in anc[i] else "#f6f8fa", ec="none"))
    ax.text(-0.3, n - 0.55 - r, nodes[i][2], ha="right", va="center", fontsize=9.5)
for c, j in enumerate(order):
    ax.text(c + 3.86, n + 0.2, nodes[j][2], ha="left", va="bottom", fontsize=9, rotation=55)
ax.text(1.45, n + 0.2, "cache", ha="center", va="bottom", fontsize=9.5, color="#57606a")
ax.text(
    6.2, -0.5, "a node sees the cached text and\nits own ancestors, nothing else", ha="center", va="top", fontsize=9.5
)
ax.set_xlim(-2.2, 13)
ax.set_ylim(-2.4, n + 2.6)

ax = axes[2]
ax.set_title("3  Walk it with the target's own choices", loc="left", fontsize=13, fontweight="bold")
tree(ax, True)
ax.plot([3.33, 3.72], [2.2, 2.2], color=BLUE, lw=2.4)
box(ax, 3.74, 2.0, 0.5, "#ddf4ff", BLUE)
ax.text(3.99, 2.2, "the", ha="center", va="center", fontsize=11)
caption = (
    "3 drafted tokens accepted (green), 1 of the target's own (blue):\n"
    "4 tokens for one forward, the same 4 as without a drafter"
)
ax.text(1.6, -1.75, caption, ha="center", va="top", fontsize=9.5)
fig.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.02, wspace=0.05)
fig.savefig(Path(__file__).with_suffix(".png"), dpi=110)
