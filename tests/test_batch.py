# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Batches: row by row the tokens of plain `generate` of that batch, whatever each row accepts and wherever it ends.
"""

import itertools
from unittest import mock

import pytest
import torch
from transformers import DynamicCache, MaxLengthCriteria, StaticCache, StoppingCriteriaList, TextStreamer
from transformers.generation import PrefixConstrainedLogitsProcessor
from transformers.generation.streamers import BaseStreamer

from helpers.comparing import assistance, compare_batch
from helpers.knowing import knowing_drafter
from helpers.prompts import LENGTHS, make_batch, make_prompt
from helpers.targets import CACHE, CASES, SLIDING, make_drafter, make_target
from transformers_jakiro.core import choosing, drafting, noise, requests, session
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.core.noise import NoiseByRow
from transformers_jakiro.core.tree import DraftTree
from transformers_jakiro.core.tree_forward import TreeForward

pytestmark = pytest.mark.compat


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_same_tokens(architecture, attention):
    output = compare_batch(make_target(architecture, attention=attention), make_batch())
    assert len({tuple(lengths) for lengths in output.accept_lengths}) > 1, "the rows never got ahead of one another"


@pytest.mark.parametrize("architecture", SLIDING)
@pytest.mark.parametrize("window", [4, 9])
def test_sliding_windows(architecture, window):
    compare_batch(make_target(architecture, window=window), make_batch((3, 14, 6)), max_new_tokens=24)


@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_batch_sizes(batch_size):
    compare_batch(make_target(), make_batch([1 + 5 * row % 12 for row in range(batch_size)]))
    compare_batch(make_target(), {"input_ids": torch.cat([make_prompt(6, seed=row) for row in range(batch_size)])})


@pytest.mark.parametrize("returns", [False, True])
def test_rows_end_at_different_times(returns):
    """Rows that have ended leave the batch, unless the caller gets to see its cache."""
    target, inputs = make_target(), make_batch((4, 7, 2, 5, 5))
    plain = target.generate(**inputs, max_new_tokens=30, do_sample=False)[:, 7:]
    ends = [plain[1, 3].item(), plain[3, 11].item(), plain[4, 20].item()]
    sizes = []
    forward = TreeForward.run

    def run(self, tree):
        sizes.append(tree.tokens.shape[0])
        return forward(self, tree)

    with mock.patch.object(TreeForward, "run", run):
        draft = make_drafter(target)
        target.generate(
            **inputs,
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=ends,
            assistant_model=draft,
            return_dict_in_generate=returns,
        )
    assert (set(sizes) == {5}) == returns
    assert sizes == sorted(sizes, reverse=True)
    compare_batch(target, inputs, max_new_tokens=30, eos_token_id=ends)


def test_rows_that_end_with_their_first_token():
    target, inputs = make_target(), make_batch()
    first = target.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    compare_batch(target, inputs, eos_token_id=[first[1].item()])
    compare_batch(target, inputs, eos_token_id=first.tolist())


def test_a_criterion_without_end_token():
    """Without end tokens nothing is padded: `generate` goes on with all rows until the last has met the criterion."""
    target, inputs = make_target(), make_batch((4, 7, 2))
    plain = target.generate(**inputs, max_new_tokens=24, do_sample=False)[:, 7:]
    stops = {plain[0, 2].item(), plain[1, 9].item(), plain[2, 13].item()}

    def met(input_ids, scores):
        return torch.tensor([any(int(token) in stops for token in row[7:]) for row in input_ids])

    output = compare_batch(target, inputs, max_new_tokens=24, stopping_criteria=[met])
    assert output.sequences.shape[1] < 7 + 24
    for seed in range(4):
        compare_batch(target, inputs, seed=seed, do_sample=True, max_new_tokens=24, stopping_criteria=[met])


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"min_p": 0.05},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"top_k": 0, "min_new_tokens": 5, "eos_token_id": [7, 8, 9, 10, 11, 12]},
    ],
)
@pytest.mark.parametrize("couple", [True, False])
def test_sampling(kwargs, couple):
    """The same tokens for the same seed, and the random generator left as plain `generate` leaves it."""
    target = make_target()
    draft = make_drafter(target, couple_sampling=couple)
    for seed in range(3):
        compare_batch(target, make_batch(seed=seed), draft, seed=seed, do_sample=True, **kwargs)


@pytest.fixture
def reads_wait(monkeypatch):
    """As if on an accelerator."""
    for module in (choosing, drafting, noise):
        monkeypatch.setattr(module, "reads_wait", lambda device: True)


@pytest.mark.compat(False)
@pytest.mark.parametrize("lengths", [LENGTHS, (6,)])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"cache_implementation": "static"},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "eos_token_id": [7, 8, 9, 10, 11, 12]},
    ],
)
@pytest.mark.usefixtures("reads_wait")
def test_one_wait_per_step(kwargs, lengths, monkeypatch):
    """Where reading a tensor takes waiting, all nodes' choices are read at once, and nothing else is."""
    target, waits, steps = make_target(), [], []
    run = TreeForward.run
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu"):
        original = getattr(torch.Tensor, name)

        def read(self, *args, original=original, name=name):
            waits.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, read)

    def step(self, tree):
        steps.append(len(waits))
        return run(self, tree)

    monkeypatch.setattr(TreeForward, "run", step)
    kwargs = {"do_sample": False, **make_batch(lengths), "max_new_tokens": 12, **kwargs}
    kwargs = {**kwargs, "eos_token_id": None, "return_dict_in_generate": True}  # all rows stay
    target.generate(**kwargs, assistant_model=make_drafter(target))
    assert len(steps) > 4
    assert {after - before for before, after in itertools.pairwise(steps)} == {1}


