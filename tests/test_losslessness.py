# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Whatever is asked of `generate`, a drafter changes nothing about its output. The yardstick is plain `generate`."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache

from helpers.comparing import Fresh, compare
from helpers.knowing import knowing_drafter
from helpers.prompts import make_prompt
from helpers.targets import CACHE, CASES, CONTEXT, EAGER_ONLY, SLIDING, VOCAB, enlarge, make_drafter, make_target


def left_padded(length: int, padding: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = make_prompt(length, seed)
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    ids[:, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


# -- greedy, by architecture -----------------------------------------------------------------------------------------


@pytest.mark.compat
@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_greedy_full_context(architecture, attention):
    target = make_target(architecture, attention=attention)
    assert target.config._attn_implementation == attention
    draft = make_drafter(target)
    lengths = (1, 17, 200) if attention == "eager" or architecture in EAGER_ONLY else (2, 33)
    for length in lengths:
        compare(target, draft, {"input_ids": make_prompt(length)}, max_new_tokens=14, logits=True)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("architecture", "attention"), [case for case in CASES if case[0] in SLIDING], ids=lambda value: value
)
def test_greedy_sliding_window(architecture, attention):
    target = make_target(architecture, window=9, attention=attention)
    draft = make_drafter(target)
    # within the window, about to fill it, far beyond it
    for length in (2, 7, 60) if attention == "sdpa" or architecture in EAGER_ONLY else (1, 8, 200):
        compare(target, draft, {"input_ids": make_prompt(length)}, max_new_tokens=14, logits=True)
    inputs = left_padded(13, 5)
    compare(target, draft, inputs, max_new_tokens=14, logits=True)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
@pytest.mark.parametrize("window", [2, 4])
def test_greedy_window_smaller_than_the_tree(architecture, window):
    target = make_target(architecture, window=window)
    for length in (1, 12):
        compare(target, make_drafter(target), {"input_ids": make_prompt(length)}, max_new_tokens=20, logits=True)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "attention"), CASES)
@pytest.mark.parametrize("window", [None, 2, 5, 12, 64])
def test_greedy_thoroughly(architecture, attention, window):
    if window is not None and architecture not in SLIDING:
        pytest.skip("no sliding window")
    # Granite divides its logits: so many small differences that float32 has near ties among them
    dtype = torch.float64 if architecture == "granite" else torch.float32
    target = make_target(architecture, window=window, attention=attention, dtype=dtype)
    draft = make_drafter(target)
    for length in (1, 2, 3, 11, 12, 13, 63, 64, 65, 200):
        compare(target, draft, {"input_ids": make_prompt(length, seed=1)}, max_new_tokens=40, logits=True)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_greedy_double_precision(architecture):
    target = make_target(architecture, window=9 if architecture in SLIDING else None, dtype=torch.float64)
    compare(target, make_drafter(target), {"input_ids": make_prompt(12)}, max_new_tokens=30)


# -- drafters --------------------------------------------------------------------------------------------------------

STATIC_TREE = [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0, 0]]
DRAFTERS = {
    "chain": {"tree_top_k": 1},
    "one level": {"tree_depth": 1},
    "two levels": {"tree_depth": 2},
    "all candidates": {"tree_depth": 3, "num_draft_tokens": 1000},
    "one token": {"num_draft_tokens": 1},
    "published": {"tree_depth": 7, "tree_top_k": 10, "num_draft_tokens": 59},
    "whole vocabulary": {"tree_depth": 3, "tree_top_k": VOCAB, "num_draft_tokens": 40},
    "static contrastive": {"static_tree": STATIC_TREE},
    "star": {"head_mode": "decoupled", "gated_experts": False, "hidden_act": "gelu", "static_tree": STATIC_TREE},
    "star, dynamic": {"head_mode": "decoupled", "gated_experts": False, "hidden_act": "gelu"},
    "dense": {"num_experts": 1, "head_mode": "single"},
    "two layers": {"num_hidden_layers": 2},
    "three experts": {"num_experts": 3},
    "three experts, star": {"num_experts": 3, "head_mode": "decoupled", "gated_experts": False},
}


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_kinds_of_drafters_and_trees(architecture, name):
    target = make_target(architecture, window=9 if architecture == "gemma3" else None)
    compare(target, make_drafter(target, **DRAFTERS[name]), {"input_ids": make_prompt(11)}, max_new_tokens=18)


