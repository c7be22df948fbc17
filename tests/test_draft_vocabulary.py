# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Drafters that draft only a part of the vocabulary: the same text, smaller logits, and a buffer that cannot rot."""

import copy
import json
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.comparing import check_output
from helpers.drafting import LoneDrafter
from helpers.prompts import make_prompt
from helpers.targets import VOCAB, enlarge, make_drafter, make_target
from transformers_jakiro import JakiroCandidateGenerator, JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.core.target import Target
from transformers_jakiro.hub.key_map import jakiro_state_dict_to_original
from transformers_jakiro.measuring.profiling import ForwardTimer
from transformers_jakiro.training.data import JakiroDataCollator, frequent_tokens
from transformers_jakiro.training.initialization import new_drafter, upcycle
from transformers_jakiro.training.losses import contrastive_parallel_loss, distillation_loss, draft_index
from transformers_jakiro.training.metrics import drafting_metrics
from transformers_jakiro.training.objective import DraftingObjective

KINDS = {
    "jakiro": {},
    "jakiro star": {"head_mode": "decoupled"},
    "static": {"static_tree": [[0], [1], [0, 0], [0, 2], [0, 0, 1]]},
}


def restricted(target, token_ids, **overrides):
    """A random drafter of these tokens, with the weights of `make_drafter`."""
    draft = make_drafter(target, draft_vocab_size=len(token_ids), **overrides)
    draft.draft_token_ids = torch.tensor(token_ids)
    enlarge(draft, std=0.12)
    return draft


def propose(target, draft, length=9):
    ids = make_prompt(length)
    drafter = LoneDrafter(draft, target)
    with torch.no_grad():
        drafter.observe(target.model(ids).last_hidden_state[:, :-1], ids[:, :-1])
    return drafter.propose(ids[:, -1])


def make_batch(target, lengths=(14, 9)):
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(3, target.config.vocab_size, (length,), generator=generator).tolist(),
            "loss_mask": [0] * 3 + [1] * (length - 3),
        }
        for length in lengths
    ]
    return JakiroDataCollator(pad_token_id=0)(rows)


# -- drafting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("within", [True, False], ids=["some tokens within", "all tokens outside"])
def test_lossless(kind, within):
    target = make_target()
    prompt = make_prompt(12)
    options = {"do_sample": False, "max_new_tokens": 24, "return_dict_in_generate": True}
    plain = target.generate(prompt, **options)
    continuation = plain.sequences[0, 12:].tolist()
    said = sorted(set(continuation))
    other = [token for token in range(VOCAB) if token not in said]
    token_ids = sorted([*said[::2], *other[:10]]) if within else other[:20]
    ours = target.generate(prompt, **options, assistant_model=restricted(target, token_ids, **KINDS[kind]))
    check_output(plain, ours, [continuation])
    assert ours.num_drafted_tokens > 0
    if not within:
        assert ours.num_accepted_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "gpt2"])
def test_the_whole_vocabulary_gives_the_same_trees(kind, architecture):
    """Soft caps and logit scales included."""
    target = make_target(architecture)
    whole = make_drafter(target, **KINDS[kind])
    enlarge(whole, std=0.12)
    part = restricted(target, list(range(VOCAB)), **KINDS[kind])
    trees = []
    for draft in (whole, part):
        drafter = LoneDrafter(draft, target)
        ids = make_prompt(9)
        with torch.no_grad():
            features = Target(target).features(ids)
        drafter.observe(features[:, :-1], ids[:, :-1])
        trees.append(drafter.propose(ids[:, -1]))
    assert torch.equal(trees[0].tokens, trees[1].tokens)
    assert torch.equal(trees[0].parents, trees[1].parents)


