# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""docs/results.py: from measuring to the page, and every figure on it from the JSON files."""

import importlib
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import jakiro_cli
from transformers_jakiro.files import write_json
from transformers_jakiro.measuring import report
from transformers_jakiro.measuring.benchmark import Benchmark
from transformers_jakiro.measuring.methods import PUBLISHED
from transformers_jakiro.measuring.provenance import provenance
from transformers_jakiro.measuring.summary import PARTS, Profile, PromptRecord, Run, summarize
from transformers_jakiro.pair import DRAFT, TARGET

REPOSITORY = Path(__file__).parents[1]
TREE = {"tree_depth": 4, "tree_width": 2, "num_draft_tokens": 12, "tree_top_k": 32}


@pytest.fixture
def results(monkeypatch):
    """The script as a module."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    yield importlib.import_module("results")
    sys.modules.pop("results")


@pytest.fixture
def root(tmp_path, results):
    """A place to write to, with a README."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n\n{results.START}\n\nold\n\n{results.END}\n\nafter\n")
    return tmp_path


def make_payload(seconds: dict[str, float], deepen: int | None, **arguments) -> dict:
    """What `jakiro bench` would write, had each method answered one prompt of each of two tasks with 20 tokens."""
    levels = [{"level": 1, "branch": "autoregressive", "reached": 4, "accepted": 3}]
    records = []
    for task in ("sums", "talk"):
        record = PromptRecord(task, "1", 0.0, [])
        for name, value in seconds.items():
            drafted = {"accept_lengths": [3, 3, 3, 3], "num_drafted_tokens": 48} if name != "plain" else {}
            record.runs.append(Run(name, 0, 5, 20, value, True, **drafted))
            # forwards: as long as the whole, the drafter's a quarter of it
            steps = [3] * 4 if drafted else [0] * 19
            parts = {**dict.fromkeys(PARTS, 0.0), "target": 0.75 * value, "drafter": 0.25 * value if drafted else 0.0}
            record.profiles.append(Profile(name, 0, 0.1, value, steps, 1, parts, levels if drafted else []))
        records.append(record)
    values = {"target": "/some/where/big", "draft": "work/target/draft", "files": ["/some/prompts.jsonl"]}
    values |= {"temperature": [0.0], "tasks": None, "limit": 1, "max_new_tokens": 20, "methods": [*seconds]}
    values |= {"control": None, "dtype": "bfloat16", "deepen": deepen, **arguments}
    made = provenance(**values)
    return {
        "schema_version": report.SCHEMA_VERSION,
        "label": f"{values['target']} with {values['draft']}, bfloat16" + (", target deepened" if deepen else ""),
        "provenance": {**made, "target_config": {}, "draft_config": {"_name_or_path": values["draft"]}},
        "methods": [
            *({"name": name, "description": f"what {name} is", "skipped": None} for name in seconds),
            {"name": "mtp", "description": "what mtp is", "skipped": "no layers for it"},
        ],
        "summary": summarize(records),
        "context": [],
        "records": [asdict(record) for record in records],
    }


