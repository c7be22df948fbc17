# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`jakiro bench`: definitions on hand-made traces, and the command from end to end on the pair that ships."""

import base64
import io
import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import jakiro_cli
from jakiro_cli import main
from transformers_jakiro.core import requests
from transformers_jakiro.core.tree import DraftTree, TreeShape
from transformers_jakiro.core.tree_forward import TreeForward
from transformers_jakiro.core.versions import minor_version
from transformers_jakiro.measuring import benchmark, report
from transformers_jakiro.measuring.acceptance import tokens_per_forward
from transformers_jakiro.measuring.bench import BenchOptions, run_bench
from transformers_jakiro.measuring.benchmark import Benchmark, trim_rows
from transformers_jakiro.measuring.journal import Journal
from transformers_jakiro.measuring.methods import METHODS, PUBLISHED, make_methods
from transformers_jakiro.measuring.profiling import TIMED_METHODS, ForwardTimer, StepRecorder, calls_of, parts_of
from transformers_jakiro.measuring.prompts import SHIPPED, Prompt, gather_prompts, in_batches, read_prompts
from transformers_jakiro.measuring.provenance import provenance
from transformers_jakiro.measuring.summary import (
    PARTS,
    Profile,
    PromptRecord,
    Run,
    acceptance_by_branch,
    ceiling,
    speed_up,
    summarize,
)
from transformers_jakiro.pair import DRAFT, TARGET

CHEAP = ["plain", "jakiro", "chain", "prompt_lookup"]


