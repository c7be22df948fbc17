# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.processes import kill_at_call, run_until_killed
from helpers.targets import enlarge
from transformers_jakiro.training import regeneration
from transformers_jakiro.training.regeneration import RegenerationCounts, regenerate

WORDS = ["pad", "end", "system", "user", "assistant", *"abcdefghijklmnop"]
ENDS = [1, *range(19, 21)]  # "end" and two letters, so that random weights end an answer now and then
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% if m['role'] == 'assistant' %}end {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="pad", eos_token="end", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def target():
    """Ends some of its answers within eight tokens, others not."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        pad_token_id=0,
        eos_token_id=ENDS,
    )
    model = LlamaForCausalLM(config).eval()
    enlarge(model)
    return model


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def make_rows(number=14):
    letters = WORDS[5:]
    return [
        {"id": i, "messages": [user(" ".join(letters[(i * j) % 16] for j in range(1 + i % 5))), assistant("a b")]}
        for i in range(number)
    ]


@pytest.fixture
def answer(target, tokenizer, tmp_path):
    def answer(rows, name="out.jsonl", **kwargs):
        arguments = {"max_new_tokens": 8, "batch_size": 3, "progress": False, **kwargs}
        counts = regenerate(target, tokenizer, rows, tmp_path / name, **arguments)
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()], counts

    return answer


def plain(target, tokenizer, messages, max_new_tokens=8):
    """One answer by itself, whether it ended, and its tokens."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs.pop("token_type_ids", None)
    output = target.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    tokens = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(tokens, skip_special_tokens=True), tokens[-1].item() in ENDS, len(tokens)


def test_greedy_answers_are_the_targets(answer, target, tokenizer):
    rows = make_rows()
    written, counts = answer(rows)
    assert [row["id"] for row in written] == list(range(14))
    tokens = 0
    for row, new in zip(rows, written, strict=True):
        text, finished, length = plain(target, tokenizer, row["messages"][:1])
        tokens += length
        assert new == {"id": row["id"], "messages": [row["messages"][0], assistant(text)], "finished": finished}
    unfinished = sum(not row["finished"] for row in written)
    assert 0 < unfinished < 14
    assert counts == RegenerationCounts(14, 0, unfinished, 14, tokens)


def test_turns_follow_the_targets_own_answers(answer, target, tokenizer):
    rows = [
        {"messages": [{"role": "system", "content": "p"}, user(a), assistant("n"), user(b), assistant("o"), user("c")]}
        for a in WORDS[5:]
        for b in "de"
    ]
    written, counts = answer(rows)
    ends = set()
    for row, new in zip(rows, written, strict=True):
        expected, finished = list(row["messages"][:1]), True
        for message in row["messages"][1::2]:
            text, finished, _ = plain(target, tokenizer, [*expected, message])
            expected += [message, assistant(text)]
            if not finished:
                break
        assert new == {"messages": expected, "finished": finished}
        ends.add((len(expected), finished))
    assert {(3, False), (7, True)} <= ends  # some are cut at once, some go through
    assert counts.answers == sum(len(row["messages"]) // 2 for row in written)


@pytest.mark.parametrize("moment", ["between windows", "while it writes a window"])
@pytest.mark.integration
def test_killed_and_resumed(answer, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(regeneration, "_BATCHES_PER_WINDOW", 2)
    rows = make_rows()
    answer(rows, "whole.jsonl", temperature=1.0)

    def killed():
        if moment == "between windows":
            monkeypatch.setattr(regeneration, "_generate", kill_at_call(4, regeneration._generate))
        else:
            monkeypatch.setattr(regeneration.os, "fsync", kill_at_call(2, regeneration.os.fsync))
        answer(rows, temperature=1.0)

    run_until_killed(killed)
    partial = tmp_path / "out.jsonl.partial"
    assert partial.read_bytes().count(b"\n") == (6 if moment == "between windows" else 12)
    assert not (tmp_path / "out.jsonl").exists()
    with partial.open("ab") as file:
        file.write(b'{"id": 99, "mess')
    calls = []
    monkeypatch.setattr(regeneration, "_generate", lambda *args, f=regeneration._generate: calls.append(1) or f(*args))
    written, counts = answer(rows, temperature=1.0)
    assert len(calls) == 3  # eight rows in batches of three, of a window of six and one of two
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    notes = [json.loads((tmp_path / f"{name}.jsonl.meta.json").read_text()) for name in ("out", "whole")]
    assert notes[0] == notes[1]
    assert not partial.exists()
    assert answer(rows, temperature=1.0) == (written, counts)
    assert len(calls) == 3


def test_seed_and_temperature(answer):
    rows = make_rows()
    first, _ = answer(rows, "a.jsonl", temperature=1.0)
    torch.manual_seed(123)
    same, _ = answer(rows, "b.jsonl", temperature=1.0)
    other, _ = answer(rows, "c.jsonl", temperature=1.0, seed=1)
    greedy, _ = answer(rows, "d.jsonl")
    assert first == same
    assert first != other
    assert first != greedy


def test_long_prompts(answer):
    long = " ".join("a" * 31)  # with two words of the template one more than fits
    rows = [
        {"id": 0, "messages": [user(long)]},
        {"id": 1, "messages": [user(long[2:])]},
        *({"id": i, "messages": [user(WORDS[i]), assistant("a"), user(long), assistant("b")]} for i in range(5, 15)),
    ]
    written, counts = answer(rows)
    assert [row["id"] for row in written] == [1, *range(5, 15)]
    assert all(len(row["messages"]) == 2 for row in written)
    assert counts.skipped == 1
    assert any(row["finished"] for row in written)  # what was left out are turns, not words


def test_formats(answer):
    (expected,), _ = answer([{"messages": [user("a b")]}], "0.jsonl")
    for number, row in enumerate(
        (
            {"prompt": "a b"},
            {"prompt": [user("a b")], "completion": [assistant("c")]},
            {"conversations": [{"from": "gpt", "value": "c"}, {"from": "human", "value": "a b"}]},
            {"messages": None, "prompt": "a b"},
            {"messages": [assistant("hello"), user("a b"), assistant("c"), {"role": "system", "content": "d"}]},
        ),
        start=1,
    ):
        assert answer([{**row, "source": "x"}], f"{number}.jsonl")[0] == [{**expected, "source": "x"}]


def test_what_cannot_be_asked_is_skipped(answer):
    tool = [user("a"), assistant(""), {"role": "tool", "content": "b"}, assistant("c")]
    written, counts = answer([{"messages": tool}, {"messages": [assistant("a")]}, {"messages": [user("b")]}])
    assert [row["messages"][0] for row in written] == [user("b")]
    assert counts.skipped == 2


def test_other_arguments(answer, tmp_path):
    answer(make_rows())
    for rows, change, message in (
        (make_rows(), {"temperature": 0.5}, r"temperature 0\.0 \(now 0\.5\)"),
        (make_rows(), {"max_new_tokens": 9}, r"max_new_tokens 8 \(now 9\)"),
        (make_rows(13), {}, r"data_sha256 "),
    ):
        with pytest.raises(ValueError, match=f"begun with other arguments: .*{message}"):
            answer(rows, **change)
    (tmp_path / "foreign.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"foreign\.jsonl exists and was not written here"):
        answer(make_rows(), "foreign.jsonl")
    (tmp_path / "out.jsonl").unlink()
    assert len(answer(make_rows(2))[0]) == 2  # deleted: anew


def test_cut_partial_file(answer, tmp_path):
    answer(make_rows())
    (tmp_path / "out.jsonl").rename(tmp_path / "out.jsonl.partial")
    with (tmp_path / "out.jsonl.partial").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ValueError, match=r"partial has 10 bytes, .* says \d+: it was cut"):
        answer(make_rows())


def test_wrong_input(answer, target, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"no conversations to answer"):
        answer([])
    with pytest.raises(ValueError, match=r"Row 1 holds no conversation.*\['text'\]"):
        answer([*make_rows(1), {"text": "a"}])
    with pytest.raises(ValueError, match=r"room for a prompt in the 40 positions of the target, got 40"):
        answer(make_rows(), max_new_tokens=40)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match=r"no chat template"):
        regenerate(target, bare, make_rows(), tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
