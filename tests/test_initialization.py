# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import copy
from collections.abc import Callable

import pytest
import torch

from helpers.original_checkpoints import INNER, make_original, write_original
from helpers.targets import HIDDEN, make_drafter, make_target
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.core.target import Target
from transformers_jakiro.hub.key_map import jakiro_state_dict_to_original
from transformers_jakiro.training.initialization import new_drafter, upcycle
from transformers_jakiro.training.objective import DraftingObjective


def make_source(num_experts: int = 1, inner_size: int = 40, seed: int = 1, **overrides) -> JakiroDraftModel:
    """A drafter in double precision, with weights large enough that everything matters and a norm that is not one."""
    if num_experts == 1:
        overrides["head_mode"] = "single"
    draft = make_drafter(
        make_target(), seed=seed, num_experts=num_experts, expert_intermediate_size=inner_size, **overrides
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return draft.double()


def change(source: JakiroDraftModel, **fields) -> JakiroDraftConfig:
    fields = {"num_experts_per_tok": None, **fields}
    return JakiroDraftConfig(**{**source.config.to_dict(), **fields})


@pytest.fixture
def inputs() -> Callable:
    generator = torch.Generator().manual_seed(3)
    embeddings, features = torch.randn(2, 3, 40, HIDDEN, generator=generator)
    return lambda draft, **kwargs: draft(
        inputs_embeds=embeddings.to(draft.dtype), hidden_states=features.to(draft.dtype), **kwargs
    )


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Largest difference of each position's features, `[B * T]`."""
    return (a - b).abs().amax(dim=-1).flatten()


# half width, the dense layer's width is odd, room for all units in both experts, and room to spare
@pytest.mark.parametrize(("dense_size", "size"), [(40, 20), (39, 20), (40, 30), (40, 40), (40, 48)])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("head_mode", ["contrastive", "decoupled", "single"])
def test_dense_to_two_experts_is_exact(dense_size, size, gated, head_mode, inputs):
    dense = make_source(inner_size=dense_size, gated_experts=gated)
    draft = upcycle(dense, change(dense, num_experts=2, expert_intermediate_size=size, head_mode=head_mode))
    expected, got = inputs(dense).last_hidden_state, inputs(draft).last_hidden_state
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("num_experts", [4, 6])
def test_dense_to_more_experts_is_exact(num_experts, inputs):
    dense = make_source(inner_size=40)
    draft = upcycle(
        dense, change(dense, num_experts=num_experts, expert_intermediate_size=20, head_mode="contrastive")
    )
    output = inputs(draft, output_router_logits=True)
    torch.testing.assert_close(output.last_hidden_state, inputs(dense).last_hidden_state, atol=1e-10, rtol=1e-10)
    used = output.router_logits.topk(2, dim=-1).indices.flatten().bincount(minlength=num_experts)
    assert (used > 0.25 * used.sum() / num_experts).all()  # no expert starts dead


def test_dense_of_two_layers(inputs):
    dense = make_source(num_hidden_layers=2)
    draft = upcycle(dense, change(dense, num_experts=2, expert_intermediate_size=20, head_mode="contrastive"))
    torch.testing.assert_close(
        inputs(draft).last_hidden_state, inputs(dense).last_hidden_state, atol=1e-10, rtol=1e-10
    )
    assert [layer.mlp.gate.out_features for layer in draft.layers] == [2, 4]


def test_narrow_experts_keep_the_important_units(inputs):
    dense = make_source(inner_size=40)
    down = dense.layers[0].mlp.experts.down_proj.weight
    with torch.no_grad():
        down[:, 1::2] = 0.0  # half of the units do nothing
    draft = upcycle(dense, change(dense, num_experts=2, expert_intermediate_size=10, head_mode="contrastive"))
    expected = inputs(dense).last_hidden_state
    torch.testing.assert_close(inputs(draft).last_hidden_state, expected, atol=1e-10, rtol=1e-10)
    narrower = upcycle(dense, change(dense, expert_intermediate_size=20))
    torch.testing.assert_close(inputs(narrower).last_hidden_state, expected, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        for index in range(40):
            down[:, index] = (1.0 if index % 4 == 0 else 0.01) * torch.randn(HIDDEN)
    expected = inputs(dense).last_hidden_state
    draft = upcycle(dense, change(dense, num_experts=2, expert_intermediate_size=5, head_mode="contrastive"))
    error = (inputs(draft).last_hidden_state - expected).norm()
    with torch.no_grad():
        down[:] = 0.0
    assert error < 0.1 * (inputs(dense).last_hidden_state - expected).norm()


def test_sign_of_the_contrast_is_stable(inputs):
    dense = make_source()
    with torch.no_grad():
        dense.fc.bias += 3.0
    draft = upcycle(dense, change(dense, num_experts=2, expert_intermediate_size=20, head_mode="contrastive"))
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-4)
    logits = []
    draft.layers[0].mlp.gate.register_forward_hook(lambda module, args, output: logits.append(output.detach()))
    for _ in range(4):
        output = inputs(draft, output_contrastive_hidden_state=True)
        (output.last_hidden_state**2 + (output.contrastive_hidden_state - 1) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for step in logits:
        assert (step[..., 2] > step[..., 3]).float().mean() > 0.9
    without_bias = make_source(fusion_bias=False)
    draft = upcycle(without_bias, change(without_bias, num_experts=2, head_mode="contrastive"))
    assert not draft.layers[0].mlp.gate.weight[2:].any()  # a tie: the first expert is the positive one


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 2, "expert_intermediate_size": 20, "head_mode": "contrastive"},
        {"num_experts": 2, "expert_intermediate_size": 48, "head_mode": "contrastive"},
        {"num_experts": 2, "expert_intermediate_size": 20, "head_mode": "decoupled"},
        {"num_experts": 4, "expert_intermediate_size": 20, "head_mode": "contrastive"},
    ],
)
def test_everything_trains(changes):
    dense = make_source()
    draft = upcycle(dense.float(), change(dense, **changes)).train()
    target = Target(make_target())
    objective = DraftingObjective(feature_noise=0.0)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 96, (4, 24), generator=generator),
        "loss_mask": torch.ones(4, 24, dtype=torch.long),
    }
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-3, weight_decay=0.0)
    before = {name: weight.clone() for name, weight in draft.named_parameters()}
    losses = []
    for _ in range(6):
        loss, _ = objective(draft, target, batch)
        loss.backward()
        assert [name for name, weight in draft.named_parameters() if weight.grad.abs().max() == 0] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, weight in draft.named_parameters() if torch.equal(weight, before[name])] == []
    experts = draft.layers[0].mlp.experts
    down = experts.down_proj.weight.unflatten(1, (experts.num_experts, -1))  # [H, N, I]
    rows = experts.gate_up_proj.weight.unflatten(0, (2, experts.num_experts, -1))  # [2, N, I, H]
    for weights in (down.movedim(1, 0), rows.movedim(1, 0)):
        moved = weights[:, None] - weights[None]
        same = (moved.flatten(2).abs().amax(dim=-1) == 0).sum()
        assert same == experts.num_experts  # each equals itself alone
    assert down[:, 0].abs().amin() > 0  # fresh units write by now
    gate = draft.layers[0].mlp.gate.weight
    assert torch.unique(gate, dim=0).shape == gate.shape


