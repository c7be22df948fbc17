# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Trees by batch size: what a drafter's config may say of them, and which of them a generation grows."""

from unittest import mock

import pytest

from helpers.prompts import make_prompt
from helpers.targets import make_drafter, make_target
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.core.tree import TreeShape

SMALL = {"tree_depth": 2, "tree_width": 2, "tree_top_k": 3, "num_draft_tokens": 4}
TINY = {**SMALL, "num_draft_tokens": 1}


def make_config(**values):
    return JakiroDraftConfig(**{"batch_trees": {"4": TINY, "2": SMALL}, "num_draft_tokens": 20, **values})


@pytest.mark.parametrize(("batch_size", "nodes"), [(1, 20), (2, 4), (3, 2), (4, 1), (16, 1)])
def test_sizes_of_the_config_and_those_between(batch_size, nodes):
    shape = TreeShape.from_config(make_config(), batch_size=batch_size)
    assert shape.num_draft_tokens == nodes
    expected = {20: (7, 10, 10), 4: (2, 2, 3), 2: (2, 1, 2), 1: (1, 1, 1)}[nodes]  # so few need no more
    assert (shape.depth, shape.width, shape.top_k) == expected


def test_trees_between_those_of_the_config():
    """The same factor with each doubling of the batch."""
    trees = {"4": {"tree_depth": 4, "tree_width": 2, "tree_top_k": 32, "num_draft_tokens": 4}}
    trees["16"] = {**trees["4"], "tree_depth": 1, "num_draft_tokens": 1}
    config = make_config(batch_trees=trees, num_draft_tokens=64, tree_depth=8, tree_top_k=8, tree_width=None)
    fields = {size: config.tree_fields(size) for size in (1, 2, 3, 4, 6, 8, 16, 99)}
    assert {size: tree["num_draft_tokens"] for size, tree in fields.items()} == {
        **{1: 64, 2: 16, 3: 7, 4: 4},
        **{6: 3, 8: 2, 16: 1, 99: 1},
    }
    assert [tree["tree_depth"] for tree in fields.values()] == [8, 6, 5, 4, 3, 2, 1, 1]
    assert [tree["tree_width"] for tree in fields.values()] == [8, 4, 3, 2, 2, 2, 2, 2]
    assert [tree["tree_top_k"] for tree in fields.values()] == [8, 16, 24, 32, 32, 32, 32, 32]
    assert fields[4] == trees["4"]


def test_what_overrides_them():
    shape = TreeShape.from_config(make_config(), 9, batch_size=4)
    assert (shape.num_draft_tokens, shape.depth) == (9, 2)
    static = TreeShape.from_config(make_config(static_tree=[[0], [1], [0, 0]]), batch_size=4)
    assert (static.num_draft_tokens, static.depth) == (3, 2)
    assert static.static_tree is not None


def test_without_them_the_nodes_are_shared():
    config = make_config(batch_trees=None)
    shapes = [TreeShape.from_config(config, batch_size=size) for size in (1, 2, 4, 7, 20, 64)]
    assert [shape.num_draft_tokens for shape in shapes] == [20, 10, 5, 2, 1, 1]
    assert [shape.depth for shape in shapes] == [7, 6, 4, 2, 1, 1]
    assert [shape.width for shape in shapes] == [10, 5, 2, 1, 1, 1]
    assert [shape.top_k for shape in shapes] == [10, 10, 5, 2, 1, 1]
    asked_for = TreeShape.from_config(config, 20, batch_size=4)
    assert (asked_for.num_draft_tokens, asked_for.depth, asked_for.width) == (20, 7, 10)


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ({"1": SMALL}, "must be batch sizes of at least 2 .* got '1'"),
        ({"04": SMALL}, "got '04'"),
        ({"four": SMALL}, "got 'four'"),
        ({"4": {"tree_depth": 2}}, r"\['4'\]` must hold tree_depth, tree_width, .*; got tree_depth\."),
        ({"4": {**SMALL, "depth": 2}}, "must hold"),
        ({"4": {**SMALL, "tree_width": 0}}, r"`tree_width` of `batch_trees\['4'\]` must be at least 1, got 0"),
        (
            {"4": {**SMALL, "tree_top_k": 40000}},
            "cannot exceed the vocabulary: got tree_top_k=40000, vocab_size=32000",
        ),
    ],
)
def test_errors(trees, message):
    with pytest.raises(ValueError, match=message):
        JakiroDraftConfig(batch_trees=trees)


def test_saved_and_loaded(tmp_path):
    draft = make_drafter(make_target(), batch_trees={"2": SMALL})
    draft.save_pretrained(tmp_path)
    loaded = JakiroDraftModel.from_pretrained(tmp_path).config
    assert loaded.batch_trees == {"2": SMALL}
    assert loaded.tree_fields(2) == SMALL


def test_rows_that_leave_change_the_trees():
    """Fewer rows, larger trees; the same tokens as ever."""
    target = make_target()
    draft = make_drafter(target, num_draft_tokens=6, batch_trees={"2": SMALL, "3": TINY})
    inputs = {"input_ids": make_prompt(5, seed=0).repeat(3, 1)}
    inputs["input_ids"][1:, 0] += 1
    inputs["input_ids"][2:, 1] += 1
    plain = target.generate(**inputs, max_new_tokens=30, do_sample=False)[:, 5:]
    ends = [plain[0, 4].item(), plain[1, 12].item()]
    sizes, propose = [], JakiroDrafter.propose

    def noted(self, root, *args, **kwargs):
        tree = propose(self, root, *args, **kwargs)
        sizes.append((len(root), tree.num_nodes - 1, tree.max_depth))
        return tree

    kwargs = {**inputs, "max_new_tokens": 30, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    expected = target.generate(**kwargs)
    with mock.patch.object(JakiroDrafter, "propose", noted):
        ours = target.generate(**kwargs, assistant_model=draft)
        rows = {size[0] for size in sizes}
        assert len(rows) > 1, "no row left early"
        for num_rows, nodes, depth in sizes:
            most = {1: 6, 2: 4, 3: 1}[num_rows]
            assert nodes <= most
            assert nodes == most or depth < 2, "only at the end trees are cut"
        sizes.clear()
        again = target.generate(**kwargs, assistant_model=draft, num_assistant_tokens=2)
        assert {nodes for _, nodes, _ in sizes} <= {0, 1, 2}
    assert ours.tolist() == again.tolist() == expected.tolist()
