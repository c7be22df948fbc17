# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import copy

import pytest
import torch

from helpers.prompts import make_prompt
from helpers.targets import make_drafter, make_target
from transformers_jakiro.measuring.deepened import deepen, layer_positions


def test_positions_are_spread_evenly():
    assert layer_positions(3, 8) == [0, 2, 5]
    assert layer_positions(2, 2) == [0, 1]
    assert layer_positions(8, 32) == list(range(0, 32, 4))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3", "olmo2", "granite"])
def test_the_same_tokens_through_more_layers(architecture):
    """Plain, and with a drafter, whose hidden states are the same; also with biases and layers of two kinds."""
    target = make_target(architecture, window=9)
    deepened = copy.deepcopy(target)
    positions = deepen(deepened, 7)
    assert positions == [0, 3]
    assert deepened.config.num_hidden_layers == len(deepened.model.layers) == 7
    assert [layer.self_attn.layer_idx for layer in deepened.model.layers] == list(range(7))
    ids = make_prompt(12)
    for sampling in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        torch.manual_seed(3)
        expected = target.generate(ids, max_new_tokens=24, **sampling)
        for assistant in ({}, {"assistant_model": make_drafter(target)}):
            torch.manual_seed(3)
            assert torch.equal(deepened.generate(ids, max_new_tokens=24, **sampling, **assistant), expected)
    states, deep = (model(ids, output_hidden_states=True).hidden_states for model in (target, deepened))
    assert all(torch.equal(states[i], deep[position]) for i, position in enumerate(positions))


def test_inserted_layers_do_the_work_of_a_layer():
    """They attend and multiply like the layer before; only what they add is zero."""
    deepened = copy.deepcopy(make_target("llama"))
    deepen(deepened, 4)
    real, inserted = deepened.model.layers[:2]
    assert torch.equal(real.self_attn.q_proj.weight, inserted.self_attn.q_proj.weight)
    assert inserted.self_attn.q_proj.weight.data_ptr() != real.self_attn.q_proj.weight.data_ptr()
    assert not inserted.mlp.down_proj.weight.any()


def test_what_cannot_be_deepened():
    with pytest.raises(ValueError, match=r"Llama-like targets.*GPTNeoXForCausalLM do not have them"):
        deepen(copy.deepcopy(make_target("gpt_neox")), 4)
    with pytest.raises(ValueError, match="at least the target's 2 layers, got 1"):
        deepen(copy.deepcopy(make_target("llama")), 1)