@pytest.mark.compat(False)
@pytest.mark.parametrize("lengths", [LENGTHS, (6,)])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"cache_implementation": "static"},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"do_sample": True, "repetition_penalty": 1.3},
        {"do_sample": True, "eos_token_id": [7, 8, 9, 10, 11, 12]},
    ],
)
@pytest.mark.usefixtures("reads_wait")
def test_choices_at_all_nodes_at_once(kwargs, lengths):
    compare_batch(make_target(), make_batch(lengths), seed=2, **kwargs)


def test_draws_are_made_again_where_they_were_not_kept(monkeypatch):
    monkeypatch.setattr(noise, "_DRAWN_BYTES", 0)
    target = make_target()
    continuation = target.generate(make_prompt(4), max_new_tokens=60, do_sample=False)[0, 4:].tolist()
    with knowing_drafter([continuation, []]):
        inputs = {"input_ids": torch.cat((make_prompt(4), make_prompt(4, seed=3)))}
        kwargs = {"do_sample": True, "top_k": 2, "temperature": 0.1, "max_new_tokens": 60}
        torch.manual_seed(1)
        plain = target.generate(**inputs, **kwargs)
        torch.manual_seed(1)
        with mock.patch.object(NoiseByRow, "sample", autospec=True, side_effect=NoiseByRow.sample) as take:
            ours = target.generate(**inputs, **kwargs, assistant_model=make_drafter(target))
    assert ours.tolist() == plain.tolist()
    assert take.call_count > 60, "the rows were always together"


@pytest.mark.compat(False)
def test_sampling_on_devices_whose_draws_are_not_known(monkeypatch):
    monkeypatch.setattr(session, "can_couple", lambda device: False)
    target = make_target()
    torch.manual_seed(0)
    output = target.generate(**make_batch(), do_sample=True, max_new_tokens=9, assistant_model=make_drafter(target))
    assert output.shape == (4, 20)


def test_several_sequences_per_prompt():
    target = make_target()
    # with the seed 4, rounding decides a draw: two tokens tie to six digits
    compare_batch(target, make_batch((5, 3)), seed=5, do_sample=True, num_return_sequences=3)


@pytest.mark.compat(False)
def test_processors_that_count_rows():
    allowed = {row: list(range(10 * row + 3, 10 * row + 13)) for row in range(4)}
    output = compare_batch(make_target(), make_batch(), prefix_allowed_tokens_fn=lambda row, ids: allowed[row])
    for row, tokens in enumerate(output.sequences[:, 11:].tolist()):
        assert set(tokens) <= set(allowed[row])
    processor = PrefixConstrainedLogitsProcessor(lambda row, ids: allowed[row], num_beams=1)
    compare_batch(make_target(), make_batch(), logits_processor=[processor])
    compare_batch(make_target(), make_batch(), encoder_repetition_penalty=3.0)
    compare_batch(make_target(), make_batch((6, 9, 9)), encoder_no_repeat_ngram_size=1)


def test_guidance():
    compare_batch(make_target(), make_batch(), guidance_scale=1.5)
    compare_batch(make_target(), make_batch((5, 9)), do_sample=True, num_return_sequences=3, guidance_scale=1.5)


