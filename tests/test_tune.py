# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The tuner: replays accept what generation accepts, costs are what they are said to be, the fastest tree wins."""

import json
import shutil

import pytest
from targets import scored_tree

from jakiro_cli import main
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.benchmark import PUBLISHED, load_benchmark
from transformers_jakiro.demo import PAIR
from transformers_jakiro.summary import Run
from transformers_jakiro.tasks import read_prompts
from transformers_jakiro.tune import (
    Costs,
    Measured,
    Replay,
    Shape,
    answer_prompts,
    measure,
    path_ranks,
    shortlist,
    step_seconds,
    target_costs,
    tune,
)


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark(str(PAIR / "target"), str(PAIR / "draft"), "float32", max_new_tokens=40)[0]


@pytest.fixture(scope="module")
def prompts():
    return [prompt.turns[0] for prompt in read_prompts(PAIR / "prompts.jsonl", 3)]


def test_ranks_of_a_path():
    for following, expected in (([4, 2], [1, 2]), ([9, 3, 5], [0, 3]), ([9, 2], [0]), ([5], []), ([], [])):
        assert path_ranks(scored_tree(), following) == expected


@pytest.mark.parametrize(("temperature", "warpers"), [(0.0, {}), (1.0, {}), (1.0, {"min_p": 0.2})])
@pytest.mark.parametrize(("depth", "width", "num_draft_tokens"), [(2, 3, 5), (5, 4, 24)])
def test_a_replay_accepts_what_generation_accepts(
    benchmark, prompts, temperature, warpers, depth, width, num_draft_tokens, monkeypatch
):
    for name, value in warpers.items():  # the bench takes back what the target's generation config says of the others
        monkeypatch.setattr(benchmark.target.generation_config, name, value)
    answers = list(answer_prompts(benchmark, prompts, [temperature]))
    assert (answers[0].random_states is not None) == (temperature > 0)
    replay = Replay(benchmark.target, benchmark.draft, answers)
    ranks = list(replay.ranks(depth, width))
    assert len(ranks) == replay.num_positions
    lengths = replay.accepted_lengths(ranks, num_draft_tokens)

    (_, result) = measure(benchmark, prompts, [temperature], [Shape(depth, width, num_draft_tokens)])
    assert lengths == [length for run in result.runs for length in run.accept_lengths]
    assert sum(lengths) > len(lengths)


def test_measuring_changes_no_config(benchmark, prompts):
    before = benchmark.draft.config.to_dict()
    shape = Shape(2, 3, 5)
    plain, result = measure(benchmark, prompts[:1], [0.0], [shape])
    assert (plain.shape, result.shape) == (None, shape)
    assert plain.tokens_per_forward == 1.0 < result.tokens_per_forward
    assert step_seconds(benchmark, prompts[0], shape) > 0
    assert benchmark.draft.config.to_dict() == before


def test_costs():
    costs = Costs(draft={(3, 2): 0.5}, target={1: 1.0, 5: 2.0, 9: 6.0}, rest=0.25)
    assert costs.target_seconds(1) == 1.0
    assert costs.target_seconds(4) == 1.75
    assert costs.target_seconds(7) == 4.0
    assert costs.target_seconds(12) == 6.0
    assert costs.step_seconds(3, 2, 4) == 0.5 + 2.0 + 0.25


def test_costs_of_the_target(benchmark, prompts):
    input_ids = benchmark.encode(prompts[0])["input_ids"]
    seconds = target_costs(benchmark.target, input_ids, (1, 8, 256), rounds=3)
    assert list(seconds) == [1, 8, 256]
    assert 0 < seconds[1] < seconds[256]


def test_the_shortlist_is_of_different_trees():
    ranked = [(9.0, Shape(3, 2, 10)), (8.9, Shape(3, 2, 11)), (8.0, Shape(4, 2, 10)), (7.0, Shape(3, 4, 9))]
    assert shortlist(ranked, 2) == [Shape(3, 2, 10), Shape(4, 2, 10)]
    assert len(shortlist(ranked, 9)) == 3


def test_measured():
    runs = [Run("a", 0, 5, 20, 1.5, True, [2, 5]), Run("a", 0, 5, 10, 0.5, True, [2])]
    result = Measured(Shape(3, 2, 10), runs)
    assert (result.tokens_per_second, result.tokens_per_forward) == (15.0, 4.0)


def test_the_command(tmp_path, capsys, monkeypatch):
    # the defaults take a minute
    monkeypatch.setattr("transformers_jakiro.tune.tune.__defaults__", ((0.0,), (2, 4), (2,), 2, lambda *_: None))
    folder, report = tmp_path / "draft", tmp_path / "report.json"
    shutil.copytree(PAIR / "draft", folder)
    before = json.loads((folder / "config.json").read_text())
    arguments = ["tune", str(PAIR / "prompts.jsonl"), "--target", str(PAIR / "target"), "--draft", str(folder)]
    options = ["--limit", "2", "--max-new-tokens", "24", "--dtype", "float32", "--temperature", "0"]
    assert main([*arguments, *options, "--report", str(report)]) == 0
    results = json.loads(report.read_text())
    speeds = {json.dumps(row["tree"], sort_keys=True): row["tokens_per_second"] for row in results["measured"]}
    assert {"null", json.dumps(PUBLISHED, sort_keys=True)} < speeds.keys()
    best = json.dumps(results["best"], sort_keys=True)
    assert speeds[best] == max(speed for tree, speed in speeds.items() if tree != "null")
    made = results["provenance"]["arguments"]
    assert (made["dtype"], made["limit"], made["deepen"]) == ("float32", 2, None)
    after = json.loads((folder / "config.json").read_text())
    assert after == {**before, **results["best"]}
    assert JakiroDraftModel.from_pretrained(folder).config.num_draft_tokens == results["best"]["num_draft_tokens"]
    assert "plain generate" in capsys.readouterr().out

    copy = tmp_path / "copy"
    assert main([*arguments, *options, "--output", str(copy)]) == 0
    assert json.loads((folder / "config.json").read_text()) == after
    assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((copy / "config.json").read_text()).keys() == after.keys()


def test_what_cannot_be_tuned(tmp_path, benchmark, prompts, monkeypatch, capsys):
    for draft, message in (("org/drafter", "`--output`"), (str(tmp_path), "no config.json")):
        assert main(["tune", "--target", str(PAIR / "target"), "--draft", draft]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "max_new_tokens", 3)
    with pytest.raises(ValueError, match="Give at least 4"):
        tune(benchmark, prompts)
    monkeypatch.setattr(benchmark.draft.config, "static_tree", [[0]])
    with pytest.raises(ValueError, match="static_tree"):
        tune(benchmark, prompts)
