# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What a drafter gives: plain `generate` and `generate` with the drafter, prompt by prompt in the same process.

Definitions, used everywhere:
- *tokens per target forward* (τ) = tokens emitted after the prefill's own one / target forwards after the prefill;
- *speed-up* of a prompt = time of plain `generate` / time with the drafter, for equal numbers of new tokens;
- time *outside the forwards* = step time − (target forwards + drafter forwards, the target's head on the drafter's
  features included).
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

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

from .data import read_conversations
from .files import write_json
from .generation import JakiroGenerateOutput
from .target import DraftHead
from .tree import DraftTree


def synchronize(device: torch.device) -> None:
    """Waits for the device's queued work, so that a timer around it tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def tokens_per_forward(accept_lengths: Sequence[int]) -> float:
    """τ of a generation: each target forward after the prefill emits one token more than it accepts."""
    return 1 + sum(accept_lengths) / len(accept_lengths) if accept_lengths else 1.0


def sampling_options(temperature: float) -> dict[str, Any]:
    """Arguments of `generate`: greedy at temperature 0, else samples from the whole distribution."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def accept_lengths(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    input_ids: torch.LongTensor,
    temperature: float,
    max_new_tokens: int,
) -> list[int]:
    """
    Answers a prompt `[1, T]` with the drafter.

    Returns:
        How many drafted tokens each target forward after the prefill accepted.
    """
    output = target.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        assistant_model=draft,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
        **sampling_options(temperature),
    )
    assert isinstance(output, JakiroGenerateOutput)
    return output.accept_lengths[0]


@dataclass
class PromptResult:
    """One prompt at one temperature. Times in seconds."""

    task: str
    id: str
    temperature: float
    new_tokens: int
    plain_seconds: float
    plain_new_tokens: int
    seconds: float
    steps: int
    tokens_per_forward: float
    num_drafted_tokens: int
    target_seconds: float
    draft_seconds: float
    head_seconds: float
    identical: bool

    @property
    def speed_up(self) -> float:
        """Ratio of the tokens per second."""
        return (self.new_tokens / self.seconds) / (self.plain_new_tokens / self.plain_seconds)


class ForwardTimer:
    """
    Adds up the time spent in modules' forwards, nested ones counted once, outermost first. With a module `head`, heads
    of a part of the vocabulary, which each generation makes for itself, count as that.
    """

    def __init__(self, device: torch.device, **modules: torch.nn.Module):
        self.seconds = dict.fromkeys(modules, 0.0)
        self._device = device
        self._modules = modules
        self._started: list[tuple[str, float]] = []

    @contextmanager
    def running(self) -> Iterator["ForwardTimer"]:
        compute, handles = DraftHead.__call__, []

        def timed(head: DraftHead, features: torch.Tensor) -> torch.Tensor:
            self._start("head")
            logits = compute(head, features)
            self._stop()
            return logits

        if "head" in self._modules:
            DraftHead.__call__ = timed
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._start(name)))
            handles.append(module.register_forward_hook(lambda *_: self._stop()))
        try:
            yield self
        finally:
            DraftHead.__call__ = compute
            for handle in handles:
                handle.remove()

    def _start(self, name: str) -> None:
        if not self._started:
            synchronize(self._device)
        self._started.append((name, time.perf_counter()))

    def _stop(self) -> None:
        name, start = self._started.pop()
        if not self._started:
            synchronize(self._device)
            self.seconds[name] += time.perf_counter() - start


