# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Finds the tree that is fastest on this machine, for a target and its drafter.

1. *Text* (`replay.py`). The target answers sample prompts with plain `generate`. One more forward per answer gives
   what the drafter reads at each position.
2. *Replay* (`replay.py`). For each depth and width, a tree with all of its candidates is grown at every position of
   the answers. The ranks of the answer's own tokens among the candidates tell how many of them a tree of N nodes
   accepts, for every N at once.
3. *Costs* (`step_costs.py`). The median times of growing such a tree, of the target's forward by the number of nodes,
   and of the rest of a step.
4. *Choice* (here). Replay and costs predict tokens per second = (tokens per step) / (time per step). The best few
   trees, the published one and the drafter's own then answer the prompts, taking turns. The fastest wins.

For batches, the costs are those of as many rows, and the finalists answer batches. When some rows have ended, the rows
that are left get the trees found for smaller batches.

The result depends on the machine, on the precision and on what else runs: tune where the drafter will work.
"""

import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..files import write_json
from .acceptance import tokens_per_forward
from .benchmark import Benchmark, load_benchmark
from .methods import METHODS, PUBLISHED, Method
from .prompts import gather_prompts
from .provenance import provenance
from .replay import Answer, Replay, answer_prompts, num_candidates
from .step_costs import MAX_NODES, Costs, full_batches, measure_costs
from .summary import Run, tokens_per_second
from .tree_fields import TreeFields, with_trees

DEPTHS = (2, 3, 4, 5, 6, 7)
WIDTHS = (2, 4, 8)

# called with the phase, how much of it is done, and how much there is
ProgressCallback = Callable[[str, int, int], None]


# -- choice ----------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """How a tree (None: plain `generate`) answered the prompts."""

    tree: TreeFields | None
    runs: list[Run] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(self.runs)

    @property
    def tokens_per_forward(self) -> float:
        return tokens_per_forward([length for run in self.runs for length in run.accept_lengths or ()])


@dataclass
class Tuning:
    """
    Result of [`tune`] for one batch size.

    Args:
        batch_size (`int`): sequences generated at a time.
        best ([`TreeFields`]): the fastest tree as measured. It was never slower than the published one in this run,
            though plain `generate` may have been faster.
        measured (`list[Measured]`): plain `generate`, then the trees of the last round. The published one and the
            drafter's own are among them.
        predicted (`dict[TreeFields, float]`): tokens per second by replay and costs, for trees that have a prediction.
        costs ([`Costs`]): the times that the predictions are made of.
    """

    batch_size: int
    best: TreeFields
    measured: list[Measured]
    predicted: dict[TreeFields, float]
    costs: Costs

    @property
    def plain(self) -> Measured:
        return self.measured[0]

    @property
    def pays(self) -> bool:
        """Whether the fastest tree was at least as fast as plain `generate`."""
        return self.of(self.best).tokens_per_second >= self.plain.tokens_per_second

    def of(self, tree: TreeFields) -> Measured:
        """The measurement of a tree of the last round."""
        return next(result for result in self.measured if result.tree == tree)

    def prediction(self, measured: Measured) -> float | None:
        """The predicted tokens per second of what was measured, if there is a prediction."""
        return None if measured.tree is None else self.predicted.get(measured.tree)


def tune(
    benchmark: Benchmark,
    prompts: Sequence[str],
    temperatures: Sequence[float] = (0.0, 1.0),
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    num_finalists: int = 4,
    progress: ProgressCallback = lambda phase, done, total: None,
    *,
    batch_sizes: Sequence[int] = (1,),
) -> list[Tuning]:
    """
    Finds the fastest tree for each batch size; see the module's docstring. Changes no config.

    Args:
        benchmark ([`Benchmark`]): the models. Its `max_new_tokens` limits each answer.
        prompts (`Sequence[str]`): samples of what the target will be asked.
        depths, widths: trees to replay, each with up to 96 nodes and 32 children per node.
        num_finalists (`int`): trees to measure besides the published one and the drafter's own.
        progress: called with the phase, how much of it is done, and how much there is.
        batch_sizes: sequences generated at a time.

    Raises:
        ValueError: if a batch size is below 1, the answers are too short to tell anything, or the drafter has a fixed
            tree.
    """
    check_batch_sizes(batch_sizes)
    shapes = list(itertools.product(_possible_depths(benchmark, depths), widths))
    answers: list[Answer] = []
    for answer in answer_prompts(benchmark, prompts, temperatures):
        answers.append(answer)
        progress("answering", len(answers), len(prompts) * len(temperatures))
    replay = Replay(benchmark.target, benchmark.draft, answers)
    if replay.num_positions < 8:
        raise ValueError(
            f"The answers have {replay.num_positions} tokens to replay, which tells nothing: it takes at least 8. "
            "Give more prompts or a larger `--max-new-tokens`."
        )
    ranks = _replay_in_turns(replay, shapes, progress)
    longest = max(answers, key=lambda answer: answer.input_ids.shape[1])
    results: list[Tuning] = []
    for batch_size in batch_sizes:
        costs = measure_costs(benchmark, prompts, replay, longest, shapes, batch_size)
        ranked = predictions(costs, replay, ranks, batch_size)
        finalists = _finalists(benchmark, ranked, shapes, num_finalists, batch_size)
        measured = measure(
            benchmark,
            prompts,
            temperatures,
            finalists,
            progress=progress,
            batch_size=batch_size,
            found=_best_trees(results),
        )
        best = _fastest(measured[1:])
        predicted = {tree: speed for speed, tree in ranked if tree in finalists}
        results.append(Tuning(batch_size, best, measured, predicted, costs))
    return results


def check_batch_sizes(batch_sizes: Sequence[int]) -> None:
    """Raises a `ValueError` for sizes that no batch has."""
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"`--batch-size` must be at least 1, got {[*batch_sizes]}. Give 1 for single sequences.")


def _possible_depths(benchmark: Benchmark, depths: Sequence[int]) -> list[int]:
    """The depths that the answers have room for. Raises a `ValueError` if there is nothing to tune."""
    if benchmark.draft.config.static_tree is not None:
        raise ValueError(
            "The drafter has a fixed tree (`static_tree`), so there is nothing to choose. Set "
            "`draft.config.static_tree = None` and save it to have its trees tuned."
        )
    longest_path = benchmark.max_new_tokens - 2
    possible = [depth for depth in depths if depth <= longest_path]
    if not possible:
        raise ValueError(
            f"With `--max-new-tokens {benchmark.max_new_tokens}` no path of a tree has more than {longest_path} "
            f"tokens, which is less than any depth to be tried. Give at least {min(DEPTHS) + 2}."
        )
    return possible


def _replay_in_turns(
    replay: Replay, shapes: Sequence[tuple[int, int]], progress: ProgressCallback
) -> dict[tuple[int, int], list[list[int]]]:
    """
    The ranks at each position by depth and width. The shapes take turns, so that none has a quieter machine than the
    others.
    """
    ranks: dict[tuple[int, int], list[list[int]]] = {shape: [] for shape in shapes}
    replays = {shape: replay.ranks(*shape) for shape in shapes}
    for position in range(replay.num_positions):
        for shape, rows in replays.items():
            ranks[shape].append(next(rows))
        progress("replaying", position + 1, replay.num_positions)
    return ranks


def predictions(
    costs: Costs, replay: Replay, ranks: Mapping[tuple[int, int], Sequence[list[int]]], batch_size: int = 1
) -> list[tuple[float, TreeFields]]:
    """The predicted tokens per second of all trees, all rows of a batch together. The fastest tree comes first."""
    found = []
    for (depth, width), rows in ranks.items():
        for num_draft_tokens in range(1, min(MAX_NODES, num_candidates(depth, width)) + 1):
            lengths = replay.accepted_lengths(rows, num_draft_tokens)
            seconds = costs.step_seconds(depth, width, num_draft_tokens)
            speed = batch_size * (1 + statistics.fmean(lengths)) / seconds
            found.append((speed, TreeFields(depth, width, num_draft_tokens)))
    return sorted(found, key=lambda pair: -pair[0])


def _finalists(
    benchmark: Benchmark,
    ranked: Sequence[tuple[float, TreeFields]],
    shapes: Sequence[tuple[int, int]],
    count: int,
    batch_size: int,
) -> list[TreeFields]:
    """The trees to measure: the published one, the drafter's own, and the `count` most promising ones."""
    config: Any = benchmark.draft.config  # which `PreTrainedModel` declares as its base class
    trees = [TreeFields(**PUBLISHED), TreeFields.of(config, batch_size), *shortlist(ranked, count)]
    if batch_size > 1:  # perhaps no tree pays: then the one that loses least
        depths, widths = zip(*shapes, strict=True)
        trees.append(TreeFields(min(depths), min(widths), num_draft_tokens=1))
    return list(dict.fromkeys(trees))


