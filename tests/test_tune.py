# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The tuner: replays accept what generation accepts, costs are what they are said to be, the fastest tree wins."""

import json
import shutil
from dataclasses import asdict

import pytest

from helpers.targets import make_drafter, make_target
from helpers.trees import scored_tree
from jakiro_cli import main
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.measuring.benchmark import load_benchmark
from transformers_jakiro.measuring.methods import PUBLISHED
from transformers_jakiro.measuring.prompts import read_prompts
from transformers_jakiro.measuring.replay import Replay, answer_prompts, path_ranks
from transformers_jakiro.measuring.step_costs import Costs, draft_costs, full_batches, step_seconds, target_costs
from transformers_jakiro.measuring.summary import Run
from transformers_jakiro.measuring.tree_fields import TreeFields, with_trees
from transformers_jakiro.measuring.tune import Measured, Tuning, measure, predictions, shortlist, tune
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark(str(TARGET), str(DRAFT), "float32", max_new_tokens=40)[0]


@pytest.fixture(scope="module")
def prompts():
    return [prompt.turns[0] for prompt in read_prompts(PROMPTS, 3)]


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

    (_, result) = measure(benchmark, prompts, [temperature], [TreeFields(depth, width, num_draft_tokens)])
    assert lengths == [length for run in result.runs for length in run.accept_lengths]
    assert sum(lengths) > len(lengths)


def test_measuring_changes_no_config(benchmark, prompts):
    before = benchmark.draft.config.to_dict()
    tree = TreeFields(2, 3, 5)
    plain, result = measure(benchmark, prompts[:1], [0.0], [tree])
    assert (plain.tree, result.tree) == (None, tree)
    assert plain.tokens_per_forward == 1.0 < result.tokens_per_forward
    assert step_seconds(benchmark, prompts[:1], tree) > 0
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
    ranked = [
        (9.0, TreeFields(3, 2, 10)),
        (8.9, TreeFields(3, 2, 11)),
        (8.0, TreeFields(4, 2, 10)),
        (7.0, TreeFields(3, 4, 9)),
    ]
    assert shortlist(ranked, 2) == [TreeFields(3, 2, 10), TreeFields(4, 2, 10)]
    assert len(shortlist(ranked, 9)) == 3


def test_measured():
    runs = [Run("a", 0, 5, 20, 1.5, True, [2, 5]), Run("a", 0, 5, 10, 0.5, True, [2])]
    result = Measured(TreeFields(3, 2, 10), runs)
    assert (result.tokens_per_second, result.tokens_per_forward) == (15.0, 4.0)


def test_the_command(tmp_path, capsys, monkeypatch):
    # the defaults take a minute
    monkeypatch.setattr(
        "transformers_jakiro.measuring.tune.tune.__defaults__", ((0.0,), (2, 4), (2,), 2, lambda *_: None)
    )
    folder, report = tmp_path / "draft", tmp_path / "report.json"
    shutil.copytree(DRAFT, folder)
    before = json.loads((folder / "config.json").read_text())
    arguments = ["tune", str(PROMPTS), "--target", str(TARGET), "--draft", str(folder)]
    options = ["--limit", "2", "--max-new-tokens", "24", "--dtype", "float32", "--temperature", "0"]
    assert main([*arguments, *options, "--report", str(report)]) == 0
    results = json.loads(report.read_text())
    speeds = {json.dumps(row["tree"], sort_keys=True): row["tokens_per_second"] for row in results["measured"]}
    assert {"null", json.dumps(PUBLISHED, sort_keys=True)} < speeds.keys()
    best = json.dumps(results["best"], sort_keys=True)
    assert speeds[best] == max(speed for tree, speed in speeds.items() if tree != "null")
    assert results["pays"] == (speeds[best] >= speeds["null"])
    made = results["provenance"]["arguments"]
    assert [*made] == [
        "files",
        "target",
        "draft",
        "temperature",
        "tasks",
        "limit",
        "max_new_tokens",
        "dtype",
        "deepen",
        "batch_size",
    ]
    assert (made["dtype"], made["limit"], made["deepen"]) == ("float32", 2, None)
    after = json.loads((folder / "config.json").read_text())
    assert after == {**before, **results["best"]}
    assert JakiroDraftModel.from_pretrained(folder).config.num_draft_tokens == results["best"]["num_draft_tokens"]
    assert "plain generate" in capsys.readouterr().out

    copy = tmp_path / "copy"
    options = ["--limit", "1", "--max-new-tokens", "16", "--dtype", "float32", "--temperature", "0"]
    assert main([*arguments, *options, "--output", str(copy)]) == 0
    assert json.loads((folder / "config.json").read_text()) == after
    assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((copy / "config.json").read_text()).keys() == after.keys()