# -- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.compat
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize(("length", "padding"), [(12, 3), (30, 29), (40, 21)])
def test_left_padding(architecture, length, padding):
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    compare(target, make_drafter(target), left_padded(length, padding), max_new_tokens=12)


@pytest.mark.compat
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("padding", [0, 4])
def test_inputs_embeds_only(architecture, padding):
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    inputs = left_padded(15, padding)
    embeddings = target.get_input_embeddings()(inputs["input_ids"]).detach()
    output = compare(
        target,
        make_drafter(target),
        {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]},
        max_new_tokens=12,
    )
    assert output.sequences.shape == (1, 12)


def test_inputs_embeds_with_ids():
    """Both: the ids come back with the output, the embeddings are what is read."""
    target, ids = make_target(), make_prompt(9)
    embeddings = target.get_input_embeddings()(ids.flip(1)).detach()
    output = compare(target, make_drafter(target), {"input_ids": ids, "inputs_embeds": embeddings}, max_new_tokens=12)
    assert output.sequences.shape == (1, 9 + 12)


def extended_cache(target, ids):
    """A cache after `ids` and some generated tokens, and all ids it stands for."""
    output = target.generate(ids, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    return output[CACHE], output.sequences


@pytest.mark.compat
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("turn", [1, 12])
def test_next_turn_on_an_existing_cache(architecture, turn):
    """The second turn of a chat: the ids of everything, the cache of what was processed before."""
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    cache, ids = extended_cache(target, make_prompt(14))
    ids = torch.cat((ids, make_prompt(turn, seed=3)), dim=1)
    compare(
        target,
        make_drafter(target),
        {"input_ids": ids, CACHE: Fresh(lambda: copy.deepcopy(cache))},
        max_new_tokens=12,
    )
    padded = torch.ones_like(ids)
    padded[:, :2] = 0  # a mask that came too late for the cached part, but must not be lost
    compare(
        target,
        make_drafter(target),
        {"input_ids": ids, CACHE: Fresh(lambda: copy.deepcopy(cache)), "attention_mask": padded},
        max_new_tokens=12,
    )


@pytest.mark.compat
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_only_the_new_ids_on_an_existing_cache(architecture):
    """The ids of the new part alone, with a mask that covers everything."""
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    cache, _ = extended_cache(target, make_prompt(14))
    ids = make_prompt(5, seed=3)
    mask = torch.ones((1, cache.get_seq_length() + 5), dtype=torch.long)
    mask[:, :3] = 0
    compare(
        target,
        make_drafter(target),
        {"input_ids": ids, CACHE: Fresh(lambda: copy.deepcopy(cache)), "attention_mask": mask},
        max_new_tokens=12,
    )


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_unusual_prompts(architecture):
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    draft, ids = make_drafter(target), make_prompt(14)
    holes, right = torch.ones_like(ids), torch.ones_like(ids)
    holes[:, 5:8] = 0
    right[:, 12:] = 0
    cache, longer = extended_cache(target, ids)
    longer = torch.cat((longer, make_prompt(5, seed=3)), dim=1)
    embeddings = target.get_input_embeddings()(longer).detach()
    for inputs in (
        {"input_ids": ids, "attention_mask": holes},
        {"input_ids": ids, "attention_mask": right},
        {"input_ids": ids, "position_ids": torch.arange(14)[None] + 3},
        {"input_ids": ids, CACHE: Fresh(DynamicCache)},  # one that knows no windows
        {"inputs_embeds": embeddings, CACHE: Fresh(lambda: copy.deepcopy(cache))},
        {"input_ids": longer, CACHE: Fresh(lambda: copy.deepcopy(cache)), "prefill_chunk_size": 2},
    ):
        if "prefill_chunk_size" in inputs and Version(transformers.__version__) < Version("5.20"):
            continue  # plain `generate` used to process the cached part again
        compare(target, draft, inputs, max_new_tokens=12, logits=True)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "gpt2"])
@pytest.mark.parametrize("chunk_size", [1, 5, 11, 64])
def test_prefill_chunks(architecture, chunk_size):
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    draft = make_drafter(target)
    for inputs in ({"input_ids": make_prompt(22)}, left_padded(22, 6)):
        compare(target, draft, inputs, max_new_tokens=10, prefill_chunk_size=chunk_size)


