# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What a drafter gives on this machine, against everything else one could have picked: all methods side by side in one
process, taking turns on every prompt.

With `batch_size` several prompts of a task are answered at a time, padded on the left; of conversations, the first
turn alone.

What the figures mean is defined in [`~transformers_jakiro.measuring.summary`]; where the time goes is measured in
separate runs ([`~transformers_jakiro.measuring.profiling`]), so that no timer slows down what is compared.
"""

import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..conversations import encode_conversation
from ..core.outputs import collect_statistics
from ..core.tree import TreeShape
from . import report
from .acceptance import sampling_options
from .deepened import deepen as insert_layers
from .journal import Journal
from .methods import Method, make_methods
from .profiling import (
    TIMED_METHODS,
    BatchRecorder,
    ForwardTimer,
    StepRecorder,
    context_growth,
    parts_of,
    peak_memory,
    reset_peak_memory,
    synchronize,
)
from .prompts import Prompt, gather_prompts, in_batches
from .summary import Profile, PromptRecord, Run, add_rounding, summarize

if TYPE_CHECKING:
    from rich.console import Console

_WARM_UP_TOKENS = 32


def _turns(prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
    """What is asked of them: all turns of a single one, the first ones in a batch."""
    return [prompts[0].turns] if len(prompts) == 1 else [prompt.turns[:1] for prompt in prompts]


def _silent_conversation(turns: Sequence[str]) -> list[dict[str, str]]:
    """Turns with empty answers between them."""
    messages = [[{"role": "user", "content": turn}, {"role": "assistant", "content": ""}] for turn in turns]
    return [message for pair in messages for message in pair][:-1]


class Benchmark:
    """
    Lets several methods answer the same prompts.

    Args:
        target, draft: the two models.
        tokenizer: the target's, with a chat template if it has one.
        max_new_tokens (`int`): per turn.
        methods (`Sequence[Method]`, *optional*): what to compare; default: plain `generate` and the drafter's trees.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 200,
        methods: Sequence[Method] | None = None,
    ):
        self.target, self.draft, self.tokenizer = target.eval(), draft.eval(), tokenizer
        self.max_new_tokens = max_new_tokens
        self.methods = list(methods or make_methods(target, draft, ("plain", "jakiro")))
        self._device: Any = target.get_input_embeddings().weight.device

    def encode(self, messages: str | Sequence[Mapping[str, str]]) -> dict[str, torch.Tensor]:
        """
        One user turn, or a conversation, as the target's chat template frames it; the bare text if it has none.

        Returns:
            `input_ids` and `attention_mask`, `[1, T]`.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return encode_conversation(self.tokenizer, messages, self._device)

    def encode_batch(self, conversations: Sequence[str | Sequence[Mapping[str, str]]]) -> dict[str, torch.Tensor]:
        """Several of them, padded on the left: `input_ids` and `attention_mask`, `[B, T]`."""
        rows = [self.encode(messages) for messages in conversations]
        width = max(row["input_ids"].shape[1] for row in rows)
        padding = self.tokenizer.pad_token_id
        if padding is None:  # masked, so that any token does
            padding = self.target.generation_config.pad_token_id or 0
        return {
            name: torch.cat(
                [torch.nn.functional.pad(row[name], (width - row[name].shape[1], 0), value=value) for row in rows]
            )
            for name, value in (("input_ids", padding), ("attention_mask", 0))
        }

    def warm_up(self, batches: Sequence[Sequence[Prompt]], temperatures: Sequence[float] = (0.0,)) -> dict[str, str]:
        """
        Lets every method answer the longest prompt with a few tokens, as if with room for the longest conversation:
        static caches do not grow afterwards. Drops the methods that transformers refuses for this target.

        Args:
            batches: what [`~Benchmark.run_prompts`] is going to be asked.

        Returns:
            Why, by the dropped methods' names.
        """
        candidates = [
            self.encode_batch([_silent_conversation(turns) for turns in _turns(prompts)]) for prompts in batches
        ]
        inputs = max(candidates, key=lambda inputs: inputs["input_ids"].shape[1])
        rows, start = inputs["input_ids"].shape
        # decoded and read again, an answer may take some tokens more
        most_turns = max(len(turns) for prompts in batches for turns in _turns(prompts))
        room = most_turns * (self.max_new_tokens + _WARM_UP_TOKENS)
        enough = [lambda ids, scores: torch.full((rows,), ids.shape[1] - start >= _WARM_UP_TOKENS, device=ids.device)]
        skipped: dict[str, str] = {}
        num_layers = self.target.config.get_text_config(decoder=True).num_hidden_layers
        for method in self.methods:
            for temperature in temperatures:
                kwargs = {**inputs, **sampling_options(temperature), **method.options, "stopping_criteria": enough}
                kwargs["max_new_tokens"] = room
                try:
                    with method.ready():
                        self.target.generate(**kwargs)
                except (ValueError, NotImplementedError) as error:
                    if method.name == "plain":
                        raise
                    skipped[method.name] = " ".join(str(error).split())
                    # an early exit that fails leaves the target with its lower layers
                    self.target.config.get_text_config(decoder=True).num_hidden_layers = num_layers
                    break
        self.methods = [method for method in self.methods if method.name not in skipped]
        return skipped

    def run_prompts(
        self,
        prompts: Sequence[Prompt],
        temperature: float = 0.0,
        seed: int = 0,
        profile: bool = False,
        first: int = 0,
    ) -> PromptRecord:
        """
        Lets all methods answer each turn of a prompt from the same seed and the same context: between the turns stand
        the answers of plain `generate`. Several prompts are a batch, and the first turn of each is answered.

        Args:
            prompts (`Sequence[Prompt]`): what is asked, of one task.
            temperature (`float`): 0 is greedy.
            profile (`bool`): run all again, with timers.
            first (`int`): which method begins.
        """
        record = PromptRecord(*_key(prompts), temperature, runs=[], num_prompts=len(prompts))
        first %= len(self.methods)
        order = self.methods[first:] + self.methods[:first]
        conversations: list[list[dict[str, str]]] = [[] for _ in prompts]
        for turn, texts in enumerate(zip(*_turns(prompts), strict=True)):
            for messages, text in zip(conversations, texts, strict=True):
                messages.append({"role": "user", "content": text})
            inputs = self.encode_batch(conversations)
            lengths = inputs["attention_mask"].sum(dim=-1).tolist()
            answers = {method.name: self.answer(method, turn, inputs, temperature, seed) for method in order}
            _, plain = answers["plain"]
            for method in self.methods:
                run, rows = answers[method.name]
                same = [torch.equal(row, expected) for row, expected in zip(rows, plain, strict=True)]
                run.identical = sum(same) / len(same)
                if temperature == 0 and self.target.dtype in (torch.bfloat16, torch.float16):
                    run.rounding = add_rounding(
                        None if is_same else rounding_report(self.target, row[None], length)
                        for row, length, is_same in zip(rows, lengths, same, strict=True)
                    )
                record.runs.append(run)
            if profile:
                record.profiles += [self._profile(method, turn, inputs, temperature, seed) for method in self.methods]
            for messages, row, length in zip(conversations, plain, lengths, strict=True):
                answer: Any = self.tokenizer.decode(row[length:], skip_special_tokens=True)
                messages.append({"role": "assistant", "content": answer})
        return record

    def _generate(self, method: Method, inputs: Mapping[str, torch.Tensor], temperature: float, seed: int, **kwargs):
        set_seed(seed)
        synchronize(self._device)
        start = time.perf_counter()
        generate: Any = self.target.generate
        output = generate(
            **inputs, **sampling_options(temperature), **method.options, max_new_tokens=self.max_new_tokens, **kwargs
        )
        synchronize(self._device)
        return time.perf_counter() - start, output

    def answer(
        self, method: Method, turn: int, inputs: Mapping[str, torch.Tensor], temperature: float = 0.0, seed: int = 0
    ) -> tuple[Run, list[torch.Tensor]]:
        """
        Lets one method answer one turn, without timers inside.

        Args:
            turn (`int`): its number, to be noted.
            inputs: what [`~Benchmark.encode`] or [`~Benchmark.encode_batch`] gives.

        Returns:
            What was measured, and each row's prompt and answer without padding.
        """
        # with `return_dict_in_generate`, which tells what was accepted, ended rows would stay in the batch
        with method.ready(), collect_statistics() as drafted:
            seconds, output = self._generate(method, inputs, temperature, seed)
        rows = trim_rows(output, inputs["attention_mask"], self.target.generation_config.eos_token_id)
        prompt_tokens = int(inputs["attention_mask"].sum())
        new_tokens = sum(map(len, rows)) - prompt_tokens
        run = Run(method.name, turn, prompt_tokens, new_tokens, seconds, identical=1.0)
        for statistics in drafted:
            run.accept_lengths = [length for lengths in statistics.accept_lengths for length in lengths]
            run.num_drafted_tokens = statistics.num_drafted_tokens
        return run, rows

    def _profile(
        self, method: Method, turn: int, inputs: Mapping[str, torch.Tensor], temperature: float, seed: int
    ) -> Profile:
        timer = ForwardTimer(self._device, TIMED_METHODS, **(method.modules or {}))
        prefill: dict[str, Any] = {}

        def on_prefill() -> None:
            synchronize(self._device)
            prefill.update(time=time.perf_counter(), seconds=dict(timer.seconds))

        reset_peak_memory(self._device)
        with method.ready(), timer.running(), collect_statistics() as drafted:
            shape = None
            if method.draft is not None:
                shape = TreeShape.from_config(method.draft.config, method.options.get("num_assistant_tokens"))
            is_batch = inputs["input_ids"].shape[0] > 1
            recorder = BatchRecorder(on_prefill) if is_batch else StepRecorder(on_prefill, shape)
            seconds, _ = self._generate(method, inputs, temperature, seed, streamer=recorder)
            end = time.perf_counter()
        decoding = end - prefill["time"]
        spent = {name: value - prefill["seconds"][name] for name, value in timer.seconds.items()}
        in_prefill, *later = recorder.num_tokens
        accept_lengths = [tokens - 1 for tokens in later]
        if is_batch and drafted:
            accept_lengths = max(drafted[0].accept_lengths, key=len)
        return Profile(
            method=method.name,
            turn=turn,
            first_token_seconds=seconds - decoding,
            seconds=decoding,
            accept_lengths=accept_lengths,
            num_prefill_tokens=in_prefill,
            parts=None if method.modules is None else parts_of(spent, decoding),
            levels=recorder.levels,
            peak_memory=peak_memory(self._device),
        )


def trim_rows(
    sequences: torch.Tensor, attention_mask: torch.Tensor, end_tokens: int | Sequence[int] | None
) -> list[torch.Tensor]:
    """
    The rows `[B, T + new]` of a batch without padding: before the prompt by its mask `[B, T]`, and behind the first
    end token of the answer.
    """
    ends = torch.tensor([end_tokens] if isinstance(end_tokens, int) else list(end_tokens or ()), dtype=torch.long)
    rows = []
    for sequence, mask in zip(sequences, attention_mask, strict=True):
        is_end = torch.isin(sequence[len(mask) :], ends.to(sequence.device)).nonzero()
        end = len(mask) + int(is_end[0]) + 1 if len(is_end) else len(sequence)
        rows.append(sequence[len(mask) - int(mask.sum()) : end])
    return rows


@torch.no_grad()
def rounding_report(target: PreTrainedModel, sequences: torch.Tensor, prompt_length: int) -> dict[str, float]:
    """
    Teacher-forces a greedy output through the target: how many of its tokens are not the argmax of the target's own
    forward, and by how much the worst of them falls short.

    Returns:
        `tokens`, `differing` (tokens that are not the argmax), `largest_gap` (logit of the argmax less that of the
        token, relative to the row's largest absolute logit).
    """
    logits = target(sequences[:, :-1]).logits[0, prompt_length - 1 :].float()
    tokens = sequences[0, prompt_length:, None]
    gaps = (logits.amax(dim=-1) - logits.gather(1, tokens)[:, 0]) / logits.abs().amax(dim=-1)
    return {"tokens": len(tokens), "differing": int((gaps > 0).sum()), "largest_gap": float(gaps.max())}


def provenance(**arguments: Any) -> dict[str, Any]:
    """What a figure depends on besides the models."""
    return {
        "transformers_jakiro": version("transformers_jakiro"),
        "commit": _commit(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "arguments": arguments,
    }


def _commit() -> str | None:
    """The commit of this package's checkout, `-dirty` if changed; None where it is installed without one."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # no git
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no", ".") else commit


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


@dataclass(frozen=True)
class BenchOptions:
    """
    What a benchmark measures. The fields are the record of a run: one that was stopped only goes on with the same.

    Args:
        files: prompts ([`~transformers_jakiro.measuring.prompts.read_prompts`]); default: those that ship, or none
            where only `context` is asked for.
        target, draft, control, assistant: folders or Hub ids.
        temperature: 0 is greedy.
        tasks, limit: which tasks, and how many prompts of each.
        max_new_tokens: of an answer.
        methods, assistant_early_exit, num_assistant_tokens: see
            [`~transformers_jakiro.measuring.methods.make_methods`].
        batch_size: prompts of a task that are answered at a time, of conversations the first turns. Prompts that do
            not fill a batch are left out, and so are methods that take one at a time.
        profile: prompts (or batches) of each task to run again with timers.
        deepen: layers to give the target by inserting identity layers
            ([`~transformers_jakiro.measuring.deepened.deepen`]).
        dtype: of all models.
        context: lengths at which to measure a step's time, too.
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

    def record(self) -> dict[str, Any]:
        """The options by name, as they were given."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def run_bench(options: BenchOptions, output: str | None = None, console: "Console | None" = None) -> dict[str, Any]:
    """
    The `jakiro bench` command: lets all methods answer the prompts at all temperatures, prints tables and writes a
    report. Stopped and run again with the same options, it goes on.

    Args:
        options ([`BenchOptions`]): what to measure.
        output (`str`, *optional*): folder for the report.
        console (`rich.console.Console`, *optional*): where to print.

    Returns:
        What `results.json` holds; see `results.schema.json`.

    Raises:
        ValueError: if the models, prompts or methods do not fit, or `output` holds results of other options.
    """
    from rich.console import Console

    if options.profile < 0:
        raise ValueError(f"`--profile` must be at least 0, got {options.profile}.")
    console = console or Console()
    if not console.is_terminal:
        console.width = 150  # a file has room for the whole table
    prompts = (
        gather_prompts(options.files, options.tasks, options.limit) if options.files or not options.context else []
    )
    batches, left_out = in_batches(prompts, options.batch_size)
    folder = None if output is None else _folder(output)
    conditions = provenance(**options.record())
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
    known = [{"name": method.name, "description": method.description} for method in benchmark.methods]
    jobs = [(value, batch) for value in options.temperature for batch in batches]
    try:
        _run_jobs(benchmark, journal, jobs, options.profile, console)
    except KeyboardInterrupt:
        console.print(f"Stopped after {len(journal.records)} of {len(jobs)} answers.", end=" ")
        if folder is not None:
            console.print("Run the same command again to go on.", end="")
        console.print()
        raise SystemExit(130) from None
    payload = _payload(benchmark, journal, jobs, known, label, conditions, options.context)
    _print_results(payload, left_out, console)
    if folder is not None:
        _save(folder, payload, console)
    return payload


def _folder(output: str) -> Path:
    folder = Path(output)
    if folder.is_file():
        raise ValueError(f"`--output` must be a folder, {folder} is a file. Choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _payload(
    benchmark: "Benchmark",
    journal: Journal,
    jobs: Sequence[tuple[float, Sequence[Prompt]]],
    methods: Sequence[Mapping[str, Any]],
    label: str,
    conditions: Mapping[str, Any],
    context: Sequence[int] | None,
) -> dict[str, Any]:
    """What `results.json` holds of finished jobs."""
    records = [journal.records[(value, *_key(batch))] for value, batch in jobs]
    skipped = journal.skipped or {}
    return {
        "schema_version": report.SCHEMA_VERSION,
        "label": label,
        "provenance": {
            **conditions,
            "target_config": _config(benchmark.target),
            "draft_config": _config(benchmark.draft),
        },
        "methods": [{**method, "skipped": skipped.get(method["name"])} for method in methods],
        "summary": summarize(records),
        "context": context_growth(benchmark.target, benchmark.draft, context) if context else [],
        "records": [asdict(record) for record in records],
    }


def _print_results(payload: dict[str, Any], left_out: Sequence[Prompt], console: "Console") -> None:
    from rich.markup import escape

    console.print(f"[bold]{escape(payload['label'])}[/bold]", soft_wrap=True)
    for table in report.tables(payload):
        console.print(table)
    console.print(escape(report.conditions(payload)), soft_wrap=True)
    for method in payload["methods"]:
        if method["skipped"] is not None:
            text = f"[bold]{method['name']}[/bold] {report.cannot_run(payload)}: {escape(method['skipped'])}"
            console.print(text, soft_wrap=True)
    if left_out:
        names = ", ".join(f"{prompt.task} {prompt.id}" for prompt in left_out)
        size = payload["provenance"]["arguments"]["batch_size"]
        console.print(f"Left out, as they fill no batch of {size}: {escape(names)}", soft_wrap=True)


def _save(folder: Path, payload: dict[str, Any], console: "Console") -> None:
    from rich.markup import escape

    missing = report.write_report(folder, payload)
    console.print(
        f"Saved {escape(str(folder / 'results.json'))}, results.md, results.html" + ("" if missing else " and plots")
    )
    if missing:
        console.print(missing, soft_wrap=True)


def load_benchmark(
    target: str,
    draft: str,
    dtype: str = "bfloat16",
    max_new_tokens: int = 200,
    methods: Sequence[str] | None = None,
    control: str | None = None,
    assistant: str | None = None,
    assistant_early_exit: int | None = None,
    num_assistant_tokens: Sequence[int] | None = None,
    deepen: int | None = None,
) -> tuple[Benchmark, str]:
    """Loads models, on the accelerator if there is one. Arguments as of [`BenchOptions`]. Returns their name, too."""
    where = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, **where).eval()
    device = target_model.get_output_embeddings().weight.device

    def load(path: str | None, auto: Any) -> PreTrainedModel | None:
        return None if path is None else auto.from_pretrained(path, dtype=target_model.dtype).to(device).eval()

    draft_model: Any = load(draft, AutoModel)
    control_model: Any = load(control, AutoModel)
    label = f"{target} with {draft}, {dtype}"
    if deepen is not None:
        positions = insert_layers(target_model, deepen)
        for drafter in (draft_model, control_model):
            if drafter is not None and drafter.config.feature_layers:
                drafter.config.feature_layers = [positions[layer] for layer in drafter.config.feature_layers]
        label += f", target deepened to {deepen} layers (identity layers inserted)"
    chosen = make_methods(
        target_model,
        draft_model,
        methods,
        control=control_model,
        assistant=load(assistant, AutoModelForCausalLM),
        early_exit=assistant_early_exit,
        num_assistant_tokens=num_assistant_tokens or (),
    )
    tokenizer = AutoTokenizer.from_pretrained(target)
    return Benchmark(target_model, draft_model, tokenizer, max_new_tokens, chosen), label


