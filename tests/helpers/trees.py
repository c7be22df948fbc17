# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Draft trees that tests plant, and what they hold."""

import random
from collections.abc import Sequence

import torch

from transformers_jakiro.core.tree import DraftTree


def knowing_tree(
    root: int, truth: Sequence[int], depth: int, vocab_size: int, chance: random.Random, drafted: DraftTree | None
) -> DraftTree:
    """
    A tree that holds a true continuation of random length up to `depth`, among what a drafter proposed and traps:
    wrong siblings of each true node, and the true tokens again below wrong parents. Parents stand before their
    children and are otherwise in random order, so that true paths lie at indices with gaps.
    """
    children: list[dict[int, int]] = [{}]
    tokens, parents, depths = [root], [-1], [0]

    def add(parent: int, token: int) -> int:
        if token not in children[parent]:
            children[parent][token] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            children.append({})
        return children[parent][token]

    if drafted is not None:
        copies = [0]
        for token, parent in zip(drafted.tokens[0, 1:].tolist(), drafted.parents[0, 1:].tolist(), strict=True):
            copies.append(add(copies[parent], token))
    node = 0
    for true_token in truth[: chance.randint(min(2, depth), depth)]:
        for _ in range(chance.randint(0, 2)):
            trap = add(node, chance.randrange(vocab_size))
            if depths[trap] < depth:
                add(trap, true_token)
        node = add(node, true_token)
    # a random order in which parents precede their children
    order, ready = [], [0]
    while ready:
        node = ready.pop(chance.randrange(len(ready)))
        order.append(node)
        ready.extend(children[node].values())
    position = {node: index for index, node in enumerate(order)}
    return DraftTree(
        torch.tensor([[tokens[node] for node in order]]),
        torch.tensor([[position.get(parents[node], 0) for node in order]]),
        max_depth=max(depths),
    )


def scored_tree() -> DraftTree:
    """
    7 ── 4 ── 2      scores of the paths: 4: -1, 9: -0.5, 2: -1.2, 3 (below 9): -4
     └── 9 ── 3
    """
    return DraftTree(
        tokens=torch.tensor([[7, 4, 9, 2, 3]]),
        parents=torch.tensor([[0, 0, 0, 1, 2]]),
        max_depth=2,
        scores=torch.tensor([[0.0, -1.0, -0.5, -1.2, -4.0]]),
    )


def token_paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """The tokens from the root to each node, without the root's. No path may be there twice."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    paths = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    assert len(set(paths)) == len(paths), "a node is there twice"
    return set(paths[1:])


def leaf_paths(tree: DraftTree) -> list[list[int]]:
    """Of a single row, the nodes from the root to each leaf, in the order of the leaves."""
    (parents,) = tree.parents.tolist()
    inner, paths = set(parents[1:]), []
    for leaf in range(len(parents)):
        if leaf in inner or (leaf == 0 and len(parents) > 1):
            continue
        path = [leaf]
        while path[-1] != 0:
            path.append(parents[path[-1]])
        paths.append(path[::-1])
    return paths