@pytest.mark.parametrize("window", [None, 6])
def test_records(window):
    """Scores, logits, attentions and hidden states of each token, as far as a row goes."""
    target = make_target("mistral" if window else "llama", window=window, attention="eager")
    inputs = make_batch((5, 8, 3))
    plain = target.generate(**inputs, max_new_tokens=14, do_sample=False)[:, 8:]
    kwargs = {
        **inputs,
        "max_new_tokens": 14,
        "do_sample": False,
        "eos_token_id": [plain[1, 4].item(), 2],
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
    }
    expected = target.generate(**kwargs)
    with knowing_drafter(plain.tolist()):
        ours = target.generate(**kwargs, assistant_model=make_drafter(target))
    assert ours.sequences.tolist() == expected.sequences.tolist()
    ended = (expected.sequences[:, 8:, None] == torch.tensor(kwargs["eos_token_id"])).any(-1).long().cumsum(-1)
    assert ended[:, -1].sum() > 0, "no row ends early"
    for name in ("scores", "logits", "attentions", "hidden_states"):
        ours_all, expected_all = getattr(ours, name), getattr(expected, name)
        assert len(ours_all) == len(expected_all)
        for token, (one, other) in enumerate(zip(ours_all, expected_all, strict=True)):
            rows = [row for row in range(3) if token == 0 or ended[row, token - 1] == 0]  # that go on until there
            assert type(one) is type(other)
            one, other = ((parts,) if isinstance(parts, torch.Tensor) else parts for parts in (one, other))
            for part, expected_part in zip(one, other, strict=True):
                assert part.shape == expected_part.shape
                torch.testing.assert_close(part[rows], expected_part[rows], atol=1e-4, rtol=1e-4)


class Tokens(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended += 1


def test_streamers():
    target, inputs = make_target(), make_batch((4, 7, 2))
    plain = target.generate(**inputs, max_new_tokens=20, do_sample=False)[:, 7:]
    kwargs = {**inputs, "max_new_tokens": 20, "do_sample": False, "eos_token_id": plain[2, 6].item()}
    expected, ours = Tokens(), Tokens()
    target.generate(**kwargs, streamer=expected)
    with knowing_drafter(plain.tolist()):
        target.generate(**kwargs, streamer=ours, assistant_model=make_drafter(target))
    assert ours.values == expected.values
    assert ours.ended == 1
    with pytest.raises(ValueError, match="batch size 1"):
        target.generate(**kwargs, streamer=TextStreamer(None), assistant_model=make_drafter(target))
    stepwise = Tokens()
    stepwise.put_step = lambda tokens, tree, visited: None
    with pytest.raises(ValueError, match=r"`put_step` takes one sequence, got a batch of 3"):
        target.generate(**kwargs, streamer=stepwise, assistant_model=make_drafter(target))


@pytest.mark.compat
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("ends_by", ["end tokens", "a criterion"])
def test_the_next_turn_with_the_cache(architecture, kind, ends_by):
    """Rows that have ended before others left what plain generation leaves of them, and no row anything more."""
    target, inputs = make_target(architecture), make_batch((5, 7, 2))
    plain = target.generate(**inputs, max_new_tokens=24, do_sample=False)
    known = plain[:, 7:].tolist()
    stops = {known[0][3], known[1][9], known[2][13]}

    def met(input_ids, scores):
        return torch.tensor([int(row[-1]) in stops for row in input_ids])

    ends = {"eos_token_id": sorted(stops)} if ends_by == "end tokens" else {"stopping_criteria": [met]}
    turns = []
    for assistant in ({}, {"assistant_model": make_drafter(target)}):
        cache = (
            DynamicCache(config=target.config)
            if kind == "dynamic"
            else StaticCache(config=target.config, max_cache_len=128)
        )
        common = {CACHE: cache, "do_sample": False, "disable_compile": True, "pad_token_id": 0}
        with knowing_drafter(known):
            said = target.generate(**inputs, max_new_tokens=24, **common, **ends, **assistant)
        assert cache.get_seq_length() == said.shape[1] - 1
        asked = torch.cat((said, torch.cat([make_prompt(4, seed=row) for row in range(3)])), dim=1)
        mask = torch.cat((inputs["attention_mask"], torch.ones_like(asked[:, 7:])), dim=1)
        if ends_by == "end tokens":
            for row, tokens in enumerate(said[:, 7:].tolist()):
                end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
                mask[row, 7 + end + 1 : said.shape[1]] = 0
        turns.append(target.generate(asked, attention_mask=mask, max_new_tokens=12, **common))
    assert turns[1].tolist() == turns[0].tolist()


@pytest.mark.parametrize("hooked", [True, False])
def test_a_cache_of_the_callers(hooked):
    """All rows stay in it, each with its own tokens first."""
    target, inputs = make_target(), make_batch((4, 7, 2))
    plain = target.generate(**inputs, max_new_tokens=12, do_sample=False)
    cache = DynamicCache(config=target.config)
    with knowing_drafter(plain[:, 7:].tolist()), assistance(make_drafter(target), hooked) as assistant:
        target.generate(**inputs, max_new_tokens=12, do_sample=False, **{CACHE: cache}, **assistant)
    assert cache.get_seq_length() == 18
    expected = DynamicCache(config=target.config)
    target(
        plain[:, :18],
        attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, 11), value=1),
        position_ids=torch.nn.functional.pad(inputs["attention_mask"], (0, 11), value=1).cumsum(-1).sub(1).clamp(0),
        **{CACHE: expected},
    )
    visible = torch.nn.functional.pad(inputs["attention_mask"], (0, 11), value=1).bool()
    for ours, theirs in zip(cache.layers, expected.layers, strict=True):
        for row in range(3):
            torch.testing.assert_close(
                ours.keys[row][:, visible[row]], theirs.keys[row][:, visible[row]], atol=1e-4, rtol=1e-4
            )