@pytest.fixture(scope="module", autouse=True)
def short_warm_up():
    """No test looks at how fast the first answer is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_WARM_UP_TOKENS", 4)
        yield


# -- definitions -----------------------------------------------------------------------------------------------------


def run(method="plain", seconds=4.0, new_tokens=12, **values) -> Run:
    defaults = {"turn": 0, "prompt_tokens": 5, "identical": True}
    return Run(method=method, seconds=seconds, new_tokens=new_tokens, **{**defaults, **values})


def profile(method, accept_lengths, levels=(), **parts) -> Profile:
    return Profile(
        method=method,
        turn=0,
        first_token_seconds=0.5,
        seconds=sum(parts.values()),
        accept_lengths=accept_lengths,
        num_prefill_tokens=1,
        parts={**dict.fromkeys(PARTS, 0.0), **parts},
        levels=list(levels),
        peak_memory={"bytes": 3 * 2**20, "scope": "device"},
    )


def test_tokens_per_forward():
    assert tokens_per_forward([3, 0, 1]) == pytest.approx(7 / 3)  # 4 + 1 + 2 tokens in 3 forwards
    assert tokens_per_forward([0, 0]) == tokens_per_forward([]) == 1.0


def test_summary_of_a_batch():
    """Two rows: one emits 3 + 1 tokens in two forwards, then leaves; the other 2 + 2 + 1 in three."""
    jakiro = run("jakiro", 2.0, new_tokens=11, accept_lengths=[2, 0, 1, 1, 0], num_drafted_tokens=20, identical=0.5)
    plain = run(seconds=4.0, new_tokens=11)
    (_, row, *_) = summarize([PromptRecord("a", "1+2", 0.0, [plain, jakiro], num_prompts=2)])
    assert row["prompts"] == 2
    assert row["tokens_per_forward"] == pytest.approx((4 + 5) / (2 + 3))
    assert row["drafted_per_step"] == pytest.approx(20 / 5)  # per row
    assert row["tokens_per_second"] == pytest.approx(5.5)
    assert row["speed_up"]["median"] == pytest.approx(2.0)
    assert row["identical"] == 0.5


def test_rows_end_with_their_end_token():
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    sequences = torch.tensor([[9, 9, 2, 4, 2, 9], [5, 2, 6, 4, 3, 7], [9, 5, 6, 2, 9, 9]])
    rows = [[2, 4, 2], [5, 2, 6, 4, 3, 7], [5, 6, 2]]  # an end token in the prompt ends nothing
    assert [row.tolist() for row in trim_rows(sequences, mask, 2)] == rows
    assert [row.tolist() for row in trim_rows(sequences, mask, [2, 3])] == [rows[0], [5, 2, 6, 4, 3], rows[2]]
    assert [len(row) for row in trim_rows(sequences, mask, None)] == [4, 6, 5]


def test_speed_up_is_a_ratio_of_tokens_per_second_over_all_turns():
    plain = [run(seconds=4, new_tokens=8), run(seconds=6, new_tokens=12)]
    assert speed_up([run(seconds=2, new_tokens=8), run(seconds=3, new_tokens=12)], plain) == pytest.approx(2.0)
    assert speed_up([run(seconds=5, new_tokens=20)], plain) == pytest.approx(2.0)
    assert speed_up(plain, plain) == 1.0


def test_ceiling():
    # forwards of a tree that cost what one token costs, and a free drafter: τ
    assert ceiling(4.0, plain_forward=10.0, tree_forward=10.0, drafter=0.0) == pytest.approx(4.0)
    assert ceiling(4.0, plain_forward=10.0, tree_forward=10.0, drafter=10.0) == pytest.approx(4.0 / (1 + 10 / 10))
    assert ceiling(4.0, plain_forward=10.0, tree_forward=15.0, drafter=5.0) == pytest.approx(2.0)


def test_summary_of_a_hand_made_record():
    level = {"level": 1, "branch": "autoregressive", "reached": 2, "accepted": 1}
    jakiro = {"accept_lengths": [4, 1, 4], "num_drafted_tokens": 30}
    records = [
        PromptRecord(
            "a",
            "1",
            0.0,
            [run(), run("jakiro", 2.0, **jakiro)],
            [
                profile("plain", [0] * 10, target=10.0, other=1.0),
                profile("jakiro", [4, 4], [level], target=3.0, drafter=1.0, tree=0.2),
            ],
        ),
        PromptRecord("a", "2", 0.0, [run(), run("jakiro", 1.0, identical=False, **jakiro)]),
        PromptRecord("b", "1", 0.0, [run(), run("jakiro", 2.0, **jakiro)]),
    ]
    rows = {(row["task"], row["method"]): row for row in summarize(records)}
    row = rows["a", "jakiro"]
    assert row["speed_up"] == {"median": pytest.approx(3.0), "q1": pytest.approx(2.5), "q3": pytest.approx(3.5)}
    assert row["tokens_per_second"] == pytest.approx(24 / 3)
    assert row["tokens_per_forward"] == pytest.approx(4.0)  # of the runs without timers
    assert row["drafted_per_step"] == pytest.approx(10.0)
    assert row["step_ms"] == pytest.approx({**dict.fromkeys(PARTS, 0.0), "target": 1500, "drafter": 500, "tree": 100})
    assert row["ceiling"] == pytest.approx(5.0 * 1.0 / (1.5 + 0.5))  # of the profiled prompt
    assert row["ceiling_reached"] == pytest.approx(2.0 / 2.5)
    assert row["identical"] == 0.5
    assert row["levels"] == [level]
    assert rows["a", "plain"]["tokens_per_forward"] == 1.0
    assert rows["a", "plain"]["ceiling"] is None
    assert rows["b", "jakiro"]["step_ms"] is None  # not profiled
    mean = rows["mean", "jakiro"]
    assert mean["speed_up"]["median"] == pytest.approx(2.5)
    assert mean["identical"] == 0.75
    assert mean["prompts"] == 3
    assert mean["ceiling"] == pytest.approx(2.5)
    assert [key[0] for key in rows] == ["a", "a", "b", "b", "mean", "mean"]


def test_acceptance_by_level_and_branch():
    #  0 ─ 1 ─ 3 ─ 4     level 3 is the contrastive one
    #    └ 2
    tree = DraftTree(torch.tensor([[7, 4, 9, 2, 5]]), torch.tensor([[0, 0, 0, 1, 3]]), max_depth=3)
    shape = TreeShape(depth=3, top_k=2, width=2, num_draft_tokens=4, two_levels=True)
    prefilled = []
    recorder = StepRecorder(lambda: prefilled.append(True), shape)
    recorder.put(torch.zeros(1, 6))  # the prompt
    assert not prefilled
    recorder.put_step(torch.tensor([7]), None, [])
    for visited in ([0], [0, 2], [0, 1, 3], [0, 1, 3, 4]):
        recorder.put_step(torch.zeros(len(visited)), tree, visited)
    assert prefilled == [True]
    assert recorder.num_tokens == [1, 1, 2, 3, 4]
    assert [(level["reached"], level["accepted"]) for level in recorder.levels] == [(4, 3), (2, 2), (2, 1)]
    assert [level["branch"] for level in recorder.levels] == ["autoregressive", "autoregressive", "contrastive"]
    assert acceptance_by_branch(recorder.levels) == pytest.approx({"autoregressive": 5 / 6, "contrastive": 0.5})


def test_parts_add_up():
    parts = parts_of({"draft": 1.0, "head": 0.5, "target": 2.0, "tree": 0.25, "verification": 0.1, "cache": 0.1}, 5.0)
    assert tuple(parts) == PARTS
    assert parts["drafter"] == 1.5
    assert sum(parts.values()) == pytest.approx(5.0)


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_shipped_prompts():
    prompts = gather_prompts()
    assert prompts == read_prompts(SHIPPED)
    tasks = {task: [prompt for prompt in prompts if prompt.task == task] for task in {p.task for p in prompts}}
    assert len(tasks) == 6
    assert all(len(rows) == 3 for rows in tasks.values())
    assert any(len(prompt.turns) > 1 for prompt in prompts)


def test_choosing_prompts(tmp_path):
    assert [prompt.id for prompt in gather_prompts(tasks=["maths"], limit=2)] == ["maths-0", "maths-1"]
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a"}\n{"turns": ["b", "c"], "task": "t", "id": 7}\n')
    assert gather_prompts([file]) == [Prompt("mine", "0", ("a",)), Prompt("t", "7", ("b", "c"))]
    with pytest.raises(ValueError, match=r"there are \['mine', 't'\], got \['u'\]"):
        gather_prompts([file], tasks=["u"])
    with pytest.raises(ValueError, match="mine has '0' twice"):
        gather_prompts([file, file])
    with pytest.raises(ValueError, match="There are no prompts"):
        gather_prompts([file], limit=0)
    file.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"Row 0 of .* must have `turns`"):
        gather_prompts([file])


def test_batches_of_prompts():
    first, second, third, other = (Prompt(*key, ("?",)) for key in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")))
    prompts = [first, other, second, third]
    assert in_batches(prompts, 1) == ([[first], [second], [third], [other]], [])
    assert in_batches(prompts, 2) == ([[first, second]], [third, other])
    assert in_batches([], 2) == ([], [])
    with pytest.raises(ValueError, match=r"`--batch-size 4` needs as many .* none has: a 3, b 1\. Give files"):
        in_batches(prompts, 4)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        in_batches(prompts, 0)


# -- methods ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    load = {"dtype": torch.float32}
    target = AutoModelForCausalLM.from_pretrained(TARGET, **load).eval()
    return (
        target,
        AutoModel.from_pretrained(DRAFT, **load).eval(),
        AutoTokenizer.from_pretrained(TARGET),
    )


def test_methods_of_the_command_line_are_those_there_are():
    assert tuple(METHODS) == jakiro_cli.BENCH_METHODS


def test_choosing_methods(pair):
    target, draft, _ = pair

    def names(*args, **kwargs):
        return [method.name for method in make_methods(target, draft, *args, **kwargs)]

    assert names() == CHEAP
    assert names(control=draft, assistant=target, early_exit=2) == [*CHEAP, "eagle2", "assistant", "early_exit"]
    assert names(["jakiro"], num_assistant_tokens=[4, 8]) == ["plain", "jakiro-4", "jakiro-8"]
    assert names(["static", "plain", "jakiro_static"]) == ["plain", "static", "jakiro_static"]
    assert names(["prompt_lookup_static", "assistant_static"], assistant=target)[1:] == [
        "prompt_lookup_static",
        "assistant_static",
    ]
    (eagle2,) = [method for method in make_methods(target, draft, ["eagle2"], control=draft) if method.draft]
    assert "num_assistant_tokens" not in eagle2.options
    shape = {name: getattr(draft.config, name) for name in (*PUBLISHED, "batch_trees")}
    assert eagle2.tree == {**shape, "static_tree": None}
    assert shape["num_draft_tokens"] == 20
    (published,) = [method for method in make_methods(target, draft, ["published"]) if method.draft]
    with published.ready():
        shape = TreeShape.from_config(draft.config, published.options["num_assistant_tokens"])
    assert (shape.depth, shape.top_k, shape.width, shape.num_draft_tokens) == (7, 10, 10, 59)
    assert draft.config.num_draft_tokens == 20
    with pytest.raises(ValueError, match=r"`assistant_static` needs `--assistant`"):
        names(["assistant_static"])
    with pytest.raises(ValueError, match=r"`eagle2` needs `--control`"):
        names(["eagle2"])
    with pytest.raises(ValueError, match=r"must be among .* got \['medusa'\]"):
        names(["medusa"])


@pytest.mark.slow
def test_static_caches_of_transformers_own_assistance(pair):
    """Minutes of compiling. Since transformers 5.24; before, the report says that they are refused."""
    target, draft, tokenizer = pair
    name = "prompt_lookup_static"
    methods = make_methods(target, draft, ["plain", name])
    bench = Benchmark(target, draft, tokenizer, 24, methods)
    prompt = Prompt("1", "sums", ("Tom has 3 apples and buys 4 more. How many apples has he now?",))
    skipped = bench.warm_up([[prompt]])
    if minor_version(transformers.__version__) < (5, 24):
        assert "not supported with Static cache" in skipped[name]
        return
    assert not skipped
    inputs = bench.encode(prompt.turns[0])
    plain, static = (bench.answer(method, 0, inputs)[1] for method in bench.methods)
    assert [row.tolist() for row in static] == [row.tolist() for row in plain]


@pytest.mark.parametrize("name", ["plain", "prompt_lookup", "jakiro", "assistant"])
def test_forwards_are_counted_as_a_hook_counts_them(pair, name):
    target, draft, tokenizer = pair
    (method,) = [m for m in make_methods(target, draft, [name], assistant=draft_sized(target)) if m.name == name]
    bench = Benchmark(target, draft, tokenizer, 24, make_methods(target, draft, ["plain"]))
    inputs, forwards = bench.encode("Tom has 3 apples and buys 4 more. How many apples has he now?"), []
    handle = target.register_forward_hook(lambda *_: forwards.append(1))
    result = bench._profile(method, 0, inputs, 0.0, 0)
    handle.remove()
    assert len(forwards) == 1 + len(result.accept_lengths)  # the prefill
    tokens = result.num_prefill_tokens + sum(accepted + 1 for accepted in result.accept_lengths)
    assert tokens == 24
    assert set(result.parts) == set(PARTS)
    assert result.parts["target"] > 0
    assert (result.parts["drafter"] > 0) == (name in ("jakiro", "assistant"))
    assert (result.parts["verification"] > 0) == (result.parts["tree"] > 0) == (name == "jakiro")
    assert sum(result.parts.values()) == pytest.approx(result.seconds)
    assert 0 <= result.parts["other"] < result.seconds / 2


def draft_sized(target):
    """A small model with the target's tokenizer."""
    config = type(target.config)(**{**target.config.to_dict(), "num_hidden_layers": 1})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def test_nothing_stays_behind(pair):
    """Neither timers nor the chain's settings."""
    target, draft, tokenizer = pair
    before = [getattr(owner, name) for owner, name, _ in TIMED_METHODS], draft.config.to_dict()
    Benchmark(target, draft, tokenizer, 8, make_methods(target, draft)).run_prompts(
        [Prompt("a", "1", ("b",))], profile=True
    )
    with pytest.raises(RuntimeError), ForwardTimer(torch.device("cpu"), TIMED_METHODS, head=target.lm_head).running():
        raise RuntimeError
    assert ([getattr(owner, name) for owner, name, _ in TIMED_METHODS], draft.config.to_dict()) == before
    assert not target._forward_hooks
    assert not target.lm_head._forward_hooks