@pytest.mark.parametrize("kind", KINDS)
def test_only_these_tokens_are_drafted_the_best_of_them(kind):
    target = make_target()
    token_ids = list(range(1, VOCAB, 7))
    draft = restricted(target, token_ids, **KINDS[kind])
    tree = propose(target, draft)
    assert set(tree.tokens[0, 1:].tolist()) <= set(token_ids)
    # the first child: the likeliest of these tokens by the whole head
    ids = make_prompt(9)
    with torch.no_grad():
        output = draft(
            target.get_input_embeddings()(ids[:, 1:]),
            target.model(ids).last_hidden_state[:, :-1],
            output_expert_hidden_states=kind == "jakiro star",
        )
        features = output.expert_hidden_states if kind == "jakiro star" else output.last_hidden_state[None]
        log_probs = target.lm_head(features[:, 0, -1])[:, token_ids].log_softmax(-1).amax(0)
    children = tree.tokens[0, 1:][tree.parents[0, 1:] == 0].tolist()
    assert token_ids[int(log_probs.argmax())] in children


def test_the_head_multiplies_only_these_rows():
    """Not all rows with the others thrown away; and the rows are copied once, not in each level."""
    target = make_target()
    token_ids = list(range(0, VOCAB, 4))
    draft = restricted(target, token_ids)
    weights = []

    def linear(features, weight, bias=None, linear=nn.functional.linear):
        weights.append(weight)
        return linear(features, weight, bias)

    ids = make_prompt(9)
    drafter = LoneDrafter(draft, target)
    with torch.no_grad():
        drafter.observe(target.model(ids).last_hidden_state[:, :-1], ids[:, :-1])
    with mock.patch("torch.nn.functional.linear", linear):
        drafter.propose(ids[:, -1])
    heads = [weight for weight in weights if weight.shape[0] in (VOCAB, len(token_ids))]
    assert len(heads) == draft.config.tree_depth - 1  # the last two levels share a call
    assert {weight.shape[0] for weight in heads} == {len(token_ids)}
    assert len({weight.data_ptr() for weight in heads}) == 1
    assert heads[0].is_contiguous()


class Rounding(nn.Linear):
    """A head that is not just its weight."""

    def forward(self, features):
        return super().forward(features).round(decimals=2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "special"])
@torch.no_grad()
def test_heads_of_any_kind(plain, bias):
    """Quantized heads and those with adapters are asked for all logits."""
    target = copy.deepcopy(make_target("gemma2"))
    generator = torch.Generator().manual_seed(0)
    head = (nn.Linear if plain else Rounding)(target.config.hidden_size, VOCAB, bias=bias)
    for weight in head.parameters():
        weight.normal_(generator=generator)
    target.set_output_embeddings(head)
    target = Target(target)
    token_ids, features = torch.tensor([3, 5, 90]), torch.randn(2, 4, target.config.hidden_size, generator=generator)
    logits = target.draft_head(token_ids)(features)
    torch.testing.assert_close(logits, target.head(features)[..., token_ids])
    if not plain:
        assert torch.equal(logits, target.head(features)[..., token_ids])


def test_the_time_of_its_head_counts_as_the_heads():
    target = make_target()
    draft = restricted(target, list(range(0, VOCAB, 4)))
    timer = ForwardTimer(torch.device("cpu"), target=target, draft=draft, head=target.lm_head)
    with timer.running():
        propose(target, draft)
    measured = timer.seconds["head"]
    assert measured > 0
    propose(target, draft)
    assert timer.seconds["head"] == measured


# -- training --------------------------------------------------------------------------------------------------------


def test_loss_and_gradient_against_loops():
    generator = torch.Generator().manual_seed(0)
    target_logits = 2 * torch.randn(5, 11, generator=generator)
    draft_logits = torch.randn(2, 5, 4, generator=generator).requires_grad_()
    token_ids = [1, 4, 5, 10]
    got = distillation_loss(draft_logits, target_logits, torch.tensor(token_ids))
    expected = []
    for branch in range(2):
        for row in range(5):
            p = target_logits[row].softmax(-1)
            log_q = draft_logits[branch, row].log_softmax(-1)
            expected.append(-sum(p[token].item() * log_q[i] for i, token in enumerate(token_ids)))
    torch.testing.assert_close(got.flatten(), torch.stack(expected))
    ours, theirs = (torch.autograd.grad(loss.sum(), draft_logits)[0] for loss in (got, torch.stack(expected)))
    torch.testing.assert_close(ours, theirs)
    # the soft target among these tokens, times their probability
    part = target_logits.softmax(-1)[:, token_ids]
    mass = part.sum(-1, keepdim=True)
    torch.testing.assert_close(ours, mass * (draft_logits.softmax(-1) - part / mass).detach())


