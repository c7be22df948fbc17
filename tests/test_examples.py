# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The scripts of examples/, on a tiny scale."""

import copy
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.hub.conversion import export_original
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET
from transformers_jakiro.training.command import parse
from transformers_jakiro.training.features import write_features
from transformers_jakiro.training.initialization import new_drafter
from transformers_jakiro.training.trainer import JakiroTrainer

EXAMPLES = Path(__file__).parents[1] / "examples"
QUESTIONS = ("Ann has 3 apples.", "Bob runs 2 miles.", "A car costs 10 dollars.", "There are 4 cats.", "I buy 7 pens.")
# of a drafter that the original layout knows
PUBLISHED_SHAPE = {
    **{"embedding_multiplier": 1.0, "feature_multiplier": 1.0, "final_norm": False},
    "expert_intermediate_size": 192,
}
RECIPES = {
    "common": {
        "num_eval_rows": 1,
        "max_length": 40,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    },
    "recipes": {
        "control": {"description": "dense", "num_experts": 1, "expert_intermediate_size": 384},
        "two": {"num_experts": 2, "tree_depth": 2},
    },
}


@pytest.fixture
def data(tmp_path):
    rows = [
        [{"role": "user", "content": f"{text} How many are left?"}, {"role": "assistant", "content": f"{text} So 5."}]
        for text in QUESTIONS
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    return path


@pytest.fixture
def script(monkeypatch):
    """Function: imports a script, and returns it and a function that runs it with the given arguments."""

    def load(name):
        monkeypatch.syspath_prepend(EXAMPLES)
        module = importlib.import_module(name)

        def run(*arguments):
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            module.main()

        return module, run

    return load


@pytest.fixture
def recipes(script, data, tmp_path):
    """The module, a function that compares the recipes, and a file of prompts of two tasks."""
    pytest.importorskip("matplotlib", reason="the chart of compare_recipes.py needs matplotlib")
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(RECIPES))
    lines = (PROMPTS).read_text(encoding="utf-8").splitlines()[:3]
    prompts = [json.loads(line)["prompt"] for line in lines]
    tasks = ("math", "math", "other")
    rows = [{"id": task, "task": task, "turns": [prompt]} for task, prompt in zip(tasks, prompts, strict=True)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    module, run = script("compare_recipes")

    def compare(output, *options, tokens=300, max_new_tokens=12):
        run(
            *(tmp_path / "recipes.yaml", "--target", TARGET, "--data", data, "--dtype", "float32"),
            *("--prompts", tmp_path / "prompts.jsonl", "--output", output, "--tokens", tokens),
            *("--max-new-tokens", max_new_tokens, *options),
        )
        return json.loads((output / "results.json").read_text())

    return module, compare, rows


def test_compare_recipes(recipes, tmp_path, capsys):
    _, compare, prompts = recipes
    output = tmp_path / "out"
    results = compare(output)
    assert list(results) == ["control", "two"]
    control, two = results.values()
    assert control["training"]["tokens"] == two["training"]["tokens"] == pytest.approx(300, abs=80)
    assert control["training"]["steps"] == two["training"]["steps"] > 2
    assert control["training"]["seconds"] > 0
    assert 0.99 < two["parameters"] / control["parameters"] < 1.01
    assert {"eval_accuracy", "eval_expected_acceptance_length"} <= two["evaluation"].keys()
    assert two["provenance"]["torch"] == torch.__version__

    # the figures are those of plain calls
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    draft = JakiroDraftModel.from_pretrained(output / "two")
    assert draft.config.tree_depth == 2
    draft.config.tree_depth = 7  # measured with the published tree
    for generation, sampling in zip(
        two["generation"], ({"do_sample": False}, {"do_sample": True, "top_k": 0}), strict=True
    ):
        accepted = {"math": [], "other": []}
        for row in prompts:
            torch.manual_seed(0)
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["turns"][0]}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            ).to("cpu")
            settings = {"assistant_model": draft, "max_new_tokens": 12, "return_dict_in_generate": True}
            accepted[row["task"]] += target.generate(**inputs, **settings, **sampling).accept_lengths[0]
        expected = {task: 1 + sum(lengths) / len(lengths) for task, lengths in accepted.items()}
        assert generation["tasks"] == pytest.approx(expected)
        assert generation["tokens_per_forward"] == pytest.approx(sum(expected.values()) / 2)
        assert 1 <= generation["draft_forwards_per_step"] <= 6

    table = (output / "results.md").read_text().splitlines()
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    ratio = two["generation"][0]["tokens_per_forward"] / control["generation"][0]["tokens_per_forward"]
    assert f"| {ratio:.3f} |" in table[3]
    assert (output / "results.png").read_bytes()[:4] == b"\x89PNG"

    # nothing is done again, and results of different arguments do not mix
    capsys.readouterr()
    assert compare(output) == results
    assert capsys.readouterr().out.count("finished before") == 2
    for changed in ({"max_new_tokens": 13}, {"tokens": 500}):
        with pytest.raises(ValueError, match=rf"results of `control` with other arguments.*'{next(iter(changed))}'"):
            compare(output, **changed)
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump({**RECIPES, "common": {**RECIPES["common"], "seed": 1}}))
    with pytest.raises(ValueError, match=r"control was trained with other arguments"):
        compare(output)
    assert json.loads((output / "results.json").read_text()) == results


