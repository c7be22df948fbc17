# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Static caches: the same tokens, in place, with forwards of one shape."""

from unittest import mock

import pytest
import torch
from transformers import CompileConfig, StaticCache

from helpers.comparing import assistance, compare, compare_batch
from helpers.prompts import make_batch, make_prompt
from helpers.targets import CACHE, CASES, SLIDING, make_drafter, make_target
from transformers_jakiro.core import compat, draft_forward, requests
from transformers_jakiro.core.compat import compile_everywhere

pytestmark = pytest.mark.compat

STATIC = {"cache_implementation": "static"}


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_same_tokens(architecture, attention):
    target = make_target(architecture, attention=attention)
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=24, **STATIC)
    compare_batch(target, make_batch(), **STATIC)


@pytest.mark.parametrize("architecture", SLIDING)
def test_sliding_windows(architecture):
    target = make_target(architecture, window=7)
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=24, **STATIC)
    compare_batch(target, make_batch((3, 10, 6)), max_new_tokens=24, **STATIC)


@pytest.mark.parametrize("adaptive", [False, True])
def test_forwards_have_few_shapes(adaptive):
    target = make_target()
    draft = make_drafter(target, tree_depth=4, tree_top_k=3, num_draft_tokens=11)
    schedule = {"num_assistant_tokens_schedule": "heuristic"} if adaptive else {}
    shapes, draft_shapes, addresses = set(), set(), set()

    def noted(model, compile_config):
        def forward(**kwargs):
            if model is target:
                shapes.add((kwargs["input_ids"].shape, kwargs["attention_mask"].shape, kwargs["position_ids"].shape))
            else:
                flags = tuple(name for name, value in kwargs.items() if value is True)
                draft_shapes.add((kwargs["inputs_embeds"].shape, kwargs["attention_mask"].shape, flags))
            outputs = model(**kwargs)
            if model is target:
                addresses.add(outputs[CACHE].layers[0].keys.data_ptr())
            return outputs

        return forward

    with (
        mock.patch.object(compat, "compile_config_of", return_value=CompileConfig()),
        mock.patch.object(compat, "compiled_call", noted),
        mock.patch.object(draft_forward, "compiled_call", noted),
    ):
        for length in (5, 12):
            target.generate(make_prompt(length), assistant_model=draft, max_new_tokens=30, **STATIC, **schedule)
            assert len(addresses) == 1, "the cache moved"
            addresses.clear()
    assert {ids[1] for ids, _, _ in shapes} <= ({1, 3, 6, 12} if adaptive else {12})
    assert len({mask[3] for _, mask, _ in shapes}) == 1
    # what a step brings, a level, the last level
    assert len(draft_shapes) == 3


@pytest.mark.slow
def test_compiled():
    """Minutes of compiling. One graph for the target, three for the drafter, none after the first generation."""
    torch_version = tuple(map(int, torch.__version__.split(".")[:2]))
    target = make_target()
    draft = make_drafter(target, tree_depth=4, tree_top_k=3, num_draft_tokens=11)
    options = {"max_new_tokens": 24, "do_sample": False}
    static = {**STATIC, "compile_config": compile_everywhere()}
    graphs = []
    for length in (6, 6, 9, 12):
        plain = target.generate(make_prompt(length), **options)
        ours = target.generate(make_prompt(length), assistant_model=draft, **options, **static)
        assert ours.tolist() == plain.tolist()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    if torch_version >= (2, 9):
        assert graphs == [4, 4, 4, 4]
    else:  # one is made anew when the text gets longer
        assert graphs in ([4, 4, 4, 4], [4, 5, 5, 5])


def test_sampling():
    target = make_target()
    for seed in range(3):
        options = {"seed": seed, "do_sample": True, "top_k": 0}
        compare(target, make_drafter(target), {"input_ids": make_prompt(7)}, max_new_tokens=20, **options, **STATIC)
        compare_batch(target, make_batch(), **options, **STATIC)


@pytest.mark.parametrize("hooked", [True, False])
def test_a_cache_of_the_callers(hooked):
    target = make_target()
    draft = make_drafter(target, num_draft_tokens=10)
    prompt = make_prompt(6)
    kwargs = {"max_new_tokens": 12, "do_sample": False}
    plain = target.generate(prompt, **kwargs)
    cache = StaticCache(target.config, max_cache_len=28)
    with assistance(draft, hooked) as assistant:
        assert target.generate(prompt, **{CACHE: cache}, **assistant, **kwargs).tolist() == plain.tolist()
    assert int(cache.get_seq_length()) == 17
    small = StaticCache(target.config, max_cache_len=27)
    message = r"holds 27 tokens, .* take up to 28 .*max_cache_len=28"
    with assistance(draft, hooked) as assistant, pytest.raises(ValueError, match=message):
        target.generate(prompt, **{CACHE: small}, **assistant, **kwargs)
    windowed = make_target("mistral", window=7)
    own = StaticCache(windowed.config, max_cache_len=64)
    drafter = make_drafter(windowed)
    with assistance(drafter, hooked) as assistant, pytest.raises(ValueError, match=r"holds 7 tokens"):
        windowed.generate(prompt, **{CACHE: own}, **assistant, **kwargs)


def test_records():
    target = make_target(attention="eager")
    names = ("scores", "logits", "attentions", "hidden_states")
    kwargs = {f"output_{name}": True for name in names} | {"return_dict_in_generate": True, "max_new_tokens": 10}
    expected = target.generate(make_prompt(6), **kwargs)
    ours = target.generate(make_prompt(6), assistant_model=make_drafter(target), **kwargs, **STATIC)
    for name in ("scores", "logits"):
        for one, other in zip(getattr(ours, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    for name in ("attentions", "hidden_states"):
        for step, (one, other) in enumerate(zip(getattr(ours, name), getattr(expected, name), strict=True)):
            for part, expected_part in zip(one, other, strict=True):
                part = (
                    part[..., : expected_part.shape[-1]] if step == 0 else part
                )  # the prompt's are as wide as the cache
                torch.testing.assert_close(part, expected_part, atol=1e-4, rtol=1e-4)


def test_targets_that_verify_chains_only():
    target = make_target()
    with (
        mock.patch.object(requests, "why_no_trees", return_value="its attention is another"),
        mock.patch.object(target, "forward", side_effect=AssertionError("the prompt was read")),
        pytest.raises(NotImplementedError, match=r"With a static cache, .* but its attention is another"),
    ):
        target.generate(make_prompt(5), max_new_tokens=4, assistant_model=make_drafter(target), **STATIC)
