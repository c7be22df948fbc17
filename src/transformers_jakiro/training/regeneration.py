# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Training data in the target's own words: the target answers the prompts of a dataset.

A drafter has to predict what its target says, so it learns most from what its target says. Answers are JSON lines,
`{"messages": [...], "finished": true}` and whatever other columns the dataset has.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..conversations import from_sharegpt, read_conversations
from ..files import write_json

_BATCHES_PER_WINDOW = 16  # answered together, so that batches hold prompts of about the same length

_CONVERSATION_COLUMNS = ("messages", "prompt", "completion", "conversations")
_ROLES = ("system", "developer", "user", "assistant")  # what tools say cannot be asked for again


@dataclass
class RegenerationCounts:
    """
    What [`regenerate`] did.

    Args:
        conversations (`int`): written.
        skipped (`int`): left out: nobody asks, a tool speaks, or the first prompt leaves no room for an answer.
        unfinished (`int`): written ones that end in an answer cut at `max_new_tokens`.
        answers (`int`): in all conversations.
        tokens (`int`): new tokens in all answers, end tokens included.
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
    Replaces the answers of `conversations` by the target's own, turn by turn: each user message is answered in the
    context of the answers before it; system messages are kept.

    An answer cut at `max_new_tokens` is kept, since a drafter learns from every token of it, but it ends its
    conversation, which is marked `"finished": false`. A later turn whose prompt leaves no room for `max_new_tokens`
    within the target's `max_position_embeddings` is left out with those after it.

    Writes `<output_path>.partial`, renamed when all is done, and `<output_path>.meta.json` with the arguments and
    counts. Stopped at any moment and called again with the same arguments, it goes on, and the answers, sampled ones
    too, are those of an uninterrupted run (on the same machine).

    Args:
        target_model ([`~transformers.PreTrainedModel`]): answers with its own `generate` and generation config. Put in
            eval mode.
        tokenizer: the target's, with a chat template.
        conversations: rows with `messages`, `prompt` (messages, or a text that the user says) or ShareGPT's
            `conversations`. Further columns are kept, except a `completion`.
        output_path (`str` or `Path`): the file to write, one row per line, in the order of `conversations`.
        temperature (`float`): 0 is greedy, else sampling, with `top_p` and the like of the generation config.
        max_new_tokens (`int`): per answer.
        batch_size (`int`): prompts answered together.
        seed (`int`): of the sampling. Sets torch's seed.
        progress (`bool`): shows a progress bar on stderr.

    Returns:
        [`RegenerationCounts`], of what was done before an interruption too.

    Raises:
        ValueError: if the tokenizer has no chat template, `max_new_tokens` leaves no room for prompts, a row holds no
            conversation, or what is there was written with other arguments.
        FileExistsError: if `output_path` exists and was not written here.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "The tokenizer has no chat template, so there is no telling how the target is asked. Set "
            "`tokenizer.chat_template` to the one the target was trained with."
        )
    if len(conversations) == 0:
        raise ValueError("There are no conversations to answer.")
    limit = getattr(target_model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and max_new_tokens >= limit:
        raise ValueError(
            f"`max_new_tokens` must leave room for a prompt in the {limit} positions of the target, got "
            f"{max_new_tokens}. Ask for fewer."
        )
    target_model.eval()
    pending = [_Conversation.from_row(row, index) for index, row in enumerate(conversations)]
    output_path = Path(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    partial = output_path.with_name(output_path.name + ".partial")
    meta = output_path.with_name(output_path.name + ".meta.json")
    arguments = {
        "target": target_model.config.name_or_path,
        "data_sha256": hashlib.sha256(json.dumps([asdict(row) for row in pending], default=str).encode()).hexdigest(),
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
    }
    rows_done, size, counts = _resume(output_path, partial, meta, arguments)
    if output_path.exists():
        return counts

    def generate(prompts: list[list[int]], name: str) -> list[tuple[list[int], bool]]:
        if temperature > 0:
            torch.manual_seed(Random(f"{seed}/{name}").getrandbits(63))  # the same however often it was interrupted
        return _generate(target_model, tokenizer, prompts, temperature, max_new_tokens)

    with (
        partial.open("r+b" if size else "wb") as file,
        tqdm(
            total=sum(len(row.turns) for row in pending),
            initial=sum(len(row.turns) for row in pending[:rows_done]),
            desc="regenerate",
            unit="turn",
            disable=not progress,
        ) as bar,
    ):
        file.truncate(size)  # drops what was written after the last note of it
        file.seek(size)
        started, tokens_before = time.monotonic(), counts.tokens
        window_size = batch_size * _BATCHES_PER_WINDOW
        for first in range(rows_done, len(pending), window_size):
            window = pending[first : first + window_size]
            for turn in range(max(len(row.turns) for row in window)):
                prompts: list[tuple[list[int], _Conversation]] = []
                for row in window:
                    if not row.ended and turn < len(row.turns):
                        asked = tokenizer.apply_chat_template(
                            row.messages + row.turns[turn], add_generation_prompt=True, tokenize=True, return_dict=True
                        )["input_ids"]
                        if limit is None or len(asked) + max_new_tokens <= limit:
                            prompts.append((asked, row))
                        else:
                            row.ended = True
                            bar.update(len(row.turns) - turn)
                prompts.sort(key=lambda prompt: len(prompt[0]), reverse=True)  # what needs most memory comes first
                for start in range(0, len(prompts), batch_size):
                    batch = prompts[start : start + batch_size]
                    answers = generate([asked for asked, _ in batch], f"{first}/{turn}/{start}")
                    for (_, row), (answer, finished) in zip(batch, answers, strict=True):
                        text = tokenizer.decode(answer, skip_special_tokens=True)
                        if not finished:
                            text = text.rstrip("\ufffd")  # a character that was cut
                        row.messages += [*row.turns[turn], {"role": "assistant", "content": text}]
                        row.finished, row.ended = finished, not finished
                        counts.answers += 1
                        counts.tokens += len(answer)
                        bar.update(1 if finished else len(row.turns) - turn)
                    speed = (counts.tokens - tokens_before) / (time.monotonic() - started)
                    bar.set_postfix_str(f"{speed:.0f} tok/s")
            for row in window:
                if row.messages:
                    file.write(json.dumps(row.to_row(), ensure_ascii=False, default=str).encode() + b"\n")
                    counts.conversations += 1
                    counts.unfinished += not row.finished
                else:
                    counts.skipped += 1
            file.flush()
            os.fsync(file.fileno())
            state = {"rows_done": first + len(window), "bytes": file.tell()}
            write_json(meta, {"arguments": arguments, "counts": asdict(counts), **state})
    partial.replace(output_path)
    return counts


@dataclass
class _Conversation:
    """One row on its way: what the user says in each turn, and the messages so far."""

    turns: list[list[dict[str, Any]]]  # each: perhaps a system message, and the user's
    columns: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)
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
        turns: list[list[dict[str, Any]]] = [[]]
        for message in messages:
            if message["role"] != "assistant":
                turns[-1].append(dict(message))
            elif turns[-1] and turns[-1][-1]["role"] == "user":
                turns.append([])
        if not turns[-1] or turns[-1][-1]["role"] != "user":
            turns.pop()
        if any(message["role"] not in _ROLES for message in messages):
            turns = []
        columns = {name: value for name, value in row.items() if name not in _CONVERSATION_COLUMNS}
        return cls(turns, columns)

    def to_row(self) -> dict[str, Any]:
        return {**self.columns, "messages": self.messages, "finished": self.finished}


def _generate(
    target_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    temperature: float,
    max_new_tokens: int,
) -> list[tuple[list[int], bool]]:
    """For each prompt the new tokens, up to and with the end token, and whether there is one."""
    eos = target_model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    pads = (tokenizer.pad_token_id, target_model.generation_config.pad_token_id, *sorted(ends), 0)
    pad_token_id = next(pad for pad in pads if pad is not None)
    width = max(map(len, prompts))
    input_ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = target_model.generate(
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


def _resume(
    output_path: Path, partial: Path, meta: Path, arguments: dict[str, Any]
) -> tuple[int, int, RegenerationCounts]:
    """Rows done, bytes of the partial file that hold them, and counts of an earlier call with the same arguments."""
    if not meta.exists():
        if output_path.exists():
            raise FileExistsError(f"{output_path} exists and was not written here. Delete it or choose another name.")
        return 0, 0, RegenerationCounts()
    state = json.loads(meta.read_text(encoding="utf-8"))
    if not output_path.exists() and not partial.exists():  # deleted, to start anew
        return 0, 0, RegenerationCounts()
    differences = [
        f"{name} {state['arguments'].get(name)} (now {value})"
        for name, value in arguments.items()
        if state["arguments"].get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{output_path} was begun with other arguments: {', '.join(differences)}. Repeat those to go on, or "
            "choose another name."
        )
    if not output_path.exists() and partial.stat().st_size < state["bytes"]:
        raise ValueError(
            f"{partial} has {partial.stat().st_size} bytes, {meta} says {state['bytes']}: it was cut. Delete both to "
            "start anew."
        )
    return state["rows_done"], state["bytes"], RegenerationCounts(**state["counts"])


def run_regenerate(
    target: str,
    data: str,
    output: str,
    *,
    dtype: str = "auto",
    num_samples: int | None = None,
    **arguments: Any,
) -> None:
    """The `jakiro regenerate` command: loads the target, see [`regenerate`], prints what was done."""
    conversations = read_conversations(data, limit=num_samples)
    tokenizer = AutoTokenizer.from_pretrained(target)
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, device_map="auto")
    counts = regenerate(target_model, tokenizer, conversations, output, **arguments)
    print(
        f"Saved {counts.conversations} conversations with {counts.answers} answers of "
        f"{counts.tokens / max(counts.answers, 1):.0f} tokens in {output} ({counts.unfinished} end in a cut answer, "
        f"{counts.skipped} skipped)"
    )