def test_adaptive_trees():
    compare_batch(make_target(), make_batch(), num_assistant_tokens_schedule="heuristic", max_new_tokens=40)


@pytest.mark.parametrize("chunk", [2, 5])
def test_prompts_in_chunks(chunk):
    compare_batch(make_target(), make_batch(), prefill_chunk_size=chunk)


def test_embeddings_for_prompts():
    target, inputs = make_target(), make_batch()
    embeds = {
        "inputs_embeds": target.get_input_embeddings()(inputs["input_ids"]),
        "attention_mask": inputs["attention_mask"],
    }
    plain = target.generate(**embeds, max_new_tokens=12, do_sample=False)
    ours = target.generate(**embeds, max_new_tokens=12, do_sample=False, assistant_model=make_drafter(target))
    assert ours.tolist() == plain.tolist()


def test_static_trees_and_decoupled_experts():
    target = make_target()
    static = make_drafter(target, static_tree=[[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
    compare_batch(target, make_batch(), static)
    compare_batch(target, make_batch(), make_drafter(target, head_mode="decoupled"))
    compare_batch(target, make_batch(), make_drafter(target, head_mode="single", num_experts=1))


def test_the_drafter_reads_each_row_as_if_it_were_alone():
    """A row's trees do not depend on the others, nor on how far these have got."""
    target = make_target()
    draft = make_drafter(target)
    draft.config.batch_trees = {"2": draft.config.tree_fields()}  # no smaller ones
    inputs = make_batch()
    proposed: list[tuple[list[int], DraftTree]] = []
    propose = JakiroDrafter.propose

    def noted(self, root, *args, **kwargs):
        tree = propose(self, root, *args, **kwargs)
        proposed.append((self.rows.num_cached, tree))
        return tree

    kwargs = {"max_new_tokens": 16, "do_sample": False, "assistant_model": draft, "return_dict_in_generate": True}
    with mock.patch.object(JakiroDrafter, "propose", noted):
        target.generate(**inputs, **kwargs)
        together, proposed = proposed, []
        assert any(len(set(lengths)) > 1 for lengths, _ in together), "the rows never got ahead of one another"
        for row, length in enumerate(LENGTHS):
            proposed.clear()
            target.generate(inputs["input_ids"][row : row + 1, -length:], **kwargs)
            pads = max(LENGTHS) - length
            alone = {lengths[0] + pads: tree for lengths, tree in proposed}
            checked = 0
            for lengths, tree in together:
                single = alone.get(lengths[row])
                if single is not None and single.num_nodes == tree.num_nodes and single.max_depth == tree.max_depth:
                    assert tree.tokens[row].tolist() == single.tokens[0].tolist()
                    assert tree.parents[row].tolist() == single.parents[0].tolist()
                    checked += 1
            assert checked >= 3


@pytest.mark.parametrize("kwargs", [{}, {"do_sample": True, "eos_token_id": [7, 8, 9, 10]}])
def test_targets_that_verify_chains_only(kwargs):
    """Their rows stay in step."""
    with mock.patch.object(requests, "why_no_trees", return_value="its attention is another"):
        for architecture in ("llama", "mistral"):
            with pytest.warns(UserWarning, match="proposes chains instead of trees for .*: its attention is another"):
                compare_batch(
                    make_target(architecture, window=6 if architecture in SLIDING else None), make_batch(), **kwargs
                )


def test_limits():
    target = make_target()
    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=13)])
    compare_batch(target, make_batch(), max_new_tokens=1)
    compare_batch(target, make_batch(), max_new_tokens=2)
    compare_batch(target, make_batch(), stopping_criteria=criteria)
