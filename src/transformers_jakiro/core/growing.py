# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
How a tree grows, level by level: which candidates become its nodes, and which of them get children (paper section
3.2).

Symbols in shape comments: R rows, W nodes of a level, K children per node, N drafted nodes.
"""

from abc import ABC, abstractmethod
from functools import lru_cache

import torch

from .tree import DraftTree, StaticTree, TreeShape, select_tree


class Growth(ABC):
    """A tree that is being grown. Per level [`~Growth.add`], then, but for the last one, [`~Growth.frontier`]."""

    @abstractmethod
    def add(self, log_probs: torch.Tensor, tokens: torch.Tensor) -> None:
        """
        Takes the candidates of the next level: the best children of each node of the frontier, best first.

        Args:
            log_probs (`[R, W, K]`, float32), tokens (`[R, W, K]`).
        """

    @abstractmethod
    def frontier(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The nodes of the last level that get children.

        Returns:
            Their tokens and the places of their parents in the frontier before, both `[R, W]`.
        """

    @abstractmethod
    def tree(self) -> DraftTree:
        """The tree of all levels so far."""


class DynamicGrowth(Growth):
    """
    The likeliest nodes of each level get children, and the likeliest candidates of all levels are the tree (EAGLE-2).

    Args:
        root (`[R]`): token of the root.
        shape ([`TreeShape`]): of the tree.
    """

    def __init__(self, root: torch.Tensor, shape: TreeShape):
        self._root = root
        self._shape = shape
        self._tokens: list[torch.Tensor] = []  # candidates by level
        self._scores: list[torch.Tensor] = []  # log-probabilities of their paths
        self._parents: list[torch.Tensor] = []  # indices among all candidates, -1 for the root
        self._num_candidates = 0  # of the levels above the last one
        self._frontier_scores = torch.zeros((root.shape[0], 1), dtype=torch.float32, device=root.device)
        self._frontier_index = root.new_full((root.shape[0], 1), -1)

    def add(self, log_probs: torch.Tensor, tokens: torch.Tensor) -> None:
        if self._tokens:
            self._num_candidates += self._tokens[-1].shape[1]
        self._tokens.append(tokens.flatten(1))
        self._scores.append((self._frontier_scores[..., None] + log_probs).flatten(1))
        self._parents.append(self._frontier_index.repeat_interleave(tokens.shape[-1], dim=1))

    def frontier(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, scores = self._tokens[-1], self._scores[-1]
        self._frontier_scores, best = scores.topk(min(self._shape.width, scores.shape[1]), dim=-1)
        self._frontier_index = best + self._num_candidates
        return tokens.gather(1, best), best.div(self._shape.top_k, rounding_mode="floor")

    def tree(self) -> DraftTree:
        return select_tree(
            self._root,
            torch.cat(self._tokens, dim=1),
            torch.cat(self._scores, dim=1),
            torch.cat(self._parents, dim=1),
            self._shape.num_draft_tokens,
            self._shape.depth,
        )


class FixedGrowth(Growth):
    """
    The tree of a drafter's config: each node is its parent's child of a fixed rank.

    Args:
        root (`[R]`): token of the root.
        tree ([`StaticTree`]): the tree.
    """

    def __init__(self, root: torch.Tensor, tree: StaticTree):
        self._levels, self._parents = _tensors_of(tree, root.device)
        self._tokens = [root[:, None]]

    def add(self, log_probs: torch.Tensor, tokens: torch.Tensor) -> None:
        parent, rank, _ = self._levels[len(self._tokens) - 1]
        self._tokens.append(tokens[:, parent, rank])

    def frontier(self) -> tuple[torch.Tensor, torch.Tensor]:
        parent, _, expanded = self._levels[len(self._tokens) - 2]
        tokens = self._tokens[-1]
        return tokens[:, expanded], parent[expanded].expand(tokens.shape[0], -1)

    def tree(self) -> DraftTree:
        tokens = torch.cat(self._tokens, dim=1)
        parents = self._parents[: tokens.shape[1]]
        return DraftTree(tokens, parents.expand(tokens.shape[0], -1), max_depth=len(self._tokens) - 1)


@lru_cache(maxsize=8)
def _tensors_of(
    tree: StaticTree, device: torch.device
) -> tuple[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], torch.Tensor]:
    """The levels of a static tree, and the parents of all of its nodes, once per device."""
    return tree.as_tensors(device), torch.tensor(tree.parents, device=device)


__all__ = ["DynamicGrowth", "FixedGrowth", "Growth"]
