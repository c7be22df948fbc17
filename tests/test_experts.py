# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import pytest
import torch

from helpers.targets import make_drafter, make_target
from transformers_jakiro.core.target import Target
from transformers_jakiro.training.losses import load_balancing_loss
from transformers_jakiro.training.metrics import expert_load, expert_overlap
from transformers_jakiro.training.objective import DraftingObjective


@pytest.fixture
def router():
    """Routing logits `[B, T, N]` of 2 × 30 positions and 5 experts, and a mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 2, (2, 30), generator=generator)
    return torch.randn(2, 30, 5, generator=generator), mask


def test_load_balancing_loss(router):
    logits, mask = router
    rows = [logits[b, t] for b in range(2) for t in range(30) if mask[b, t]]
    counts, probabilities = [0.0] * 5, [0.0] * 5
    for row in rows:
        for expert in sorted(range(5), key=lambda e, row=row: -row[e].item())[:2]:
            counts[expert] += 1 / len(rows)
        for expert, probability in enumerate(row.softmax(-1).tolist()):
            probabilities[expert] += probability / len(rows)
    expected = 5 * sum(count * probability for count, probability in zip(counts, probabilities, strict=True))
    assert load_balancing_loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)
    assert load_balancing_loss(logits, mask.bool()).item() == pytest.approx(expected, rel=1e-5)
    low = load_balancing_loss(logits.bfloat16(), mask)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(expected, rel=2e-2)


def test_load_balancing_loss_looks_at_what_counts_only(router):
    logits, mask = router
    logits.requires_grad_(True)
    load_balancing_loss(logits, mask).backward()
    assert not logits.grad[mask == 0].any()
    assert logits.grad[mask == 1].any()


def test_load_balancing_loss_balances():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 400, 4, generator=generator) + torch.tensor([2.0, 2.0, 0.0, -1.0])
    bias = torch.zeros(4, requires_grad=True)
    mask = torch.ones(1, 400)
    before = load_balancing_loss(logits, mask)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(load_balancing_loss(logits + bias, mask), bias)
        bias.data -= 0.5 * gradient
    after = load_balancing_loss(logits + bias, mask)
    assert before.item() > 2.5
    assert after.item() == pytest.approx(2.0, abs=0.02)
    assert expert_load(logits + bias, mask).min() > 0.2 > 0.1 > expert_load(logits, mask).min()


def test_load_balancing_loss_of_two_experts():
    logits = torch.randn(2, 10, 2, requires_grad=True)
    loss = load_balancing_loss(logits, torch.ones(2, 10))
    assert loss.item() == pytest.approx(2.0)
    loss.backward()
    assert logits.grad.abs().max() < 1e-7


def test_expert_load(router):
    logits, mask = router
    expected = torch.zeros(5)
    for row in logits[mask == 1]:
        first, second = row.sort(descending=True).indices[:2].tolist()
        share = torch.sigmoid(row[first] - row[second])
        expected[first] += share / mask.sum()
        expected[second] += (1 - share) / mask.sum()
    load = expert_load(logits.bfloat16().float(), mask)
    torch.testing.assert_close(expert_load(logits, mask), expected)
    assert load.sum().item() == pytest.approx(1.0)
    two = torch.tensor([[[0.0, 1.0], [50.0, 0.0], [9.0, 0.0]]])
    torch.testing.assert_close(expert_load(two, torch.tensor([[0, 1, 0]])), torch.tensor([1.0, 0.0]))


def test_expert_overlap():
    a = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5]])
    b = torch.tensor([[4.0, 5, 0, 3, 1, 2], [5.0, 4, 3, 2, 1, 0]])
    assert expert_overlap(a, a, 3) == 1.0
    assert expert_overlap(a, b, 1) == 0.0
    assert expert_overlap(a, b, 3).item() == pytest.approx((2 / 3 + 0.0) / 2)  # {0, 1, 2} and {1, 0, 3}
    assert expert_overlap(a, b, 6) == 1.0


def test_training_with_four_experts():
    target = make_target()
    draft = make_drafter(target, num_experts=4).train()
    with torch.no_grad():
        draft.layers[0].mlp.gate.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(0))
    objective = DraftingObjective(feature_noise=0.0)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 96, (4, 24), generator=generator),
        "loss_mask": torch.ones(4, 24, dtype=torch.long),
    }
    before = {name: weight.clone() for name, weight in draft.named_parameters()}
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, _ = objective(draft, Target(target), batch)
        loss.backward()
        down = draft.layers[0].mlp.experts.down_proj.weight.grad.unflatten(1, (4, -1))
        assert (down.abs().amax(dim=(0, 2)) > 0).all()  # each expert learns
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert [name for name, weight in draft.named_parameters() if torch.equal(weight, before[name])] == []