def test_loss_and_metrics_of_a_batch():
    """With the drafter's features given, against the whole head's logits picked apart."""
    target = Target(make_target("granite"))
    token_ids = torch.arange(2, VOCAB, 5)
    generator = torch.Generator().manual_seed(0)
    features, drafted = (torch.randn(2, 12, 32, generator=generator) for _ in range(2))
    drafted = (features.roll(-1, 1) + 0.3 * drafted)[:, :-1].requires_grad_()
    mask = torch.rand(2, 12, generator=generator) < 0.7
    mask[:, -1] = False
    loss, metrics = contrastive_parallel_loss(
        [drafted],
        [None],
        features,
        mask,
        target.head,
        draft_head=target.draft_head(token_ids),
        draft_token_ids=token_ids,
    )
    expected, hits = [], [0, 0, 0]
    for row, place in mask.nonzero().tolist():
        true, predicted = features[row, place + 1], drafted[row, place]
        probs, log_probs = target.head(true).softmax(-1), target.head(predicted)[token_ids].log_softmax(-1)
        smooth = nn.functional.smooth_l1_loss(predicted, true)
        expected.append(smooth - 0.1 * (probs[token_ids].detach() * log_probs).sum())
        order = token_ids[log_probs.argsort(descending=True)].tolist()
        for k in range(3):
            hits[k] += int(probs.argmax()) in order[: k + 1]
    expected = torch.stack(expected).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, drafted)[0] for value in (loss, expected)))
    names = ("accuracy", "accuracy_top2", "accuracy_top3")
    assert [int(metrics[name][0]) for name in names] == hits
    assert 0 < hits[0] < int(mask.sum())


def test_tokens_that_cannot_be_drafted_are_never_hit():
    """Even where three tokens are all that can be drafted."""
    index, known = draft_index(torch.tensor([[0, 4], [5, 9]]), torch.tensor([4, 7, 8]))
    assert known.tolist() == [[False, True], [False, False]]
    assert index[0, 1] == 0
    target = Target(make_target())
    token_ids = torch.tensor([0, 1])
    features = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    outside = ~torch.isin(target.head(features).argmax(-1), token_ids)[0, 1:]
    assert outside.all(), "choose other tokens"
    head = target.draft_head(token_ids)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    _, metrics = contrastive_parallel_loss(
        [features[:, 1:]], [None], features, mask, target.head, draft_head=head, draft_token_ids=token_ids
    )
    assert metrics["accuracy_top3"][0] == 0


def test_the_whole_vocabulary_trains_alike():
    target = make_target()
    batch, losses, scores = make_batch(target), [], []
    for draft in (make_drafter(target), make_drafter(target, draft_vocab_size=VOCAB)):
        if draft.draft_token_ids is not None:
            draft.draft_token_ids = torch.arange(VOCAB)
        loss, _ = DraftingObjective(feature_noise=0.0)(draft, Target(target), batch)
        loss.backward()
        losses.append((loss.detach(), draft.fc.weight.grad))
        metrics = drafting_metrics(draft, Target(target), batch)
        scores.append({name: float(total / count) for name, (total, count) in metrics.items()})
    torch.testing.assert_close(losses[0], losses[1])
    assert scores[0] == pytest.approx(scores[1])


def test_expected_acceptance_where_nothing_can_be_drafted():
    target = make_target()
    batch = make_batch(target)
    for token_ids, least, most in (([0, 1, 2], 1.0, 1.0), (sorted(set(range(3, 90))), 1.0, 6.0)):
        metrics = drafting_metrics(restricted(target, token_ids), Target(target), batch)
        total, count = metrics["expected_acceptance_length"]
        assert least <= float(total / count) <= most
        assert 0 <= float(metrics["expert_overlap"][0] / metrics["expert_overlap"][1]) <= 1