def shortlist(ranked: Sequence[tuple[float, TreeFields]], count: int) -> list[TreeFields]:
    """The fastest trees of different depths and widths. Trees that differ in few nodes are all alike."""
    chosen: dict[tuple[int, int], TreeFields] = {}
    for _, tree in ranked:
        chosen.setdefault((tree.tree_depth, tree.tree_width), tree)
        if len(chosen) == count:
            break
    return list(chosen.values())


def measure(
    benchmark: Benchmark,
    prompts: Sequence[str],
    temperatures: Sequence[float],
    trees: Sequence[TreeFields],
    progress: ProgressCallback = lambda phase, done, total: None,
    batch_size: int = 1,
    found: Mapping[int, TreeFields] | None = None,
) -> list[Measured]:
    """
    Lets plain `generate` and each tree answer each batch of prompts at each temperature, taking turns. The drafter's
    config is left as it was.

    Args:
        found: trees found so far, by batch size, for what is left of a batch when some rows have ended.
    """
    results = [Measured(tree) for tree in (None, *trees)]
    methods = [Method("plain", METHODS["plain"].description)]
    methods += [tree.method(benchmark.draft, batch_size, found) for tree in trees]
    rounds = list(itertools.product(temperatures, full_batches(prompts, batch_size)))
    phase = "measuring" if batch_size == 1 else f"measuring, {batch_size} at a time"
    for number, (temperature, batch) in enumerate(rounds):
        inputs = benchmark.encode_batch(batch)
        for index in range(len(results)):  # each takes its turn at being the first
            turn = (index + number) % len(results)
            run, _ = benchmark.answer(methods[turn], 0, inputs, temperature)
            results[turn].runs.append(run)
            progress(phase, number * len(results) + index + 1, len(rounds) * len(results))
    return results


