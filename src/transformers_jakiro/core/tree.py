# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Draft trees: pure functions on tensors.

Symbols in shape comments: B batch, N drafted nodes, n = N + 1 nodes with the root, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .configuration_jakiro import JakiroDraftConfig

# Tokens per forward of a chat model of 44M parameters, trees of 59 nodes. Greedy: 4.05 at 1, 4.38 at 0.7, 4.39 at 0.6,
# 4.37 at 0.5, 4.20 at 0.4. Sampling at temperature 0.5: 3.35 at 1, 3.46 at 0.8, 3.47 at 0.65, 3.40 at 0.5.
_LEAST_TREE_TEMPERATURE = 0.65


@dataclass(frozen=True)
class DraftTree:
    """
    A tree of drafted tokens. Node 0 is the root: the last token the target has chosen, not yet in its cache. Parents
    stand before their children.

    ```
    tokens   [7, 4, 9, 2]      7 ── 4 ── 2
    parents  [0, 0, 0, 1]       └── 9
    depths   [0, 1, 1, 2]
                               7 4 9 2
    ancestor_mask          7 [ 1 . . . ]
                           4 [ 1 1 . . ]
                           9 [ 1 . 1 . ]
                           2 [ 1 1 . 1 ]
    ```

    Args:
        tokens (`torch.LongTensor` of shape `(B, n)`): token of each node.
        parents (`torch.LongTensor` of shape `(B, n)`): index of each node's parent; the root's is 0.
        max_depth (`int`): an upper bound of the depths.
        scores (`torch.Tensor` of shape `(B, n)`, *optional*): log-probability of each node's path, as the drafter
            sees it; the root's is 0. None where nodes were not chosen by it.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    max_depth: int
    scores: torch.Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """Nodes with the root."""
        return self.tokens.shape[1]

    @cached_property
    def ancestor_mask(self) -> torch.Tensor:
        """`[B, n, n]` bool: whether the column's node is the row's node or one of its ancestors."""
        size = self.num_nodes
        steps = torch.nn.functional.one_hot(self.parents, size).float()
        steps.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        # (I + A)^k is positive where k steps up reach: squaring doubles k, and the clamp keeps the numbers small
        reach, length = steps, 1
        while length < self.max_depth:
            reach, length = torch.bmm(reach, reach).clamp_(max=1.0), 2 * length
        return reach > 0

    @cached_property
    def depths(self) -> torch.Tensor:
        """`[B, n]`: 0 for the root."""
        return self.ancestor_mask.sum(dim=-1) - 1

    def with_chains(self, rows: Sequence[int], token: int) -> "DraftTree":
        """This tree, but in some rows nothing below the root but a chain of one token, as deep as the tree may be."""
        nodes = torch.arange(self.num_nodes, device=self.parents.device)
        tokens, parents = self.tokens.clone(), self.parents.clone()
        for row in rows:
            tokens[row, 1:] = token
            parents[row] = (nodes - 1).clamp(min=0).where(nodes <= self.max_depth, 0)
        return replace(self, tokens=tokens, parents=parents)

    @classmethod
    def root_only(cls, root: torch.Tensor) -> "DraftTree":
        """A tree that drafts nothing. `root`: `[B]`."""
        return cls(root[:, None], torch.zeros_like(root)[:, None], max_depth=0)

    @classmethod
    def from_paths(cls, root: torch.Tensor, paths: Sequence[Sequence[Sequence[int]]], max_nodes: int) -> "DraftTree":
        """
        A tree of paths, as drafters without a model find them. Paths of a row share the nodes they have in common.

        Args:
            root (`[B]`): token of each row's root.
            paths (per row a list of paths): the tokens of each path below the root, the best path first.
            max_nodes (`int`): drafted nodes of a row at most; those of later paths are left out.
        """
        rows: list[dict[tuple[int, int], int]] = []  # (parent, token) → node, in the order of the nodes
        for row_paths in paths:
            nodes: dict[tuple[int, int], int] = {}
            for path in row_paths:
                node = 0
                for token in path:
                    if (node, token) not in nodes and len(nodes) == max_nodes:
                        break
                    node = nodes.setdefault((node, token), len(nodes) + 1)
            rows.append(nodes)
        size = max(map(len, rows))
        # shorter rows repeat their last node, a leaf
        edges = [list(nodes) + [next(reversed(nodes), (0, 0))] * (size - len(nodes)) for nodes in rows]
        parents, tokens = torch.tensor(edges, dtype=torch.long).view(len(rows), size, 2).to(root.device).unbind(-1)
        return cls(
            tokens=torch.cat((root[:, None], tokens), dim=1),
            parents=torch.nn.functional.pad(parents, (1, 0)),
            max_depth=max((len(path) for row_paths in paths for path in row_paths), default=0),
        )


def gather_nodes(values: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """`values[b, nodes[b, k]]`: `[B, n, X]` and `[B, k]` → `[B, k, X]`."""
    index = nodes.to(values.device)[..., None]
    return values.gather(1, index.expand(-1, -1, values.shape[-1]))


def select_tree(
    root: torch.Tensor,
    tokens: torch.Tensor,
    scores: torch.Tensor,
    parents: torch.Tensor,
    num_draft_tokens: int,
    max_depth: int,
) -> DraftTree:
    """
    The tree of the best candidates (paper section 3.2; EAGLE-2's reranking).

    A child never scores more than its parent and stands after it, so a *stable* sort keeps the ancestors of whatever
    it keeps, also where a child's probability is exactly 1 and the scores tie.

    Args:
        root (`[B]`): token of the root.
        tokens, scores (`[B, C]`): the candidates of all levels with the log-probabilities of their paths.
        parents (`[B, C]`): index among the candidates of each one's parent, -1 for the root.
        num_draft_tokens (`int`): candidates to keep, at most.
        max_depth (`int`): levels of candidates.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    kept = order[:, : min(num_draft_tokens, scores.shape[1])].sort(dim=-1).values  # [B, N]
    kept_parents = parents.gather(1, kept)
    # position of the parent among the kept ones; the root, -1, lies before all of them
    node_parents = torch.searchsorted(kept, kept_parents) + (kept_parents >= 0)
    return DraftTree(
        tokens=torch.cat((root[:, None], tokens.gather(1, kept)), dim=1),
        parents=torch.nn.functional.pad(node_parents, (1, 0)),
        max_depth=max_depth,
        scores=torch.nn.functional.pad(scores.gather(1, kept), (1, 0)),
    )


@dataclass(frozen=True)
class StaticTree:
    """
    A fixed tree, level by level. Nodes are ordered by level, and within it by parent and rank.

    Attributes:
        parents: index of each node's parent among all nodes with the root.
        levels: per level the nodes as pairs (index of the parent among the *expanded* nodes of the level above, rank).
        expanded: per level but the last, the indices within the level of the nodes that have children.
    """

    parents: tuple[int, ...]
    levels: tuple[tuple[tuple[int, int], ...], ...]
    expanded: tuple[tuple[int, ...], ...]

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[int]]) -> "StaticTree":
        """From paths of child ranks, as in [`JakiroDraftConfig.static_tree`]."""
        by_level = sorted({tuple(path) for path in paths}, key=lambda path: (len(path), path))
        index: dict[tuple[int, ...], int] = {
            (): 0,
            **{path: position for position, path in enumerate(by_level, start=1)},
        }
        depth = len(by_level[-1])
        nodes = [[path for path in by_level if len(path) == level + 1] for level in range(depth)]
        with_children = {path[:-1] for path in by_level}
        levels: list[tuple[tuple[int, int], ...]] = []
        expanded: list[tuple[int, ...]] = []
        frontier: list[tuple[int, ...]] = [()]
        for level in nodes:
            position = {path: i for i, path in enumerate(frontier)}
            levels.append(tuple((position[path[:-1]], path[-1]) for path in level))
            keep = [i for i, path in enumerate(level) if path in with_children]
            expanded.append(tuple(keep))
            frontier = [level[i] for i in keep]
        return cls(
            parents=(0, *(index[path[:-1]] for path in by_level)), levels=tuple(levels), expanded=tuple(expanded[:-1])
        )

    def as_tensors(self, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Per level the nodes' parents and ranks, and the indices of those with children (none in the last)."""
        tensors = []
        for nodes, expanded in zip(self.levels, (*self.expanded, ()), strict=True):
            parent, rank = torch.tensor(nodes, device=device).unbind(dim=1)
            tensors.append((parent, rank, torch.tensor(expanded, dtype=torch.long, device=device)))
        return tensors


@dataclass(frozen=True)
class TreeShape:
    """
    How the trees of one generation are chosen; see [`JakiroDraftConfig`] for the fields. With `two_levels` the
    last level comes from the contrastive branch and has no drafter forward of its own.
    """

    depth: int
    top_k: int
    width: int
    num_draft_tokens: int
    two_levels: bool
    static_tree: StaticTree | None = None
    temperature: float = 1.0

    @classmethod
    def from_config(
        cls,
        config: JakiroDraftConfig,
        num_draft_tokens: int | None = None,
        sampling_temperature: float = 1.0,
        batch_size: int = 1,
    ) -> "TreeShape":
        """
        The shape in a drafter's config for a batch size, checked; `num_draft_tokens` overrides the config's.
        `sampling_temperature` is the target's, 0 if its choices can be told from its logits: when it decodes greedily,
        or the noise is known.
        """
        config.check_consistency()
        if num_draft_tokens is not None and num_draft_tokens < 1:
            raise ValueError(f"`num_assistant_tokens` must be at least 1, got {num_draft_tokens}.")
        if config.static_tree is not None and num_draft_tokens is None:
            static_tree = StaticTree.from_paths(config.static_tree)
            depth, num_draft_tokens = len(static_tree.levels), len(static_tree.parents) - 1
            top_k = width = 1 + max(rank for level in static_tree.levels for _, rank in level)
        else:
            # who says how many nodes each row gets does not want fewer levels
            fields = config.tree_fields(batch_size if num_draft_tokens is None or config.batch_trees else 1)
            num_draft_tokens = num_draft_tokens or fields["num_draft_tokens"]
            # what a tree of so many nodes can hold: a chain at most, a level of leaves at most
            static_tree, depth = None, min(fields["tree_depth"], num_draft_tokens)
            top_k = min(fields["tree_top_k"], num_draft_tokens)
            width = min(fields["tree_width"], max(1, num_draft_tokens - 1))
        two_levels = config.head_mode == "contrastive" and depth >= 2
        temperature = config.tree_temperature or max(sampling_temperature, _LEAST_TREE_TEMPERATURE)
        return cls(depth, top_k, width, num_draft_tokens, two_levels, static_tree, temperature)

    def as_chain(self) -> "TreeShape":
        """One child per node."""
        num_draft_tokens = min(self.depth, self.num_draft_tokens)
        return replace(self, top_k=1, width=1, num_draft_tokens=num_draft_tokens, static_tree=None)

    def limited(self, max_depth: int) -> "TreeShape":
        """The upper `max_depth` levels, drafted as in the whole tree: only its last level is contrastive."""
        if self.depth <= max_depth:
            return self
        return replace(self, depth=max_depth, two_levels=False)

    def with_depth(self, depth: int) -> "TreeShape":
        """At most `depth` levels, of which the last one comes from the same branch as in the whole tree."""
        if self.depth <= depth or self.static_tree is not None:
            return self
        return replace(self, depth=depth, two_levels=self.two_levels and depth >= 2)


__all__ = ["DraftTree", "StaticTree", "TreeShape", "gather_nodes", "select_tree"]