def test_training_moves_every_parameter_and_no_token():
    target = make_target()
    token_ids = list(range(1, VOCAB, 3))
    draft = restricted(target, token_ids).train()
    before = copy.deepcopy(draft.state_dict())
    assert "draft_token_ids" not in dict(draft.named_parameters())
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(12):
        loss, _ = DraftingObjective(feature_noise=0.0, unroll_steps=2)(draft, Target(target), make_batch(target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, weight in draft.state_dict().items():
        assert torch.equal(weight, before[name]) == (name == "draft_token_ids"), name
    assert target.lm_head.weight.grad is None


def test_adapters(tmp_path):
    """Around the drafter: the tokens show through, and stay with the drafter when the adapter is saved."""
    target = make_target()
    token_ids = list(range(1, VOCAB, 3))
    restricted(target, token_ids).save_pretrained(tmp_path / "draft")
    draft = JakiroDraftModel.from_pretrained(tmp_path / "draft")
    adapted = get_peft_model(draft, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train()
    loss, _ = DraftingObjective(feature_noise=0.0)(adapted, Target(target), make_batch(target))
    loss.backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad)
    tree = propose(target, adapted.eval())
    assert set(tree.tokens[0, 1:].tolist()) <= set(token_ids)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = JakiroDraftModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(propose(target, loaded).tokens, tree.tokens)


# -- choosing, saving and loading ------------------------------------------------------------------------------------


def test_frequent_tokens():
    rows = [
        {"input_ids": [9, 9, 9, 4, 6], "loss_mask": [0, 0, 0, 1, 1]},
        {"input_ids": torch.tensor([6, 8, 3]), "loss_mask": torch.tensor([1, 1, 1])},
    ]
    # 6 twice; 3, 4, 8 once; the others, 9 too, never
    for size, expected in ((1, [6]), (2, [3, 6]), (3, [3, 4, 6]), (6, [0, 1, 3, 4, 6, 8]), (10, list(range(10)))):
        assert frequent_tokens(rows, size, 10).tolist() == expected
    assert frequent_tokens(iter(rows), 3, 10, always=[9, 7, 9]).tolist() == [6, 7, 9]
    assert frequent_tokens(rows, 2, 10, always={9, 7}).dtype == torch.int64
    for size, always in ((0, []), (11, []), (1, [7, 9])):
        with pytest.raises(ValueError, match=r"`size` must lie between .* got"):
            frequent_tokens(rows, size, 10, always)
    for vocab_size, always in ((9, [0]), (10, [10]), (10, [-1])):
        with pytest.raises(ValueError, match="not all of the vocabulary"):
            frequent_tokens([*rows, {"input_ids": [9], "loss_mask": [1]}], 3, vocab_size, always)


def test_new_drafter():
    target = make_target()
    draft = new_drafter(target, draft_token_ids=[70, 3, 11, 40], tree_top_k=4)
    assert (draft.config.draft_vocab_size, draft.draft_token_ids.tolist()) == (4, [3, 11, 40, 70])
    tree = propose(target, draft)
    assert set(tree.tokens[0, 1:].tolist()) <= {3, 11, 40, 70}
    for token_ids in ([3, 3, 5], [-1, 3, 5], [3, 5, VOCAB], [3.0, 4.0, 5.0]):
        with pytest.raises(ValueError, match="must be that many increasing token ids"):
            new_drafter(target, draft_token_ids=token_ids, tree_top_k=3)
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        new_drafter(target, draft_token_ids=[3, 4, 5], draft_vocab_size=4, tree_top_k=3)
    with pytest.raises(ValueError, match="frequent_tokens"):
        new_drafter(target, draft_vocab_size=12)


def test_tokens_that_were_never_chosen():
    target = make_target()
    draft = make_drafter(target, draft_vocab_size=12)
    with pytest.raises(ValueError, match="they go from -1 to -1"):
        target.generate(make_prompt(5), assistant_model=draft, max_new_tokens=4)
    draft = make_drafter(target)
    draft.config.draft_vocab_size = 12
    with pytest.raises(ValueError, match="one is there without the other"):
        target.generate(make_prompt(5), assistant_model=draft, max_new_tokens=4)


@pytest.mark.parametrize("size", [0, 2, VOCAB + 1])
def test_wrong_sizes(size):
    with pytest.raises(Exception, match=rf"(draft_vocab_size={size}|must be at least 1)"):
        JakiroDraftConfig(vocab_size=VOCAB, draft_vocab_size=size, tree_top_k=3)
    with pytest.raises(Exception, match=r"\[0, draft_vocab_size\)"):
        JakiroDraftConfig(vocab_size=VOCAB, draft_vocab_size=5, tree_top_k=3, static_tree=[[0], [5]])


BIG = [5, 257, 259, 601, 602, 603, 997]  # bfloat16 has no 257


@pytest.fixture
def saved(tmp_path):
    target = make_target(vocab_size=1000)
    draft = new_drafter(target, BIG, tree_top_k=3, tree_depth=4, num_draft_tokens=9).to(torch.bfloat16)
    draft.save_pretrained(tmp_path / "draft")
    return tmp_path / "draft", draft


def test_save_and_load(saved):
    folder, draft = saved
    assert load_file(folder / "model.safetensors")["draft_token_ids"].dtype == torch.int64
    for dtype in (torch.bfloat16, torch.float32, "auto"):
        loaded = JakiroDraftModel.from_pretrained(folder, dtype=dtype)
        assert (loaded.draft_token_ids.tolist(), loaded.draft_token_ids.dtype) == (BIG, torch.int64)
        assert loaded.half().draft_token_ids.tolist() == BIG
    target = make_target(vocab_size=1000)
    loaded = JakiroDraftModel.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(propose(target, loaded).tokens, propose(target, draft.float()).tokens)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        (None, r"missing \['draft_token_ids'\]"),
        (BIG[:-1], r"mismatched `draft_token_ids` is \(6,\), expected \(7,\)"),
        ([*BIG[:-1], 1000], "they go from 5 to 1000"),
        ([-1, *BIG[1:]], "they go from -1 to 997"),
        ([5, 5, *BIG[2:]], "not sorted, or hold a token twice"),
        ([257, 5, *BIG[2:]], "not sorted, or hold a token twice"),
        (torch.tensor(BIG, dtype=torch.bfloat16), "not sorted, or hold a token twice"),
    ],
    ids=["missing", "length", "too large", "negative", "twice", "unsorted", "rounded"],
)
def test_damaged_checkpoints(saved, token_ids, message):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    del tensors["draft_token_ids"]
    if token_ids is not None:
        tensors["draft_token_ids"] = torch.as_tensor(token_ids)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        JakiroDraftModel.from_pretrained(folder)


