# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What a training step computes: unrolling as drafting does, chunks, and metrics that foretell the acceptance."""

import math
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.drafting import LoneDrafter
from helpers.targets import make_drafter, make_target
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.conversations import read_conversations
from transformers_jakiro.core.draft_forward import DraftForward, Pairs
from transformers_jakiro.core.target import Target
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET
from transformers_jakiro.training.data import JakiroDataCollator
from transformers_jakiro.training.losses import contrastive_parallel_loss, distillation_loss
from transformers_jakiro.training.metrics import drafting_metrics
from transformers_jakiro.training.objective import DraftingObjective, read_target, unroll
from transformers_jakiro.training.packing import pack_rows


@pytest.fixture(scope="module")
def pair():
    target = make_target("llama")
    return Target(target), make_drafter(target)


def make_batch(lengths, vocab_size, packed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [
        {
            "input_ids": torch.randint(3, vocab_size, (length,), generator=generator).tolist(),
            "loss_mask": [0] * 4 + [1] * (length - 4),
        }
        for length in lengths
    ]
    return JakiroDataCollator(pad_token_id=0)([pack_rows(rows)] if packed else rows)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_unrolled_steps_are_what_drafting_computes(pair, packed, attention):
    """Every position of every step against drafting from there: true features, then the drafter's own, one by one."""
    target, draft = pair
    draft.set_attn_implementation(attention)
    lengths, num_steps = (9, 13, 6), 4
    batch = make_batch(lengths, target.config.vocab_size, packed)
    outputs = unroll(
        draft,
        *read_target(target, batch, draft.dtype),
        batch.get("position_ids"),
        num_steps,
        contrastive=lambda step: step == num_steps,
    )
    alone = make_batch(lengths, target.config.vocab_size)
    for index, length in enumerate(lengths):
        row, offset = (0, sum(lengths[:index])) if packed else (index, 0)
        tokens = alone["input_ids"][index : index + 1, :length]
        features, embeddings = target.features(tokens), target.embed(tokens)
        for place in range(length - num_steps):
            forward = DraftForward(draft)
            pairs = Pairs(features[:, : place + 1], embeddings[:, : place + 1], [place + 1])
            pairs.set_next(embeddings[:, place + 1 : place + 2])
            output = forward.read(pairs)
            for step in range(1, num_steps + 1):
                got = outputs[step - 1].last_hidden_state[row, offset + place + step - 1]
                expected = output.last_hidden_state[0, -1]
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
                if step == num_steps:
                    break
                output = draft(
                    inputs_embeds=embeddings[:, place + step + 1 : place + step + 2],
                    hidden_states=output.last_hidden_state[:, -1:],
                    cache=forward.cache,
                    output_contrastive_hidden_state=step == num_steps - 1,
                )
            got = outputs[-1].contrastive_hidden_state[row, offset + place + num_steps - 1]
            torch.testing.assert_close(got, output.contrastive_hidden_state[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_loss_and_gradient_do_not_depend_on_chunks(pair, chunk, monkeypatch):
    """Against the loss written out over all logits at once."""
    target, _ = pair
    monkeypatch.setattr("transformers_jakiro.training.losses.rows_per_chunk", lambda *args: chunk)
    generator = torch.Generator().manual_seed(0)
    batch_size, length, hidden_size = 2, 12, target.config.hidden_size
    features = torch.randn(batch_size, length, hidden_size, generator=generator)
    drafted = [torch.randn(batch_size, length - 1, hidden_size, generator=generator).requires_grad_() for _ in "1234"]
    mask = torch.rand(batch_size, length, generator=generator) < 0.7
    mask[:, -1] = False
    weights = {"regression_weight": 0.7, "classification_weight": 0.3, "contrastive_weight": 0.4}
    loss, metrics = contrastive_parallel_loss(drafted[:2], drafted[2:], features, mask, target.head, **weights)
    got = torch.autograd.grad(loss, drafted)

    expected = 0
    for index, branch in enumerate(drafted):
        contrastive, step = divmod(index, 2)
        ahead = 1 + contrastive
        terms, hits = [], 0
        for row in range(batch_size):
            for place in range(step + contrastive, length - 1):
                if mask[row, place]:  # feature place + 1 is predicted from `ahead` positions before it
                    predicted, true = branch[row, place + 1 - ahead], features[row, place + 1]
                    distance = (predicted - true).abs()
                    smooth = torch.where(distance < 1, distance**2 / 2, distance - 0.5).mean()
                    probs = target.head(true).softmax(-1).detach()
                    cross_entropy = -(probs * target.head(predicted).log_softmax(-1)).sum()
                    terms.append(0.7 * smooth + 0.3 * cross_entropy)
                    hits += int(probs.argmax() == target.head(predicted).argmax())
        expected = expected + (0.4 if contrastive else 1.0) * torch.stack(terms).mean()
        name = ("contrastive_" if contrastive else "") + "accuracy" + ("_step2" if step else "")
        assert [int(value) for value in metrics[name]] == [hits, len(terms)]
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for ours, reference in zip(got, torch.autograd.grad(expected, drafted), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)


def test_unrolled_training_lowers_the_loss_of_late_steps(pair):
    """Training that never saw its own features does not draft from them as well as training that did."""
    target, _ = pair
    batch = make_batch((24, 24, 24, 24), target.config.vocab_size)
    late = {}
    for num_steps in (1, 3):
        torch.manual_seed(0)
        draft = make_drafter(target.model).train()
        objective = DraftingObjective(feature_noise=0.0, classification_weight=1.0, unroll_steps=num_steps)
        optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
        for _ in range(50):
            loss, _ = objective(draft, target, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            _, metrics = DraftingObjective(feature_noise=0.0, unroll_steps=3)(draft.eval(), target, batch)
        total, count = metrics["classification_step3"]
        late[num_steps] = (total / count).item()
    assert late[3] < 0.95 * late[1], late


@torch.no_grad()
def replayed_acceptance(draft, target, text, start, **shape):
    """Tokens per forward if the target says `text`: real trees, one after the other."""
    drafter = LoneDrafter(draft, target.model)
    features = target.features(text)
    drafter.observe(features[:, :start], text[:, :start])
    place, forwards, length = start, 0, text.shape[1]
    while place < length - 1:
        tree = drafter.propose(text[:, place])
        node, accepted = 0, 0
        while place + accepted + 1 < length:
            children = [
                child
                for child, parent in enumerate(tree.parents[0].tolist())
                if child > 0 and parent == node and tree.tokens[0, child] == text[0, place + accepted + 1]
            ]
            if not children:
                break
            node, accepted = children[0], accepted + 1
        end = min(place + accepted + 1, length)
        drafter.observe(features[:, place:end], text[:, place:end])
        place, forwards = end, forwards + 1
    return length - 1 - start, forwards


@pytest.fixture(scope="module")
def shipped_pair():
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    return Target(target), JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def texts(shipped_pair):
    """Function: six prompts with the target's greedy or sampled answers `[1, T]`, and where these start."""
    target, tokenizer = shipped_pair[0].model, AutoTokenizer.from_pretrained(TARGET)

    @cache
    def answered(do_sample):
        answers = []
        for prompt in read_conversations(PROMPTS, limit=6):
            message = {"role": "user", "content": prompt["prompt"]}
            inputs = tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            torch.manual_seed(0)
            text = target.generate(**inputs, max_new_tokens=80, do_sample=do_sample, top_k=0)
            answers.append((text, inputs["input_ids"].shape[1]))
        return answers

    return answered


SHAPES = [(7, 10, 59), (7, 4, 20), (4, 3, 10), (5, 1, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_expected_acceptance_is_that_of_real_trees(shipped_pair, texts, shape, do_sample):
    target, draft = shipped_pair
    draft.config.tree_depth, draft.config.tree_top_k, draft.config.num_draft_tokens = shape
    tokens = forwards = metric = 0
    for text, start in texts(do_sample):
        counts = replayed_acceptance(draft, target, text, start)
        tokens, forwards = tokens + counts[0], forwards + counts[1]
        mask = torch.ones_like(text)
        mask[:, : start - 1], mask[:, -1] = 0, 0  # the prompt's last pair drafts what follows the first answer token
        batch = {"input_ids": text, "loss_mask": mask, "attention_mask": torch.ones_like(text)}
        total, count = drafting_metrics(draft, target, batch)["expected_acceptance_length"]
        metric = metric + torch.stack((total, count))
    real, expected = tokens / forwards, (metric[0] / metric[1]).item()
    assert real > 1.3
    assert math.isclose(real, expected, rel_tol=0.02 if shape[1] == 1 else 0.15), (real, expected)


def test_metrics_of_experts(pair):
    target, draft = pair
    batch = make_batch((20, 14), target.config.vocab_size)
    metrics = {name: float(total / count) for name, (total, count) in drafting_metrics(draft, target, batch).items()}
    assert metrics["expert_load_0"] + metrics["expert_load_1"] == pytest.approx(1)
    assert 0 <= metrics["expert_overlap"] <= 1
    # two experts that say the same
    twins = make_drafter(target.model)
    experts = twins.layers[0].mlp.experts
    with torch.no_grad():
        for weight, dim, parts in ((experts.gate_up_proj.weight, 0, 2), (experts.down_proj.weight, 1, 1)):
            for part in weight.chunk(parts, dim=dim):
                first, second = part.chunk(2, dim=dim)
                second.copy_(first)
    total, count = drafting_metrics(twins, target, batch)["expert_overlap"]
    assert float(total / count) == pytest.approx(1)


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_experts": 1, "head_mode": "single"},
        {"num_experts": 4},
        {"head_mode": "decoupled"},
        {"static_tree": [[0], [1], [0, 0]]},
    ],
    ids=["dense", "four experts", "jakiro star", "static tree"],
)
def test_metrics_of_every_kind_of_drafter(pair, overrides):
    target, _ = pair
    draft = make_drafter(target.model, **overrides)
    metrics = drafting_metrics(draft, target, make_batch((20, 14), target.config.vocab_size))
    assert ("expected_acceptance_length" in metrics) == ("static_tree" not in overrides)
    loads = [float(total / count) for name, (total, count) in metrics.items() if name.startswith("expert_load")]
    assert len(loads) == (draft.config.num_experts if draft.config.num_experts > 1 else 0)
    assert not loads or sum(loads) == pytest.approx(1)


def test_distillation_loss():
    """Against its formula written out for each row."""
    generator = torch.Generator().manual_seed(0)
    draft, target = torch.randn(2, 3, 7, generator=generator), 2 * torch.randn(3, 7, generator=generator)
    got = distillation_loss(draft, target)
    for branch in range(2):
        for row in range(3):
            p, q = target[row].softmax(-1), draft[branch, row].softmax(-1)
            torch.testing.assert_close(got[branch, row], -(p * q.log()).sum())


def test_metrics_of_a_batch_in_which_nothing_counts(pair):
    """A process may get such rows; its metrics must have the names of the others', and weigh nothing."""
    target, draft = pair
    batch = make_batch((20, 14), target.config.vocab_size)
    empty = drafting_metrics(draft, target, {**batch, "loss_mask": torch.zeros_like(batch["loss_mask"])})
    assert empty.keys() == drafting_metrics(draft, target, batch).keys()
    assert all(float(total) == float(count) == 0 for total, count in empty.values())