def test_compare_recipes_goes_on(recipes, tmp_path, monkeypatch):
    module, compare, _ = recipes
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = compare(whole, "--only", "two")["two"]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    compute_loss = JakiroTrainer.compute_loss
    losses = iter((compute_loss, compute_loss, interrupt))
    with monkeypatch.context() as patch:  # in the third step
        patch.setattr(JakiroTrainer, "compute_loss", lambda *args, **kwargs: next(losses)(*args, **kwargs))
        with pytest.raises(KeyboardInterrupt):
            compare(stopped, "--only", "two")
    assert [path.name for path in (stopped / "two").glob("checkpoint-*")].count("checkpoint-2") == 1
    assert not (stopped / "results.json").exists()
    with monkeypatch.context() as patch:  # after the training
        patch.setattr(module, "generate_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare(stopped, "--only", "two")
    trained = json.loads((stopped / "results.json").read_text())["two"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_recipe", interrupt)
        result = compare(stopped, "--only", "two")["two"]

    assert result["training"] == trained["training"]
    assert result["training"]["steps"] == expected["training"]["steps"]
    assert result["training"]["seconds"] > 0
    assert result["evaluation"]["eval_loss"] == expected["evaluation"]["eval_loss"]
    assert result["generation"] == expected["generation"]
    assert "| - |" in (stopped / "results.md").read_text()  # no control to compare with
    weights = JakiroDraftModel.from_pretrained(stopped / "two").state_dict()
    for key, value in JakiroDraftModel.from_pretrained(whole / "two").state_dict().items():
        assert torch.equal(value, weights[key])


def test_compare_recipes_checks_first(recipes, tmp_path, monkeypatch, capsys):
    module, compare, _ = recipes
    with pytest.raises(SystemExit):
        compare(tmp_path / "out", "--only", "three")
    assert "no recipe ['three'], only ['control', 'two']" in capsys.readouterr().err
    for content, message in (
        ({"recipes": {"two": {"num_eval_rows": 1}}}, r"no recipe `control`.*got \['two'\]"),
        ({"recipes": {"control": {}}}, r"`control` has nothing to evaluate on"),
        ({"recipe": {"control": {}}}, r"must hold `recipes`"),
        ([], r"must hold `recipes`"),
    ):
        (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match=message):
            compare(tmp_path / "out")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        compare(tmp_path / "out")
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mean_length_of_stored_features(script, data, tmp_path):
    module, _ = script("compare_recipes")
    of_text = module.mean_length(str(TARGET), str(data), "train", 4, 40, False)
    rows = [{"input_ids": [5] * length, "loss_mask": [1] * length} for length in (3, 4, 9)]
    target = AutoModelForCausalLM.from_pretrained(TARGET)
    write_features(target, rows, tmp_path / "features", progress=False)
    assert module.mean_length("unused", str(tmp_path / "features"), "train", 2, 40, False) == 3.5
    assert 10 < of_text <= 40


def test_compare_recipes_with_other_trees(recipes, tmp_path, monkeypatch, capsys):
    module, compare, _ = recipes
    content = copy.deepcopy(RECIPES)
    content["recipes"]["two_small_trees"] = {"drafter": "two", "tree": {"num_draft_tokens": 1, "tree_depth": 1}}
    output = tmp_path / "out"

    def compare_changed(*options):
        (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(content))
        return compare(output, *options)

    with pytest.raises(SystemExit):
        compare_changed("--only", "two_small_trees")
    assert "no drafter of `two` yet" in capsys.readouterr().err
    results = compare_changed("--only", "two", "two_small_trees")
    two, small = results["two"], results["two_small_trees"]
    assert small["training"] == two["training"]
    assert not (output / "two_small_trees").exists()
    assert small["generation"][0]["draft_forwards_per_step"] <= 1 < two["generation"][0]["draft_forwards_per_step"]

    # other trees are measured again, without training
    content["recipes"]["two"]["tree"] = content["recipes"]["two_small_trees"]["tree"]
    monkeypatch.setattr(module, "train_recipe", None)
    again = compare_changed("--only", "two", "two_small_trees")
    assert again["two"]["generation"] == again["two_small_trees"]["generation"] == small["generation"]

    content["recipes"]["two"]["drafter"] = "two_small_trees"
    with pytest.raises(ValueError, match="no recipe that trains one"):
        compare_changed()


@pytest.mark.parametrize("name", ["recipes.yaml", "comparison.yaml"])
def test_shipped_recipes(script, tmp_path, name):
    module, _ = script("compare_recipes")
    recipes = module.read_recipes(EXAMPLES / name)
    assert next(iter(recipes)) == "control"
    for recipe in recipes.values():
        assert recipe["description"]
        assert recipe.get("tree", {}).keys() <= JakiroDraftConfig().to_dict().keys()
        for key in module.NOT_TRAINED:
            recipe.pop(key, None)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe))
        parse([str(tmp_path / "config.yaml"), "--target", "T", "--data", "D", "--use_cpu", "true"])


