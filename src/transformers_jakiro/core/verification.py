# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Verification: walks trees with the target's own choices. At each visited node the next token is chosen as plain
generation would choose it, then the walk moves to the child that holds it.

Whatever the drafter proposes, the emitted tokens are those the target chooses, in the same order and from the same
random numbers: the walk is lossless by construction, and for deterministic candidates no rule accepts more.
"""

from collections.abc import Callable, Sequence


def walk_trees(
    rows: Sequence[int],
    tokens: Sequence[Sequence[int]],
    parents: Sequence[Sequence[int]],
    choose: Callable[[list[int], list[int]], list[int]],
    emit: Callable[[int, int], bool],
    visited: Sequence[list[int]],
) -> list[list[int]]:
    """
    Walks the trees of a batch side by side.

    Args:
        rows: the rows to walk, of the B there are.
        tokens, parents (`B` lists of `n` integers): of the nodes, the root first; parents before their children.
        choose: the target's next tokens, given rows and a node of each, from that node's logits and prefix. Called
            once per level, with the rows that got there.
        emit: takes a row's next token, and tells whether the row ends with it. Called once per token, in order.
        visited (`B` empty lists): filled in with the visited nodes of each row, the root first, as they are reached.

    Returns:
        Per row the emitted tokens, as many as visited nodes: the accepted ones, then the first one that is not in the
        tree or that ends the row. Empty for rows not walked.
    """
    children = {row: _children(tokens[row], parents[row]) for row in rows}
    emitted: list[list[int]] = [[] for _ in tokens]
    walking, nodes = list(rows), [0] * len(rows)
    while walking:
        for row, node in zip(walking, nodes, strict=True):
            visited[row].append(node)
        chosen = choose(walking, nodes)
        still_walking, children_reached = [], []
        for row, node, token in zip(walking, nodes, chosen, strict=True):
            emitted[row].append(token)
            child = children[row].get((node, token))
            if not emit(row, token) and child is not None:
                still_walking.append(row)
                children_reached.append(child)
        walking, nodes = still_walking, children_reached
    return emitted


def walk_in_step(
    tokens: Sequence[Sequence[int]],
    parents: Sequence[Sequence[int]],
    choose: Callable[[list[int]], list[int]],
    emit: Callable[[list[int]], bool],
    visited: Sequence[list[int]],
) -> list[list[int]]:
    """
    Walks the trees of a batch whose rows stay in step: all move to a child, or none does. One row alone is in step.

    Args:
        tokens, parents (`B` lists of `n` integers): see [`walk_trees`].
        choose: the target's next token in each row, given the node that each row is at. Called once per level.
        emit: takes each row's next token, and tells whether the generation ends with them. Called once per level.
        visited (`B` empty lists): filled in with the visited nodes of each row, the root first, as they are reached.

    Returns:
        Per row the emitted tokens, as many as visited nodes.
    """
    children = list(map(_children, tokens, parents))
    emitted: list[list[int]] = [[] for _ in tokens]
    nodes: list[int] = [0] * len(tokens)
    while True:
        for path, node in zip(visited, nodes, strict=True):
            path.append(node)
        chosen = choose(nodes)
        for row, token in zip(emitted, chosen, strict=True):
            row.append(token)
        ends = emit(chosen)
        reached = [edges.get(edge) for edges, edge in zip(children, zip(nodes, chosen, strict=True), strict=True)]
        following = [node for node in reached if node is not None]
        if ends or len(following) < len(nodes):
            return emitted
        nodes = following


def _children(tokens: Sequence[int], parents: Sequence[int]) -> dict[tuple[int, int], int]:
    """The nodes of a tree by their parent and token."""
    return {edge: node for node, edge in enumerate(zip(parents, tokens, strict=True)) if node}