def test_more_experts_from_several(inputs):
    source = make_source(num_experts=2, inner_size=24)
    draft = upcycle(source, change(source, num_experts=4))
    expected = inputs(source, output_contrastive_hidden_state=True)
    got = inputs(draft, output_contrastive_hidden_state=True, output_router_logits=True)
    same = distances(got.last_hidden_state, expected.last_hidden_state) < 1e-10
    assert same.float().mean() > 0.9
    # exactly where the direction of the copies says more than the experts' difference
    first, second, _, _ = got.router_logits.flatten(0, 1).unbind(-1)
    chosen = got.router_logits.flatten(0, 1).topk(2, dim=-1).indices.sort(dim=-1).values.tolist()
    assert torch.equal(same, torch.tensor([pair in ([0, 1], [2, 3]) for pair in chosen]))
    # with more than two experts `b_1` belongs to the larger routing logit, with two to expert 0
    in_order = same & (first > second)
    assert in_order.any()
    assert distances(got.contrastive_hidden_state, expected.contrastive_hidden_state)[in_order].max() < 1e-10


def test_same_experts_other_heads_and_width(inputs):
    source = make_source(num_experts=3, inner_size=24)
    wider = upcycle(source, change(source, expert_intermediate_size=40))
    kwargs = {"output_contrastive_hidden_state": True, "output_expert_hidden_states": True}
    expected, got = inputs(source, **kwargs), inputs(wider, **kwargs)
    for name in ("last_hidden_state", "contrastive_hidden_state", "expert_hidden_states"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-10, rtol=1e-10)
    decoupled = upcycle(source, change(source, head_mode="decoupled"))
    assert decoupled.layers[0].mlp.gate.out_features == 3
    again = upcycle(decoupled, change(decoupled, head_mode="contrastive"))
    for draft in (decoupled, again):
        torch.testing.assert_close(inputs(draft).last_hidden_state, expected.last_hidden_state, atol=1e-10, rtol=1e-10)