def test_a_config_that_knows_of_none(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "draft_vocab_size": None}))
    with pytest.raises(ValueError, match=r"unexpected \['draft_token_ids'\]"):
        JakiroDraftModel.from_pretrained(folder)


def test_what_else_keeps_the_tokens(saved):
    _, draft = saved
    wide = upcycle(draft, JakiroDraftConfig(**{**draft.config.to_dict(), "num_experts": 4}))
    assert wide.draft_token_ids.tolist() == BIG
    other = JakiroDraftConfig(**{**draft.config.to_dict(), "num_experts": 4, "draft_vocab_size": None})
    with pytest.raises(ValueError, match=r"`draft_vocab_size` is 7 in the source and None"):
        upcycle(draft, other)
    draft.fold_multipliers()
    assert draft.draft_token_ids.tolist() == BIG
    draft.config.final_norm = False
    with pytest.raises(ValueError, match=r"knows no part of the vocabulary .*draft_vocab_size=7"):
        jakiro_state_dict_to_original(draft.state_dict(), draft.config)


def test_chains_for_the_loop_of_transformers():
    target = make_target()
    token_ids = list(range(1, VOCAB, 7))
    generator = JakiroCandidateGenerator(restricted(target, token_ids), target)
    ids = make_prompt(10)
    with torch.no_grad():
        states = target.model(ids[:, :-1]).last_hidden_state
    chain, _ = generator.get_candidates(
        ids, model_outputs=SimpleNamespace(hidden_states=(states,)), is_first_iteration=False
    )
    assert chain.shape[1] > 10
    assert set(chain[0, 10:].tolist()) <= set(token_ids)
