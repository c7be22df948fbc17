# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trains one drafter per recipe, all on the same data for the same number of tokens, and compares what they give: the
command behind the table in `docs/training.md`.

    python examples/compare_recipes.py examples/recipes.yaml --target TARGET --data train.jsonl.gz \\
        --prompts eval/*.jsonl --tokens 2_000_000 --output recipes --dtype bfloat16

A recipe is a set of arguments of `jakiro train`, see `examples/recipes.yaml`. `DIR/NAME/config.yaml` holds all of
them, so that `jakiro train DIR/NAME/config.yaml` trains that drafter again. Besides, a recipe may have

- `description`: for the table;
- `tree`: fields of the drafter's config that say how its trees are chosen;
- `drafter`: in place of arguments, the name of the recipe before it whose drafter it takes, for other trees.

After the training each drafter is

- evaluated on the held-out rows: accuracies, and the tokens per target forward that its trees can expect;
- used: it answers the prompts at temperature 0 and 1 with trees of 59 nodes and 7 levels (10 children per node, unless
  `tree` says otherwise), one at a time. tau is the number of tokens per target forward (see
  `transformers_jakiro.measuring.benchmark`), of each task over all of its prompts, then the mean of the tasks.

`DIR/results.json` (all figures, with their provenance), `DIR/results.md` (the table) and `DIR/results.png` are written
after each recipe. Stopped and run again, it goes on with the last checkpoint of the unfinished recipe.

Hardware: any; one process. Accuracies and tau do not depend on it, apart from rounding; the training times do. Time:
for a 44M-parameter target, on one shared core of an x86 server CPU (AVX-512, no AMX), a recipe takes about half an
hour per million tokens, or a quarter of an hour if `--data` are features that `jakiro features` wrote, and then 5 to
10 seconds per prompt and temperature.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.files import write_json
from transformers_jakiro.measuring.acceptance import accept_lengths, tokens_per_forward
from transformers_jakiro.measuring.benchmark import Benchmark
from transformers_jakiro.measuring.prompts import Prompt, read_prompts
from transformers_jakiro.measuring.provenance import provenance
from transformers_jakiro.training.command import main as train
from transformers_jakiro.training.command import parse, read_data
from transformers_jakiro.training.data import prepare_dataset
from transformers_jakiro.training.features import FeatureDataset

CONTROL = "control"
TEMPERATURES = (0.0, 1.0)
TREE = {"tree_depth": 7, "tree_top_k": 10, "num_draft_tokens": 59}
# what is no argument of `jakiro train`
NOT_TRAINED = ("description", "tree", "drafter")
# what all results of a table must have in common
COMPARABLE = ("target", "data", "dtype", "tokens", "prompts", "limit", "max_new_tokens")

Recipe = dict[str, Any]


def read_recipes(path: Path) -> dict[str, Recipe]:
    """Per name the description and all arguments of a recipe, those of `common` included."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.keys() - {"common", "recipes"} or not content.get("recipes"):
        raise ValueError(f"{path} must hold `recipes` (names with their arguments) and may hold `common`, no more.")
    recipes = {name: {**(content.get("common") or {}), **(own or {})} for name, own in content["recipes"].items()}
    if CONTROL not in recipes:
        raise ValueError(f"{path} has no recipe `{CONTROL}`, with which the others are compared; got {[*recipes]}.")
    for name, recipe in recipes.items():
        if not recipe.get("num_eval_rows") and recipe.get("eval_data") is None:
            raise ValueError(f"Recipe `{name}` has nothing to evaluate on: set `num_eval_rows` or `eval_data`.")
        drafter = recipe.get("drafter")
        if drafter is not None and "drafter" in recipes.get(drafter, {"drafter": None}):
            raise ValueError(f"Recipe `{name}` takes the drafter of `{drafter}`, which is no recipe that trains one.")
    return recipes


def write_config(recipe: Recipe, folder: Path, num_tokens: int | None, **given: Any) -> tuple[Path, float]:
    """
    Writes the arguments of `jakiro train` to the recipe's folder, or checks that they are there already. Those of the
    recipe override what is `given`.

    Returns:
        The file, and the (mean) number of tokens of an optimizer step.
    """
    values = {name: value for name, value in recipe.items() if name not in NOT_TRAINED}
    values = {**given, **values, "output_dir": str(folder)}
    if not torch.accelerator.is_available():
        values["use_cpu"] = True  # else Trainer takes `bf16` for a GPU's
    path = folder / "config.yaml"
    temporary = path.with_name(path.name + ".tmp")
    folder.mkdir(parents=True, exist_ok=True)
    temporary.write_text(yaml.safe_dump(values), encoding="utf-8")
    script_args, args = parse([str(temporary)])
    tokens_per_step = (
        args.train_batch_size
        * args.gradient_accumulation_steps
        * mean_length(
            *(script_args.target, script_args.data, script_args.data_split, script_args.num_rows),
            *(args.max_length, args.packing),
        )
    )
    if num_tokens is not None:
        values["max_steps"] = max(1, round(num_tokens / tokens_per_step))
        temporary.write_text(yaml.safe_dump(values), encoding="utf-8")
    if path.exists() and path.read_text(encoding="utf-8") != temporary.read_text(encoding="utf-8"):
        raise ValueError(
            f"{folder} was trained with other arguments: compare {path} with {temporary.name}. Give the recipe "
            "another name, choose another `--output`, or delete the folder."
        )
    temporary.replace(path)
    return path, tokens_per_step


@cache
def mean_length(target: str, data: str, split: str, num_rows: int | None, max_length: int, packing: bool) -> float:
    """Tokens per row."""
    rows = read_data(data, split)
    if isinstance(rows, FeatureDataset):
        return statistics.fmean(rows.lengths[:num_rows])
    rows = prepare_dataset(
        read_data(data, split, num_rows),
        AutoTokenizer.from_pretrained(target),
        max_length=max_length,
        packing=packing,
    )
    return statistics.fmean(len(rows[index]["input_ids"]) for index in range(len(rows)))


def train_recipe(config: Path, tokens_per_step: float) -> dict[str, Any]:
    """Trains and evaluates the drafter of a configuration file, or goes on with it; returns its figures."""
    checkpoint = get_last_checkpoint(config.parent)
    steps_before = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step if checkpoint else 0
    trainer = train([str(config), *(["--resume_from_checkpoint", checkpoint] if checkpoint else [])])
    (seconds,) = (log["train_runtime"] for log in trainer.state.log_history if "train_runtime" in log)
    steps = trainer.state.global_step
    # of a continued training only the last part was timed
    speed = (steps - steps_before) * tokens_per_step / seconds
    return {
        "parameters": trainer.model.num_parameters(),
        "training": {
            "steps": steps,
            "tokens": round(steps * tokens_per_step),
            "seconds": steps * tokens_per_step / speed if speed else None,
            "tokens_per_second": speed or None,
        },
        "evaluation": {name: x for name, x in trainer.state.log_history[-1].items() if name.startswith("eval_")},
    }


def generate_all(
    benchmark: Benchmark, prompts: Sequence[Prompt], temperature: float, description: str
) -> dict[str, Any]:
    """Answers all prompts with the drafter: tokens per target forward by task, and drafter forwards per tree."""
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    accepted: dict[str, list[int]] = {}
    handle = benchmark.draft.register_forward_hook(count)
    for task, _, turns in tqdm(prompts, desc=f"{description}, T = {temperature:g}"):
        torch.manual_seed(0)
        input_ids = benchmark.encode(turns[0])["input_ids"]
        accepted.setdefault(task, []).extend(
            accept_lengths(benchmark.target, benchmark.draft, input_ids, temperature, benchmark.max_new_tokens)
        )
    handle.remove()
    tasks = {task: tokens_per_forward(lengths) for task, lengths in accepted.items()}
    return {
        "temperature": temperature,
        "tokens_per_forward": statistics.fmean(tasks.values()),
        "tasks": tasks,
        "draft_forwards_per_step": forwards / max(1, sum(map(len, accepted.values()))),
    }


def load_pair(target: str, draft: Path, tree: dict[str, Any], dtype: str, max_new_tokens: int) -> Benchmark:
    """The target and a drafter with the given trees."""
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, device_map="auto")
    draft_model = JakiroDraftModel.from_pretrained(draft, dtype=target_model.dtype).to(target_model.device)
    for name, value in tree.items():
        setattr(draft_model.config, name, value)
    return Benchmark(target_model, draft_model, AutoTokenizer.from_pretrained(target), max_new_tokens)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    control = results.get(CONTROL, {})
    lines = [
        "| recipe | parameters | x control | training | tokens/s | accuracy | top 3 | expected tau "
        + "".join(f"| tau, T = {value:g} | x control " for value in TEMPERATURES)
        + "| drafter forwards per step |",
        "| --- |" + " ---: |" * (8 + 2 * len(TEMPERATURES)),
    ]
    for name, result in results.items():
        training, metrics = result["training"], result["evaluation"]
        of_control = result["parameters"] / control["parameters"] if control else None
        cells = [
            f"`{name}`: {result['description']}" if result["description"] else f"`{name}`",
            f"{result['parameters'] / 1e6:.3g}M",
            _format(of_control, ".2f"),
            _format(training["seconds"] and training["seconds"] / 60, ".1f", " min"),
            _format(training["tokens_per_second"], ".0f"),
            _format(metrics.get("eval_accuracy"), ".1%"),
            _format(metrics.get("eval_accuracy_top3"), ".1%"),
            _format(metrics.get("eval_expected_acceptance_length"), ".2f"),
        ]
        for index, generation in enumerate(result["generation"]):
            tau = generation["tokens_per_forward"]
            of_control = tau / control["generation"][index]["tokens_per_forward"] if control else None
            cells += [f"{tau:.3f}", _format(of_control, ".3f")]
        cells.append(f"{result['generation'][0]['draft_forwards_per_step']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _format(value: float | None, spec: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{unit}"


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """A bar per recipe and temperature: tokens per target forward."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.7 * len(results)), layout="constrained")
    height = 0.38
    for index, (temperature, color) in enumerate(zip(TEMPERATURES, ("#0969da", "#bc4c00"), strict=True)):
        bars = axes.barh(
            [place + height * index for place in range(len(results))],
            [result["generation"][index]["tokens_per_forward"] for result in results.values()],
            height,
            color=color,
            label=f"T = {temperature:g}",
        )
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks([place + height / 2 for place in range(len(results))], list(results))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("tokens per target forward (mean of the tasks)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a drafter per recipe on the same data, and compare them.")
    parser.add_argument("recipes", type=Path, metavar="RECIPES.yaml", help="see examples/recipes.yaml")
    parser.add_argument("--target", required=True, metavar="T", help="folder or Hub id")
    parser.add_argument("--data", required=True, metavar="D", help="conversations, or what `jakiro features` wrote")
    parser.add_argument(
        "--prompts", required=True, nargs="+", metavar="FILE", help="JSON lines with `id`, `task`, `turns`"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for all results")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens to train for (the recipe's epochs or steps)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes to run (all)")
    parser.add_argument("--dtype", default="bfloat16", help="precision of the target (bfloat16)")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts per file (all)")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="per prompt (200)")
    args = parser.parse_args()

    if find_spec("matplotlib") is None:
        parser.error("the chart needs matplotlib: `pip install matplotlib`")
    recipes = read_recipes(args.recipes)
    unknown = set(args.only or ()) - recipes.keys()
    if unknown:
        parser.error(f"{args.recipes} has no recipe {sorted(unknown)}, only {[*recipes]}")
    prompts = [row for file in args.prompts for row in read_prompts(Path(file), args.limit)]
    chosen = [name for name in recipes if args.only is None or name in args.only]
    path = args.output / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    arguments = {**vars(args), "recipes": str(args.recipes), "output": str(args.output)}
    for name, result in results.items():
        before = result["provenance"]["arguments"]
        changed = {key: (before[key], arguments[key]) for key in COMPARABLE if before[key] != arguments[key]}
        if changed:
            raise ValueError(
                f"{path} has results of `{name}` with other arguments (before, now): {changed}. Repeat those of "
                "before, or choose another `--output`."
            )
    finished: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(chosen, start=1):
        title, recipe = f"[{number}/{len(chosen)}] {name}", recipes[name]
        trained = recipe.get("drafter", name)
        folder = args.output / trained
        if trained == name:
            config, tokens_per_step = write_config(
                recipe, folder, args.tokens, target=args.target, data=args.data, target_dtype=args.dtype
            )
        elif trained not in results:
            parser.error(f"{args.output} has no drafter of `{trained}` yet, which `{name}` takes")
        if name not in results:
            if trained == name:
                print(f"{title}: training", flush=True)
                figures = train_recipe(config, tokens_per_step)
            else:
                figures = {key: results[trained][key] for key in ("parameters", "training", "evaluation")}
            results[name] = {
                "description": recipe.get("description", ""),
                "provenance": provenance(**arguments),
                **figures,
            }
            write_json(path, results)
        result = results[name]
        tree = {**TREE, **recipe.get("tree", {})}
        if result.get("tree") != tree:
            benchmark = load_pair(args.target, folder, tree, args.dtype, args.max_new_tokens)
            result["generation"] = [generate_all(benchmark, prompts, value, title) for value in TEMPERATURES]
            result["tree"] = tree
            write_json(path, results)
        else:
            print(f"{title}: finished before", flush=True)
        finished = {key: results[key] for key in recipes if "generation" in results.get(key, {})}
        (args.output / "results.md").write_text(table(finished), encoding="utf-8")
        draw(finished, args.output / "results.png")
    print(table(finished))
    print(f"Saved {path}, results.md and results.png")


if __name__ == "__main__":
    main()
