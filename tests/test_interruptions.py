# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Whatever ends a generation – a criterion or processor that raises, Ctrl-C in a forward – leaves the caller's cache,
model and random state as plain `generate` leaves them.
"""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, StaticCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from helpers.knowing import knowing_drafter
from helpers.prompts import make_batch, make_prompt
from helpers.targets import CACHE, make_drafter, make_target

pytestmark = pytest.mark.compat

PROMPT, TOKENS = 7, 24


class StopError(Exception):
    pass


class RaisingCriterion(StoppingCriteria):
    """Raises when a sequence has a number of tokens."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] == self.length:
            raise StopError
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class RaisingProcessor(LogitsProcessor):
    """Raises when the next token of a sequence with a number of tokens is wanted."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == self.length:
            raise StopError
        return scores


def interrupted(target: Any, cache: Any, seed: int = 0, error: type = StopError, **kwargs: Any) -> torch.Tensor:
    """Runs `generate` with a cache until it raises. Returns the random state then."""
    torch.manual_seed(seed)
    with pytest.raises(error):
        target.generate(**{CACHE: cache, "max_new_tokens": TOKENS, "do_sample": False, **kwargs})
    return torch.get_rng_state()


def make_cache(target: Any, kind: str) -> Any:
    return DynamicCache(config=target.config) if kind == "dynamic" else StaticCache(target.config, max_cache_len=96)


def check_caches(ours: Any, plain: Any, kind: str = "dynamic") -> None:
    for our_layer, layer in zip(ours.layers, plain.layers, strict=True):
        assert type(our_layer) is type(layer)
        assert getattr(our_layer, "record_past", False) == getattr(layer, "record_past", False)
        length = int(layer.get_seq_length())
        assert int(our_layer.get_seq_length()) == length
        held = length if kind == "static" else None
        for name in ("keys", "values"):
            got, expected = (getattr(each, name)[..., :held, :] for each in (our_layer, layer))
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "dynamic"), ("llama", "static"), ("gemma3", "dynamic")])
@pytest.mark.parametrize("raising", [RaisingCriterion, RaisingProcessor])
@pytest.mark.parametrize("new_tokens", [1, 2, 6, 13])
def test_raised_in_the_middle_of_a_tree(raising, new_tokens, architecture, kind):
    target = make_target(architecture, window=9)
    draft, prompt = make_drafter(target), make_prompt(PROMPT)
    known = target.generate(prompt, max_new_tokens=TOKENS, do_sample=False)[0, PROMPT:].tolist()
    name = "stopping_criteria" if raising is RaisingCriterion else "logits_processor"
    sampling = {"do_sample": True, "top_k": 5}
    for options in ({}, sampling):
        ours, plain = make_cache(target, kind), make_cache(target, kind)
        kwargs = {"input_ids": prompt, name: [raising(PROMPT + new_tokens)], "disable_compile": True, **options}
        state = interrupted(target, plain, **kwargs)
        with knowing_drafter(known, depth=8):
            our_state = interrupted(target, ours, **kwargs, assistant_model=draft)
        check_caches(ours, plain, kind)
        assert torch.equal(our_state, state)


def test_plain_generation_goes_on_with_the_cache():
    """As it goes on with the cache that it has left itself."""
    target = make_target("gemma3", window=9)
    prompt, texts = make_prompt(PROMPT), []
    whole = target.generate(prompt, max_new_tokens=TOKENS, do_sample=False)
    for assistant in ({}, {"assistant_model": make_drafter(target)}):
        cache = DynamicCache(config=target.config)
        with knowing_drafter(whole[0, PROMPT:].tolist(), depth=8):
            criteria = [RaisingCriterion(PROMPT + 11)]
            interrupted(target, cache, input_ids=prompt, stopping_criteria=criteria, **assistant)
        read = whole[:, : PROMPT + 11]
        texts.append(target.generate(read, max_new_tokens=TOKENS, do_sample=False, **{CACHE: cache}))
    assert torch.equal(*texts)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}])
def test_batches(architecture, options):
    """The rows had come to different lengths; as far as all of them had come, their states stay."""
    target = make_target(architecture, window=9)
    inputs, cache = make_batch((5, 7, 2)), DynamicCache(config=target.config)
    kinds = [type(layer) for layer in cache.layers]
    state = interrupted(
        target,
        cache,
        **inputs,
        **options,
        stopping_criteria=[RaisingCriterion(PROMPT + 12)],
        assistant_model=make_drafter(target),
    )
    assert [type(layer) for layer in cache.layers] == kinds
    assert not any(getattr(layer, "record_past", False) for layer in cache.layers)
    (length,) = {int(layer.get_seq_length()) for layer in cache.layers}
    assert PROMPT <= length < PROMPT + 12
    plain = DynamicCache(config=target.config)
    plain_state = interrupted(target, plain, **inputs, **options, stopping_criteria=[RaisingCriterion(PROMPT + 12)])
    assert torch.equal(state, plain_state)
    compared = 0
    for layer, expected in zip(cache.layers, plain.layers, strict=True):
        if type(layer) is DynamicLayer:  # the others have forgotten what plain generation has gone past
            torch.testing.assert_close(layer.keys, expected.keys[..., :length, :], atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared > 0


class RaisingStreamer:
    """Raises when it is given the token of a number, the prompt not counted."""

    def __init__(self, number: int):
        self.number = number

    def put(self, tokens: torch.Tensor) -> None:
        self.number -= tokens.ndim == 1
        if self.number == 0:
            raise StopError

    def end(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("number", [1, 2, 5, 12])
def test_raised_by_a_streamer(number, kind):
    target = make_target("llama")
    draft, prompt = make_drafter(target), make_prompt(PROMPT)
    known = target.generate(prompt, max_new_tokens=TOKENS, do_sample=False)[0, PROMPT:].tolist()
    for options in ({}, {"do_sample": True, "top_k": 5}):
        ours, plain = make_cache(target, kind), make_cache(target, kind)
        kwargs = {"input_ids": prompt, "disable_compile": True, **options}
        state = interrupted(target, plain, **kwargs, streamer=RaisingStreamer(number))
        with knowing_drafter(known, depth=8):
            our_state = interrupted(target, ours, **kwargs, streamer=RaisingStreamer(number), assistant_model=draft)
        check_caches(ours, plain, kind)
        assert torch.equal(our_state, state)


class RaisingAtToken(StoppingCriteria):
    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if (input_ids[:, -1] == self.token).any():
            raise StopError
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize("seed", range(6))
def test_raised_for_what_one_row_says(seed):
    """The others may have come further; the random numbers are those that plain sampling has drawn."""
    target, inputs = make_target("llama"), make_batch((5, 7, 2))
    torch.manual_seed(seed)
    said = target.generate(**inputs, max_new_tokens=TOKENS, do_sample=True)[:, PROMPT:].tolist()
    kwargs = {**inputs, "do_sample": True, "seed": seed, "stopping_criteria": [RaisingAtToken(said[1][6])]}
    state = interrupted(target, DynamicCache(config=target.config), **kwargs)
    with knowing_drafter(said, seed=seed):
        cache = DynamicCache(config=target.config)
        our_state = interrupted(target, cache, **kwargs, assistant_model=make_drafter(target))
    assert torch.equal(our_state, state)


@pytest.mark.parametrize("lengths", [(7,), (5, 7, 2)])
@pytest.mark.parametrize("number", [0, 1])
def test_interrupted_in_a_forward(lengths, number):
    """Ctrl-C when some of the layers have taken the tree, and others have not: what was accepted before stays."""
    target = make_target("gemma3", window=9)
    inputs = make_batch(lengths)
    cache, plain, forwards = DynamicCache(config=target.config), DynamicCache(config=target.config), []
    text = target.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **{CACHE: plain})

    def interrupt(*args: Any) -> None:
        forwards.append(1)
        if len(forwards) == 4:
            raise KeyboardInterrupt

    handle = target.model.layers[number].register_forward_hook(interrupt)
    try:
        interrupted(target, cache, error=KeyboardInterrupt, **inputs, assistant_model=make_drafter(target))
    finally:
        handle.remove()
    (length,) = {int(layer.get_seq_length()) for layer in cache.layers}
    assert length >= PROMPT + 2, "the prompt and two trees were there"
    assert not any(getattr(layer, "record_past", False) for layer in cache.layers)
    for layer, expected in zip(cache.layers, plain.layers, strict=True):
        if type(layer) is DynamicLayer:  # the others have forgotten what plain generation has gone past
            torch.testing.assert_close(layer.keys, expected.keys[..., :length, :], atol=1e-4, rtol=1e-4)
    assert torch.equal(target.generate(**inputs, max_new_tokens=TOKENS, do_sample=False), text)


def test_the_model_is_left_as_it_was():
    target = make_target()
    before = {name: id(value) for name, value in vars(target).items()}
    config = target.config.to_dict()
    interrupted(
        target,
        DynamicCache(config=target.config),
        input_ids=make_prompt(PROMPT),
        stopping_criteria=[RaisingCriterion(PROMPT + 6)],
        assistant_model=make_drafter(target),
    )
    assert {name: id(value) for name, value in vars(target).items()} == before
    assert target.config.to_dict() == config
