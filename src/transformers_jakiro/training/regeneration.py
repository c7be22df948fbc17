# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Training data in the target's own words: the target answers the prompts of a dataset.

A drafter predicts what its target says, so it learns most from what its target says. Answers are written as JSON
lines, `{"messages": [...], "finished": true}`, together with the dataset's other columns.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Any, cast

import torch
from tqdm.auto import tqdm
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from ..conversations import from_sharegpt, tools_of
from ..files import write_json
from .loading import load_target_and_conversations

# batches of a window: its conversations are answered together, so that a batch holds prompts of similar lengths
_BATCHES_PER_WINDOW = 16

_CONVERSATION_COLUMNS = ("messages", "prompt", "completion", "conversations")
_ROLES = ("system", "developer", "user", "assistant")  # a tool's messages cannot be asked for again


@dataclass
class RegenerationCounts:
    """
    The result of [`regenerate`] in numbers.

    Args:
        conversations (`int`): conversations that were written.
        skipped (`int`): conversations that were left out: there is no user message, a tool speaks, or the first prompt
            leaves no room for an answer.
        unfinished (`int`): written conversations whose last answer was cut at `max_new_tokens`.
        answers (`int`): answers in all conversations.
        tokens (`int`): new tokens in all answers, including end tokens.
    """

    conversations: int = 0
    skipped: int = 0
    unfinished: int = 0
    answers: int = 0
    tokens: int = 0


@torch.no_grad()
def regenerate(
    target_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Mapping[str, Any]],
    output_path: str | Path,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> RegenerationCounts:
    """
    Replaces the answers of `conversations` by the target's own, turn by turn: the target answers each user message in
    the context of its own earlier answers. System messages are kept.

    An answer cut at `max_new_tokens` is kept, since a drafter learns from every token of it, but it ends its
    conversation, which is marked `"finished": false`. A later turn whose prompt leaves no room for `max_new_tokens`
    within the target's `max_position_embeddings` is left out, and so are the turns after it.

    Writes `<output_path>.partial`, which is renamed at the end, and `<output_path>.meta.json` with the arguments and
    counts. A run that was stopped at any moment continues when called again with the same arguments. Its answers,
    including sampled ones, are those of an uninterrupted run (on the same machine).

    Args:
        target_model ([`~transformers.PreTrainedModel`]): answers with its own `generate` and generation config. Put in
            eval mode.
        tokenizer: the target's, with a chat template.
        conversations: rows with `messages`, `prompt` (messages, or a text that the user says) or ShareGPT's
            `conversations`. Other columns are kept, except a `completion`.
        output_path (`str` or `Path`): the file to write, one row per line, in the order of `conversations`.
        temperature (`float`): 0 decodes greedily; otherwise samples, with `top_p` and the like from the generation
            config.
        max_new_tokens (`int`): the largest number of tokens in an answer.
        batch_size (`int`): the number of prompts answered together.
        seed (`int`): the seed of the sampling. Sets torch's global seed.
        progress (`bool`): shows a progress bar on stderr.

    Returns:
        [`RegenerationCounts`], which include what was done before an interruption.

    Raises:
        ValueError: if the tokenizer has no chat template, if `max_new_tokens` leaves no room for prompts, if a row
            holds no conversation, or if the existing file was written with other arguments.
        FileExistsError: if `output_path` exists and was not written by this function.
    """
    limit = _position_limit(target_model)
    _check_arguments(tokenizer, conversations, max_new_tokens, limit)
    target_model.eval()
    pending = [_Conversation.from_row(row, index) for index, row in enumerate(conversations)]
    arguments = {
        "target": target_model.config.name_or_path,
        "data_sha256": hashlib.sha256(json.dumps([asdict(row) for row in pending], default=str).encode()).hexdigest(),
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
    }
    output = _AnswerFile(Path(output_path), arguments)
    counts = output.counts
    if output.path.exists():
        return counts
    answerer = _Answerer(target_model, tokenizer, temperature, max_new_tokens, batch_size, seed, limit)
    rows_done = output.rows_done
    num_turns = [len(row.turns) for row in pending]
    with (
        output.open(),
        tqdm(
            total=sum(num_turns),
            initial=sum(num_turns[:rows_done]),
            desc="regenerate",
            unit="turn",
            disable=not progress,
        ) as bar,
    ):
        started, tokens_before = time.monotonic(), counts.tokens
        window_size = batch_size * _BATCHES_PER_WINDOW
        for first in range(rows_done, len(pending), window_size):
            window = pending[first : first + window_size]
            turns_before = sum(num_turns[:first])
            for lengths in answerer.answer(window, first):
                counts.answers += len(lengths)
                counts.tokens += sum(lengths)
                speed = (counts.tokens - tokens_before) / (time.monotonic() - started)
                bar.set_postfix_str(f"{speed:.0f} tok/s", refresh=False)
                bar.update(turns_before + sum(row.num_turns_done for row in window) - bar.n)
            bar.update(turns_before + sum(num_turns[first : first + window_size]) - bar.n)
            output.append(window)
    return counts