def test_from_an_original_dense_drafter(tmp_path, target_config, inputs):
    folder = write_original(tmp_path / "eagle", *make_original("eagle"))
    dense = JakiroDraftModel.from_original(folder, target=target_config)
    config = change(dense, num_experts=2, expert_intermediate_size=INNER // 2, head_mode="contrastive")
    state = torch.get_rng_state()
    before = copy.deepcopy(dense.state_dict())
    draft = upcycle(dense, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in dense.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(draft.parameters(), upcycle(dense, config).parameters(), strict=True))
    expected = inputs(dense).last_hidden_state
    torch.testing.assert_close(inputs(draft).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    draft.save_pretrained(tmp_path / "draft")
    loaded = JakiroDraftModel.from_pretrained(tmp_path / "draft")
    assert loaded.config.num_experts == 2
    assert all(torch.equal(a, b) for a, b in zip(draft.parameters(), loaded.parameters(), strict=True))
    with torch.no_grad():
        draft.fc.weight.zero_()
    assert dense.fc.weight.abs().max() > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_dtype_is_the_sources(dtype, tolerance, inputs):
    dense = make_source().to(dtype)
    draft = upcycle(dense, change(dense, num_experts=2, expert_intermediate_size=20, head_mode="contrastive"))
    assert {weight.dtype for weight in draft.parameters()} == {dtype}
    expected = inputs(dense).last_hidden_state
    assert (inputs(draft).last_hidden_state - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("num_experts", "changes", "message"),
    [
        (1, {"num_experts": 3, "head_mode": "contrastive"}, r"must be a multiple of 2 .*`num_experts=1`, got 3"),
        (2, {"num_experts": 3}, r"must be a multiple of 2 .*`num_experts=2`, got 3"),
        (2, {"num_experts": 1, "head_mode": "single"}, r"must be a multiple of 2 .*, got 1"),
        (1, {"num_experts": 2, "gated_experts": False}, r"`gated_experts` is True in the source and False"),
        (1, {"hidden_act": "gelu"}, r"`hidden_act` is 'silu' in the source and 'gelu'"),
        (1, {"hidden_size": 64}, r"`hidden_size` is 32 in the source and 64"),
        (1, {"num_key_value_heads": 4}, r"`num_key_value_heads` is 2 in the source and 4"),
        (1, {"num_hidden_layers": 2, "vocab_size": 97}, r"`vocab_size` is .*; `num_hidden_layers` is .*own config"),
    ],
)
def test_errors(num_experts, changes, message):
    source = make_source(num_experts)
    with pytest.raises(ValueError, match=message):
        upcycle(source, change(source, **changes))


@torch.no_grad()
def test_a_new_drafter_fits_its_targets_scales():
    target = copy.deepcopy(make_target("llama"))  # other tests share it
    with torch.no_grad():
        target.get_input_embeddings().weight.mul_(0.05)
    torch.manual_seed(0)
    draft = new_drafter(target, tree_depth=3)
    assert draft.config.tree_depth == 3
    tokens = torch.randint(3, target.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    for values, multiplier in (
        (Target(target).embed(tokens), draft.config.embedding_multiplier),
        (Target(target).features(tokens), draft.config.feature_multiplier),
    ):
        assert values.mul(multiplier).square().mean().sqrt() == pytest.approx(1, rel=0.2)
    sizes = Target(target).features(tokens).square().mean(dim=(0, 1)).sqrt() * draft.config.feature_multiplier
    torch.testing.assert_close(draft.norm.weight, sizes, rtol=0.3, atol=0.1)
    published = new_drafter(target, embedding_multiplier=1, feature_multiplier=1, final_norm=False)
    assert published.fc.weight.abs().max() < 0.2  # no identity
    assert not any("norm" in name and "layers" not in name for name in published.state_dict())
    target.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"features have a root mean square of nan"):
        new_drafter(target)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["embedding_multiplier", "feature_multiplier", "tree_temperature"])
def test_factors_are_positive(name, multiplier):
    with pytest.raises(ValueError, match=rf"`{name}` must be a positive number"):
        JakiroDraftConfig(**{name: multiplier})


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_hidden_layers": 2, "final_norm": False},
        {"num_experts": 1, "head_mode": "single", "final_norm": False},
    ],
)
@torch.no_grad()
def test_folded_multipliers_are_the_same_function(overrides, tmp_path):
    target = make_target("llama")
    torch.manual_seed(0)
    draft = new_drafter(target, embedding_multiplier=7.0, feature_multiplier=0.3, **overrides).double()
    if draft.config.final_norm:
        draft.norm.weight.copy_(torch.rand_like(draft.norm.weight))
    inputs = {
        "inputs_embeds": torch.randn(2, 6, target.config.hidden_size, dtype=torch.float64),
        "hidden_states": 3 * torch.randn(2, 6, target.config.hidden_size, dtype=torch.float64),
        "output_contrastive_hidden_state": draft.config.head_mode == "contrastive",
    }
    if not draft.config.final_norm:
        with pytest.raises(ValueError, match=r"has no multipliers"):
            jakiro_state_dict_to_original(draft.state_dict(), draft.config)
    draft.save_pretrained(tmp_path / "before")
    expected = draft(**inputs)
    draft.fold_multipliers()
    draft.save_pretrained(tmp_path / "after")
    assert draft.config.embedding_multiplier == draft.config.feature_multiplier == 1
    for folder in ("before", "after"):
        got = JakiroDraftModel.from_pretrained(tmp_path / folder, dtype=torch.float64)(**inputs)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-6)  # norms are computed in float32
    if draft.config.final_norm:
        with pytest.raises(ValueError, match=r"has no norm after the experts"):
            jakiro_state_dict_to_original(draft.state_dict(), draft.config)
    else:
        jakiro_state_dict_to_original(draft.state_dict(), draft.config)