def test_training_throughput(script, data, monkeypatch, capsys):
    module, run = script("training_throughput")
    monkeypatch.setattr(module, "in_own_process", lambda function, *arguments: function(*arguments))
    options = ["--target", TARGET, "--data", data, "--cpu", "--batch-size", 2, "--steps", 2, "--warmup", 1]
    run(*options, "--rounds", 2)
    text = capsys.readouterr().out
    plain, ours = map(float, re.search(r"plain (\S+), ours (\S+)", text).groups())
    assert plain == pytest.approx(ours, abs=1e-4)
    speeds = {name: float(re.search(rf"^{name} +(\d+)", text, re.MULTILINE)[1]) for name in ("plain", "ours")}
    ratio = float(re.search(r"ours / plain: (\S+) times", text)[1])
    assert ratio == pytest.approx(speeds["ours"] / speeds["plain"], rel=0.05)
    # a loop that computes something else is not timed
    plain_loss = module.plain_loss
    monkeypatch.setattr(module, "plain_loss", lambda *args: plain_loss(*args) + 1e-3)
    with pytest.raises(RuntimeError, match=r"different losses"):
        run(*options)
    with pytest.raises(ValueError, match=r"gives 5 samples, but a batch has 6"):
        run(*options, "--batch-size", 6)


@pytest.mark.integration
def test_own_process(script):
    module, _ = script("training_throughput")
    assert module.in_own_process(os.getpid) != os.getpid()


# -- scripts to start from -------------------------------------------------------------------------------------------


def test_generate(script, capsys):
    _, run = script("generate")
    run("What is 2 + 3?", "Ann has 3 apples.", "--max-new-tokens", 24)
    text = capsys.readouterr().out
    assert text.count("same tokens: True") == 4
    speeds = [float(found) for found in re.findall(r"(\S+) per forward", text)]
    assert len(speeds) == 4
    assert max(speeds) > 2


