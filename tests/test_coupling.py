# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Coupled sampling: the noise is what the target draws, and it is worth knowing. (That nothing else changes:
`test_sampling.py`.)"""

from unittest import mock

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import transformers_jakiro.core.noise
from helpers.drafting import KnownNoise, LoneDrafter
from helpers.prompts import make_prompt
from helpers.targets import make_drafter, make_target
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.core.noise import NoiseInStep, SamplingCoupling, can_couple, exponential
from transformers_jakiro.measuring.acceptance import tokens_per_forward
from transformers_jakiro.measuring.prompts import read_prompts
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET

CPU = torch.device("cpu")
ROWS: list = []  # noise for one sequence asks no row


def sample(scores: torch.Tensor) -> int:
    """As `generate` does. `scores`: `[1, V]`."""
    return int(torch.multinomial(scores.softmax(dim=-1), num_samples=1))


@pytest.mark.parametrize("vocab_size", [3, 1000, 40_000])
def test_the_noise_tells_the_draws(vocab_size):
    torch.manual_seed(3)
    noise = NoiseInStep(1, vocab_size, CPU)
    agreed = 0
    for accepted in (4, 1, 3, 2, 4):  # some of what was drawn in advance is used up, then more is
        state = torch.get_rng_state()
        gumbel = noise.gumbel(ROWS, 4)
        assert gumbel.shape == (1, 4, vocab_size)
        assert torch.equal(torch.get_rng_state(), state)
        for row in gumbel[0, :accepted]:
            generator = torch.Generator().manual_seed(agreed)
            scores = torch.randn(1, vocab_size, generator=generator)
            assert sample(scores) == int((scores[0] + row).argmax())
            agreed += 1


def test_the_noise_follows_whatever_else_is_drawn():
    noise = NoiseInStep(1, 50, CPU)
    scores = torch.zeros(1, 50)
    for disturb in (lambda: torch.rand(1), lambda: torch.manual_seed(9), lambda: sample(torch.zeros(1, 7))):
        noise.gumbel(ROWS, 3)
        disturb()
        row = noise.gumbel(ROWS, 1)[0, 0]
        assert int(row.argmax()) == sample(scores)


def test_what_is_known_is_not_drawn_again():
    noise = NoiseInStep(1, 50, CPU)
    noise.gumbel(ROWS, 5)
    for _ in range(2):
        sample(torch.zeros(1, 50))
    with mock.patch.object(transformers_jakiro.core.noise, "exponential", wraps=exponential) as drawn:
        noise.gumbel(ROWS, 5)
    assert drawn.call_count == 2


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.6])
def test_a_perfect_drafter_is_never_wrong(temperature):
    torch.manual_seed(0)
    coupling = SamplingCoupling(NoiseInStep(1, 200, CPU), temperature, [TemperatureLogitsWarper(temperature)], CPU)
    for _ in range(50):
        logits = 3 * torch.randn(1, 1, 200)
        row = coupling.noise.gumbel(ROWS, 1)
        log_probs, best = coupling.best(logits, row, tree_temperature=0.65, top_k=4)
        assert int(best[0, 0, 0]) == sample(logits[0] / temperature)
        assert (log_probs.diff(dim=-1) <= 0).all()
        assert log_probs.exp().sum() <= 1 + 1e-5


WARPERS = {
    "top k": TopKLogitsWarper(5),
    "top p": TopPLogitsWarper(0.6),
    "min p": MinPLogitsWarper(0.2),
    "typical": TypicalLogitsWarper(0.5),
}


@pytest.mark.parametrize("name", WARPERS)
def test_tokens_that_the_target_leaves_out_are_drafted_less(name):
    def misses(known: list) -> int:
        """How often the first of the drafter's guesses is not what the target samples, of 100."""
        torch.manual_seed(0)
        coupling = SamplingCoupling(NoiseInStep(1, 400, CPU), 1.0, known, CPU)
        count = 0
        for _ in range(100):
            logits = 2 * torch.randn(1, 1, 400)
            row = coupling.noise.gumbel(ROWS, 1)
            _, best = coupling.best(logits, row, tree_temperature=0.65, top_k=8)
            assert best.shape == (1, 1, 8)
            assert len(set(best.flatten().tolist())) == 8
            count += int(best[0, 0, 0]) != sample(WARPERS[name](None, logits[0]))
        return count

    assert misses([WARPERS[name]]) < 0.8 * misses([])


