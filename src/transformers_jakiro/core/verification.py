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
    stops: Callable[[int, int], bool],
) -> tuple[list[list[int]], list[list[int]]]:
    """
    Walks the trees of a batch side by side.

    Args:
        rows: the rows to walk, of the B there are.
        tokens, parents (`B` lists of `n` integers): of the nodes, the root first; parents before their children.
        choose: the target's next tokens, given rows and a node of each, from that node's logits and prefix. Called
            once per level, with the rows that got there.
        stops: whether generation ends for a row with a token. Called once per emitted token, in order.

    Returns:
        Per row the visited nodes (the root, then the accepted ones) and the emitted tokens, equally many: the accepted
        tokens, then the first one that is not in the tree or that stops the generation. Empty for rows not walked.
    """
    children = {
        row: {edge: node for node, edge in enumerate(zip(parents[row], tokens[row], strict=True)) if node}
        for row in rows
    }
    visited: list[list[int]] = [[] for _ in tokens]
    emitted: list[list[int]] = [[] for _ in tokens]
    walking, nodes = list(rows), [0] * len(rows)
    while walking:
        chosen = choose(walking, nodes)
        still_walking, children_reached = [], []
        for row, node, token in zip(walking, nodes, chosen, strict=True):
            visited[row].append(node)
            emitted[row].append(token)
            child = children[row].get((node, token))
            if not stops(row, token) and child is not None:
                still_walking.append(row)
                children_reached.append(child)
        walking, nodes = still_walking, children_reached
    return visited, emitted
