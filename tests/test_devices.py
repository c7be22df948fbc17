# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Targets whose weights are elsewhere: offloaded, or split over processes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import tensor_parallel_run
from helpers.processes import launch
from helpers.prompts import make_batch, make_prompt
from helpers.targets import make_drafter, make_target

PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("offloaded", [["model.layers.1"], ["lm_head", "model.norm"], ["model.embed_tokens"], PARTS])
@pytest.mark.parametrize("draft_vocab_size", [None, 32])
def test_offloaded_targets(offloaded, draft_vocab_size, tmp_path):
    target = make_target()
    target.save_pretrained(tmp_path / "target")
    device_map = {part: "disk" if part in offloaded else "cpu" for part in PARTS}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "target", device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    assert any(weight.is_meta for weight in loaded.parameters())
    draft = make_drafter(target, draft_vocab_size=draft_vocab_size)
    if draft_vocab_size:
        draft.draft_token_ids.copy_(torch.arange(0, 3 * draft_vocab_size, 3))
    for inputs in ({"input_ids": make_prompt(7)}, make_batch()):
        plain = target.generate(**inputs, max_new_tokens=12, do_sample=False)
        output = loaded.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=draft)
        assert output.tolist() == plain.tolist()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_tensor_parallelism(tmp_path, warm_python):
    """Every process makes the same choices."""
    target = make_target()
    target.save_pretrained(tmp_path / "target")
    make_drafter(target).save_pretrained(tmp_path / "draft")
    greedy = {"max_new_tokens": 16, "do_sample": False}
    values = {
        "target": str(tmp_path / "target"),
        "draft": str(tmp_path / "draft"),
        "output_dir": str(tmp_path),
        "inputs": {name: rows.tolist() for name, rows in make_batch().items()},
        "options": {
            "greedy": greedy,
            "sampled": {"max_new_tokens": 16, "do_sample": True, "top_k": 0},
            "static": {**greedy, "cache_implementation": "static"},
        },
    }
    launch(warm_python, Path(tensor_parallel_run.__file__), values, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["split"] == target.config.intermediate_size // 2
    for name in values["options"]:
        assert first[f"{name} 1"] == first[f"{name} 0"]
    assert first["greedy 0"] == target.generate(**make_batch(), **greedy).tolist()