def test_warpers_of_ones_own_are_left_alone():
    class Own(TopKLogitsWarper):
        def __call__(self, input_ids, scores):
            assert scores.shape == (input_ids.shape[0], 50), "a part of the vocabulary, or no prompt"
            return super().__call__(input_ids, scores)

    target = make_target(vocab_size=50)
    prompt = make_prompt(5, vocab_size=50)
    for assistant in ({}, {"assistant_model": make_drafter(target)}):
        torch.manual_seed(0)
        output = target.generate(prompt, do_sample=True, logits_processor=[Own(4)], max_new_tokens=12, **assistant)
        assert output.shape == (1, 17)


def test_more_children_than_top_k_leaves():
    coupling = SamplingCoupling(NoiseInStep(1, 50, CPU), 1.0, [TopKLogitsWarper(2)], CPU)
    logits = torch.randn(1, 3, 50)
    _, best = coupling.best(logits, torch.zeros(1, 1, 50), tree_temperature=1.0, top_k=5)
    assert torch.equal(best, logits.topk(5, dim=-1).indices)


@pytest.mark.parametrize("warpers", [[], [TopKLogitsWarper(24)]])
def test_each_token_has_its_own_noise_in_a_part_of_the_vocabulary(warpers):
    target = make_target()
    draft = make_drafter(target, tree_depth=2, tree_top_k=6, num_draft_tokens=12, draft_vocab_size=24)
    drafted = torch.randperm(target.config.vocab_size, generator=torch.Generator().manual_seed(1))[:24].sort().values
    draft.draft_token_ids.copy_(drafted)
    ids = make_prompt(9)
    with torch.no_grad():
        features = target.model(ids).last_hidden_state
    noise = torch.full((2, target.config.vocab_size), -3.0)
    noise[0, drafted[7]] = noise[1, drafted[20]] = 60.0  # far above all logits
    coupling = SamplingCoupling(KnownNoise(noise), 1.0, LogitsProcessorList(warpers), CPU)
    drafter = LoneDrafter(draft, target, coupling=coupling)
    drafter.observe(features[:, :8], ids[:, :8])
    tree = drafter.propose(ids[:, 8])
    tokens, depths = tree.tokens[0].tolist(), tree.depths[0].tolist()
    assert int(drafted[7]) in [token for token, depth in zip(tokens, depths, strict=True) if depth == 1]
    assert int(drafted[20]) in [token for token, depth in zip(tokens, depths, strict=True) if depth == 2]
    assert set(tokens[1:]) <= set(drafted.tolist())


def test_other_ways_of_sampling_are_found_out():
    def other(probabilities, num_samples, generator=None):
        return torch.rand(probabilities.shape, generator=generator).argmax(dim=-1, keepdim=True)

    assert can_couple(CPU)
    with mock.patch.object(torch, "multinomial", other):
        assert not can_couple.__wrapped__(CPU)
    assert not can_couple(torch.device("meta"))


def test_sampling_is_accepted_nearly_as_well_as_greedy_decoding():
    """The pair that ships, at temperature 1: same text as plain `generate`, many more tokens per forward."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    draft = JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32)

    def answers(**kwargs) -> list:
        torch.manual_seed(1)
        return [
            target.generate(
                **tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    add_generation_prompt=True,
                    return_tensors="pt",
                    return_dict=True,
                ),
                **{"do_sample": True, "top_k": 0, "max_new_tokens": 80, "return_dict_in_generate": True, **kwargs},
            )
            for _, _, (prompt,) in read_prompts(PROMPTS, 4)
        ]

    plain, taus = answers(), {}
    for coupled in (False, True):
        draft.config.couple_sampling = coupled
        outputs = answers(assistant_model=draft)
        assert [output.sequences.tolist() for output in outputs] == [output.sequences.tolist() for output in plain]
        taus[coupled] = tokens_per_forward([length for output in outputs for length in output.accept_lengths[0]])
    assert taus[True] > 1.3 * taus[False]
