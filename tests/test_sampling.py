# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Sampling with a drafter: the same tokens from the same seed, hence the target's own distribution."""

import itertools
from collections import Counter
from unittest import mock

import pytest
import torch

from helpers.comparing import compare
from helpers.knowing import knowing_drafter
from helpers.prompts import make_prompt
from helpers.targets import ARCHITECTURES, SLIDING, make_drafter, make_target
from transformers_jakiro.core import choosing
from transformers_jakiro.core.noise import can_couple
from transformers_jakiro.core.verification import walk_in_step

# each with its own seeds, more than 200 in all
SETTINGS = {
    "plain": {"top_k": 0},
    "temperature": {"temperature": 0.6, "top_k": 0},
    "hot": {"temperature": 1.7, "top_k": 0},
    "top k": {"top_k": 5},
    "top p": {"top_k": 0, "top_p": 0.8},
    "min p": {"top_k": 0, "min_p": 0.1},
    "typical": {"top_k": 0, "typical_p": 0.7},
    "repetition": {"top_k": 0, "repetition_penalty": 1.4},
    "all": {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.95,
        "repetition_penalty": 1.1,
    },
}
SEEDS_PER_SETTING = 24


@pytest.mark.parametrize("name", SETTINGS)
def test_same_seed_same_tokens(name):
    target = make_target(num_layers=1)
    draft = make_drafter(target, tree_depth=3, tree_top_k=4, num_draft_tokens=20)
    seen = set()
    first = list(SETTINGS).index(name) * SEEDS_PER_SETTING
    for seed in range(first, first + SEEDS_PER_SETTING):
        output = compare(
            target,
            draft,
            {"input_ids": make_prompt(5)},
            seed=seed,
            do_sample=True,
            max_new_tokens=9,
            **SETTINGS[name],
        )
        seen.add(tuple(output.sequences[0].tolist()))
    assert len(seen) > SEEDS_PER_SETTING // 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_seed_with_sliding_windows_and_padding(architecture):
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    draft = make_drafter(target)
    mask = torch.ones(1, 13, dtype=torch.long)
    mask[:, :4] = 0
    for seed in range(3):
        inputs = {"input_ids": make_prompt(13), "attention_mask": mask}
        compare(target, draft, inputs, seed=seed, do_sample=True, top_p=0.9, max_new_tokens=16)


@pytest.mark.compat
def test_the_random_state_afterwards_is_that_of_plain_sampling():
    """Drafting draws no random numbers, and no more are drawn than tokens come out."""
    target = make_target(num_layers=1)
    states = []
    for assistant in ({}, {"assistant_model": make_drafter(target)}):
        torch.manual_seed(5)
        target.generate(make_prompt(5), do_sample=True, max_new_tokens=9, **assistant)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# -- the distribution itself -----------------------------------------------------------------------------------------

VOCABULARY, LENGTH, SAMPLES = 5, 3, 600


def sequence_probabilities(target, prompt: torch.LongTensor, temperature: float) -> dict[tuple[int, ...], float]:
    """Of all continuations of three tokens, from the target's own forwards without cache."""
    probabilities = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for prefix, probability in probabilities.items():
            ids = torch.cat((prompt, torch.tensor([prefix], dtype=torch.long)), dim=1)
            with torch.no_grad():
                logits = target(ids, use_cache=False).logits[0, -1].double()
            for token, share in enumerate((logits / temperature).softmax(dim=-1).tolist()):
                longer[(*prefix, token)] = probability * share
        probabilities = longer
    return probabilities


def chi_square_p_value(counts: Counter, probabilities: dict[tuple[int, ...], float]) -> float:
    """Of Pearson's test, with the rare sequences lumped together so that 5 are expected in each class."""
    total = sum(counts.values())
    statistic, classes, rare_expected, rare_counted = 0.0, 0, 0.0, 0
    for sequence, probability in probabilities.items():
        if total * probability < 5:
            rare_expected += total * probability
            rare_counted += counts[sequence]
            continue
        statistic += (counts[sequence] - total * probability) ** 2 / (total * probability)
        classes += 1
    if rare_expected >= 5:
        statistic += (rare_counted - rare_expected) ** 2 / rare_expected
        classes += 1
    freedom = torch.tensor((classes - 1) / 2, dtype=torch.double)
    return torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.double)).item()


