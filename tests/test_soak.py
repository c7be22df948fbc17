# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Many generations one after another: nothing is kept."""

import gc

import pytest
import torch

from helpers.prompts import make_batch, make_prompt
from helpers.targets import make_drafter, make_target


def live_tensors() -> tuple[int, int]:
    """Tensors that exist, and their bytes."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    return len(tensors), sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.slow
def test_a_thousand_generations():
    target = make_target("mistral", window=9)
    draft = make_drafter(target)
    before = None
    for number in range(1000):
        inputs = make_batch(seed=number) if number % 4 == 3 else {"input_ids": make_prompt(1 + number % 30)}
        static = {"cache_implementation": "static", "max_cache_len": 64} if number % 5 == 4 else {}
        output = target.generate(
            **inputs, assistant_model=draft, max_new_tokens=6, do_sample=number % 2 == 1, top_k=0, **static
        )
        assert output.shape[1] == inputs["input_ids"].shape[1] + 6
        del output
        if number == 99:
            before = live_tensors()
    assert live_tensors() == before
