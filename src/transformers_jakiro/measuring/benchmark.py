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

import time
from collections.abc import Mapping, Sequence
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
from .acceptance import sampling_options
from .deepened import deepen as insert_layers
from .methods import Method, make_methods
from .profiling import (
    TIMED_METHODS,
    BatchRecorder,
    ForwardTimer,
    StepRecorder,
    parts_of,
    peak_memory,
    reset_peak_memory,
    synchronize,
)
from .prompts import Prompt
from .summary import Profile, PromptRecord, Run, add_rounding

if TYPE_CHECKING:
    pass

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
        record = PromptRecord(*batch_key(prompts), temperature, runs=[], num_prompts=len(prompts))
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
            deepen: see [`~transformers_jakiro.measuring.bench.BenchOptions`].

    Returns:
        The benchmark, and a title for it.
    """
    where = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, **where).eval()
    device = target_model.get_output_embeddings().weight.device

    def load(path: str, auto: Any) -> PreTrainedModel:
        return auto.from_pretrained(path, dtype=target_model.dtype).to(device).eval()

    def load_drafter(path: str, option: str) -> PreTrainedModel:
        model = load(path, AutoModel)
        if not isinstance(model.config, JakiroDraftConfig):
            raise ValueError(
                f"`{option}` must be a Jakiro drafter, got a {type(model).__name__} in {path}. `jakiro convert` makes "
                "one from a published checkpoint."
            )
        return model

    draft_model = load_drafter(draft, "--draft")
    control_model = None if control is None else load_drafter(control, "--control")
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


def batch_key(prompts: Sequence[Prompt]) -> tuple[str, str]:
    """Task and id of prompts that are answered together."""
    return prompts[0].task, "+".join(prompt.id for prompt in prompts)


__all__ = ["Benchmark", "batch_key", "load_benchmark", "rounding_report", "trim_rows"]