def test_the_command_for_batches(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "transformers_jakiro.measuring.tune.tune.__defaults__", ((0.0,), (2,), (2,), 1, lambda *_: None)
    )
    monkeypatch.setattr("transformers_jakiro.measuring.step_costs.TREE_SIZES", (1, 97))
    folder, report = tmp_path / "draft", tmp_path / "report.json"
    shutil.copytree(DRAFT, folder)
    before = json.loads((folder / "config.json").read_text())
    arguments = ["tune", str(PROMPTS), "--target", str(TARGET), "--draft", str(folder)]
    options = ["--limit", "3", "--max-new-tokens", "16", "--dtype", "float32", "--temperature", "0"]
    assert main([*arguments, *options, "--batch-size", "2", "1", "--report", str(report)]) == 0
    results = json.loads(report.read_text())
    assert results["provenance"]["arguments"]["batch_size"] == [2, 1]
    (batch,) = results["batches"]
    assert (results["batch_size"], batch["batch_size"]) == (1, 2)
    assert len(batch["measured"]) >= 3
    after = json.loads((folder / "config.json").read_text())
    assert after == {**before, **results["best"], "batch_trees": {"2": batch["best"]}}
    assert JakiroDraftModel.from_pretrained(folder).config.tree_fields(3) == batch["best"]
    assert "for batches of 2 to" in capsys.readouterr().out


def test_whether_a_tree_pays():
    tree = TreeFields(3, 2, 10)
    plain = Measured(None, [Run("a", 0, 5, 10, 2.0, True)])
    for seconds, pays in ((1.0, True), (2.0, True), (3.0, False)):
        measured = [plain, Measured(tree, [Run("a", 0, 5, 10, seconds, True, [2])])]
        assert Tuning(16, tree, measured, {}, Costs({}, {}, 0.0)).pays == pays


def test_trees_that_lose_are_said_to(tmp_path, capsys, monkeypatch):
    """The fastest of them is written all the same."""

    def measure_slow_trees(benchmark, prompts, temperatures, trees, progress=None, batch_size=1, found=None):
        runs = [Run("a", 0, 5, 10, seconds, True, [2]) for seconds in range(1, len(trees) + 2)]
        return [Measured(tree, [run]) for tree, run in zip((None, *trees), runs, strict=True)]

    monkeypatch.setattr(
        "transformers_jakiro.measuring.tune.tune.__defaults__", ((0.0,), (2,), (2,), 1, lambda *_: None)
    )
    monkeypatch.setattr("transformers_jakiro.measuring.step_costs.TREE_SIZES", (1, 97))
    monkeypatch.setattr("transformers_jakiro.measuring.tune.measure", measure_slow_trees)
    models = ["--target", str(TARGET), "--draft", str(DRAFT), "--dtype", "float32"]
    options = ["--output", str(tmp_path / "out"), "--report", str(tmp_path / "report.json"), "--batch-size", "2"]
    options += ["--limit", "2", "--max-new-tokens", "16", "--temperature", "0"]
    assert main(["tune", str(PROMPTS), *models, *options]) == 0
    text = capsys.readouterr().out
    assert "plain generate is faster than any tree of this drafter for batches of 2." in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["pays"], report["batches"]) == (False, [])
    trees = [row["tree"] for row in report["measured"]]
    assert {"tree_depth": 2, "tree_width": 2, "num_draft_tokens": 1, "tree_top_k": 32} in trees
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["batch_trees"] == {"2": report["best"]} == {"2": trees[1]}
    assert config["tree_depth"] == json.loads((DRAFT / "config.json").read_text())["tree_depth"]