def _position_limit(target_model: PreTrainedModel) -> int | None:
    """The target's number of positions, if it has a limit."""
    return getattr(target_model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _check_arguments(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    limit: int | None,
) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(
            "The tokenizer has no chat template, so there is no telling how to prompt the target. Set "
            "`tokenizer.chat_template` to the one the target was trained with."
        )
    if len(conversations) == 0:
        raise ValueError("There are no conversations to answer.")
    if limit is not None and max_new_tokens >= limit:
        raise ValueError(
            f"`max_new_tokens` must leave room for a prompt in the {limit} positions of the target, got "
            f"{max_new_tokens}. Ask for fewer."
        )


# -- conversations ---------------------------------------------------------------------------------------------------


@dataclass
class _Conversation:
    """A row in progress. (The fields are hashed to recognize the data: they are part of the file format.)"""

    turns: list[list[dict[str, Any]]]  # what precedes each answer: a user message, perhaps a system message before it
    columns: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)  # with the answers so far
    finished: bool = True
    ended: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any], index: int) -> "_Conversation":
        row = {name: value for name, value in row.items() if value is not None}  # Arrow fills in None
        messages = row.get("messages", row.get("prompt"))
        if messages is None and "conversations" in row:
            messages = from_sharegpt(row["conversations"])
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, Sequence) or not all("role" in message for message in messages):
            raise ValueError(
                f"Row {index} holds no conversation: expected `messages` (a list of `role` and `content`), `prompt` "
                f"(the same, or a text) or `conversations` (ShareGPT), got the columns {sorted(row)}."
            )
        columns = {name: value for name, value in row.items() if name not in _CONVERSATION_COLUMNS}
        if any(message["role"] not in _ROLES for message in messages):
            return cls([], columns)
        return cls(_turns(messages), columns)

    @property
    def num_turns_done(self) -> int:
        """The number of turns that were answered, or will not be."""
        return len(self.turns) if self.ended else sum(message["role"] == "assistant" for message in self.messages)

    def add_answer(self, turn: int, text: str, finished: bool) -> None:
        self.messages += [*self.turns[turn], {"role": "assistant", "content": text}]
        self.finished = finished
        self.ended = not finished

    def to_row(self) -> dict[str, Any]:
        return {**self.columns, "messages": self.messages, "finished": self.finished}


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages before each answer, up to the last message of a user."""
    turns: list[list[dict[str, Any]]] = [[]]
    for message in messages:
        if message["role"] != "assistant":
            turns[-1].append(dict(message))
        elif turns[-1] and turns[-1][-1]["role"] == "user":
            turns.append([])
    if not turns[-1] or turns[-1][-1]["role"] != "user":
        turns.pop()
    return turns


# -- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answerer:
    """The target, and how it answers."""

    target_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    max_new_tokens: int
    batch_size: int
    seed: int
    limit: int | None  # positions of the target

    def answer(self, window: list[_Conversation], first: int) -> Iterator[list[int]]:
        """
        Answers the turns of conversations whose first one has the index `first`. Yields the number of new tokens in
        each answer, batch by batch.
        """
        for turn in range(max(len(row.turns) for row in window)):
            prompts = self._prompts(window, turn)
            for start in range(0, len(prompts), self.batch_size):
                batch = prompts[start : start + self.batch_size]
                if self.temperature > 0:  # the same seed for the same batch, however often the run was interrupted
                    torch.manual_seed(Random(f"{self.seed}/{first}/{turn}/{start}").getrandbits(63))
                yield self._answer_batch(batch, turn)

    def _prompts(self, window: list[_Conversation], turn: int) -> list[tuple[list[int], _Conversation]]:
        """The prompts of a turn, the longest first. Ends conversations whose prompt leaves no room for an answer."""
        prompts = []
        for row in window:
            if row.ended or turn >= len(row.turns):
                continue
            encoded = self.tokenizer.apply_chat_template(
                row.messages + row.turns[turn],
                tools=cast(Any, tools_of(row.columns)),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )
            prompt = cast(Mapping[str, list[int]], encoded)["input_ids"]
            if self.limit is None or len(prompt) + self.max_new_tokens <= self.limit:
                prompts.append((prompt, row))
            else:
                row.ended = True
        prompts.sort(key=lambda prompt: len(prompt[0]), reverse=True)  # the batch that needs most memory comes first
        return prompts

    def _answer_batch(self, batch: list[tuple[list[int], _Conversation]], turn: int) -> list[int]:
        prompts = [prompt for prompt, _ in batch]
        answers = _generate(self.target_model, self.tokenizer, prompts, self.temperature, self.max_new_tokens)
        for (_, row), (tokens, finished) in zip(batch, answers, strict=True):
            text = cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))
            if not finished:
                text = text.rstrip("\ufffd")  # a character that was cut
            row.add_answer(turn, text, finished)
        return [len(tokens) for tokens, _ in answers]


def _generate(
    target_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    temperature: float,
    max_new_tokens: int,
) -> list[tuple[list[int], bool]]:
    """Returns, for each prompt, the new tokens up to and including the end token, and whether there is one."""
    eos = target_model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    pads = (tokenizer.pad_token_id, target_model.generation_config.pad_token_id, *sorted(ends), 0)
    pad_token_id = next(pad for pad in pads if pad is not None)
    width = max(map(len, prompts))
    input_ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = cast(GenerationMixin, target_model).generate(
        input_ids=input_ids.to(target_model.device),
        attention_mask=attention_mask.to(target_model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id,
        **({"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}),
    )
    answers = []
    for tokens in output[:, width:].tolist():
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        answers.append((tokens, False) if end is None else (tokens[: end + 1], True))
    return answers


# -- the file --------------------------------------------------------------------------------------------------------


class _AnswerFile:
    """
    The file of answers: `<path>.partial` while it is written, renamed to `path` at the end, and `<path>.meta.json`,
    which says how much of it is complete.

    Raises:
        FileExistsError: if `path` was not written by [`regenerate`].
        ValueError: if it was written with other arguments, or was cut.
    """

    def __init__(self, path: Path, arguments: dict[str, Any]):
        self.path = path
        self.rows_done = 0
        self.counts = RegenerationCounts()
        self._partial = path.with_name(path.name + ".partial")
        self._meta = path.with_name(path.name + ".meta.json")
        self._arguments = arguments
        self._num_bytes = 0  # of the partial file, that hold the rows done
        self._file: IO[bytes] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._resume()

    def _resume(self) -> None:
        """Takes over the state of an earlier call with the same arguments."""
        if not self._meta.exists():
            if self.path.exists():
                raise FileExistsError(
                    f"{self.path} exists and was not written here. Delete it or choose another name."
                )
            return
        if not self.path.exists() and not self._partial.exists():  # deleted, to start anew
            return
        state = json.loads(self._meta.read_text(encoding="utf-8"))
        differences = [
            f"{name} {state['arguments'].get(name)} (now {value})"
            for name, value in self._arguments.items()
            if state["arguments"].get(name) != value
        ]
        if differences:
            raise ValueError(
                f"{self.path} was begun with other arguments: {', '.join(differences)}. Repeat those to go on, or "
                "choose another name."
            )
        if not self.path.exists() and self._partial.stat().st_size < state["bytes"]:
            raise ValueError(
                f"{self._partial} has {self._partial.stat().st_size} bytes, {self._meta} says {state['bytes']}: it "
                "was cut. Delete both to start anew."
            )
        self.rows_done = state["rows_done"]
        self.counts = RegenerationCounts(**state["counts"])
        self._num_bytes = state["bytes"]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Opens the partial file for `append` and, if there was no error, renames it."""
        with self._partial.open("r+b" if self._num_bytes else "wb") as file:
            file.truncate(self._num_bytes)  # drops rows that were written after the last update of the meta file
            file.seek(self._num_bytes)
            self._file = file
            yield
        self._partial.replace(self.path)

    def append(self, window: list[_Conversation]) -> None:
        """Writes the next conversations, and only then that they are there."""
        assert self._file is not None
        for row in window:
            if not row.messages:
                self.counts.skipped += 1
                continue
            self._file.write(json.dumps(row.to_row(), ensure_ascii=False, default=str).encode() + b"\n")
            self.counts.conversations += 1
            self.counts.unfinished += not row.finished
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows_done += len(window)
        state = {"rows_done": self.rows_done, "bytes": self._file.tell()}
        write_json(self._meta, {"arguments": self._arguments, "counts": asdict(self.counts), **state})


def run_regenerate(
    target: str,
    data: str,
    output: str,
    *,
    dtype: str = "auto",
    num_samples: int | None = None,
    **arguments: Any,
) -> None:
    """The `jakiro regenerate` command: loads the target, calls [`regenerate`], and prints the counts."""
    target_model, tokenizer, conversations = load_target_and_conversations(target, data, dtype, num_samples)
    counts = regenerate(target_model, tokenizer, conversations, output, **arguments)
    print(
        f"Saved {counts.conversations} conversations with {counts.answers} answers of "
        f"{counts.tokens / max(counts.answers, 1):.0f} tokens in {output} ({counts.unfinished} end in a cut answer, "
        f"{counts.skipped} skipped)"
    )