class Benchmark:
    """
    Compares a target with and without its drafter.

    Args:
        target, draft: the two models.
        tokenizer: the target's, with a chat template if it has one.
        max_new_tokens (`int`): per prompt.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 200,
    ):
        self.target, self.draft, self.tokenizer = target.eval(), draft.eval(), tokenizer
        self.max_new_tokens = max_new_tokens
        self._device = target.get_input_embeddings().weight.device

    def encode(self, prompt: str) -> dict[str, torch.Tensor]:
        """One user turn as the target's chat template frames it, or the bare text if it has none."""
        if self.tokenizer.chat_template is None:
            inputs = self.tokenizer(prompt, return_tensors="pt")
        else:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
        return {name: inputs[name].to(self._device) for name in ("input_ids", "attention_mask")}

    def run_prompt(self, task: str, prompt_id: str, prompt: str, temperature: float, seed: int = 0) -> PromptResult:
        """Plain `generate`, then with the drafter, from the same seed."""
        inputs = self.encode(prompt)
        kwargs = {**inputs, **sampling_options(temperature), "max_new_tokens": self.max_new_tokens}
        prompt_length = inputs["input_ids"].shape[1]

        set_seed(seed)
        plain_seconds, plain = self._timed(lambda: self.target.generate(**kwargs))
        timer = ForwardTimer(
            self._device, target=self.target, draft=self.draft, head=self.target.get_output_embeddings()
        )
        set_seed(seed)
        with timer.running():
            seconds, output = self._timed(
                lambda: self.target.generate(**kwargs, assistant_model=self.draft, return_dict_in_generate=True)
            )
        assert isinstance(output, JakiroGenerateOutput)
        accept_lengths = output.accept_lengths[0]
        return PromptResult(
            task=task,
            id=prompt_id,
            temperature=temperature,
            new_tokens=output.sequences.shape[1] - prompt_length,
            plain_seconds=plain_seconds,
            plain_new_tokens=plain.shape[1] - prompt_length,
            seconds=seconds,
            steps=len(accept_lengths),
            tokens_per_forward=tokens_per_forward(accept_lengths),
            num_drafted_tokens=output.num_drafted_tokens,
            target_seconds=timer.seconds["target"],
            draft_seconds=timer.seconds["draft"],
            head_seconds=timer.seconds["head"],
            identical=torch.equal(plain, output.sequences),
        )

    def _timed(self, function):
        synchronize(self._device)
        start = time.perf_counter()
        result = function()
        synchronize(self._device)
        return time.perf_counter() - start, result


def read_prompts(path: Path, limit: int | None = None) -> list[tuple[str, str, str]]:
    """(task, id, first turn) of each line of a JSONL file with `id`, `task`, `turns` (or `prompt`)."""
    return [
        (
            row.get("task", Path(path).stem),
            str(row.get("id", index)),
            row["turns"][0] if "turns" in row else row["prompt"],
        )
        for index, row in enumerate(read_conversations(path, limit=limit))
    ]


def summarize(results: Sequence[PromptResult]) -> list[dict[str, Any]]:
    """One row per task and temperature, then the mean of the tasks per temperature. Speed-ups are medians."""
    rows: list[dict[str, Any]] = []
    for temperature in dict.fromkeys(result.temperature for result in results):
        of_temperature = [result for result in results if result.temperature == temperature]
        task_rows = []
        for task in dict.fromkeys(result.task for result in of_temperature):
            group = [result for result in of_temperature if result.task == task]
            seconds = sum(result.seconds for result in group)
            in_forwards = sum(result.target_seconds + result.draft_seconds + result.head_seconds for result in group)
            steps = sum(result.steps for result in group)
            task_rows.append(
                {
                    "task": task,
                    "temperature": temperature,
                    "prompts": len(group),
                    "plain_tokens_per_second": sum(r.plain_new_tokens for r in group)
                    / sum(r.plain_seconds for r in group),
                    "tokens_per_second": sum(r.new_tokens for r in group) / seconds,
                    "speed_up": statistics.median(r.speed_up for r in group),
                    "tokens_per_forward": sum(r.new_tokens - 1 for r in group) / max(1, steps),
                    "target_share": sum(r.target_seconds for r in group) / seconds,
                    "draft_share": sum(r.draft_seconds + r.head_seconds for r in group) / seconds,
                    "other_share": 1 - in_forwards / seconds,
                    "identical": sum(r.identical for r in group) / len(group),
                }
            )
        rows.extend(task_rows)
        if len(task_rows) > 1:
            mean = {"task": "mean", "temperature": temperature, "prompts": len(of_temperature)}
            for name in task_rows[0]:
                if name not in mean:
                    mean[name] = statistics.fmean(row[name] for row in task_rows)
            rows.append(mean)
    return rows


class _StepClock:
    """A [`~transformers_jakiro.StepStreamer`] that notes when each step ended."""

    def __init__(self, on_step: Callable[[], None]):
        self._on_step = on_step

    def put(self, value: torch.Tensor) -> None:
        pass

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        self._on_step()

    def end(self) -> None:
        pass


def _after_steps(marks: list[tuple[float, float]], steps: int) -> Callable[..., torch.Tensor]:
    """A stopping criterion: enough steps were marked."""
    return lambda input_ids, scores: torch.full((input_ids.shape[0],), len(marks) >= steps, device=input_ids.device)


