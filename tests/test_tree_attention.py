# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Tree masks against the definition, entry by entry."""

import random
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, DogeConfig, DynamicCache, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers.comparing import compare
from helpers.prompts import make_prompt
from helpers.targets import LLAMA_LIKE, SPECIAL, enlarge, make_drafter, make_target
from helpers.trees import knowing_tree, leaf_paths
from transformers_jakiro import IncompatibleTransformersError, install_generation_hook, remove_generation_hook
from transformers_jakiro.core.attention import num_packed_heads
from transformers_jakiro.core.masks import TreeMask, layer_types, why_no_trees
from transformers_jakiro.core.target_cache import TargetCache
from transformers_jakiro.core.tree import DraftTree

pytestmark = pytest.mark.compat


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
        masks = TreeMask(target, torch.tensor([padding]) if padded else None, torch.device("cpu"))
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
                assert mask.shape == (1, 1, tree.num_nodes * 2, key_length)  # two query heads per key/value head
                assert torch.equal(mask[:, :, : tree.num_nodes], mask[:, :, tree.num_nodes :])
                assert mask.dtype == target.dtype
                assert set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
                size = window if kind == "sliding_attention" else None
                assert (mask[0, 0, : tree.num_nodes] == 0).tolist() == expected_mask(
                    tree, prefix, first_key, size, padding
                )
            states = torch.zeros(1, 1, tree.num_nodes, 1)
            for layer in range(2):
                cache.update(states, states, layer)
            kept = chance.choice(leaf_paths(tree))
            TargetCache(cache, 1).keep(torch.tensor([kept]), [kept], [prefix], tree.num_nodes)


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


@pytest.mark.compat(False)
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


# -- packed query heads ----------------------------------------------------------------------------------------------


@pytest.fixture
def attention():
    """The attention function without our hook; whatever a test does to it is undone."""
    remove_generation_hook()
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    yield original
    ALL_ATTENTION_FUNCTIONS.register("sdpa", original)
    remove_generation_hook()
    install_generation_hook()


@pytest.mark.parametrize(
    ("architecture", "implementation", "expected"),
    [
        ("llama", "sdpa", 2),
        ("gemma3", "sdpa", 2),
        ("llama", "eager", 1),
        ("gpt2", "sdpa", 1),
        ("deepseek_v3", "sdpa", 1),
    ],
)
def test_which_targets_pack_heads(architecture, implementation, expected):
    assert num_packed_heads(make_target(architecture, attention=implementation)) == expected


def test_targets_that_read_masks_themselves():
    """They get them as transformers makes them."""
    target = AutoModelForCausalLM.from_config(DogeConfig(**LLAMA_LIKE, **SPECIAL), attn_implementation="sdpa").eval()
    enlarge(target)
    assert num_packed_heads(target) == 1
    compare(target, make_drafter(target), {"input_ids": make_prompt(6)}, max_new_tokens=12)

    class OwnLlama(LlamaForCausalLM):
        pass

    target = make_target()
    own = OwnLlama(target.config)
    assert (num_packed_heads(target), num_packed_heads(own)) == (2, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("cache", [None, "static"])
def test_trees_do_not_copy_keys_and_values(batch_size, cache):
    """In no forward of the target over a tree does a key/value head stand there once per query head."""
    target = make_target()
    draft, ids = make_drafter(target), make_prompt(7).repeat(batch_size, 1)
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, *args, **kwargs):
        seen.append((query.shape[1:3], key.shape[1], kwargs.get("enable_gqa", False)))
        return attend(query, key, value, *args, **kwargs)

    plain = target.generate(ids, max_new_tokens=9, do_sample=False)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", spy):
        kwargs = {"max_new_tokens": 9, "do_sample": False, "cache_implementation": cache}
        ours = target.generate(ids, assistant_model=draft, disable_compile=True, **kwargs)
    assert torch.equal(ours, plain)
    num_prefill, of_the_prompt = target.config.num_hidden_layers, (4, 7)
    assert [query for query, _, _ in seen[:num_prefill]] == [of_the_prompt] * num_prefill
    trees = [query for query, _, _ in seen[num_prefill:] if query != of_the_prompt]
    assert len(trees) > 10
    assert all(heads == 2 and rows % 2 == 0 for heads, rows in trees)
    assert all(num_keys == 2 and not grouped for query, num_keys, grouped in seen if query != of_the_prompt)


def test_other_attention_is_as_before(attention):
    """Everything but a packed mask reaches the original as it is."""
    module = make_target().model.layers[0].self_attn
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 9, 8)
    masks = [None, torch.randn(2, 1, 3, 9), torch.randn(2, 1, 1, 9) > 0, torch.randn(2, 4, 3, 9)]
    masks[2][..., 0] = True
    expected = [attention(module, query, key, key, mask, scaling=0.3, is_causal=False)[0] for mask in masks]
    install_generation_hook()
    hooked = ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert hooked is not attention
    for mask, output in zip(masks, expected, strict=True):
        assert torch.equal(hooked(module, query, key, key, mask, scaling=0.3, is_causal=False)[0], output)
    packed = hooked(module, query, key, key, masks[1].repeat(1, 1, 2, 1), scaling=0.3, packed_heads=2)[0]
    torch.testing.assert_close(packed, expected[1])
    install_generation_hook()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is hooked
    remove_generation_hook()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention


def test_attention_of_the_user(attention):
    """One that is registered after ours is used, and gets masks as it knows them."""
    install_generation_hook()
    rows = []

    def own(module, query, key, value, attention_mask, *args, **kwargs):
        if attention_mask is not None:
            rows.append(attention_mask.shape[-2] - query.shape[2])
        return attention(module, query, key, value, attention_mask, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", own)
    target = make_target()
    assert num_packed_heads(target) == 1
    compare(target, make_drafter(target), {"input_ids": make_prompt(6)}, max_new_tokens=9)
    assert rows
    assert not any(rows)
    remove_generation_hook()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def test_changed_attention_is_named(attention):
    ALL_ATTENTION_FUNCTIONS.register("sdpa", lambda module, query, states, mask: None)
    with pytest.raises(IncompatibleTransformersError, match=r"ALL_ATTENTION_FUNCTIONS.'sdpa'.` of .* lacks"):
        install_generation_hook()
