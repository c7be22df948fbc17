# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The n-gram drafter of docs/new_drafter.md: all that the loop offers, for a drafter in one file."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedConfig

from helpers.prompts import make_batch, make_prompt
from helpers.targets import VOCAB, make_target
from transformers_jakiro import JakiroCandidateGenerator, register_drafter
from transformers_jakiro.core import requests
from transformers_jakiro.core.drafting import Drafter
from transformers_jakiro.core.tree import DraftTree

PAGE = Path(__file__).parents[1] / "docs" / "new_drafter.md"


@pytest.fixture(scope="module")
def ngram():
    """The names that the page defines."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)[1]
    assert len(code.splitlines()) < 80
    names: dict = {}
    exec(code, names)
    return SimpleNamespace(**{name: value for name, value in names.items() if not name.startswith("__")})


def repeating(length: int, seed: int = 0) -> torch.LongTensor:
    """A prompt that says the same again and again."""
    return make_prompt(5, seed).repeat(1, -(-length // 5))[:, :length]


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "temperature": 0.7, "top_k": 8}], ids=["greedy", "sample"]
)
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("lengths", [(17,), (20, 11, 6)], ids=["one row", "batch"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_same_tokens(ngram, architecture, lengths, cache, settings):
    target = make_target(architecture)
    inputs = make_batch(lengths) if len(lengths) > 1 else {"input_ids": repeating(lengths[0])}
    kwargs = {
        **inputs,
        "max_new_tokens": 24,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    kwargs |= {**settings, "repetition_penalty": 0.8}  # likes to repeat itself
    assistant = ngram.NGramAssistant(ngram.NGramConfig(vocab_size=VOCAB, ngram_size=1))
    torch.manual_seed(0)
    plain = target.generate(**kwargs)
    torch.manual_seed(0)
    ours = target.generate(**kwargs, assistant_model=assistant, return_dict_in_generate=True)
    assert ours.sequences.tolist() == plain.tolist()
    assert ours.num_drafted_tokens > 0
    assert ours.hidden_states is None


def test_it_saves_forwards(ngram):
    target = make_target("llama")
    assistant = ngram.NGramAssistant(ngram.NGramConfig(vocab_size=VOCAB, ngram_size=1))
    prompt = repeating(15)
    plain = target.generate(prompt, max_new_tokens=60, do_sample=False, repetition_penalty=0.5)
    ours = target.generate(
        prompt,
        max_new_tokens=60,
        do_sample=False,
        repetition_penalty=0.5,
        assistant_model=assistant,
        return_dict_in_generate=True,
    )
    assert ours.sequences.tolist() == plain.tolist()
    assert ours.num_accepted_tokens > 20


def test_the_number_of_nodes_and_the_schedule(ngram):
    target = make_target("llama")
    assistant = ngram.NGramAssistant(ngram.NGramConfig(vocab_size=VOCAB, ngram_size=1))
    kwargs = {"input_ids": repeating(15), "max_new_tokens": 30, "do_sample": False}
    plain = target.generate(**kwargs)
    for options in ({"num_assistant_tokens": 2}, {"num_assistant_tokens_schedule": "heuristic"}):
        assert target.generate(**kwargs, **options, assistant_model=assistant).tolist() == plain.tolist()


def test_trees_from_paths():
    tree = DraftTree.from_paths(torch.tensor([7, 8]), [[[4, 2], [9], [4, 3, 5]], [[6]]], max_nodes=4)
    assert tree.tokens.tolist() == [[7, 4, 2, 9, 3], [8, 6, 6, 6, 6]]
    assert tree.parents.tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    assert tree.depths.tolist() == [[0, 1, 2, 1, 2], [0, 1, 1, 1, 1]]
    nothing = DraftTree.from_paths(torch.tensor([7]), [[]], max_nodes=4)
    assert (nothing.tokens.tolist(), nothing.num_nodes, nothing.max_depth) == ([[7]], 1, 0)


def test_the_adapter_wants_one_that_reads_hidden_states(ngram):
    assistant = ngram.NGramAssistant(ngram.NGramConfig(vocab_size=VOCAB))
    with pytest.raises(TypeError, match="takes drafters that read the target's hidden states, got NGramDrafter"):
        JakiroCandidateGenerator(assistant, make_target("llama"))


class Wrong(Drafter):
    """Proposes what a test says, for every row."""

    parents, tokens, max_depth, num_draft_tokens, depth = (0, 0, 0), (5, 6), 1, 2, 2
    kind, dtype, shift = DraftTree, torch.long, 0

    def __init__(self, assistant, context):
        self.context = context

    def observe(self, observation):
        pass

    def select(self, kept):
        pass

    def propose(self, last_tokens, budget):
        rows = len(self.context.rows.active)
        tokens = torch.tensor([[0, *self.tokens]] * rows, dtype=self.dtype)
        tokens[:, 0] = last_tokens + self.shift
        return self.kind(tokens, torch.tensor([self.parents] * rows), self.max_depth)


@pytest.mark.parametrize(
    ("cache", "changes", "message"),
    [
        (None, {}, r"chains only, .* one child at most, but Wrong proposed the parents \[0, 0, 0\]"),
        ("dynamic", {"num_draft_tokens": 1}, r"at most 2 nodes .* Wrong proposed tokens \(1, 3\)"),
        ("static", {"num_draft_tokens": 1}, r"at most 2 nodes .* Wrong proposed tokens \(1, 3\)"),
        ("dynamic", {"parents": (0, 0)}, r"tokens \(1, 3\) and parents \(1, 2\)"),
        ("dynamic", {"parents": (0, 2, 0)}, r"before their children, but Wrong proposed the parents \[\[0, 2, 0\]\]"),
        ("dynamic", {"parents": (1, 0, 0)}, r"the root must be its own parent, .* Wrong proposed"),
        ("dynamic", {"tokens": (5, VOCAB)}, rf"in \[0, {VOCAB}\), .* Wrong proposed tokens from \d+ to {VOCAB}"),
        ("dynamic", {"dtype": torch.int32}, r"of dtype torch.long, but Wrong proposed torch.int32 and torch.int64"),
        ("dynamic", {"shift": -1}, r"The root of a draft tree must be the last token, \d+, .* got the token \d+"),
        ("dynamic", {"kind": lambda *_: [5]}, r"must propose a `DraftTree`, but Wrong proposed \[5\]"),
        ("static", {"shift": -1}, r"The root of a draft tree must be the last token"),
    ],
)
def test_what_no_drafter_may_propose(ngram, monkeypatch, cache, changes, message):
    for name, value in changes.items():
        monkeypatch.setattr(Wrong, name, value)
    if cache is None:
        monkeypatch.setattr(requests, "why_no_trees", lambda model: "its attention is another")
    previous = register_drafter(ngram.NGramConfig, Wrong)
    try:
        options = {"cache_implementation": cache} if cache == "static" else {}
        with pytest.raises((TypeError, ValueError), match=message):
            make_target("llama").generate(
                make_prompt(5),
                assistant_model=ngram.NGramAssistant(ngram.NGramConfig(vocab_size=VOCAB)),
                max_new_tokens=8,
                do_sample=False,
                disable_compile=True,
                **options,
            )
    finally:
        register_drafter(ngram.NGramConfig, previous)


def test_trees_deeper_than_they_say(ngram, monkeypatch):
    target = make_target("llama")
    truth = target.generate(make_prompt(5), max_new_tokens=4, do_sample=False)[0, 6:].tolist()
    for name, value in {"parents": (0, 0, 1), "tokens": tuple(truth[:2]), "max_depth": 1}.items():
        monkeypatch.setattr(Wrong, name, value)
    previous = register_drafter(ngram.NGramConfig, Wrong)
    try:
        with pytest.raises(ValueError, match="no node may be deeper than `max_depth`"):
            target.generate(
                make_prompt(5),
                assistant_model=ngram.NGramAssistant(ngram.NGramConfig(vocab_size=VOCAB)),
                max_new_tokens=8,
                do_sample=False,
            )
    finally:
        register_drafter(ngram.NGramConfig, previous)


def test_what_is_no_drafter():
    with pytest.raises(TypeError, match="for a subclass of `PreTrainedConfig`, got <class 'int'>"):
        register_drafter(int, Drafter)
    with pytest.raises(TypeError, match="must be a subclass of `Drafter`, got <class 'int'>"):
        register_drafter(PreTrainedConfig, int)


def test_an_assistant_of_another_kind_is_left_to_transformers(ngram):
    target = make_target("llama")
    other = make_target("mistral")
    prompt = make_prompt(6)
    plain = target.generate(prompt, max_new_tokens=8, do_sample=False)
    assert target.generate(prompt, max_new_tokens=8, do_sample=False, assistant_model=other).tolist() == plain.tolist()
    assert issubclass(ngram.NGramDrafter, Drafter)
