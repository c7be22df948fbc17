# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import pytest
import torch

from helpers.trees import leaf_paths
from transformers_jakiro.core.tree import DraftTree, StaticTree, select_tree
from transformers_jakiro.core.verification import walk_trees


def test_masks_and_depths_are_those_of_the_docstring():
    tree = DraftTree(torch.tensor([[7, 4, 9, 2]]), torch.tensor([[0, 0, 0, 1]]), max_depth=2)
    assert tree.ancestor_mask[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert tree.depths.tolist() == [[0, 1, 1, 2]]
    assert leaf_paths(tree) == [[0, 2], [0, 1, 3]]


@pytest.mark.parametrize("depth", range(1, 12))
def test_ancestors_of_a_chain(depth):
    parents = torch.tensor([[0, *range(depth)]])
    tree = DraftTree(torch.zeros_like(parents), parents, max_depth=depth)
    assert torch.equal(tree.ancestor_mask[0], torch.ones(depth + 1, depth + 1).tril().bool())


def test_ancestors_of_random_trees():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        parents = [0] + [int(torch.randint(0, node, (1,), generator=generator)) for node in range(1, 40)]
        tree = DraftTree(torch.zeros(1, 40, dtype=torch.long), torch.tensor([parents]), max_depth=39)
        for node in range(40):
            ancestors, current = {node}, node
            while current != 0:
                current = parents[current]
                ancestors.add(current)
            assert set(tree.ancestor_mask[0, node].nonzero().flatten().tolist()) == ancestors


def test_root_only():
    tree = DraftTree.root_only(torch.tensor([5]))
    assert tree.tokens.tolist() == [[5]]
    assert tree.depths.tolist() == [[0]]
    assert leaf_paths(tree) == [[0]]


def test_selection_keeps_ancestors_when_scores_tie():
    # a chain whose tokens are certain: every node has the score of its parent, 0
    tokens = torch.arange(10, 16)[None]
    parents = torch.tensor([[-1, 0, 1, 2, 3, 4]])
    for kept in range(1, 7):
        tree = select_tree(torch.tensor([9]), tokens, torch.zeros(1, 6), parents, kept, max_depth=6)
        assert tree.tokens.tolist() == [[9, *range(10, 10 + kept)]]
        assert tree.parents.tolist() == [[0, *range(kept)]]


def test_selection_takes_the_best():
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    parents = torch.tensor([[-1, -1, 0, 0, 1, 1]])
    scores = torch.tensor([[-0.1, -1.0, -0.2, -3.0, -1.1, -2.0]])
    tree = select_tree(torch.tensor([0]), tokens, scores, parents, 4, max_depth=2)
    assert tree.tokens.tolist() == [[0, 1, 2, 3, 5]]
    assert tree.parents.tolist() == [[0, 0, 0, 1, 2]]
    everything = select_tree(torch.tensor([0]), tokens, scores, parents, 99, max_depth=2)
    assert everything.num_nodes == 7


def test_static_tree_levels():
    tree = StaticTree.from_paths([[0], [1], [2], [0, 0], [1, 0], [1, 2], [1, 2, 0]])
    assert tree.parents == (0, 0, 0, 0, 1, 2, 2, 6)
    assert tree.levels == (((0, 0), (0, 1), (0, 2)), ((0, 0), (1, 0), (1, 2)), ((0, 0),))
    assert tree.expanded == ((0, 1), (2,))
    parent, rank, expanded = tree.as_tensors(torch.device("cpu"))[1]
    assert (parent.tolist(), rank.tolist(), expanded.tolist()) == ([0, 1, 1], [0, 0, 2], [2])


def walk(answers, stop_at=None):
    tokens, parents = [7, 4, 9, 2, 4], [0, 0, 0, 1, 2]
    asked = []

    def choose(rows, nodes):
        assert rows == [0]
        asked.extend(nodes)
        return [answers[node] for node in nodes]

    visited: list[list[int]] = [[]]
    emitted = walk_trees([0], [tokens], [parents], choose, lambda row, token: token == stop_at, visited)
    assert asked == visited[0]
    return visited[0], emitted[0]


def test_walk_follows_the_target():
    assert walk({0: 4, 1: 2, 3: 8}) == ([0, 1, 3], [4, 2, 8])
    assert walk({0: 9, 2: 4, 4: 1}) == ([0, 2, 4], [9, 4, 1])
    assert walk({0: 5}) == ([0], [5])
    assert walk({0: 4, 1: 9}) == ([0, 1], [4, 9])  # 9 is in the tree, but not below this node


def test_walk_stops_at_the_stopping_token():
    assert walk({0: 4, 1: 2, 3: 8}, stop_at=4) == ([0], [4])
    assert walk({0: 4, 1: 2, 3: 8}, stop_at=2) == ([0, 1], [4, 2])