def _run_jobs(
    benchmark: Benchmark,
    journal: Journal,
    jobs: Sequence[tuple[float, Sequence[Prompt]]],
    num_profiled: int,
    console: "Console",
) -> None:
    """Runs what the journal does not hold yet: pairs of a temperature and a batch of prompts."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    left = [(value, prompts) for value, prompts in jobs if (value, *_key(prompts)) not in journal.records]
    if not left:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("warm-up", total=len(left))
        if journal.skipped is None:
            temperatures = list(dict.fromkeys(value for value, _ in jobs))
            journal.skip(benchmark.warm_up([prompts for _, prompts in jobs], temperatures))
        else:
            benchmark.methods = [method for method in benchmark.methods if method.name not in journal.skipped]
            benchmark.warm_up([prompts for _, prompts in left], [left[0][0]])
        seen: dict[tuple[float, str], int] = {}
        for number, (value, prompts) in enumerate(jobs):
            task, name = _key(prompts)
            index = seen.setdefault((value, task), 0)
            seen[value, task] += 1
            if (value, task, name) in journal.records:
                continue
            progress.update(bar, description=f"{task}, T = {value:g}")
            journal.add(benchmark.run_prompts(prompts, value, profile=index < num_profiled, first=number))
            progress.advance(bar)


def _key(prompts: Sequence[Prompt]) -> tuple[str, str]:
    """Task and id of what is answered together."""
    return prompts[0].task, "+".join(prompt.id for prompt in prompts)


def _config(model: PreTrainedModel) -> dict[str, Any]:
    return json.loads(model.config.to_json_string())


__all__ = [
    "BenchOptions",
    "Benchmark",
    "load_benchmark",
    "provenance",
    "rounding_report",
    "run_bench",
    "trim_rows",
]
