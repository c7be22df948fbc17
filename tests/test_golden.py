# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trees, runs and training steps against the numbers of the published implementation. (Features: test_conversion.py.)
"""

import json
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM

from helpers.drafting import LoneDrafter
from helpers.trees import leaf_paths
from transformers_jakiro import JakiroCandidateGenerator, JakiroDraftModel
from transformers_jakiro.hub.key_map import jakiro_state_dict_to_original
from transformers_jakiro.training.losses import contrastive_parallel_loss

NAMES = ["jakiro_a", "jakiro_b"]


@pytest.fixture
def pair(golden, golden_original):
    """Function: target and drafter of a golden folder, with the trees of `tree_args.json`."""

    def load(name: str) -> tuple[LlamaForCausalLM, JakiroDraftModel]:
        config = LlamaConfig(**json.loads((golden / name / "target_config.json").read_text()))
        target = LlamaForCausalLM(config).eval()
        target.load_state_dict(load_file(golden / name / "target.safetensors"))
        tree = json.loads((golden / name / "tree_args.json").read_text())
        draft = JakiroDraftModel.from_original(golden_original(name), target=target).eval()
        draft.config.tree_depth = tree["depth"] + 1
        draft.config.tree_top_k = tree["top_k"]
        draft.config.num_draft_tokens = tree["total_tokens"] - 1
        draft.config.tree_temperature = 1.0
        return target, draft

    return load


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunks", [1, 3])
def test_trees(golden, pair, name, chunks):
    target, draft = pair(name)
    expected = load_file(golden / name / "trees.safetensors")
    for index in range(4):
        ids, features = expected[f"{index}.ids"], expected[f"{index}.hidden_states"]
        drafter = LoneDrafter(draft, target)
        for part in zip(features.chunk(chunks, dim=1), ids[:, :-1].chunk(chunks, dim=1), strict=True):
            drafter.observe(*part)
        for attempt in range(2):  # a tree leaves no trace in the drafter's cache
            if attempt:
                drafter = LoneDrafter(draft, target)
                drafter.observe(features[:, :5], ids[:, :5])
                drafter.propose(ids[:, 5])
                drafter.observe(features[:, 5:], ids[:, 5:-1])
            tree = drafter.propose(ids[:, -1])
            gathered = f"{index}.gathered."
            assert torch.equal(tree.tokens, expected[gathered + "draft_tokens"])
            assert torch.equal(tree.depths[0], expected[gathered + "tree_position_ids"])
            assert torch.equal(tree.ancestor_mask[0], expected[gathered + "tree_mask"][0, 0].bool())
            paths = {
                tuple(node for node in path if node >= 0) for path in expected[gathered + "retrieve_indices"].tolist()
            }
            assert {tuple(path) for path in leaf_paths(tree)} == paths


def test_published_trees_are_others(golden):
    """The published code misplaces the last level: a test that cannot tell it from ours would be no test."""
    expected = load_file(golden / "jakiro_a" / "trees.safetensors")
    differ = [
        not torch.equal(expected[f"{i}.gathered.draft_tokens"], expected[f"{i}.published.draft_tokens"])
        for i in range(4)
    ]
    assert sum(differ) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_greedy_runs(golden, pair, name):
    target, draft = pair(name)
    runs = json.loads((golden / name / "greedy_runs.json").read_text())
    runs = [run for run in runs if run["mode"] == "gathered"]
    assert len(runs) == 6
    for run in runs:
        kwargs = {
            "attention_mask": torch.ones(1, len(run["prompt"]), dtype=torch.long),
            "max_length": len(run["output"]),
            "eos_token_id": None,
            "do_sample": False,
        }
        prompt = torch.tensor([run["prompt"]])
        output = target.generate(prompt, assistant_model=draft, return_dict_in_generate=True, **kwargs)
        assert output.sequences[0].tolist() == run["output"]
        assert torch.equal(output.sequences, target.generate(prompt, **kwargs))
        accepted, expected = output.accept_lengths[0], run["accept_lengths"]
        # the length limit cuts the last step
        assert len(accepted) == len(expected)
        assert accepted[:-1] == expected[:-1]
        assert accepted[-1] <= expected[-1]
        assert sum(accepted) > len(accepted)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_own_assisted_loop(golden, pair, name):
    """The trained drafter as a candidate generator of transformers' loop: same text, a good deal fewer forwards."""
    target, draft = pair(name)
    run = json.loads((golden / name / "greedy_runs.json").read_text())[0]
    generator = JakiroCandidateGenerator(draft, target, max_length=len(run["output"]))
    prompt = torch.tensor([run["prompt"]])
    with (
        mock.patch.object(GenerationMixin, "_get_candidate_generator", return_value=generator),
        mock.patch.object(target, "forward", wraps=target.forward) as forward,
    ):
        output = target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            prompt_lookup_num_tokens=3,
            max_length=len(run["output"]),
            eos_token_id=None,
            do_sample=False,
        )
    assert output[0].tolist() == run["output"]
    assert forward.call_count < (len(run["output"]) - len(run["prompt"])) / 2


@pytest.mark.parametrize("name", NAMES)
def test_training_step(golden, pair, name):
    target, draft = pair(name)
    step = load_file(golden / name / "train_step.safetensors")
    ids, hidden_states = step["ids"], step["hidden_states"]
    with torch.no_grad():
        features = target.model(ids).last_hidden_state
        embeddings = target.get_input_embeddings()(torch.cat((ids[:, 1:], ids.new_zeros(3, 1)), dim=1))
    torch.testing.assert_close(features, hidden_states, atol=1e-5, rtol=1e-5)
    output = draft(inputs_embeds=embeddings, hidden_states=hidden_states, output_contrastive_hidden_state=True)
    # the last index has no next token: what is computed there is never used
    for got, key in (
        (output.last_hidden_state, "pred_autoregressive"),
        (output.contrastive_hidden_state, "pred_contrastive"),
    ):
        torch.testing.assert_close(got[:, :-1], step[key][:, :-1], atol=1e-5, rtol=1e-5)
    loss, metrics = contrastive_parallel_loss(
        [output.last_hidden_state],
        [output.contrastive_hidden_state],
        hidden_states,
        step["loss_mask"],
        target.get_output_embeddings(),
    )
    terms = {name: total / count for name, (total, count) in metrics.items()}
    for got, key in (
        (loss, "loss"),
        (terms["regression"], "v1"),
        (terms["classification"], "p1"),
        (terms["contrastive_regression"], "v2"),
        (terms["contrastive_classification"], "p2"),
    ):
        torch.testing.assert_close(got, step[key], atol=1e-5, rtol=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in draft.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    gradients = jakiro_state_dict_to_original(gradients, draft.config)
    expected = {key.removeprefix("grad."): value for key, value in step.items() if key.startswith("grad.")}
    assert set(gradients) == set(expected)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, atol=1e-5, rtol=1e-5)
