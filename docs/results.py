# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Measures how much faster a drafter is, and writes `docs/results.md`, its plots, and the figures of the README. All
figures come from the JSON files of `jakiro tune` and `jakiro bench`.

    python docs/results.py PROMPTS.jsonl ... --target T --draft D --control D2 --name "what to call T"

There are two settings: the target as it is, and the same target deepened to 32 layers. In each, `jakiro tune` finds
the drafter's tree on the prompts that ship, and writes it to a copy of the drafter. For the target as it is, it also
finds trees for batches. Then `jakiro bench` lets that drafter and all other methods that can run answer PROMPTS. Each
command runs in its own process. If the script is stopped, run it again to go on. Without `--target` and `--draft` it
only rewrites the page, from the JSON files in `docs/results`.

Hardware: any, but nothing else should run on it. Time: with the defaults and seven tasks, as long as about a thousand
answers of 64 tokens take.
"""

import argparse
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_jakiro.files import write_json, write_text
from transformers_jakiro.measuring.methods import PUBLISHED
from transformers_jakiro.measuring.plots import draw_plots
from transformers_jakiro.measuring.report import NOTES, conditions, markdown_table, markdown_tables
from transformers_jakiro.measuring.tree_fields import TreeFields

ROOT = Path(__file__).parents[1]
SETTINGS = ("target", "deepened")
METHODS = ("plain", "static", "jakiro", "jakiro_static", "published", "adaptive", "chain", "prompt_lookup")
OURS = ("plain", "jakiro", "published")  # the headline compares these
TUNE_TOKENS = 48  # at most, per prompt
BATCH_SIZES = ("1", "4", "16")  # to find trees for, with the target as it is
MOST_BYTES = 300_000  # larger JSON files lose their single answers
START, END = "<!-- figures: written by docs/results.py -->", "<!-- end of figures -->"


# -- measuring -------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line, or an error if they do not fit together."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", metavar="FILE", nargs="*", help="prompts, as for `jakiro bench` (those that ship)")
    parser.add_argument("--target", metavar="T", help="folder or Hub id; without it, only the page is rewritten")
    parser.add_argument("--draft", metavar="D", help="folder or Hub id; never changed")
    parser.add_argument("--control", metavar="D2", help="another drafter, for the method eagle2")
    parser.add_argument("--name", help="what to call the target on the page (its folder's name)")
    parser.add_argument("--deepen", type=int, default=32, metavar="N", help="layers of the deepened target (32)")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks of the prompts to take (all)")
    parser.add_argument("--limit", type=int, default=2, metavar="N", help="prompts per task (2)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="per turn (64)")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0], metavar="T", help="(0 1)")
    parser.add_argument("--methods", nargs="+", metavar="M", help=f"({' '.join(METHODS)}, and eagle2 with --control)")
    parser.add_argument("--dtype", default="bfloat16", help="precision of all models (bfloat16)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "results", metavar="DIR", help="(build/results)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="where README.md and docs are (here)")
    args = parser.parse_args(argv)
    if (args.target is None) != (args.draft is None):
        parser.error("`--target` and `--draft` go together: give both to measure, or neither to rewrite the page.")
    return args


def stages(args: argparse.Namespace) -> dict[str, list[str]]:
    """The `jakiro` commands in order, by the JSON file in the working folder that each writes at its end."""
    methods = args.methods or [*METHODS, *(["eagle2"] if args.control else [])]
    common = ["--target", args.target, "--dtype", args.dtype, "--temperature", *(f"{t:g}" for t in args.temperature)]
    commands = {}
    for setting in SETTINGS:
        folder = args.work / setting
        options = [*common, *(["--deepen", str(args.deepen)] if setting == "deepened" else [])]
        tuned = ["--draft", args.draft, "--output", str(folder / "draft"), "--report", str(folder / "tune.json")]
        tuned += ["--max-new-tokens", str(min(TUNE_TOKENS, args.max_new_tokens))]
        tuned += ["--batch-size", *BATCH_SIZES] if setting == "target" else []
        commands[f"{setting}/tune.json"] = ["tune", *options, *tuned]
        options += ["--draft", str(folder / "draft"), "--output", str(folder / "bench"), "--limit", str(args.limit)]
        options += ["--max-new-tokens", str(args.max_new_tokens), "--methods", *methods]
        for name in ("control", "tasks"):
            value = getattr(args, name)
            options += [] if value is None else [f"--{name}", *([value] if name == "control" else value)]
        commands[f"{setting}/bench/results.json"] = ["bench", *args.files, *options]
    return commands


def jakiro(arguments: Sequence[str]) -> int:
    """Runs a `jakiro` command in its own process. Returns its exit code."""
    return subprocess.run([sys.executable, "-m", "jakiro_cli", *arguments], check=False).returncode


def measure(commands: dict[str, list[str]], work: Path) -> None:
    """
    Runs the commands whose JSON files are missing.

    Raises:
        SystemExit: if the folder holds results of other commands, or, with its exit code, if a command fails.
    """
    journal = work / "commands.json"
    work.mkdir(parents=True, exist_ok=True)
    if journal.exists() and json.loads(journal.read_text(encoding="utf-8")) != commands:
        raise SystemExit(
            f"{work} holds results measured with other arguments, see {journal}. Repeat those to go on, or choose "
            "another `--work`."
        )
    write_json(journal, commands)
    for file, arguments in commands.items():
        if (work / file).exists():
            continue
        print(f"jakiro {' '.join(arguments)}", flush=True)
        start = time.perf_counter()
        code = jakiro(arguments)
        if code != 0:
            raise SystemExit(code)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


def publish(work: Path, folder: Path, names: dict[str, str]) -> None:
    """
    Copies the JSON files to `folder`. `names` replace the paths in them, and large files lose their single answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for setting in SETTINGS:
        tuning = json.loads((work / setting / "tune.json").read_text(encoding="utf-8"))
        payload = json.loads((work / setting / "bench" / "results.json").read_text(encoding="utf-8"))
        made = payload["provenance"]["arguments"]
        # the tuned copy's name is that of the drafter
        names = {**names, made["draft"]: names[tuning["provenance"]["arguments"]["draft"]]}
        before = f"{made['target']} with {made['draft']}"
        payload["label"] = payload["label"].replace(before, f"{names[made['target']]} with {names[made['draft']]}")
        if len(json.dumps(payload, indent=1)) > MOST_BYTES:
            payload["records"] = []
        write_json(folder / f"{setting}_tune.json", _renamed(tuning, names))
        write_json(folder / f"{setting}_results.json", _renamed(payload, names))


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Replaces the paths in `names`, and cuts other absolute paths to their last part."""
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        return names.get(value) or (Path(value).name if Path(value).is_absolute() else value)
    return value


# -- the page --------------------------------------------------------------------------------------------------------


class Result:
    """The results of one setting, from the JSON files in `folder`."""

    def __init__(self, folder: Path, setting: str):
        self.setting = setting
        self.payload = json.loads((folder / f"{setting}_results.json").read_text(encoding="utf-8"))
        self.tuning = json.loads((folder / f"{setting}_tune.json").read_text(encoding="utf-8"))
        self.arguments: dict[str, Any] = self.payload["provenance"]["arguments"]
        self.name = f"{self.arguments['target']} ({self.arguments['dtype']})"
        if self.arguments["deepen"] is not None:
            self.name += f", *deepened* to {self.arguments['deepen']} layers"
        self.tasks = list(dict.fromkeys(row["task"] for row in self.payload["summary"] if row["task"] != "mean"))

    @property
    def tree(self) -> str:
        """The fastest tree."""
        return str(TreeFields(**self.tuning["best"]))

    def means(self, temperature: float) -> dict[str, dict[str, Any]]:
        """By method, the row with the means of the tasks."""
        rows = self.payload["summary"]
        return {r["method"]: r for r in rows if r["task"] == "mean" and r["temperature"] == temperature}

    def over_published(self, temperature: float) -> str:
        """Tokens per second with the tuned tree over those with the published one."""
        means = self.means(temperature)
        if "published" not in means:
            return "–"
        return f"{means['jakiro']['tokens_per_second'] / means['published']['tokens_per_second']:.2f}"

    def best_other(self, temperature: float) -> str:
        """The fastest method that is neither the tuned nor the published tree."""
        others = [row for name, row in self.means(temperature).items() if name not in OURS]
        if not others:
            return "–"
        best = max(others, key=lambda row: row["speed_up"]["median"])
        return f"{best['speed_up']['median']:.2f} ({best['method']})"


def read(folder: Path) -> list[Result]:
    """
    The results in a folder.

    Raises:
        SystemExit: if there are none.
    """
    if not all((folder / f"{setting}_{kind}.json").exists() for setting in SETTINGS for kind in ("results", "tune")):
        raise SystemExit(f"{folder} holds no complete results. Give `--target` and `--draft` to measure them.")
    return [Result(folder, setting) for setting in SETTINGS]


def paragraph(text: str) -> str:
    """Breaks a text into lines of the usual length."""
    return textwrap.fill(text, width=119, break_long_words=False, break_on_hyphens=False)


def overview(results: Sequence[Result]) -> str:
    """A row for each setting and temperature: the tuned tree against all others."""
    columns = ["target", "T", "tokens/forward", "tokens/s", "speed-up", "ceiling", "reached", "published tree"]
    columns += ["tuned / published", "best other method"]
    rows = []
    for result in results:
        for temperature in result.arguments["temperature"]:
            means = result.means(temperature)
            row, published = means["jakiro"], means.get("published")
            rows.append(
                [
                    result.name,
                    f"{temperature:g}",
                    f"{row['tokens_per_forward']:.2f}",
                    f"{row['tokens_per_second']:.1f}",
                    f"{row['speed_up']['median']:.2f}",
                    "–" if row["ceiling"] is None else f"{row['ceiling']:.2f}",
                    "–" if row["ceiling_reached"] is None else f"{row['ceiling_reached']:.0%}",
                    "–" if published is None else f"{published['speed_up']['median']:.2f}",
                    result.over_published(temperature),
                    result.best_other(temperature),
                ]
            )
    return markdown_table(columns, rows)


def tuning_table(tuning: dict[str, Any]) -> str:
    """The trees that `jakiro tune` measured, the fastest first."""
    measured = tuning["measured"]
    plain, published = (
        next(row["tokens_per_second"] for row in measured if row["tree"] == tree) for tree in (None, PUBLISHED)
    )
    rows = []
    for row in sorted(measured, key=lambda row: -row["tokens_per_second"]):
        speed, predicted = row["tokens_per_second"], row["predicted_tokens_per_second"]
        rows.append(
            [
                "plain `generate`" if row["tree"] is None else str(TreeFields(**row["tree"])),
                f"{speed:.1f}",
                f"{speed / plain:.2f}",
                f"{speed / published:.2f}",
                f"{row['tokens_per_forward']:.2f}",
                "–" if predicted is None else f"{predicted:.1f}",
            ]
        )
    columns = ["tree", "tokens/s", "speed-up", "× published", "tokens/forward", "predicted tokens/s"]
    return markdown_table(columns, rows)


def command(results: Sequence[Result]) -> str:
    """The command line that measured everything, with letters in place of paths."""
    made, deepened = results[0].arguments, results[1].arguments["deepen"]
    parts = ["python docs/results.py", *(["PROMPTS.jsonl ..."] if made["files"] else []), "--target T --draft D"]
    parts += ["--control D2"] if made["control"] else []
    parts += [f"--tasks {' '.join(made['tasks'])}"] if made["tasks"] else []
    parts += [f"--deepen {deepened} --limit {made['limit']} --max-new-tokens {made['max_new_tokens']}"]
    parts += [f"--temperature {' '.join(f'{value:g}' for value in made['temperature'])}", f"--dtype {made['dtype']}"]
    parts += [f"--methods {' '.join(made['methods'])}"]
    return " \\\n    ".join(parts)


def section(result: Result, plots: dict[str, Path], page: Path) -> list[str]:
    """The section about one setting, in lines."""
    lines = [f"## {result.name}", ""]
    if result.arguments["deepen"] is not None:
        lines += [
            paragraph(
                "No model of its own: the same target with identity layers (output projections zero) inserted, up to "
                f"{result.arguments['deepen']} "
                "([deepened.py](../src/transformers_jakiro/measuring/deepened.py)). It says the "
                "same, token for token, and one of its layers costs as small a part of all as in a larger model: 32 "
                "layers are those of a 7B model."
            ),
            "",
        ]
    found = f"The tree that `jakiro tune` found: {result.tree}. What it let answer in its last round:"
    lines += [paragraph(found), "", tuning_table(result.tuning), ""]
    for tuning in result.tuning["batches"]:
        found = (
            f"In batches of {tuning['batch_size']}: {TreeFields(**tuning['best'])}. Tokens of all rows per second, "
            "with the time of the prompts, which predictions leave out:"
        )
        lines += [paragraph(found), "", tuning_table(tuning), ""]
    lines += [paragraph(f"Measured on {conditions(result.payload)}"), ""]
    for title, path in plots.items():
        lines += [f"![{title}]({path.relative_to(page.parent).as_posix()})", ""]
    lines += [markdown_tables(result.payload), ""]
    for method in result.payload["methods"]:
        reason = f" (cannot run for this target: {method['skipped']})" if method["skipped"] else ""
        lines.append(f"- `{method['name']}`: {method['description']}{reason}")
    return [*lines, ""]


def write_page(page: Path, results: Sequence[Result], folder: Path) -> None:
    """Writes the page and its plots."""
    plots = {}
    for result in results:
        for old in folder.glob(f"{result.setting}_*.png"):
            old.unlink()
        drawn = draw_plots(result.payload, folder)
        plots[result.setting] = {
            title: path.replace(folder / f"{result.setting}_{path.name}") for title, path in drawn.items()
        }
    files = sorted(path.name for path in folder.glob("*.json"))
    links = ", ".join(f"[{name}]({folder.name}/{name})" for name in files)
    first = results[0]
    num_prompts = first.means(first.arguments["temperature"][0])["plain"]["prompts"]
    among = "other prompts than these" if first.arguments["files"] else "some of these prompts"
    bulky = any(not result.payload["records"] for result in results)
    links += " (without the single answers, which are many)" if bulky else ""
    lines = [
        "# Results",
        "",
        paragraph(
            f"Written by [results.py](results.py) from what `jakiro tune` and `jakiro bench` measured: {links}."
        ),
        "",
        f"```bash\n{command(results)}\n```",
        "",
        paragraph(
            f"Prompts: {num_prompts}, of the tasks {', '.join(first.tasks)}. All methods answer each prompt, taking "
            "turns in one process. The drafter's trees (`jakiro`) are those that `jakiro tune` found to be the "
            f"fastest here, on {among}; `published` is the same drafter with the tree of the published drafters."
        ),
        "",
        overview(results),
        "",
        paragraph(
            "Means of the tasks. *Tuned / published*: tokens per second with the tuned tree over those with the "
            "published one."
        ),
        "",
        *(f"- {note}" for note in NOTES),
        "",
        paragraph(
            "Tokens per target forward, speed-up and ceiling are defined in, and computed by, `tokens_per_forward`, "
            "`speed_up` and `ceiling` of [summary.py](../src/transformers_jakiro/measuring/summary.py)."
        ),
        "",
    ]
    for result in results:
        lines += section(result, plots[result.setting], page)
    write_text(page, "\n".join(lines).rstrip() + "\n")


def headline(results: Sequence[Result]) -> str:
    """The figures for the README, as Markdown."""
    columns = ["target", "tree", "T", "tokens per target forward", "speed over plain `generate`"]
    columns += ["over the published tree"]
    rows = []
    for result in results:
        for temperature in result.arguments["temperature"]:
            row = result.means(temperature)["jakiro"]
            cells = [f"{row['tokens_per_forward']:.2f}", f"{row['speed_up']['median']:.2f}"]
            rows.append([result.name, result.tree, f"{temperature:g}", *cells, result.over_published(temperature)])
    made = results[0].payload["provenance"]
    device = made["accelerator"] or f"{made['threads']} thread{'s' * (made['threads'] > 1)} of {made['processor']}"
    return "\n".join(
        [
            paragraph(
                f"Measured with `jakiro bench` on {device}, one prompt at a time, all methods taking turns in one "
                f"process; medians of the prompts, means of the tasks ({', '.join(results[0].tasks)}). *Deepened*: "
                "with identity layers inserted, the same tokens at the layer ratio of a larger model. Trees found by "
                "`jakiro tune`. [docs/results.md](docs/results.md) has all methods, tasks and plots."
            ),
            "",
            markdown_table(columns, rows),
        ]
    )


def replace_figures(text: str, figures: str) -> str:
    """
    Puts the figures between the two markers of a text.

    Raises:
        SystemExit: unless it has each marker once.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in before + after:
        raise SystemExit(f"README.md must have the lines {START} and {END} once, in this order.")
    return f"{before}{START}\n\n{figures}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures if a target is given, then writes the page and the figures of the README."""
    args = parse(argv)
    docs, readme = args.root / "docs", args.root / "README.md"
    folder = docs / "results"
    if args.target is not None:
        try:
            measure(stages(args), args.work)
        except KeyboardInterrupt:
            raise SystemExit("Stopped. Run the same command again to go on.") from None
        paths = [path for path in (args.target, args.draft, args.control) if path]
        names = {path: Path(path).resolve().name if Path(path).is_dir() else path for path in paths}
        if args.name:
            names[args.target] = args.name
        publish(args.work, folder, names)
    results = read(folder)
    write_page(docs / "results.md", results, folder)
    figures = headline(results)
    write_text(readme, replace_figures(readme.read_text(encoding="utf-8"), figures))
    print(f"Wrote {docs / 'results.md'}, {folder}, and in {readme}:\n\n{figures}")


if __name__ == "__main__":
    main()
