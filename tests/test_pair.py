# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The pair that ships, and the commands that run it, on real text."""

import io
import json

import pytest
import torch
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, set_seed

from jakiro_cli import main
from transformers_jakiro import JakiroDraftModel, JakiroGenerateOutput
from transformers_jakiro.apps.demo import run_demo
from transformers_jakiro.measuring.acceptance import tokens_per_forward
from transformers_jakiro.measuring.benchmark import rounding_report
from transformers_jakiro.measuring.profiling import context_growth
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TARGET)


@pytest.fixture(scope="module")
def target():
    return AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def draft():
    return AutoModel.from_pretrained(DRAFT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    rows = [json.loads(line)["prompt"] for line in (PROMPTS).read_text(encoding="utf-8").splitlines()]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to("cpu")
        for prompt in rows[:6]
    ]


def test_the_drafter_loads_with_its_config(draft, target):
    assert isinstance(draft, JakiroDraftModel)
    assert draft.config.vocab_size == target.config.vocab_size
    assert draft.num_parameters() < target.num_parameters() / 4
    assert isinstance(AutoModel.from_pretrained(DRAFT, device_map="cpu"), JakiroDraftModel)


def test_greedy_answers_are_the_targets_own(target, draft, prompts):
    accepted = forwards = 0
    for inputs in prompts:
        plain = target.generate(**inputs, max_new_tokens=120, do_sample=False)
        output = target.generate(
            **inputs, max_new_tokens=120, do_sample=False, assistant_model=draft, return_dict_in_generate=True
        )
        assert isinstance(output, JakiroGenerateOutput)
        assert torch.equal(plain, output.sequences)
        accepted += sum(output.accept_lengths[0])
        forwards += len(output.accept_lengths[0])
    assert accepted / forwards > 1.0  # a drafter that is trained, not a random one


def test_samples_are_the_targets_own(target, draft, prompts):
    for seed, inputs in enumerate(prompts):
        sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 80}
        set_seed(seed)
        plain = target.generate(**inputs, **sampling)
        set_seed(seed)
        assert torch.equal(plain, target.generate(**inputs, **sampling, assistant_model=draft))


def test_bfloat16_tokens_are_argmax_within_rounding(prompts, record_property):
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.bfloat16).eval()
    draft = AutoModel.from_pretrained(DRAFT, dtype=torch.bfloat16).eval()
    reports = []
    for inputs in prompts:
        output = target.generate(**inputs, max_new_tokens=120, do_sample=False, assistant_model=draft)
        reports.append(rounding_report(target, output, inputs["input_ids"].shape[1]))
    tokens, differing = sum(r["tokens"] for r in reports), sum(r["differing"] for r in reports)
    record_property("differing", f"{differing}/{tokens}")
    # bfloat16 has 8 bits: logits of one position computed in two ways are a few units of 2^-8 apart
    assert max(r["largest_gap"] for r in reports) < 4 * 2**-8
    assert differing < 0.1 * tokens


class _Seen(StoppingCriteria):
    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def test_criteria_see_every_token_once(target, draft, prompts):
    seen, plain = _Seen(), _Seen()
    target.generate(**prompts[0], max_new_tokens=60, do_sample=False, stopping_criteria=[plain])
    target.generate(**prompts[0], max_new_tokens=60, do_sample=False, stopping_criteria=[seen], assistant_model=draft)
    assert seen.lengths == plain.lengths


# -- the commands -----------------------------------------------------------------------------------------------------


def demo(**kwargs):
    """Runs the demo with a pipe or a colour terminal, and returns its result and its text."""
    stream = io.StringIO()
    terminal = kwargs.pop("terminal", False)
    console = Console(
        file=stream,
        width=100,
        highlight=False,
        force_terminal=terminal,
        color_system="truecolor" if terminal else None,
    )
    result = run_demo([], console=console, **kwargs)
    return result, stream.getvalue()


@pytest.mark.compat
def test_demo_in_a_pipe():
    result, text = demo(num_prompts=2, max_new_tokens=60, show_tree=True)
    assert result.prompts == result.identical == 2
    assert "\x1b[" not in text
    assert "[" in text.split("brackets")[1]  # accepted runs
    assert "drafted," in text  # the tree
    assert " *" in text  # its accepted path
    assert "identical outputs" in text
    assert "2/2" in text
    assert f"{tokens_per_forward(result.accept_lengths):.2f}" in text


def test_demo_in_colour():
    plain_text = demo(num_prompts=1, max_new_tokens=40)[1]
    text = demo(num_prompts=1, max_new_tokens=40, terminal=True)[1]
    assert "\x1b[1;32m" in text
    assert "[" in plain_text


def test_demo_of_your_own_question(capsys):
    assert main(["demo", "Tom has 3 apples and buys 4 more. How many has he?", "--max-new-tokens", "24"]) == 0
    out = capsys.readouterr().out
    assert "Tom has 3 apples" in out
    assert "1/1" in out


def test_demo_errors(capsys):
    assert main(["demo", "  "]) == 1
    assert "A prompt is empty" in capsys.readouterr().err
    assert main(["demo", "--target", "somewhere"]) == 1
    assert "belong together" in capsys.readouterr().err


def test_context_growth_reports_both_lengths(target, draft):
    rows = context_growth(target, draft, (32, 96), steps=3, rounds=2)
    assert [row["context"] for row in rows] == [32, 96]
    assert all(0 < row["target_ms"] < row["step_ms"] for row in rows)
