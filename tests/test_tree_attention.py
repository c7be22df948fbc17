# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Tree masks against the definition, entry by entry."""

import random

import pytest
import torch
from targets import compare, knowing_tree, make_drafter, make_prompt, make_target
from transformers import DynamicCache

from transformers_jakiro import _compat
from transformers_jakiro.tree import DraftTree
from transformers_jakiro.tree_attention import TreeAttentionMask, layer_types, why_no_trees


def expected_mask(tree: DraftTree, prefix: int, first_key: int, window: int | None, padding: list[int]) -> list:
    """Whether each node (row) sees each key from `first_key` on: cached tokens, then the nodes."""
    parents = tree.parents[0].tolist()
    rows = []
    for node in range(tree.num_nodes):
        ancestors, current = {node}, node
        while current != 0:
            current = parents[current]
            ancestors.add(current)
        position = prefix + len(ancestors) - 1
        row = []
        for key in range(first_key, prefix):
            hidden = key < len(padding) and padding[key] == 0
            row.append(not hidden and (window is None or position - key < window))
        for key in range(tree.num_nodes):
            depth, current = 0, key
            while current != 0:
                depth, current = depth + 1, parents[current]
            row.append(key in ancestors and (window is None or position - prefix - depth < window))
        rows.append(row)
    return rows


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("window", [2, 3, 6, 11, 1000])
@pytest.mark.parametrize("padded", [0, 2])
def test_masks(architecture, window, padded):
    """Along a generation whose cache grows by paths of any length, from before the window is full to far beyond."""
    target = make_target(architecture, window=window)
    chance = random.Random(window)
    for prompt in (padded + 1, padded + 4):
        padding = [0] * padded + [1] * (prompt - padded)
        cache = DynamicCache(config=target.config)
        states = torch.zeros(1, 1, prompt, 1)
        for layer in range(2):
            cache.update(states, states, layer)
        cache.activate_past_recording()
        masks = TreeAttentionMask(target, torch.tensor([padding]) if padded else None, torch.device("cpu"))
        for _ in range(12):
            prefix = cache.get_seq_length()
            truth = [chance.randrange(96) for _ in range(6)]
            tree = knowing_tree(5, truth, chance.randint(1, 6), 96, chance, None)
            built = masks.build(tree, cache, [prefix])
            kinds = layer_types(target.config)
            if architecture == "gemma3":
                assert list(built) == list(kinds) == ["sliding_attention", "full_attention"]
            else:
                built = {next(iter(kinds)): built}
            for kind, mask in built.items():
                key_length, first_key = cache.get_mask_sizes(tree.num_nodes, kinds[kind])
                assert mask.shape == (1, 1, tree.num_nodes, key_length)
                assert mask.dtype == target.dtype
                assert set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
                size = window if kind == "sliding_attention" else None
                assert (mask[0, 0] == 0).tolist() == expected_mask(tree, prefix, first_key, size, padding)
            states = torch.zeros(1, 1, tree.num_nodes, 1)
            for layer in range(2):
                cache.update(states, states, layer)
            kept = chance.choice(tree.leaf_paths()[0])
            _compat.keep_nodes(cache, tree.num_nodes, torch.tensor(kept), kept == list(range(len(kept))))


def test_targets_that_cannot_verify_trees():
    target = make_target()
    assert why_no_trees(target) is None
    assert why_no_trees(make_target("gemma3", window=9)) is None
    implementation = target.config._attn_implementation
    try:
        target.config._attn_implementation = "flash_attention_2"
        assert "'flash_attention_2'" in why_no_trees(target)
    finally:
        target.config._attn_implementation = implementation


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("architecture", "window"), [("llama", None), ("mistral", 9), ("gemma3", 9)])
def test_flex_attention(architecture, window):
    """Not compiled, which needs a compiler and minutes, and fails with some shapes on CPUs."""
    target = make_target(architecture, window=window, attention="flex_attention")
    assert target.config._attn_implementation == "flex_attention"
    mask = torch.ones(1, 12, dtype=torch.long)
    with torch.compiler.set_stance("force_eager"):
        for padding in (0, 3):
            mask[:, :padding] = 0
            inputs = {"input_ids": make_prompt(12), "attention_mask": mask}
            compare(target, make_drafter(target), inputs, max_new_tokens=12)