def _fastest(measured: Iterable[Measured]) -> TreeFields:
    """The tree with the most tokens per second."""
    speeds = {result.tree: result.tokens_per_second for result in measured if result.tree is not None}
    return max(speeds, key=speeds.__getitem__)


def _best_trees(results: Iterable[Tuning]) -> dict[int, TreeFields]:
    """The fastest tree by batch size."""
    return {result.batch_size: result.best for result in results}


# -- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuneOptions:
    """
    What `jakiro tune` tunes for. The fields are the `arguments` of its report.

    Args:
        files: prompts ([`~transformers_jakiro.measuring.prompts.read_prompts`]); default: those that ship.
        target, draft: folders or Hub ids.
        temperature: those to tune for; 0 is greedy.
        tasks, limit: which tasks, and how many prompts of each.
        max_new_tokens: per prompt.
        dtype: of both models.
        deepen: layers to give the target by inserting identity layers
            ([`~transformers_jakiro.measuring.deepened.deepen`]).
        batch_size: sequences generated at a time. The tree for 1 becomes the drafter's own, those for others its
            `batch_trees`.
    """

    files: Sequence[str]
    target: str
    draft: str
    temperature: Sequence[float] = (0.0, 1.0)
    tasks: Sequence[str] | None = None
    limit: int | None = 1
    max_new_tokens: int = 48
    dtype: str = "bfloat16"
    deepen: int | None = None
    batch_size: Sequence[int] = (1,)