def context_growth(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    lengths: Sequence[int] = (1024, 8192),
    steps: int = 20,
    rounds: int = 3,
) -> list[dict[str, float]]:
    """
    How a step's time grows with the context, on random tokens, the lengths taking turns.

    Returns:
        Per context length the median milliseconds of a step, of the target's forward in it, and of the rest.
    """
    device = target.get_input_embeddings().weight.device
    records: dict[int, list[tuple[float, float]]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, record in records.items():
            input_ids = torch.randint(5, target.config.get_text_config().vocab_size, (1, length), device=device)
            timer = ForwardTimer(device, target=target)
            marks: list[tuple[float, float]] = []

            def mark(timer=timer, marks=marks):
                synchronize(device)
                marks.append((time.perf_counter(), timer.seconds["target"]))

            with timer.running():
                target.generate(
                    input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    assistant_model=draft,
                    streamer=_StepClock(mark),
                    do_sample=False,
                    eos_token_id=None,
                    max_new_tokens=(steps + 3) * (draft.config.tree_depth + 1),
                    stopping_criteria=[_after_steps(marks, steps + 3)],
                )
            for before, after in pairwise(marks[2:]):  # the first steps warm up
                record.append((after[0] - before[0], after[1] - before[1]))
    rows = []
    for length, record in records.items():
        total = 1e3 * statistics.median(total for total, _ in record)
        in_target = 1e3 * statistics.median(seconds for _, seconds in record)
        rows.append({"context": length, "step_ms": total, "target_ms": in_target, "rest_ms": total - in_target})
    return rows


@torch.no_grad()
def rounding_report(target: PreTrainedModel, sequences: torch.LongTensor, prompt_length: int) -> dict[str, float]:
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
        "transformers_jakiro": _version("transformers_jakiro"),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "arguments": arguments,
    }


def write_results(path: Path, results: Sequence[PromptResult], **arguments: Any) -> None:
    """Summary, every prompt's result and the provenance; written to a temporary file first."""
    payload = {
        "provenance": provenance(**arguments),
        "summary": summarize(results),
        "results": [{**asdict(result), "speed_up": result.speed_up} for result in results],
    }
    write_json(Path(path), payload)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def run_bench(
    files: Sequence[str],
    target: str,
    draft: str,
    temperature: Sequence[float] = (0.0,),
    limit: int | None = None,
    max_new_tokens: int = 200,
    num_assistant_tokens: int | None = None,
    dtype: str = "bfloat16",
    output: str | None = None,
    context: Sequence[int] | None = None,
) -> list[PromptResult]:
    """
    The `jakiro bench` command: loads the pair, runs the prompts of all files at all temperatures, prints tables.

    Raises:
        ValueError: if there is nothing to measure.
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    if not files and not context:
        raise ValueError("Nothing to measure: give files with prompts, or `--context` lengths.")
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file has room for the whole table
    prompts = [row for file in files for row in read_prompts(Path(file), limit)]
    tokenizer = AutoTokenizer.from_pretrained(target)
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype)
    draft_model = AutoModel.from_pretrained(draft, dtype=dtype)
    if num_assistant_tokens is not None:
        draft_model.config.num_draft_tokens = num_assistant_tokens
    benchmark = Benchmark(target_model, draft_model, tokenizer, max_new_tokens)
    results: list[PromptResult] = []
    if prompts:
        benchmark.run_prompt(*prompts[0], temperature=temperature[0])  # warm-up, dropped
        jobs = [(prompt, value) for value in temperature for prompt in prompts]
        results = [benchmark.run_prompt(*prompt, temperature=value) for prompt, value in track(jobs, console=console)]
        table = Table(title=f"{target} with {draft}, {dtype}")
        for column in (
            *("task", "T", "prompts", "plain tok/s", "tok/s", "speed-up", "tokens/forward"),
            *("target", "drafter", "other", "identical"),
        ):
            table.add_column(column, justify="left" if column == "task" else "right")
        for row in summarize(results):
            table.add_row(
                row["task"],
                f"{row['temperature']:g}",
                str(row["prompts"]),
                *(f"{row[name]:.1f}" for name in ("plain_tokens_per_second", "tokens_per_second")),
                *(f"{row[name]:.2f}" for name in ("speed_up", "tokens_per_forward")),
                *(f"{row[name]:.1%}" for name in ("target_share", "draft_share", "other_share", "identical")),
            )
        console.print(table)
    if context:
        table = Table(title="milliseconds of a step, by tokens of context (medians)")
        for column in ("context", "step", "target forward", "rest"):
            table.add_column(column, justify="right")
        for row in context_growth(target_model, draft_model, context):
            table.add_row(str(row["context"]), *(f"{row[name]:.2f}" for name in ("step_ms", "target_ms", "rest_ms")))
        console.print(table)
    if output is not None:
        arguments = {"target": target, "draft": draft, "dtype": dtype, "max_new_tokens": max_new_tokens}
        write_results(Path(output), results, **arguments, draft_config=draft_model.config.to_diff_dict())
        console.print(f"Saved {output}")
    return results
