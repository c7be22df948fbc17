# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The `jakiro bench` command: what it measures, the order of its runs, what it prints and saves.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from . import report
from .benchmark import Benchmark, batch_key, load_benchmark
from .journal import Journal
from .methods import Method
from .profiling import context_growth
from .prompts import Prompt, gather_prompts, in_batches
from .provenance import provenance
from .summary import summarize

if TYPE_CHECKING:
    from rich.console import Console

# a temperature, and prompts that are answered together
Job = tuple[float, Sequence[Prompt]]


@dataclass(frozen=True)
class BenchOptions:
    """
    What `jakiro bench` measures. The fields are the `arguments` of its results.

    Args:
        files: prompts ([`~transformers_jakiro.measuring.prompts.read_prompts`]). If empty, the shipped ones are used;
            with `context`, none.
        target, draft, control, assistant: folders or Hub ids.
        temperature: 0 is greedy.
        tasks, limit: which tasks to take, and how many prompts of each.
        max_new_tokens: per turn.
        methods, assistant_early_exit, num_assistant_tokens: see
            [`~transformers_jakiro.measuring.methods.make_methods`].
        batch_size: prompts of a task that are answered at a time; only the first turn of each. Prompts that do not
            fill a batch are left out, and so are methods that take one prompt at a time.
        profile: prompts (or batches) of each task to run again with timers.
        deepen: number of layers to give the target by inserting identity layers
            ([`~transformers_jakiro.measuring.deepened.deepen`]).
        dtype: precision of all models.
        context: context lengths at which a step's time is measured, too.
    """

    files: Sequence[str]
    target: str
    draft: str
    temperature: Sequence[float] = (0.0,)
    tasks: Sequence[str] | None = None
    limit: int | None = None
    max_new_tokens: int = 200
    methods: Sequence[str] | None = None
    control: str | None = None
    assistant: str | None = None
    assistant_early_exit: int | None = None
    num_assistant_tokens: Sequence[int] | None = None
    batch_size: int = 1
    profile: int = 1
    deepen: int | None = None
    dtype: str = "bfloat16"
    context: Sequence[int] | None = None


def run_bench(options: BenchOptions, output: str | None = None, console: "Console | None" = None) -> dict[str, Any]:
    """
    The `jakiro bench` command. It lets all methods answer the prompts at all temperatures, prints tables and writes a
    report. A stopped run continues if it is started again with the same options.

    Args:
        options ([`BenchOptions`]): what to measure.
        output (`str`, *optional*): folder for the report; default: none is written.
        console ([`~rich.console.Console`], *optional*): where to print; default: standard output.

    Returns:
        What `results.json` holds; see `results.schema.json` beside this module.

    Raises:
        ValueError: if the models, prompts or methods do not fit, or `output` holds results of other options.
        SystemExit: with code 130, if it is stopped from the keyboard.
    """
    if options.profile < 0:
        raise ValueError(f"`--profile` must be at least 0, got {options.profile}.")
    console = _console(console)
    prompts: list[Prompt] = []
    if options.files or not options.context:
        prompts = gather_prompts(options.files, options.tasks, options.limit)
    batches, left_out = in_batches(prompts, options.batch_size)
    folder = _report_folder(output)
    conditions = provenance(**vars(options))
    journal = Journal(None if folder is None else folder / "runs.jsonl", conditions)
    benchmark, label = load_benchmark(
        options.target,
        options.draft,
        options.dtype,
        options.max_new_tokens,
        methods=options.methods,
        control=options.control,
        assistant=options.assistant,
        assistant_early_exit=options.assistant_early_exit,
        num_assistant_tokens=options.num_assistant_tokens,
        deepen=options.deepen,
    )
    methods = benchmark.methods  # with those that cannot run
    jobs = [(temperature, batch) for temperature in options.temperature for batch in batches]
    try:
        _run_jobs(benchmark, journal, jobs, options.profile, console)
    except KeyboardInterrupt:
        _print_stopped(console, len(journal.records), len(jobs), folder)
        raise SystemExit(130) from None
    payload = _payload(benchmark, label, conditions, methods, journal, jobs, options.context)
    _print_results(console, payload, left_out, options.batch_size)
    if folder is not None:
        _save_results(console, payload, folder)
    return payload


def _console(console: "Console | None") -> "Console":
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        console.width = 150  # a file has room for the whole table
    return console


