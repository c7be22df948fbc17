# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
How a drafter compares on this machine with everything else one could have chosen: all methods side by side in one
process, taking turns on every prompt.

With `batch_size`, several prompts of a task are answered at a time, padded on the left. Only the first turn of a
conversation is answered then.

The figures are defined in [`~transformers_jakiro.measuring.summary`]. Where the time goes is measured in separate runs
([`~transformers_jakiro.measuring.profiling`]), so that no timer slows down what is compared.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..conversations import encode_conversation
from ..core.configuration_jakiro import JakiroDraftConfig
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
from .provenance import provenance
from .summary import Profile, PromptRecord, Run, add_rounding, summarize

if TYPE_CHECKING:
    from rich.console import Console

# a temperature, and prompts that are answered together
Job = tuple[float, Sequence[Prompt]]
_WARM_UP_TOKENS = 32


def _turns(prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
    """The turns to answer: all those of a single prompt; in a batch, the first one of each prompt."""
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
        tokenizer: the target's tokenizer. Its chat template is used if it has one.
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
        self._device = cast(torch.Tensor, target.get_input_embeddings().weight).device

    def encode(self, messages: str | Sequence[Mapping[str, str]]) -> dict[str, torch.Tensor]:
        """
        Encodes a user turn or a conversation with the target's chat template; without a template, as bare text.

        Returns:
            `input_ids` and `attention_mask`, `[1, T]`.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return encode_conversation(self.tokenizer, messages, self._device)

    def encode_batch(self, conversations: Sequence[str | Sequence[Mapping[str, str]]]) -> dict[str, torch.Tensor]:
        """
        Encodes several conversations, padded on the left.

        Returns:
            `input_ids` and `attention_mask`, `[B, T]`.
        """
        rows = [self.encode(messages) for messages in conversations]
        width = max(row["input_ids"].shape[1] for row in rows)
        padding = self.tokenizer.pad_token_id
        if padding is None:  # it is masked, so any token will do
            padding = self.target.generation_config.pad_token_id or 0
        return {
            name: torch.cat(
                [torch.nn.functional.pad(row[name], (width - row[name].shape[1], 0), value=value) for row in rows]
            )
            for name, value in (("input_ids", padding), ("attention_mask", 0))
        }

    def warm_up(self, batches: Sequence[Sequence[Prompt]], temperatures: Sequence[float] = (0.0,)) -> dict[str, str]:
        """
        Lets every method answer the longest prompt with a few tokens, with room for the longest conversation, so that
        static caches do not grow afterwards. Drops the methods that transformers refuses for this target.

        Args:
            batches: all prompts that [`~Benchmark.run_prompts`] is going to be called with.
            temperatures: all temperatures of these calls; 0 is greedy.

        Returns:
            Why methods were dropped, by their names.
        """
        candidates = [
            self.encode_batch([_silent_conversation(turns) for turns in _turns(prompts)]) for prompts in batches
        ]
        inputs = max(candidates, key=lambda inputs: inputs["input_ids"].shape[1])
        rows, start = inputs["input_ids"].shape
        # an answer that is decoded and encoded again may have a few tokens more
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
                    # an early exit that fails leaves only the lower layers in the target's config
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
        Lets all methods answer each turn of a prompt with the same seed and the same context, in which the answers to
        earlier turns are those of plain `generate`. Several prompts are a batch; the first turn of each is answered.

        Args:
            prompts (`Sequence[Prompt]`): prompts of one task.
            temperature (`float`): 0 is greedy.
            seed (`int`): set before each answer.
            profile (`bool`): whether to run all methods again with timers.
            first (`int`): number of the method that begins.
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
                self._compare(run, rows, plain, lengths, temperature)
                record.runs.append(run)
            if profile:
                record.profiles += [self._profile(method, turn, inputs, temperature, seed) for method in self.methods]
            for messages, row, length in zip(conversations, plain, lengths, strict=True):
                answer = cast(str, self.tokenizer.decode(row[length:], skip_special_tokens=True))
                messages.append({"role": "assistant", "content": answer})
        return record

    def _compare(
        self,
        run: Run,
        rows: Sequence[torch.Tensor],
        plain: Sequence[torch.Tensor],
        prompt_lengths: Sequence[int],
        temperature: float,
    ) -> None:
        """
        Notes how many rows equal those of plain `generate`. In greedy half precision it also notes by how much the
        others miss the argmax.
        """
        same = [torch.equal(row, expected) for row, expected in zip(rows, plain, strict=True)]
        run.identical = sum(same) / len(same)
        if temperature == 0 and self.target.dtype in (torch.bfloat16, torch.float16):
            run.rounding = add_rounding(
                None if is_same else rounding_report(self.target, row[None], length)
                for row, length, is_same in zip(rows, prompt_lengths, same, strict=True)
            )

    def _generate(
        self, method: Method, inputs: Mapping[str, torch.Tensor], temperature: float, seed: int, **kwargs: Any
    ) -> tuple[float, torch.Tensor]:
        """Seconds and tokens `[B, T + new]` of one call of `generate`."""
        set_seed(seed)
        synchronize(self._device)
        start = time.perf_counter()
        output = self.target.generate(
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
            method ([`~transformers_jakiro.measuring.methods.Method`]): how to generate.
            turn (`int`): number of the turn, for the record.
            inputs: from [`~Benchmark.encode`] or [`~Benchmark.encode_batch`].
            temperature (`float`): 0 is greedy.
            seed (`int`): set before.

        Returns:
            What was measured, and each row's prompt and answer without padding.
        """
        # `return_dict_in_generate` would tell what was accepted, too, but would keep finished rows in the batch
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
        """Lets one method answer one turn with timers inside."""
        timer = ForwardTimer(self._device, TIMED_METHODS, **(method.modules or {}))
        prefill: dict[str, Any] = {}

        def on_prefill() -> None:
            synchronize(self._device)
            prefill.update(time=time.perf_counter(), seconds=dict(timer.seconds))

        reset_peak_memory(self._device)
        with method.ready(), timer.running(), collect_statistics() as drafted:
            shape = None
            if method.draft is not None:
                config = cast(JakiroDraftConfig, method.draft.config)
                shape = TreeShape.from_config(config, method.options.get("num_assistant_tokens"))
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
    The rows of a batch without padding: none before the prompt, none after the first end token of the answer.

    Args:
        sequences (`torch.LongTensor` of shape `(B, T + new)`): prompts and answers.
        attention_mask (`torch.LongTensor` of shape `(B, T)`): mask of the prompts.
        end_tokens: tokens that end an answer.
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
    Runs a greedy output through the target (teacher forcing). Counts the tokens that are not the argmax of the
    target's own forward, and measures by how much the worst one misses it.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        sequences (`torch.LongTensor` of shape `(1, T)`): prompt and answer.
        prompt_length (`int`): tokens of the prompt.

    Returns:
        `tokens`, `differing` (tokens that are not the argmax) and `largest_gap` (the argmax's logit minus the token's,
        relative to the largest absolute logit at that position).
    """
    logits = target(sequences[:, :-1]).logits[0, prompt_length - 1 :].float()
    tokens = sequences[0, prompt_length:, None]
    gaps = (logits.amax(dim=-1) - logits.gather(1, tokens)[:, 0]) / logits.abs().amax(dim=-1)
    return {"tokens": len(tokens), "differing": int((gaps > 0).sum()), "largest_gap": float(gaps.max())}


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

    def record(self) -> dict[str, Any]:
        """The fields by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


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
    """
    Loads the models, on the accelerator if there is one.

    Args:
        target, draft, dtype, max_new_tokens, methods, control, assistant, assistant_early_exit, num_assistant_tokens,
            deepen: see [`BenchOptions`].

    Returns:
        The benchmark, and a title for it.
    """
    where = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, **where).eval()
    device = target_model.get_output_embeddings().weight.device

    def load(path: str, auto: Any) -> PreTrainedModel:
        return auto.from_pretrained(path, dtype=target_model.dtype).to(device).eval()

    draft_model = load(draft, AutoModel)
    control_model = None if control is None else load(control, AutoModel)
    assistant_model = None if assistant is None else load(assistant, AutoModelForCausalLM)
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
        assistant=assistant_model,
        early_exit=assistant_early_exit,
        num_assistant_tokens=num_assistant_tokens or (),
    )
    tokenizer = AutoTokenizer.from_pretrained(target)
    return Benchmark(target_model, draft_model, tokenizer, max_new_tokens, chosen), label


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


def _key(prompts: Sequence[Prompt]) -> tuple[str, str]:
    """Task and id of prompts that are answered together."""
    return prompts[0].task, "+".join(prompt.id for prompt in prompts)


def _job_key(job: Job) -> tuple[float, str, str]:
    """Where the journal keeps a job's record."""
    temperature, prompts = job
    return (temperature, *_key(prompts))


def _config(model: PreTrainedModel) -> dict[str, Any]:
    """The config as JSON holds it."""
    return json.loads(model.config.to_json_string())


__all__ = ["BenchOptions", "Benchmark", "load_benchmark", "rounding_report", "run_bench", "trim_rows"]