def run_tune(options: TuneOptions, output: str | None = None, report: str | None = None) -> list[Tuning]:
    """
    The `jakiro tune` command: finds the fastest tree for each batch size, prints what was measured, and writes the
    trees to the drafter's config.

    Args:
        options ([`TuneOptions`]): what to tune for.
        output (`str`, *optional*): folder for a copy of the drafter with its new trees. By default the config.json of
            `options.draft` is changed.
        report (`str`, *optional*): JSON file for all figures.

    Raises:
        ValueError: if a batch size is below 1, `options.draft` is not a folder and there is no `output`, or it is a
            PEFT adapter.
    """
    check_batch_sizes(options.batch_size)
    folder = _folder_of(options.draft, output)
    prompts = [prompt.turns[0] for prompt in gather_prompts(options.files, options.tasks, options.limit)]
    benchmark, label = load_benchmark(
        options.target, options.draft, options.dtype, options.max_new_tokens, ("jakiro",), deepen=options.deepen
    )
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a file has room for the whole table
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        sizes = sorted(set(options.batch_size))
        progress = partial(_show_progress, bars, {})
        results = tune(benchmark, prompts, options.temperature, progress=progress, batch_sizes=sizes)
    temperatures = ", ".join(f"{value:g}" for value in options.temperature)
    for result in results:
        console.print(_table(result, f"{label}, {len(prompts)} prompts, T = {temperatures}"))
        if not result.pays:
            console.print(f"On this machine plain generate is faster than any tree of this drafter{_for(result)}.")
    if output is not None:
        folder = Path(shutil.copytree(folder, output, dirs_exist_ok=True))
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", with_trees(content, _best_trees(results)))
    for result in results:
        console.print(f"Saved the fastest tree{_for(result)} to {output or options.draft}: {result.best}")
    if report is not None:
        write_json(Path(report), to_json(results, **vars(options)))
        console.print(f"Saved {report}")
    return results


def _folder_of(draft: str, output: str | None) -> Path:
    """The drafter's folder, downloaded if need be. Raises a `ValueError` if its new trees cannot be written."""
    if output is None and not Path(draft).is_dir():
        raise ValueError(
            f"`--draft` {draft} is not a folder, so its config cannot be changed in place. Give `--output`, a folder "
            "for the drafter with its new trees."
        )
    folder = Path(draft) if Path(draft).is_dir() else Path(snapshot_download(draft))
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{draft} has no config.json to write the tree to. If it is a PEFT adapter, merge it into its drafter "
            "(`draft.merge_and_unload()`), save that and tune it."
        )
    return folder


def _show_progress(bars: Progress, tasks: dict[str, TaskID], phase: str, done: int, total: int) -> None:
    """A bar for each phase. `tasks` are the bars so far."""
    if phase not in tasks:
        tasks[phase] = bars.add_task(phase, total=total)
    bars.update(tasks[phase], completed=done)


def _for(result: Tuning) -> str:
    return "" if result.batch_size == 1 else f" for batches of {result.batch_size}"


def _table(result: Tuning, title: str) -> Table:
    """What was measured for one batch size, for a terminal."""
    table = Table(title=title if result.batch_size == 1 else f"{title}, batches of {result.batch_size}")
    table.add_column("tree", no_wrap=True)
    for column in ("tokens/s", "speed-up", "x published", "tokens/forward", "predicted tokens/s"):
        table.add_column(column, justify="right")
    published = result.of(TreeFields(**PUBLISHED)).tokens_per_second
    for measured in sorted(result.measured, key=lambda measured: -measured.tokens_per_second):
        predicted = result.prediction(measured)
        table.add_row(
            "plain generate" if measured.tree is None else str(measured.tree),
            f"{measured.tokens_per_second:.1f}",
            f"{measured.tokens_per_second / result.plain.tokens_per_second:.2f}",
            f"{measured.tokens_per_second / published:.2f}",
            f"{measured.tokens_per_forward:.2f}",
            "-" if predicted is None else f"{predicted:.1f}",
        )
    return table


def to_json(results: Sequence[Tuning], **arguments: Any) -> dict[str, Any]:
    """All figures with their provenance: those of the first batch size, and those of further ones in `batches`."""
    first, *others = map(_figures, results)
    return {"provenance": provenance(**arguments), **first, "batches": others}


def _figures(result: Tuning) -> dict[str, Any]:
    return {
        "batch_size": result.batch_size,
        "best": asdict(result.best),
        "pays": result.pays,
        "measured": [
            {
                "tree": None if measured.tree is None else asdict(measured.tree),
                "tokens_per_second": measured.tokens_per_second,
                "tokens_per_forward": measured.tokens_per_forward,
                "predicted_tokens_per_second": result.prediction(measured),
            }
            for measured in result.measured
        ],
        "target_seconds": result.costs.target,
        "draft_seconds": [
            {"tree_depth": depth, "tree_width": width, "seconds": seconds}
            for (depth, width), seconds in result.costs.draft.items()
        ],
        "rest_seconds": result.costs.rest,
    }


__all__ = ["Measured", "TuneOptions", "Tuning", "measure", "predictions", "run_tune", "shortlist", "tune"]