def _report_folder(output: str | None) -> Path | None:
    """Makes the folder of `--output`, if there is one."""
    if output is None:
        return None
    folder = Path(output)
    if folder.is_file():
        raise ValueError(f"`--output` must be a folder, {folder} is a file. Choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _payload(
    benchmark: Benchmark,
    label: str,
    conditions: Mapping[str, Any],
    methods: Sequence[Method],
    journal: Journal,
    jobs: Sequence[Job],
    context: Sequence[int] | None,
) -> dict[str, Any]:
    """The contents of `results.json`. How a step's time grows with the `context` is measured here."""
    records = [journal.records[_job_key(job)] for job in jobs]
    skipped = journal.skipped or {}
    return {
        "schema_version": report.SCHEMA_VERSION,
        "label": label,
        "provenance": {
            **conditions,
            "target_config": _config(benchmark.target),
            "draft_config": _config(benchmark.draft),
        },
        "methods": [
            {"name": method.name, "description": method.description, "skipped": skipped.get(method.name)}
            for method in methods
        ],
        "summary": summarize(records),
        "context": context_growth(benchmark.target, benchmark.draft, context) if context else [],
        "records": [asdict(record) for record in records],
    }


def _print_stopped(console: "Console", num_answered: int, num_jobs: int, folder: Path | None) -> None:
    console.print(f"Stopped after {num_answered} of {num_jobs} answers.", end=" ")
    if folder is not None:
        console.print("Run the same command again to go on.", end="")
    console.print()


def _print_results(console: "Console", payload: dict[str, Any], left_out: Sequence[Prompt], batch_size: int) -> None:
    """Prints the tables, the methods that cannot run, and the prompts that fill no batch."""
    from rich.markup import escape

    console.print(f"[bold]{escape(payload['label'])}[/bold]", soft_wrap=True)
    for table in report.tables(payload):
        console.print(table)
    console.print(escape(report.conditions(payload)), soft_wrap=True)
    for method in payload["methods"]:
        if method["skipped"] is not None:
            line = f"[bold]{method['name']}[/bold] {report.cannot_run(payload)}: {escape(method['skipped'])}"
            console.print(line, soft_wrap=True)
    if left_out:
        names = ", ".join(f"{prompt.task} {prompt.id}" for prompt in left_out)
        console.print(f"Left out, as they fill no batch of {batch_size}: {escape(names)}", soft_wrap=True)


def _save_results(console: "Console", payload: dict[str, Any], folder: Path) -> None:
    """Writes the report, and says what was written."""
    from rich.markup import escape

    missing = report.write_report(folder, payload)
    plots = "" if missing else " and plots"
    console.print(f"Saved {escape(str(folder / 'results.json'))}, results.md, results.html{plots}")
    if missing:
        console.print(missing, soft_wrap=True)


def _run_jobs(
    benchmark: Benchmark, journal: Journal, jobs: Sequence[Job], num_profiled: int, console: "Console"
) -> None:
    """Runs the jobs that the journal does not hold yet."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    left = [job for job in jobs if _job_key(job) not in journal.records]
    if not left:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("warm-up", total=len(left))
        _warm_up(benchmark, journal, jobs, left)
        num_seen: dict[tuple[float, str], int] = {}  # by temperature and task
        for number, job in enumerate(jobs):
            temperature, prompts = job
            task = prompts[0].task
            index = num_seen.setdefault((temperature, task), 0)
            num_seen[temperature, task] += 1
            if _job_key(job) in journal.records:
                continue
            progress.update(bar, description=f"{task}, T = {temperature:g}")
            journal.add(benchmark.run_prompts(prompts, temperature, profile=index < num_profiled, first=number))
            progress.advance(bar)


def _warm_up(benchmark: Benchmark, journal: Journal, jobs: Sequence[Job], left: Sequence[Job]) -> None:
    """Warms the methods up, and drops those that cannot run. Which these are is found out once and then noted."""
    if journal.skipped is None:
        temperatures = list(dict.fromkeys(temperature for temperature, _ in jobs))
        journal.skip(benchmark.warm_up([prompts for _, prompts in jobs], temperatures))
    else:
        benchmark.methods = [method for method in benchmark.methods if method.name not in journal.skipped]
        benchmark.warm_up([prompts for _, prompts in left], [left[0][0]])


def _job_key(job: Job) -> tuple[float, str, str]:
    """Where the journal keeps a job's record."""
    temperature, prompts = job
    return (temperature, *batch_key(prompts))


def _config(model: PreTrainedModel) -> dict[str, Any]:
    """The config as JSON holds it."""
    return json.loads(model.config.to_json_string())


__all__ = ["BenchOptions", "run_bench"]