def test_turns_follow_the_targets_own_answers(pair):
    target, draft, tokenizer = pair
    bench = Benchmark(target, draft, tokenizer, 8)
    record = bench.run_prompts([Prompt("a", "1", ("How much is 3 + 4?", "And 5 more?"))], temperature=1.0)
    assert [(r.method, r.turn) for r in record.runs] == [("plain", 0), ("jakiro", 0), ("plain", 1), ("jakiro", 1)]
    first, _, second, also = record.runs
    assert second.prompt_tokens == also.prompt_tokens > first.prompt_tokens + first.new_tokens
    assert all(r.identical for r in record.runs)
    assert PromptRecord.from_dict(json.loads(json.dumps(asdict(record)))) == record


def test_methods_that_cannot_run_are_named(pair, monkeypatch):
    """Only what transformers refuses is left out; a bug is not hidden."""
    target, draft, tokenizer = pair
    prompts = [Prompt("a", "1", ("Hello",))]
    bench = Benchmark(target, draft, tokenizer, 8, make_methods(target, draft, ["mtp", "jakiro"]))
    (reason,) = bench.warm_up([prompts]).values()
    assert reason.startswith("Could not find `num_mtp_layers`")
    assert [method.name for method in bench.methods] == ["plain", "jakiro"]
    monkeypatch.setattr(requests, "check_cache", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.warm_up([prompts])


# -- the command -----------------------------------------------------------------------------------------------------


def bench_arguments(folder: Path, prompts: Path, *more: str) -> list[str]:
    models = ["--target", str(TARGET), "--draft", str(DRAFT), "--dtype", "float32"]
    return ["bench", str(prompts), *models, "--max-new-tokens", "10", "--output", str(folder), *more]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    file.write_text(
        '{"id": 1, "task": "sums", "turns": ["What is 3 + 4?"]}\n'
        '{"id": 2, "task": "more", "turns": ["What is 5 * 6?"]}\n'
    )
    return file


@pytest.fixture(scope="module")
def results(tmp_path_factory, prompts) -> Path:
    """What the command writes: two prompts, two temperatures, trees of two sizes, all cheap methods."""
    folder = tmp_path_factory.mktemp("bench")
    options = ["--control", str(DRAFT), "--assistant-early-exit", "2", "--num-assistant-tokens", "4", "8"]
    assert main(bench_arguments(folder, prompts, "--temperature", "0", "1", *options)) == 0
    return folder


def test_bench_from_end_to_end(results):
    payload = json.loads((results / "results.json").read_text())
    names = ["plain", "jakiro-4", "jakiro-8", "chain", "prompt_lookup", "eagle2-4", "eagle2-8", "early_exit"]
    assert [method["name"] for method in payload["methods"]] == names
    assert len(payload["records"]) == 4
    assert len(payload["summary"]) == 2 * 3 * len(names)
    for row in payload["summary"]:
        drafted = row["method"].startswith(("jakiro", "chain", "eagle2"))
        if drafted or row["temperature"] == 0:
            assert row["identical"] == 1.0
        if row["method"] != "prompt_lookup":  # which may be through after the prefill
            assert (row["ceiling"] is not None) == (row["method"] not in ("plain", "early_exit"))
        assert bool(row["levels"]) == drafted
        assert row["speed_up"]["q1"] <= row["speed_up"]["median"] <= row["speed_up"]["q3"]
    assert payload["provenance"]["arguments"]["num_assistant_tokens"] == [4, 8]
    assert payload["provenance"]["target_config"]["num_hidden_layers"] == 8
    text = (results / "results.md").read_text()
    assert "| jakiro-8 |" in text
    assert "tokens emitted after the prefill" in text


def complaints(value, schema, place="results") -> list[str]:
    """What a value has that its JSON schema does not allow, of the few keywords that ours uses."""
    kinds = {
        **{"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool},
        "null": type(None),
    }
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    matches = [isinstance(value, kinds[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in types]
    if types and not any(matches):
        return [f"{place} is {value!r}, no {types}"]
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{place} is {value!r}, not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place} is {value!r}, not of {schema['enum']}")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{place}.{name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name in properties:
                found += complaints(item, properties[name], f"{place}.{name}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}.{name} is unknown")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += complaints(item, schema["items"], f"{place}[{index}]")
    return found


def test_json_schema(results):
    schema = json.loads((Path(report.__file__).with_name("results.schema.json")).read_text())
    payload = json.loads((results / "results.json").read_text())
    assert payload["schema_version"] == report.SCHEMA_VERSION == schema["properties"]["schema_version"]["const"]
    assert complaints(payload, schema) == []
    del payload["summary"][0]["speed_up"]["q1"]
    payload["records"][0]["runs"][0]["seconds"] = "1"
    payload["more"] = None
    assert complaints(payload, schema) == [
        "results.summary[0].speed_up.q1 is missing",
        "results.records[0].runs[0].seconds is '1', no ['number']",
        "results.more is unknown",
    ]


class _Page(HTMLParser):
    """Checks that tags are closed in order, and collects images and whatever is fetched from elsewhere."""

    VOID = frozenset(("meta", "img", "br", "link"))

    def __init__(self):
        super().__init__()
        self.open, self.images, self.references, self.rows = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"])
        self.references += [values[name] for name in ("src", "href") if name in values]
        self.rows += tag == "tr"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


PLOTS = ("speed_up", "acceptance", "step_time", "tree_size")


def test_html_holds_everything(results):
    pytest.importorskip("matplotlib")
    text = (results / "results.html").read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.rows > 20
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    images = [base64.b64decode(image.partition(",")[2]) for image in page.images]
    assert images == [(results / f"{name}.png").read_bytes() for name in PLOTS]
    assert all(image.startswith(b"\x89PNG") for image in images)


def test_html_in_a_browser(results, browser):
    """Every plot has its size once the page is shown, and on a phone nothing but tables is wider than the screen."""
    pytest.importorskip("matplotlib")
    page = browser.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    page.goto((results / "results.html").as_uri())
    assert page.evaluate("[...document.images].filter(image => image.naturalWidth).length") == len(PLOTS)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()
    assert complaints == []


def test_batches_from_end_to_end(tmp_path, pair, capsys):
    """Rows of different lengths; one row ends early."""
    target, _, tokenizer = pair
    file, folder = tmp_path / "p.jsonl", tmp_path / "out"
    questions = {"sums": ["What is 3 + 4?", "Tom has 3 apples. He buys 4 more. How many has he now?", "1 + 1?"]}
    questions["more"] = ["What is 5 * 6?", "How many legs have two dogs?"]
    questions["few"] = ["Why?"]
    file.write_text(
        "".join(
            json.dumps({"id": number, "task": task, "turns": [text, "And then?"]}) + "\n"
            for task, texts in questions.items()
            for number, text in enumerate(texts)
        )
    )
    refused = ["prompt_lookup", "early_exit", "mtp"]
    options = ["--batch-size", "2", "--control", str(DRAFT), "--assistant-early-exit", "2", "--methods"]
    able = ["plain", "jakiro", "published", "adaptive", "chain", "eagle2"]
    arguments = [*bench_arguments(folder, file), "--max-new-tokens", "60", *options, *able, *refused]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Left out, as they fill no batch of 2: sums 2, few 0" in out
    assert "batches of 2 prompts, the first turn of each, 60 new tokens at most" in out
    assert "cannot run for this target with batches of 2: " in out
    payload = json.loads((folder / "results.json").read_text())
    schema = json.loads((Path(report.__file__).with_name("results.schema.json")).read_text())
    assert complaints(payload, schema) == []
    assert [method["name"] for method in payload["methods"] if method["skipped"]] == refused
    assert payload["provenance"]["arguments"]["batch_size"] == 2
    assert [(record["id"], record["num_prompts"]) for record in payload["records"]] == [("0+1", 2)] * 2
    assert {run["method"] for record in payload["records"] for run in record["runs"]} == {*able}
    for row in payload["summary"]:
        assert row["identical"] == 1.0
        assert row["step_ms"]["target"] > 0
        assert (row["tokens_per_forward"] > 1) == (row["method"] != "plain")
        assert (row["ceiling"] is None) == (row["method"] == "plain")
    # the same numbers of tokens as one at a time
    for record, texts in zip(payload["records"], (questions["sums"][:2], questions["more"]), strict=True):
        bench = Benchmark(target, pair[1], tokenizer, 60)
        alone = [bench.answer(bench.methods[0], 0, bench.encode(text))[0] for text in texts]
        for result in record["runs"]:
            assert result["new_tokens"] == sum(run.new_tokens for run in alone)
            assert result["prompt_tokens"] == sum(run.prompt_tokens for run in alone)
            if result["accept_lengths"] is not None:  # the prefill gives each row a token
                emitted = 2 + sum(result["accept_lengths"]) + len(result["accept_lengths"])
                assert emitted == result["new_tokens"]


def test_ended_rows_leave_the_measured_batch(pair, monkeypatch):
    target, draft, tokenizer = pair
    bench = Benchmark(target, draft, tokenizer, 40)
    inputs = bench.encode_batch(["What is 3 + 4?", "How many legs have two dogs and three cats?"])
    assert inputs["attention_mask"].sum(dim=-1).unique().numel() == 2
    _, rows = bench.answer(bench.methods[0], 0, inputs)
    early = rows[0][int(inputs["attention_mask"][0].sum()) + 3].item()
    monkeypatch.setattr(target.generation_config, "eos_token_id", [early])
    with calls_of(TreeForward, "select") as leaving:
        run, rows = bench.answer(bench.methods[1], 0, inputs)
    _, plain = bench.answer(bench.methods[0], 0, inputs)
    assert [row.tolist() for row in rows] == [row.tolist() for row in plain]
    assert len(leaving) == 1
    assert run.new_tokens < 80
    assert run.num_drafted_tokens > 0


def test_rows_that_differ_in_half_precision(pair, monkeypatch):
    """Each is looked at by itself, without its padding."""
    tokenizer = pair[2]
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.bfloat16).eval()
    bench = Benchmark(target, AutoModel.from_pretrained(DRAFT, dtype=torch.bfloat16), tokenizer, 8)
    original, lengths = Benchmark.answer, []

    def another_last_token(self, method, *args):
        run, rows = original(self, method, *args)
        if method.name == "jakiro":
            lengths.append(len(rows[0]))
            rows[0] = rows[0].clone()
            rows[0][-1] = 17
        return run, rows

    monkeypatch.setattr(Benchmark, "answer", another_last_token)
    prompts = [Prompt("a", "1", ("What is 3 + 4?",)), Prompt("a", "2", ("How many legs have two dogs and a cat?",))]
    checked = mock.Mock(wraps=benchmark.rounding_report)
    monkeypatch.setattr(benchmark, "rounding_report", checked)
    plain, jakiro = bench.run_prompts(prompts).runs
    assert (plain.identical, plain.rounding) == (1.0, None)
    assert jakiro.identical == 0.5
    assert checked.call_args.args[1].shape == (1, lengths[0])
    assert (jakiro.rounding["tokens"], jakiro.rounding["differing"] >= 1) == (8, True)


def test_methods_that_cannot_run_are_in_the_report(tmp_path, prompts, capsys):
    assert main(bench_arguments(tmp_path / "out", prompts, "--methods", "mtp", "--tasks", "sums")) == 0
    assert "mtp cannot run for this target: Could not find" in capsys.readouterr().out
    payload = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(method["name"], method["skipped"] is None) for method in payload["methods"]] == [
        ("plain", True),
        ("mtp", False),
    ]
    for name in ("results.md", "results.html"):
        assert "cannot run for this target: Could not find" in (tmp_path / "out" / name).read_text()


def test_a_stopped_run_goes_on(tmp_path, prompts, monkeypatch, capsys):
    folder, original, calls = tmp_path / "out", Benchmark.run_prompts, []

    def interrupted(self, prompts, *args, **kwargs):
        calls.append(prompts[0].id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Benchmark, "run_prompts", interrupted)
    arguments = bench_arguments(folder, prompts, "--methods", "jakiro")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 130
    assert "Stopped after 1 of 2 answers. Run the same command again" in capsys.readouterr().out
    journal = folder / "runs.jsonl"
    journal.write_text(journal.read_text() + '{"record": {"task"')  # killed while it was written
    kept = journal.read_text().splitlines()[:-1]
    assert main(arguments) == 0
    assert calls == ["1", "2", "2"]
    assert journal.read_text().splitlines()[: len(kept)] == kept
    assert [record["id"] for record in json.loads((folder / "results.json").read_text())["records"]] == ["1", "2"]
    assert main(arguments) == 0
    assert calls == ["1", "2", "2"]
    assert main([*arguments, "--max-new-tokens", "13"]) == 1
    assert "under other conditions: max_new_tokens 10 (now 13)" in capsys.readouterr().err


def test_journal_without_a_file():
    journal = Journal(None, provenance(a=1))
    record = PromptRecord("a", "1", 0.0, [run()])
    journal.add(record)
    assert journal.records == {(0.0, "a", "1"): record}


def test_deepened_and_without_plots(tmp_path, prompts, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    stream, folder = io.StringIO(), tmp_path / "out"
    options = BenchOptions(
        [str(prompts)],
        target=str(TARGET),
        draft=str(DRAFT),
        methods=["jakiro"],
        limit=1,
        profile=0,
        deepen=10,
        max_new_tokens=4,
        dtype="float32",
    )
    payload = run_bench(options, output=str(folder), console=Console(file=stream))
    assert "deepened to 10 layers (identity layers inserted)" in stream.getvalue()
    assert "they need matplotlib" in stream.getvalue()
    assert payload["provenance"]["target_config"]["num_hidden_layers"] == 10
    assert all(row["identical"] == 1.0 and row["step_ms"] is None for row in payload["summary"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "results.html",
        "results.json",
        "results.md",
        "runs.jsonl",
    ]


def test_context_alone_measures_no_prompts(capsys):
    arguments = bench_arguments(Path("unused"), Path("unused"))
    arguments = ["bench", *arguments[2:-2], "--context", "16", "--methods", "jakiro"]
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())  # a narrow table's title has several lines
    assert "milliseconds of a step by tokens of context" in out
    assert "speed-up" not in out.split("Speed-up")[0]


def test_bench_errors(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for more, message in (
        (["--profile", "-1"], "`--profile` must be at least 0, got -1"),
        (["--tasks", "poems"], "`--tasks` must name tasks"),
        (["--output", str(file)], "`--output` must be a folder"),
    ):
        assert main(["bench", "--target", "a", "--draft", "b", *more]) == 1
        assert message in capsys.readouterr().err
