# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The pair that ships on a GPU, in float32: the text of plain `generate`. Elsewhere the tests imitate what differs."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from transformers_jakiro.core.noise import can_couple
from transformers_jakiro.pair import DRAFT, TARGET, prompts

pytestmark = pytest.mark.gpu

GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 0.95}


@pytest.fixture(scope="module")
def pair():
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).to("cuda")
    return target, AutoModel.from_pretrained(DRAFT, dtype=torch.float32).to("cuda")


def compare(pair, count: int, **options) -> None:
    """Asserts that the drafter changes nothing in the answers to that many prompts at a time, and that it pays."""
    target, draft = pair
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts()[:count]],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"},
    ).to("cuda")
    options |= {"max_new_tokens": 60, "return_dict_in_generate": True}
    torch.manual_seed(0)
    plain = target.generate(**inputs, **options)
    torch.manual_seed(0)
    ours = target.generate(**inputs, **options, assistant_model=draft)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert ours.num_accepted_tokens > sum(map(len, ours.accept_lengths))


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("count", [1, 4])
def test_same_text(pair, count, options):
    compare(pair, count, **options)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("count", [1, 4])
def test_static_cache(pair, count):
    compare(pair, count, **GREEDY, cache_implementation="static")


def test_the_draws_of_the_device_are_known():
    assert can_couple(torch.device("cuda"))
