# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""transformers' `pipeline("text-generation", assistant_model=...)`: with a drafter, the text of the plain pipeline."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, pipeline, set_seed
from transformers.pipelines import base

import transformers_jakiro
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET

pytestmark = pytest.mark.compat

NEW_TOKENS = 32


@pytest.fixture(scope="module")
def models():
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    return {"model": target, "tokenizer": AutoTokenizer.from_pretrained(TARGET)}


@pytest.fixture(scope="module")
def draft():
    return AutoModel.from_pretrained(DRAFT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def plain(models):
    return pipeline("text-generation", **models)


@pytest.fixture(scope="module")
def drafted(models, draft):
    return pipeline("text-generation", **models, assistant_model=draft)


@pytest.fixture(scope="module")
def chats():
    lines = (PROMPTS).read_text(encoding="utf-8").splitlines()[:3]
    return [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]


@pytest.fixture
def trees(monkeypatch):
    """The shapes of the drafted trees."""
    shapes = []
    propose = JakiroDrafter.propose

    def recorded(self, *args, **kwargs):
        shapes.append(self.shape)
        return propose(self, *args, **kwargs)

    monkeypatch.setattr(JakiroDrafter, "propose", recorded)
    return shapes


def answers(pipe, inputs, seed=0, **kwargs):
    set_seed(seed)
    return pipe(inputs, **{"max_new_tokens": NEW_TOKENS, **kwargs})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": False},
        {},  # pipelines sample with temperature 0.7 unless told otherwise
        {"top_p": 0.9, "num_return_sequences": 2, "seed": 3},
        {"do_sample": False, "stop_sequence": ["."], "return_full_text": False},
        {"do_sample": False, "repetition_penalty": 1.2, "return_tensors": True},
    ],
)
def test_same_text(plain, drafted, trees, chats, kwargs):
    for inputs in (chats[0], "Tom has 3 apples"):
        expected = answers(plain, inputs, **kwargs)
        assert not trees
        assert answers(drafted, inputs, **kwargs) == expected
        assert len(trees) > 0
        trees.clear()


@pytest.mark.parametrize("kwargs", [{"do_sample": False}, {}])
def test_batches(plain, drafted, trees, chats, kwargs):
    expected = answers(plain, chats, batch_size=3, **kwargs)
    assert len({len(answer[0]["generated_text"][-1]["content"]) for answer in expected}) > 1
    assert not trees
    assert answers(drafted, chats, batch_size=3, **kwargs) == expected
    assert 0 < len(trees) < 3 * NEW_TOKENS / 2


def test_number_of_nodes(models, draft, drafted, trees, chats, monkeypatch):
    """It comes from the drafter, the call or the pipeline."""
    monkeypatch.setattr(draft.config, "num_draft_tokens", 9)
    few = pipeline("text-generation", **models, assistant_model=draft, num_assistant_tokens=3)
    for pipe, kwargs, expected in (
        (drafted, {}, 9),
        (drafted, {"num_assistant_tokens": 5}, 5),
        (few, {}, 3),
        (few, {"num_assistant_tokens": 5}, 5),
    ):
        answers(pipe, chats[0], max_new_tokens=4, **kwargs)
        assert {shape.num_draft_tokens for shape in trees} == {expected}
        trees.clear()


def test_streamers(models, drafted, chats):
    streamer = TextIteratorStreamer(models["tokenizer"], skip_prompt=True, skip_special_tokens=True)
    (answer,) = answers(drafted, chats[0], do_sample=False, streamer=streamer)
    assert "".join(streamer) == answer["generated_text"][-1]["content"]


@pytest.mark.parametrize("kind", [str, Path])
def test_the_drafters_folder(models, plain, trees, chats, kind):
    """transformers alone cannot load it: it looks for the class among its own, and for a tokenizer in the folder."""
    pipe = pipeline("text-generation", **models, assistant_model=kind(DRAFT))
    assert isinstance(pipe.assistant_model, JakiroDraftModel)
    assert pipe.assistant_model.dtype == models["model"].dtype  # not bfloat16, as saved
    assert answers(pipe, chats[0], do_sample=False) == answers(plain, chats[0], do_sample=False)
    assert len(trees) > 0


def test_a_target_with_other_special_tokens(models, plain, trees, chats):
    """If the configs' special tokens differ, transformers assumes two tokenizers and asks for the drafter's."""
    draft = AutoModel.from_pretrained(DRAFT, dtype=torch.float32).eval()
    draft.config.eos_token_id = [2, 7]
    for tokenizer in (None, models["tokenizer"]):
        pipe = pipeline("text-generation", **models, assistant_model=draft, assistant_tokenizer=tokenizer)
        assert answers(pipe, chats[0], do_sample=False) == answers(plain, chats[0], do_sample=False)
        assert len(trees) > 0
        trees.clear()


def test_misfits_are_named(models):
    other = JakiroDraftModel(transformers_jakiro.JakiroDraftConfig.from_target(models["model"].config, vocab_size=99))
    with pytest.raises(ValueError, match=r"`vocab_size` must be its target's: LlamaForCausalLM has 2048.* 99"):
        pipeline("text-generation", **models, assistant_model=other)("Tom", max_new_tokens=2)


def test_other_assistants_are_as_before(models, tmp_path):
    """An assistant with the same special tokens, one with others, which needs its tokenizer, and a folder."""
    target = models["model"]
    loaded = base.load_assistant_model(target, target, None)
    assert loaded == (target, None)
    assert base.load_assistant_model(target, None, None) == (None, None)
    other = AutoModelForCausalLM.from_pretrained(TARGET)
    other.config.eos_token_id = 7
    with pytest.raises(ValueError, match="You should pass the assistant tokenizer"):
        base.load_assistant_model(target, other, None)
    assert base.load_assistant_model(target, other, models["tokenizer"]) == (other, models["tokenizer"])
    assistant, tokenizer = base.load_assistant_model(target, str(TARGET), None)
    assert (type(assistant), tokenizer) == (type(target), None)
    with pytest.raises(OSError, match="nowhere"):
        base.load_assistant_model(target, str(tmp_path / "nowhere"), None)


def test_the_hook_is_taken_back(monkeypatch):
    transformers_jakiro.remove_generation_hook()
    try:
        original = base.load_assistant_model
        assert original.__code__.co_filename == base.__file__
        with monkeypatch.context() as patch:
            patch.delattr(base, "load_assistant_model")
            with pytest.raises(
                transformers_jakiro.IncompatibleTransformersError, match=r"base\.load_assistant_model`"
            ):
                transformers_jakiro.install_generation_hook()
    finally:
        transformers_jakiro.install_generation_hook()
    assert base.load_assistant_model is not original