def make_tuning(batch_sizes: tuple[int, ...] = (), size: int = 1) -> dict:
    tree = {**TREE, "num_draft_tokens": TREE["num_draft_tokens"] // size}
    speeds = {"null": 10.0 * size, json.dumps(PUBLISHED): 16.0, json.dumps(tree): 24.0 * size}
    return {
        "provenance": provenance(target="/some/where/big", draft="/some/where/small"),
        "batch_size": size,
        "batches": [make_tuning(size=size) for size in batch_sizes],
        "best": tree,
        "measured": [
            {
                "tree": json.loads(tree),
                "tokens_per_second": speed,
                "tokens_per_forward": 3.0,
                "predicted_tokens_per_second": None if tree == "null" else 20.0,
            }
            for tree, speed in speeds.items()
        ],
    }


@pytest.fixture
def work(tmp_path):
    """A working folder after all commands have run."""
    folder = tmp_path / "work"
    for setting, deepen, jakiro in (("target", None, 1.0), ("deepened", 32, 0.8)):
        seconds = {"plain": 2.0, "jakiro": jakiro, "published": 1.25, "chain": 1.6}
        (folder / setting / "bench").mkdir(parents=True)
        write_json(folder / setting / "tune.json", make_tuning((2, 4) if deepen is None else ()))
        write_json(folder / setting / "bench" / "results.json", make_payload(seconds, deepen))
    return folder


NAMES = {"/some/where/big": "a big model", "/some/where/small": "small"}


def row_of(text: str, *cells: str) -> list[str]:
    """The cells of the table row that begins with the given ones."""
    (line,) = [line for line in text.splitlines() if line.startswith("| " + " | ".join(cells) + " |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_of_hand_made_figures(results, root, work):
    results.publish(work, root / "docs" / "results", NAMES)
    results.main(["--root", str(root)])
    page = (root / "docs" / "results.md").read_text()
    # 20 tokens in 1 s; 2 s plainly; the published tree 1.25 s; ceiling 4 · (1.5 / 19) / (1 / 4)
    expected = ["4.00", "20.0", "2.00", "1.26", "158%", "1.60", "1.25", "1.25 (chain)"]
    assert row_of(page, "a big model (bfloat16)", "0")[2:] == expected
    deepened = row_of(page, "a big model (bfloat16), *deepened* to 32 layers", "0")
    assert (deepened[4], deepened[8]) == ("2.50", "1.56")
    assert page.count("No model of its own") == 1
    tuned = row_of(
        page[: page.index("*deepened* to 32 layers\n")], "4 levels, 2 nodes wide, 12 nodes, 32 children per node"
    )
    assert tuned[1:] == ["24.0", "2.40", "1.50", "3.00", "20.0"]
    assert "In batches of 2: 4 levels, 2 nodes wide, 6 nodes" in page
    batch = row_of(page, "4 levels, 2 nodes wide, 3 nodes, 32 children per node")
    assert batch[1:] == ["96.0", "2.40", "6.00", "3.00", "20.0"]
    for text in ("--limit 1 --max-new-tokens 20", "summary.py", "no layers for it", "T = 0, milliseconds of a step"):
        assert text in page
    assert page.count("T = 0, speed-up by task") == 2
    links = re.findall(r"\]\((?!\.\.)([^)#]+)\)", page)
    assert len(links) == 1 + 4 + 2 * 3  # this script, JSON files, plots
    missing = [link for link in links if not (root / "docs" / link).exists()]
    assert missing == ["results.py"]
    written = [page, *(file.read_text() for file in (root / "docs" / "results").glob("*.json"))]
    assert not any("/some/where" in text or "work/" in text for text in written)

    readme = (root / "README.md").read_text()
    assert readme.startswith(f"before\n\n{results.START}\n")
    assert readme.endswith(f"{results.END}\n\nafter\n")
    assert "old" not in readme
    assert row_of(readme, "a big model (bfloat16)", "4 levels, 2 nodes wide, 12 nodes, 32 children per node", "0")[
        3:
    ] == [
        "4.00",
        "2.00",
        "1.25",
    ]
    results.main(["--root", str(root)])
    assert ((root / "docs" / "results.md").read_text(), (root / "README.md").read_text()) == (page, readme)


def test_the_html_page_escapes_all_but_code():
    payload = make_payload({"plain": 2.0, "jakiro": 1.0}, None)
    payload["label"] = "<a & b>"
    payload["methods"][0]["description"] = "`x < y` and an odd ` sign"
    text = report.html_page(payload, {})
    assert text.count("&lt;a &amp; b&gt;") == 2
    assert "<li>plain: <code>x &lt; y</code> and an odd ` sign</li>" in text
    assert text.count('<tr class="mean"><td>mean</td>') == 1


def test_without_a_published_tree(results, root, work, monkeypatch):
    monkeypatch.setattr(results, "draw_plots", lambda *_: {})
    for setting in results.SETTINGS:
        file = work / setting / "bench" / "results.json"
        write_json(file, make_payload({"plain": 2.0, "jakiro": 1.0}, 32 if setting == "deepened" else None))
    results.publish(work, root / "docs" / "results", NAMES)
    results.main(["--root", str(root)])
    assert row_of((root / "docs" / "results.md").read_text(), "a big model (bfloat16)", "0")[-3:] == ["–", "–", "–"]


def test_large_files_lose_the_single_answers(results, root, work, monkeypatch):
    file = root / "docs" / "results" / "target_results.json"
    results.publish(work, file.parent, NAMES)
    whole = json.loads(file.read_text())
    assert len(whole["records"]) == 2
    monkeypatch.setattr(results, "draw_plots", lambda *_: {})
    monkeypatch.setattr(results, "MOST_BYTES", 1000)
    results.publish(work, file.parent, NAMES)
    assert json.loads(file.read_text()) == {**whole, "records": []}
    results.main(["--root", str(root)])
    assert "without the single answers" in " ".join((root / "docs" / "results.md").read_text().split())


def test_measuring_goes_on_where_it_was_stopped(results, tmp_path, monkeypatch, capsys):
    args = results.parse(["--target", "T", "--draft", "D", "--control", "E", "--work", str(tmp_path), "p.jsonl"])
    commands = results.stages(args)
    assert [arguments[0] for arguments in commands.values()] == ["tune", "bench"] * 2
    assert ["--deepen" in arguments for arguments in commands.values()] == [False, False, True, True]
    parser_calls, codes = [], [0, 3]

    def jakiro(arguments):
        parser_calls.append(arguments)
        code = codes.pop(0)
        if code == 0:
            file = tmp_path / next(file for file, command in commands.items() if command == arguments)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        return code

    monkeypatch.setattr(results, "jakiro", jakiro)
    with pytest.raises(SystemExit, match="3"):
        results.measure(commands, tmp_path)
    codes += [0, 0, 0]
    results.measure(commands, tmp_path)
    first, *others = commands.values()
    assert parser_calls == [first, others[0], *others]
    results.measure(commands, tmp_path)  # nothing is left to do
    assert len(parser_calls) == 5
    args.limit = 7
    with pytest.raises(SystemExit, match="results measured with other arguments"):
        results.measure(results.stages(args), tmp_path)


@pytest.mark.integration
def test_a_command_is_a_process_of_its_own(results, capfd):
    assert results.jakiro(["--version"]) == 0
    assert capfd.readouterr().out.startswith("jakiro ")
    assert results.jakiro(["tune"]) == 2


@pytest.mark.integration
def test_from_end_to_end(results, root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers_jakiro.measuring.tune.tune.__defaults__", ((0.0,), (2, 3), (2,), 1, lambda *_: None)
    )
    monkeypatch.setattr("transformers_jakiro.measuring.step_costs.TREE_SIZES", (1, 97))
    monkeypatch.setattr(report, "find_spec", lambda name: None)  # the plots of `jakiro bench`, which are drawn again
    monkeypatch.setattr(Benchmark, "warm_up", lambda self, batches, temperatures: {})
    calls = []

    def jakiro(arguments):
        calls.append(arguments[0])
        return jakiro_cli.main(arguments)

    monkeypatch.setattr(results, "jakiro", jakiro)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "task": "sums", "turns": ["What is 3 + 4?"]}\n')
    monkeypatch.setattr("transformers_jakiro.measuring.prompts.SHIPPED", prompts)
    before = (DRAFT / "config.json").read_bytes()
    arguments = [str(prompts), "--target", str(TARGET), "--draft", str(DRAFT), "--deepen", "10"]
    arguments += ["--max-new-tokens", "12", "--temperature", "0", "--dtype", "float32", "--root", str(root)]
    arguments += ["--methods", "plain", "jakiro", "published", "--work", str(tmp_path / "work")]
    results.main(arguments)
    assert calls == ["tune", "bench", "tune", "bench"]
    assert (DRAFT / "config.json").read_bytes() == before
    folder = root / "docs" / "results"
    for setting, num_layers in (("target", 8), ("deepened", 10)):
        payload = json.loads((folder / f"{setting}_results.json").read_text())
        tuning = json.loads((folder / f"{setting}_tune.json").read_text())
        assert payload["provenance"]["target_config"]["num_hidden_layers"] == num_layers
        assert payload["provenance"]["draft_config"].items() >= tuning["best"].items()
        assert {row["method"] for row in payload["summary"]} == {"plain", "jakiro", "published"}
        assert {plot.name for plot in folder.glob(f"{setting}_*.png")} == {
            f"{setting}_{name}.png" for name in ("speed_up", "acceptance", "step_time")
        }
    page = (root / "docs" / "results.md").read_text()
    assert row_of(page, "target (float32), *deepened* to 10 layers", "0")
    assert str(tmp_path) not in page
    assert str(TARGET.parent) not in "".join(file.read_text() for file in folder.glob("*.json"))
    args = results.parse(arguments)
    results.measure(results.stages(args), args.work)
    assert len(calls) == 4


def test_what_cannot_be_written(results, root, capsys):
    with pytest.raises(SystemExit, match="no complete results"):
        results.main(["--root", str(root)])
    with pytest.raises(SystemExit):
        results.main(["--target", "T"])
    assert "go together" in capsys.readouterr().err
    for text in ("", results.START, f"{results.END} {results.START}", f"{results.START} {results.END} {results.END}"):
        with pytest.raises(SystemExit, match="once, in this order"):
            results.replace_figures(text, "figures")


def test_the_readme_has_a_place_for_the_figures(results):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "figures of today" in results.replace_figures(text, "figures of today")
