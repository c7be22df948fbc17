# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Drafters that read further hidden states of their target."""

from unittest import mock

import pytest
import torch

from helpers.prompts import make_prompt
from helpers.targets import make_target
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.core.target import Target
from transformers_jakiro.training.features import write_features
from transformers_jakiro.training.initialization import new_drafter
from transformers_jakiro.training.objective import DraftingObjective

pytestmark = pytest.mark.compat

LAYERS = [0, 1]


def make_pair(architecture="llama"):
    """A target and a drafter whose further layers matter."""
    target = make_target(architecture)
    torch.manual_seed(0)
    draft = new_drafter(target, feature_layers=LAYERS, tree_depth=4, tree_top_k=3, num_draft_tokens=12).eval()
    torch.nn.init.normal_(draft.feature_fusion.proj.weight, std=0.3)
    return target, draft.to(target.dtype)


@torch.no_grad()
def test_features_are_the_layers_own():
    target, draft = make_pair()
    ids = make_prompt(9)
    states = target(ids, output_hidden_states=True).hidden_states
    features = Target(target, LAYERS).features(ids)
    assert torch.equal(features, torch.cat((states[0], states[1], states[-1]), dim=-1))
    embeddings = target.get_input_embeddings()(ids)
    wide, narrow = draft(embeddings, features).last_hidden_state, draft(embeddings, states[-1]).last_hidden_state
    assert not torch.allclose(wide, narrow, atol=1e-2)
    fresh = new_drafter(target, feature_layers=LAYERS).eval()  # starts with nothing added
    assert torch.equal(fresh(embeddings, features).last_hidden_state, fresh(embeddings, states[-1]).last_hidden_state)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3", "gpt2"])
@pytest.mark.parametrize("every_layer", [False, True])
def test_generation_is_lossless(architecture, every_layer):
    target, draft = make_pair(architecture)
    prompt = make_prompt(11)
    options = {"output_hidden_states": True, "return_dict_in_generate": True} if every_layer else {}
    kwargs = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(prompt), **options}
    plain, ours = target.generate(prompt, **kwargs), target.generate(prompt, assistant_model=draft, **kwargs)
    if every_layer:
        plain, ours = plain.sequences, ours.sequences
    assert torch.equal(plain, ours)


@torch.no_grad()
def test_drafting_reads_what_training_reads():
    """What a whole generation gave the drafter to read, piece by piece, is what one forward over its text gives."""
    target, draft = make_pair()
    prompt = make_prompt(7)
    observed = []
    observe = JakiroDrafter.observe

    def record(self, observation):
        observed.append(observation.features)
        observe(self, observation)

    with mock.patch.object(JakiroDrafter, "observe", record):
        text = target.generate(
            prompt, attention_mask=torch.ones_like(prompt), assistant_model=draft, max_new_tokens=16, do_sample=False
        )
    got = torch.cat(observed, dim=1)
    assert len(observed) > 2
    expected = Target(target, LAYERS).features(text)[:, : got.shape[1]]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_training_moves_the_fusion(num_steps, tmp_path):
    target, _ = make_pair()
    fresh = new_drafter(target, feature_layers=LAYERS).train()
    rows = [{"input_ids": make_prompt(14, seed)[0].tolist(), "loss_mask": [0] * 3 + [1] * 11} for seed in range(3)]
    stored = write_features(target, rows, tmp_path, feature_layers=LAYERS, progress=False)
    assert stored[0]["hidden_states"].shape == (14, 3 * target.config.hidden_size)
    stored.check_fits(target.config, LAYERS)
    stored.check_target(Target(target, LAYERS))
    with pytest.raises(ValueError, match=r"`layers` \[0, 1, -1\], training needs \[-1\]"):
        stored.check_fits(target.config)
    batch = {
        "input_ids": torch.tensor([row["input_ids"] for row in rows]),
        "loss_mask": torch.tensor([[*row["loss_mask"][:-1], 0] for row in rows]),
        "attention_mask": torch.ones(3, 14, dtype=torch.long),
    }
    objective = DraftingObjective(feature_noise=0.0, unroll_steps=num_steps)
    online, _ = objective(fresh, Target(target, LAYERS), batch)
    batch["hidden_states"] = torch.stack([row["hidden_states"] for row in stored])
    offline, _ = objective(fresh, Target(target, LAYERS), batch)
    torch.testing.assert_close(online, offline, atol=1e-5, rtol=1e-5)
    online.backward()
    missing = [name for name, weight in fresh.named_parameters() if weight.grad is None or not weight.grad.any()]
    # a norm's weight moves once the product behind it, which starts at zero, has
    assert missing == [f"feature_fusion.norms.{i}.weight" for i in range(2)]


def test_round_trip_and_folding(tmp_path):
    target, draft = make_pair()
    draft.config.feature_multiplier = 0.3
    ids = make_prompt(9)
    inputs = target.get_input_embeddings()(ids), Target(target, LAYERS).features(ids)
    expected = draft(*inputs).last_hidden_state
    draft.save_pretrained(tmp_path / "draft")
    again = JakiroDraftModel.from_pretrained(tmp_path / "draft")
    assert torch.equal(again(*inputs).last_hidden_state, expected)
    again.fold_multipliers()
    torch.testing.assert_close(again(*inputs).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_errors():
    for layers in ([], [2, 1], [1, 1], [-1, 3]):
        with pytest.raises(ValueError, match=r"`feature_layers` must be increasing indices"):
            JakiroDraftConfig(feature_layers=layers)
    target, draft = make_pair()
    with pytest.raises(ValueError, match=r"has 2 layers: 0 to 1 are to be had"):
        new_drafter(target, feature_layers=[1, 2])
    with pytest.raises(ValueError, match=r"hidden_size=32 \(or 96"):
        draft(torch.zeros(1, 3, 32), torch.zeros(1, 3, 64))
