# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Verification: walks a tree with the target's own choices. At each visited node the next token is chosen as plain
generation would choose it, then the walk moves to the child that holds it.

Whatever the drafter proposes, the emitted tokens are those the target chooses, in the same order and from the same
random numbers: the walk is lossless by construction, and for deterministic candidates no rule accepts more.
"""

from collections.abc import Callable, Sequence


def walk_tree(
    tokens: Sequence[int],
    parents: Sequence[int],
    choose: Callable[[int], int],
    stops: Callable[[int], bool],
) -> tuple[list[int], list[int]]:
    """
    Args:
        tokens, parents (`n` integers): of the nodes, the root first; parents before their children.
        choose: the target's next token after a node, from that node's logits and prefix. Called once per visited
            node, in order.
        stops: whether generation ends with a token. Called once per emitted token, in order.

    Returns:
        The visited nodes (the root, then the accepted ones) and the emitted tokens, equally many: the accepted
        tokens, then the first one that is not in the tree or that stops the generation.
    """
    children = {
        (parent, token): node for node, (parent, token) in enumerate(zip(parents, tokens, strict=True)) if node
    }
    node, visited, emitted = 0, [0], []
    while True:
        token = choose(node)
        emitted.append(token)
        child = children.get((node, token))
        if stops(token) or child is None:
            return visited, emitted
        node = child
        visited.append(node)
