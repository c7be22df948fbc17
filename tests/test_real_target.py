# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""A real chat model in bfloat16, where the number of tokens in a forward changes the last bits of its logits."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from helpers.knowing import knowing_drafter
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.measuring.acceptance import tokens_per_forward
from transformers_jakiro.measuring.benchmark import rounding_report


@pytest.fixture(scope="module")
def shared(request):
    path = request.config.rootpath.parent / "shared"
    if not (path / "target").is_dir():
        pytest.skip("the 44M-parameter chat model is not here: expected in ../shared/target, next to the repository")
    return path


@pytest.mark.slow  # test_pair.py asks the same of the pair that ships
def test_bfloat16_tokens_are_argmax_within_rounding(shared, capsys):
    tokenizer = AutoTokenizer.from_pretrained(shared / "target")
    target = AutoModelForCausalLM.from_pretrained(shared / "target", dtype=torch.bfloat16).eval()
    draft = JakiroDraftModel(JakiroDraftConfig.from_target(target.config)).bfloat16().eval()
    reports, accepted, same = [], 0, 0
    lines = (shared / "data" / "eval" / "chat.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    for line in lines:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": json.loads(line)["turns"][0]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to("cpu")
        prompt_length = inputs["input_ids"].shape[1]
        settings = {"do_sample": False, "max_new_tokens": 48}
        plain = target.generate(**inputs, **settings)
        with knowing_drafter(plain[0, prompt_length:].tolist()):  # long accepted paths
            output = target.generate(**inputs, **settings, assistant_model=draft, return_dict_in_generate=True)
        accepted += output.num_accepted_tokens
        same += torch.equal(output.sequences, plain)
        reports.append(rounding_report(target, output.sequences, prompt_length))
    tokens, differing = sum(r["tokens"] for r in reports), sum(r["differing"] for r in reports)
    with capsys.disabled():
        print(
            f"\nbfloat16: {differing} of {tokens} tokens are not the argmax of one forward over the whole text, "
            f"largest relative gap {max(r['largest_gap'] for r in reports):.4f}; "
            f"{same} of {len(reports)} outputs equal plain's"
        )
    assert accepted > tokens / 4
    # bfloat16 has 8 bits: logits of one position computed in two ways are a few units of 2^-8 apart
    assert max(r["largest_gap"] for r in reports) < 4 * 2**-8
    assert differing < 0.1 * tokens


def test_the_drafter_in_examples(shared, request):
    """In float32, with the model card's three lines: the text of plain `generate`, in a third of the forwards."""
    folder = request.config.rootpath / "examples" / "tiny-chat-44m-jakiro"
    tokenizer = AutoTokenizer.from_pretrained(shared / "target")
    target = AutoModelForCausalLM.from_pretrained(shared / "target", dtype=torch.float32).eval()
    draft = AutoModel.from_pretrained(folder, dtype=torch.float32)
    lengths = []
    for line in (shared / "data" / "eval" / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()[:3]:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": json.loads(line)["turns"][0]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        settings = {"do_sample": False, "max_new_tokens": 64}
        output = target.generate(**inputs, **settings, assistant_model=draft, return_dict_in_generate=True)
        assert torch.equal(output.sequences, target.generate(**inputs, **settings))
        lengths += output.accept_lengths[0]
    assert tokens_per_forward(lengths) > 3.5