@pytest.mark.parametrize("temperature", [0, 1])
def test_generate_batch(script, tmp_path, capsys, temperature):
    _, run = script("generate_batch")
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS) + "\n\n")
    options = [*("--batch-size", 2), *("--max-new-tokens", 8), *("--temperature", temperature)]

    def answers(name, *more):
        run(tmp_path / "prompts.txt", tmp_path / name, *options, *more)
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert len(rows) == len(QUESTIONS)
        return {row["id"]: row["answer"] for row in rows}

    plain = answers("plain", "--draft", "none")
    assert answers("drafted") == plain
    assert plain.keys() == {"0", "1", "2", "3", "4"}
    whole = (tmp_path / "drafted").read_text()
    (tmp_path / "drafted").write_text(whole[: len(whole) // 2])  # in the middle of a line
    assert answers("drafted") == plain
    capsys.readouterr()
    assert answers("drafted") == plain  # nothing is left to do
    assert ": 0 tokens" in capsys.readouterr().out


def test_generate_batch_reads_json_lines(script, tmp_path):
    module, _ = script("generate_batch")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = [{"id": 7, "prompt": "Hi"}, {"messages": messages}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert module.read_prompts(tmp_path / "prompts.jsonl") == [("7", messages[1:]), ("1", messages)]


TINY_RUN = [
    *("--num_rows", 6, "--num_eval_rows", 2, "--max_new_tokens", 12, "--max_steps", 2, "--use_cpu", "true"),
    *("--eval_generate_prompts", 2, "--eval_generate_tokens", 8, "--disable_tqdm", "true"),
]


def test_adapt_lora(script, tmp_path, capsys):
    _, run = script("adapt_lora")
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    run(*TINY_RUN, "--output_dir", adapter, "--answers", tmp_path / "answers.jsonl", "--merged_dir", merged)
    text = capsys.readouterr().out
    assert re.search(r"eval_acceptance_length: [\d.]+ before, [\d.]+ after", text)
    (with_adapter, with_merged) = re.findall(r"^--- \w+: (.*)", text, flags=re.MULTILINE)
    assert with_adapter == with_merged
    assert (adapter / "adapter_model.safetensors").is_file()
    assert not list(adapter.glob("model*"))
    own, shipped = JakiroDraftModel.from_pretrained(merged), JakiroDraftModel.from_pretrained(DRAFT)
    assert not torch.equal(own.fc.weight, shipped.fc.weight.float())
    assert torch.equal(own.norm.weight, shipped.norm.weight.float())  # no linear layer


def test_train_end_to_end(script, tmp_path, capsys):
    _, run = script("train_end_to_end")
    run(*TINY_RUN, "--output_dir", tmp_path / "draft", "--data_dir", tmp_path / "data")
    text = capsys.readouterr().out
    assert re.search(r"accuracy [\d.]+, acceptance length [\d.]+", text)
    assert "2/2" in text  # identical outputs
    draft = JakiroDraftModel.from_pretrained(tmp_path / "draft")
    assert draft.config.target_name_or_path == str(TARGET)
    assert not list((tmp_path / "draft").glob("features*"))  # which a push would publish
    assert json.loads((tmp_path / "draft" / "training.json").read_text())["data"] == {
        "name": "sums in words",
        "rows": 4,
    }


def test_convert_and_publish(script, tmp_path, capsys):
    _, run = script("convert_and_publish")
    run("--output", tmp_path / "repository")
    text = capsys.readouterr().out
    assert "same tokens as plain generate: True" in text
    assert float(re.search(r"forward of the target: (\S+)", text)[1]) > 1.5
    assert 'from_pretrained("me/my-drafter", trust_remote_code=True' in text
    config = json.loads((tmp_path / "repository" / "config.json").read_text())
    assert (config["target_name_or_path"], config["final_norm"]) == ("gsm8k-3.6m", False)
    # a checkpoint and a target of one's own
    draft = new_drafter(AutoModelForCausalLM.from_pretrained(TARGET), **PUBLISHED_SHAPE)
    checkpoint = export_original(draft, tmp_path / "original")
    options = ["--checkpoint", checkpoint, "--target-id", "org/target", "--license", "mit"]
    run(*options, "--output", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["target_name_or_path"] == "org/target"


def test_bench_and_tune(script, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plots of `jakiro bench` need matplotlib")
    _, run = script("bench_and_tune")
    prompts = (PROMPTS).read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "prompts.jsonl").write_text(prompts)
    options = ["--temperature", 0, "--max-new-tokens", 12]
    run(tmp_path / "prompts.jsonl", *options, "--output", tmp_path / "bench")
    text = capsys.readouterr().out
    config = JakiroDraftConfig.from_pretrained(tmp_path / "bench" / "draft")
    assert f"tree_depth: 7 before, {config.tree_depth} after" in text
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert {row["method"] for row in results["summary"]} == {"plain", "jakiro", "published", "prompt_lookup"}
    for name in ("speed_up.png", "results.html"):
        assert str(tmp_path / "bench" / name) in text
        assert (tmp_path / "bench" / name).is_file()


def test_word_problems(script, capsys):
    module, run = script("word_problems")
    run("--number", 40)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == module.make_problems(40)
    questions = {row["messages"][0]["content"] for row in rows}
    assert len(questions) > 35
    assert all("{" not in question for question in questions)
