# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The tree of a step as an SVG image, drawn from left to right."""

from dataclasses import dataclass
from html import escape
from itertools import accumulate

from rich.cells import cell_len, set_cell_size
from transformers import PreTrainedTokenizerBase

from ..core.tree import DraftTree
from .answering import Step

LONGEST_LABEL = 14  # columns of a node's text
# lengths in pixels
COLUMN_WIDTH = 7.3  # of one column of text
NODE_PADDING = 16
NODE_HEIGHT = 24
ROW_HEIGHT = 30
LEVEL_GAP = 34  # between the nodes of one level and those of the next
MARGIN = 2  # around the drawing, for the width of its lines

KEY = (
    '<div class="key quiet"><span><i class="root"></i>last token of the text so far</span>'
    '<span><i class="accepted"></i>drafted and accepted</span>'
    "<span><i></i>drafted, not what the target chose</span>"
    '<span><i class="own"></i>the target\'s own next token</span></div>'
)


@dataclass
class _Node:
    """
    A token of the tree.

    Args:
        label: its text.
        kind: `"root"`, `"accepted"`, `"rejected"` or `"own"`: its CSS class.
        parent: number of the parent, which is smaller than its own; 0 for the root.
        left: x of the left edge.
        middle: y of the middle.
    """

    label: str
    kind: str
    parent: int
    left: float = 0.0
    middle: float = 0.0

    @property
    def width(self) -> float:
        return NODE_PADDING + COLUMN_WIDTH * max(1, cell_len(self.label))


def tree_html(step: Step, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A step's tree with the accepted path in colour, and a key to the colours.

    Args:
        step ([`~transformers_jakiro.apps.answering.Step`]): one with a tree.
        tokenizer: the target's.

    Raises:
        ValueError: if the step has no tree.
    """
    if step.tree is None:
        raise ValueError("A step must have a tree to be drawn, got one without. Only steps with a drafter have one.")
    nodes, path = _nodes(step, step.tree, tokenizer)
    width, height = _place(nodes, path)
    text = f"{step.tree.num_nodes - 1} tokens drafted, {len(step.visited) - 1} accepted"
    name = f"{text}: {' → '.join(nodes[number].label for number in path)}"
    edges = sorted(nodes[1:], key=lambda node: node.kind != "rejected")  # those in colour lie above the others
    drawing = "".join([_edge_svg(node, nodes[node.parent]) for node in edges] + [_box_svg(node) for node in nodes])
    return (
        f'<p class="verdict">{text}.</p><div class="tree" tabindex="0"><svg role="img" width="{width:.0f}" '
        f'height="{height}" viewBox="0 0 {width:.0f} {height}" aria-label="{escape(name)}">{drawing}</svg></div>{KEY}'
    )


def _nodes(step: Step, tree: DraftTree, tokenizer: PreTrainedTokenizerBase) -> tuple[list[_Node], list[int]]:
    """The nodes of the tree, and the numbers of those on the accepted path, down to the target's own token."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    last, own_token = step.visited[-1], step.tokens[-1]
    # The target's own token hangs below the last accepted node. It may have been drafted there if it ends the answer.
    own = next((n for n in range(1, len(tokens)) if parents[n] == last and tokens[n] == own_token), len(tokens))
    if own == len(tokens):
        tokens.append(own_token)
        parents.append(last)
    kinds = ["root"] + ["rejected"] * (len(tokens) - 1)
    for number in step.visited[1:]:
        kinds[number] = "accepted"
    kinds[own] = "own"
    labels = [_label(tokenizer, token) for token in tokens]
    nodes = [_Node(label, kind, parent) for label, kind, parent in zip(labels, kinds, parents, strict=True)]
    return nodes, [*step.visited, own]


def _label(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token's text with visible blanks, cut to the width of a node."""
    text = str(tokenizer.decode([token])).replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") or "∅"
    return text if cell_len(text) <= LONGEST_LABEL else set_cell_size(text, LONGEST_LABEL - 1).rstrip() + "…"


def _place(nodes: list[_Node], path: list[int]) -> tuple[float, int]:
    """
    Sets where the nodes are: one column per level, one row per leaf, and each node in the row of its first child.

    Returns:
        Width and height of the image.
    """
    children: list[list[int]] = [[] for _ in nodes]
    depths = [0] * len(nodes)
    for number, node in enumerate(nodes[1:], 1):
        children[node.parent].append(number)
        depths[number] = depths[node.parent] + 1
    children[path[-2]].sort(key=lambda number: number != path[-1])  # the target's own token first

    num_rows = [0] * len(nodes)  # of the node and all below it
    for number in reversed(range(len(nodes))):
        num_rows[number] = sum(num_rows[child] for child in children[number]) or 1
    rows = [0] * len(nodes)
    for number, below in enumerate(children):
        row = rows[number]
        for child in below:
            rows[child] = row
            row += num_rows[child]

    widths = [0.0] * (max(depths) + 1)
    for depth, node in zip(depths, nodes, strict=True):
        widths[depth] = max(widths[depth], node.width)
    lefts = list(accumulate((width + LEVEL_GAP for width in widths), initial=MARGIN))
    for depth, row, node in zip(depths, rows, nodes, strict=True):
        node.left = lefts[depth]
        node.middle = ROW_HEIGHT * (row + 0.5) + MARGIN / 2
    return lefts[-1] - LEVEL_GAP + MARGIN, ROW_HEIGHT * num_rows[0] + MARGIN


def _edge_svg(node: _Node, parent: _Node) -> str:
    start = parent.left + parent.width
    half = (start + node.left) / 2
    curve = (
        f"M{start:.1f} {parent.middle:.1f}"
        f"C{half:.1f} {parent.middle:.1f} {half:.1f} {node.middle:.1f} {node.left:.1f} {node.middle:.1f}"
    )
    return f'<path class="{node.kind}" d="{curve}"/>'


def _box_svg(node: _Node) -> str:
    return (
        f'<g class="{node.kind}"><rect x="{node.left:.1f}" y="{node.middle - NODE_HEIGHT / 2:.1f}" '
        f'width="{node.width:.1f}" height="{NODE_HEIGHT}" rx="6"/>'
        f'<text x="{node.left + node.width / 2:.1f}" y="{node.middle + 4:.1f}" text-anchor="middle">'
        f"{escape(node.label)}</text></g>"
    )


__all__ = ["tree_html"]
