# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Answers, step by step: their text, their steps, and how they end."""

import threading

import pytest
import torch
from transformers import set_seed

from transformers_jakiro import StepStreamer
from transformers_jakiro.apps.answering import Pair, StepTextStreamer
from transformers_jakiro.conversations import encode_conversation
from transformers_jakiro.pair import TARGET, prompts

ASK = [{"role": "user", "content": prompts()[1]}]


@pytest.fixture(scope="module")
def pair():
    return Pair.load()


def written(answer):
    for _ in answer:
        pass
    return answer


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_an_answer_is_that_of_generate(pair, temperature):
    inputs = encode_conversation(pair.tokenizer, ASK, "cpu")
    sampling = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    set_seed(5)
    expected = pair.target.generate(**inputs, **sampling, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]
    for drafted in (True, False):
        answer = written(pair.answer(ASK, drafted, seed=5, max_new_tokens=60, temperature=temperature))
        assert answer.tokens == expected.tolist()
        assert answer.text == pair.tokenizer.decode(expected, skip_special_tokens=True)
        assert (answer.tokens_per_forward > 1) == drafted
        assert answer.num_tokens / answer.tokens_per_second == pytest.approx(answer.steps[-1].seconds)
        for step in answer.steps:
            assert len(step.tokens) == max(1, len(step.visited))
            accepted = [] if step.tree is None else step.tree.tokens[0, step.visited[1:]].tolist()
            assert accepted == step.tokens[:-1]
            assert (step.tree is not None) == (drafted and step is not answer.steps[0])


def test_characters_of_several_tokens(pair):
    """No run ends inside a character. A character belongs to the run that completes it."""
    text = "Zoë pays 5 € for 日本茶 😀 and goes.\n"
    tokens = pair.tokenizer.encode(text, add_special_tokens=False)
    assert any("\ufffd" in pair.tokenizer.decode([token]) for token in tokens)
    for width in (1, 2, 3, 5):
        steps = []
        streamer = StepTextStreamer(pair.tokenizer, steps.append)
        assert isinstance(streamer, StepStreamer)
        streamer.put(torch.zeros(1, 4))  # the prompt
        for start in range(0, len(tokens), width):
            streamer.put_step(torch.tensor(tokens[start : start + width]), None, [])
        streamer.end()
        runs = [run for step in steps for run in step.runs]
        assert "".join(run for run, _ in runs) == text
        assert "\ufffd" not in "".join(run for run, _ in runs)
        assert any(accepted for _, accepted in runs) == (width > 1)
        assert [token for step in steps for token in step.tokens] == tokens


def test_an_answer_that_ends_within_a_character(pair):
    tokens = pair.tokenizer.encode("a€", add_special_tokens=False)
    steps = []
    streamer = StepTextStreamer(pair.tokenizer, steps.append)
    streamer.put_step(torch.tensor(tokens[:-1]), None, [])
    streamer.end()
    text = "".join(run for step in steps for run, _ in step.runs)
    assert text == pair.tokenizer.decode(tokens[:-1])
    assert text.endswith("\ufffd")


def test_closing_the_iterator_stops_the_generation(pair):
    answer = pair.answer(ASK, max_new_tokens=800, temperature=1.0, min_new_tokens=800)
    forwards = []
    handle = pair.target.register_forward_hook(lambda *_: forwards.append(1))
    steps = iter(answer)
    for _ in range(3):
        next(steps)
    steps.close()
    handle.remove()
    assert answer.stopped
    assert not answer.reached_limit
    assert answer.num_tokens == sum(len(step.tokens) for step in answer.steps)
    assert len(forwards) < 60
    assert not [thread for thread in threading.enumerate() if "work" in thread.name]


def test_an_error_arrives_where_the_answer_is_read(pair):
    with pytest.raises(ValueError, match="num_beams=1"):
        written(pair.answer(ASK, num_beams=2))
    assert written(pair.answer(ASK, max_new_tokens=4)).reached_limit  # nothing stays locked


def test_what_the_target_has_positions_for(pair):
    limit = pair.target.config.max_position_embeddings
    messages = [{"role": "user", "content": "3 " * ((limit - 20) // 2)}]
    room = limit - encode_conversation(pair.tokenizer, messages, "cpu")["input_ids"].shape[1]
    assert 0 < room < 60
    answer = written(pair.answer(messages, max_new_tokens=500, min_new_tokens=room))
    assert answer.num_tokens == room
    assert answer.reached_limit
    with pytest.raises(ValueError, match=rf"has \d+ tokens, but the target reads at most {limit}, its answer"):
        pair.answer([*messages, *messages])


def test_conversations_without_a_template_and_refused_ones(pair, monkeypatch):
    tokenizer = pair.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", None)
    ids = encode_conversation(tokenizer, [*ASK, {"role": "assistant", "content": "8"}], "cpu")["input_ids"]
    assert torch.equal(ids, tokenizer(f"{ASK[0]['content']}\n\n8", return_tensors="pt")["input_ids"])
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system role') }}")
    with pytest.raises(ValueError, match=r"refuses a conversation of the roles \['user'\]: no system role"):
        encode_conversation(tokenizer, ASK, "cpu")


def test_models_that_are_no_pair():
    with pytest.raises(ValueError, match="belong together"):
        Pair.load(target=str(TARGET))
    with pytest.raises(ValueError, match="must be a Jakiro drafter, got a LlamaModel"):
        Pair.load(str(TARGET), str(TARGET))