def sample_counts(
    target, draft, prompt: torch.LongTensor, temperature: float, samples: int = SAMPLES
) -> tuple[Counter, int]:
    """How often each continuation came up, and how many drafted tokens were accepted."""
    torch.manual_seed(7)
    counts, accepted = Counter(), 0
    for _ in range(samples):
        output = target.generate(
            prompt,
            assistant_model=draft,
            do_sample=True,
            top_k=0,
            temperature=temperature,
            max_new_tokens=LENGTH + 1,  # so that the trees below the first token have two levels
            return_dict_in_generate=True,
        )
        counts[tuple(output.sequences[0, prompt.shape[1] :][:LENGTH].tolist())] += 1
        accepted += output.num_accepted_tokens
    return counts, accepted


@pytest.fixture(scope="module")
def tiny():
    """Target, drafter, prompt, temperature and exact probabilities on five tokens."""
    target = make_target(vocab_size=VOCABULARY, num_layers=1)
    draft = make_drafter(target, tree_depth=2, tree_top_k=3, num_draft_tokens=9)
    prompt, temperature = make_prompt(3, vocab_size=VOCABULARY), 1.5
    probabilities = sequence_probabilities(target, prompt, temperature)
    assert len(probabilities) == VOCABULARY**LENGTH
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert sum(SAMPLES * probability >= 5 for probability in probabilities.values()) >= 20
    return target, draft, prompt, temperature, probabilities


def test_exact_probabilities(tiny):
    """Without chance: every sequence is drawn once by dictating the draws, and its probability read off them."""
    target, draft, prompt, temperature, probabilities = tiny
    assert can_couple(torch.device("cpu"))  # found out once, by drawing
    for sequence, expected in probabilities.items():
        dictated, probability = [*sequence, 0], 1.0
        draws = iter(dictated)

        def draw(shares, num_samples):
            nonlocal probability
            token = next(draws)  # noqa: B023
            if len(shares) != 1 or num_samples != 1 or abs(shares.sum() - 1) > 1e-6:
                raise AssertionError("not one draw from one distribution")
            probability *= shares[0, token].item()
            return torch.tensor([[token]])

        with mock.patch.object(torch, "multinomial", draw), knowing_drafter(dictated):
            output = target.generate(
                prompt,
                assistant_model=draft,
                do_sample=True,
                top_k=0,
                temperature=temperature,
                max_new_tokens=LENGTH + 1,
                return_dict_in_generate=True,
                output_logits=True,
            )
        assert output.sequences[0, prompt.shape[1] :].tolist() == dictated
        assert next(draws, None) is None
        last = (output.logits[-1] / temperature).softmax(dim=-1)[0, 0].item()
        assert probability / last == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("coupled", [False, True])
def test_exact_distribution(tiny, coupled, monkeypatch):
    target, draft, prompt, temperature, probabilities = tiny
    monkeypatch.setattr(draft.config, "couple_sampling", coupled)
    counts, accepted = sample_counts(target, draft, prompt, temperature)
    assert accepted > SAMPLES // 2  # trees do decide here
    assert chi_square_p_value(counts, probabilities) > 1e-3


def test_distribution_test_detects_a_biased_rule(tiny, monkeypatch):
    """The same test on a rule that favours drafted tokens: one more draw where the first one leaves the tree."""
    target, draft, prompt, temperature, probabilities = tiny
    monkeypatch.setattr(draft.config, "couple_sampling", False)  # coupled, the first draw hardly ever leaves it

    def biased(tokens, parents, choose, emit, visited):
        def choose_twice(nodes):
            drafted = {
                token for token, parent in list(zip(tokens[0], parents[0], strict=True))[1:] if parent == nodes[0]
            }
            chosen = choose(nodes)
            return choose(nodes) if drafted and chosen[0] not in drafted else chosen

        return walk_in_step(tokens, parents, choose_twice, emit, visited)

    with mock.patch.object(choosing, "walk_in_step", biased):
        counts, _ = sample_counts(target, draft, prompt, temperature, samples=400)
    assert set(counts) <= set(itertools.product(range(VOCABULARY), repeat=LENGTH))
    assert chi_square_p_value(counts, probabilities) < 1e-6


def test_same_tokens_one_generation_after_another(tiny):
    """The random state runs through many generations as it does without a drafter."""
    target, draft, prompt, temperature, _ = tiny
    torch.manual_seed(7)
    kwargs = {"do_sample": True, "top_k": 0, "temperature": temperature, "max_new_tokens": LENGTH}
    plain = [target.generate(prompt, **kwargs)[0].tolist() for _ in range(60)]
    torch.manual_seed(7)
    ours = [target.generate(prompt, assistant_model=draft, **kwargs)[0].tolist() for _ in range(60)]
    assert ours == plain