def test_the_drafter_reads_the_same_whatever_the_prompt_comes_as():
    """Same trees, so same features, embeddings and positions."""
    target = make_target()
    draft = make_drafter(target)
    enlarge(draft, std=0.12)  # scores that differ by more than rounding

    def trees_for(**inputs):
        kwargs = {"max_new_tokens": 16, "do_sample": False, "assistant_model": draft}
        with knowing_drafter([], keep_drafted=True) as trees:
            target.generate(**inputs, **kwargs)
        return [sorted(zip(tree.depths[0].tolist(), tree.tokens[0].tolist(), strict=True)) for tree in trees]

    ids = make_prompt(22)
    embeddings = target.get_input_embeddings()(ids).detach()
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    expected = trees_for(input_ids=ids)
    assert trees_for(inputs_embeds=embeddings) == expected
    assert trees_for(input_ids=ids, prefill_chunk_size=5) == expected
    assert trees_for(input_ids=padded, attention_mask=(torch.arange(25) >= 3).long()[None]) == expected

    # the drafter does not see what was cached before: it starts with the new part
    with torch.no_grad():
        cache = target(ids[:, :9], use_cache=True)[CACHE]
    expected = trees_for(input_ids=ids, **{CACHE: copy.deepcopy(cache)})
    new = {"input_ids": ids[:, 9:], "attention_mask": torch.ones_like(ids)}
    assert trees_for(**new, **{CACHE: copy.deepcopy(cache)}) == expected
    assert trees_for(inputs_embeds=embeddings, **{CACHE: copy.deepcopy(cache)}) == expected
    assert trees_for(input_ids=ids, **{CACHE: copy.deepcopy(cache)}, prefill_chunk_size=4) == expected
    assert trees_for(input_ids=ids) != expected


# -- lengths and ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 4, 5, 7, 16])
def test_never_more_than_max_new_tokens(max_new_tokens):
    target = make_target()
    output = compare(target, make_drafter(target), {"input_ids": make_prompt(6)}, max_new_tokens=max_new_tokens)
    assert output.sequences.shape[1] == 6 + max_new_tokens


@pytest.mark.parametrize("prompt_length", [CONTEXT - 9, CONTEXT - 2, CONTEXT - 1])
def test_prompts_at_the_context_limit(prompt_length):
    """A learned position beyond the last one would be an index error."""
    target = make_target("gpt2")
    draft = make_drafter(target)
    output = compare(target, draft, {"input_ids": make_prompt(prompt_length)}, max_new_tokens=CONTEXT - prompt_length)
    assert output.sequences.shape[1] == CONTEXT
    # the token behind the last position can still be predicted
    one_more = CONTEXT - prompt_length + 1
    output = compare(target, draft, {"input_ids": make_prompt(prompt_length)}, max_new_tokens=one_more)
    assert output.sequences.shape[1] == CONTEXT + 1


def test_nothing_after_an_end_token():
    target = make_target()
    draft = make_drafter(target)
    ids = make_prompt(9)
    tokens = target.generate(ids, max_new_tokens=24, do_sample=False)[0, 9:].tolist()
    never = next(token for token in range(VOCAB) if token not in tokens)
    assert len(set(tokens)) >= 8
    for token in dict.fromkeys(tokens):
        output = compare(target, draft, {"input_ids": ids}, max_new_tokens=24, eos_token_id=[token, never])
        assert output.sequences[0, 9:].tolist() == tokens[: tokens.index(token) + 1]


def test_the_end_within_an_accepted_path():
    """The tree holds true tokens beyond the end: none of them comes out, and they do not count as accepted."""
    target = make_target()
    draft = make_drafter(target)
    ids = make_prompt(9)
    tokens = target.generate(ids, max_new_tokens=24, do_sample=False)[0, 9:].tolist()
    position = next(i for i in range(4, 20) if tokens.index(tokens[i]) == i)
    with knowing_drafter(tokens, depth=20, keep_drafted=False, seed=3):
        output = target.generate(
            ids,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=tokens[position],
            assistant_model=draft,
            return_dict_in_generate=True,
        )
    assert output.sequences[0, 9:].tolist() == tokens[: position + 1]
    assert sum(output.accept_lengths[0]) + len(output.accept_lengths[0]) == position
