# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Drafters that know what the target is about to say, so that it accepts long paths whatever the weights are."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from helpers.targets import VOCAB
from helpers.trees import knowing_tree
from transformers_jakiro import JakiroDraftConfig, register_drafter
from transformers_jakiro.core.drafting import Budget, Drafter
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.core.tree import DraftTree


@contextmanager
def drafting_with(drafter_class: type[Drafter]) -> Iterator[None]:
    """Within it, generations with a Jakiro drafter draft with another class."""
    previous = register_drafter(JakiroDraftConfig, drafter_class)
    try:
        yield
    finally:
        register_drafter(JakiroDraftConfig, previous)


@contextmanager
def knowing_drafter(
    continuations: Sequence[Sequence[int]] | Sequence[int], seed: int = 0, depth: int = 6, keep_drafted: bool = True
) -> Iterator[list[DraftTree]]:
    """
    Within it, drafters know what the target is going to generate for each row (of a single row simply its tokens), and
    draft more or less of it by chance.
    The drafter itself still runs; of a single row, what it proposes is part of the trees unless `keep_drafted` is
    False. Yields the list of the proposed trees.
    """
    chance, trees = random.Random(seed), []
    truths = continuations if continuations and not isinstance(continuations[0], int) else [continuations]

    class KnowingDrafter(JakiroDrafter):
        def __setattr__(self, name: str, value: Any) -> None:
            # beside what the drafter proposes: on each level the true node, two traps, and a child of each
            super().__setattr__(name, value + 5 * depth if name == "num_draft_tokens" else value)

        def propose(self, last_tokens: torch.Tensor, budget: Budget) -> DraftTree:
            drafted = super().propose(last_tokens, budget)
            trees.append(self.with_truth(drafted, last_tokens.tolist(), budget))
            return trees[-1]

        def with_truth(self, drafted: DraftTree, roots: list[int], budget: Budget) -> DraftTree:
            limit = min(depth, budget.max_depth)
            if limit < 1:
                return drafted
            rows = self.rows.active
            following = [truths[row.index][row.num_new_tokens :][:limit] for row in rows]
            if budget.chain:
                return chains(roots, following) if any(following) else drafted
            kept = drafted if keep_drafted and len(rows) == 1 else None
            vocab_size = self.config.vocab_size
            grown = [
                knowing_tree(root, truth, limit, vocab_size, chance, kept)
                for root, truth in zip(roots, following, strict=True)
            ]
            return stack(grown, limit)

    with drafting_with(KnowingDrafter):
        yield trees


def chains(roots: Sequence[int], tokens: Sequence[Sequence[int]]) -> DraftTree:
    length = max(map(len, tokens))
    rows = [[root, *row, *[0] * (length - len(row))] for root, row in zip(roots, tokens, strict=True)]
    parents = (torch.arange(length + 1) - 1).clamp(min=0)
    return DraftTree(torch.tensor(rows), parents.repeat(len(rows), 1), length)


def stack(trees: Sequence[DraftTree], depth: int) -> DraftTree:
    """Trees of single rows as one of a batch: smaller ones get further children of the root."""
    if len(trees) == 1:
        return trees[0]
    size = max(tree.num_nodes for tree in trees)
    tokens, parents = [], []
    for tree in trees:
        taken = set(tree.tokens[0, 1:][tree.parents[0, 1:] == 0].tolist())
        more = [token for token in range(VOCAB) if token not in taken][: size - tree.num_nodes]
        tokens.append(torch.cat((tree.tokens[0], torch.tensor(more, dtype=torch.long))))
        parents.append(torch.cat((tree.parents[0], torch.zeros(len(more), dtype=torch.long))))
    return DraftTree(torch.stack(tokens), torch.stack(parents), max_depth=depth)