def test_trees_in_a_config():
    first = TreeFields(3, 2, 10)
    other = TreeFields(2, 2, 1)
    fields = {"tree_depth": 2, "tree_width": 2, "num_draft_tokens": 1, "tree_top_k": 32}
    before = {"a": 1, "tree_depth": 7, "batch_trees": {"4": {}, "16": {}}}
    after = with_trees(before, {1: first, 16: other})
    assert after["batch_trees"] == {"4": {}, "16": fields}
    assert (after["a"], after["tree_depth"], after["num_draft_tokens"]) == (1, 3, 10)
    assert "batch_trees" not in with_trees({"a": 1}, {1: first})
    assert "tree_depth" not in with_trees({"a": 1}, {16: other})


def test_batches_are_measured_as_they_will_be_generated():
    """Rows that are left when others have ended get trees for so many, the ones just found among them."""
    fields = [asdict(TreeFields(depth, 2, 3)) for depth in (3, 4, 5, 6)]
    draft = make_drafter(make_target(), batch_trees={"2": fields[0], "8": fields[1]})
    tree = TreeFields(2, 2, 2)
    method = tree.method(draft, 4, {1: TreeFields(6, 2, 3)})
    assert method.tree == {**fields[3], "batch_trees": {"2": fields[0], "4": asdict(tree)}}
    assert method.options == {"assistant_model": draft}
    with method.ready():
        assert draft.config.tree_fields(4) == asdict(tree)
        assert draft.config.tree_fields(1) == fields[3]
    assert draft.config.tree_fields(8) == fields[1]


def test_batches_are_full():
    assert full_batches(["a", "b", "c"], 2) == [["a", "b"], ["c", "a"]]
    assert full_batches(["a"], 3) == [["a", "a", "a"]]
    assert full_batches(["a", "b"], 1) == [["a"], ["b"]]


def test_costs_of_batches(benchmark, prompts):
    (answer,) = answer_prompts(benchmark, prompts[:1], [0.0])
    shapes = [(2, 2), (5, 8)]
    sizes = []
    handle = benchmark.draft.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    drafting = draft_costs(benchmark.target, benchmark.draft, answer, shapes, batch_size=3, rounds=5)
    handle.remove()
    assert set(sizes) == {3}
    assert 0 < drafting[2, 2] < drafting[5, 8]
    forwards = target_costs(benchmark.target, answer.input_ids.expand(3, -1), (1, 200), rounds=3)
    assert 0 < forwards[1] < forwards[200]
    assert step_seconds(benchmark, prompts[:2], TreeFields(2, 2, 2)) > 0


def test_predictions_are_of_all_rows():
    class Accepting:
        def accepted_lengths(self, ranks, num_draft_tokens):
            return [1] * len(ranks)

    costs = Costs(draft={(2, 2): 1.0}, target={1: 1.0, 97: 1.0}, rest=0.0)
    assert {speed for speed, _ in predictions(costs, Accepting(), {(2, 2): [[0]]}, 4)} == {4 * 2 / 2.0}


def test_what_cannot_be_tuned(tmp_path, benchmark, prompts, monkeypatch, capsys):
    assert main(["tune", "--target", "a", "--draft", "b", "--batch-size", "0"]) == 1
    assert "`--batch-size` must be at least 1, got [0]" in capsys.readouterr().err
    for draft, message in (("org/drafter", "`--output`"), (str(tmp_path), "no config.json")):
        assert main(["tune", "--target", str(TARGET), "--draft", draft]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"`--batch-size` must be at least 1, got \[4, 0\]"):
        tune(benchmark, prompts, batch_sizes=[4, 0])
    monkeypatch.setattr(benchmark, "max_new_tokens", 3)
    with pytest.raises(ValueError, match="Give at least 4"):
        tune(benchmark, prompts)
    monkeypatch.setattr(benchmark.draft.config, "static_tree", [[0]])
    with pytest.raises(ValueError, match="static_tree"):
        tune(benchmark, prompts)
