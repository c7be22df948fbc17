# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Conversations: reads them from files and datasets, and renders them as a prompt.

Symbols in shape comments: T positions.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# formats of local files that `datasets` reads; all other files are read as JSON lines
_DATASETS_FORMATS = ("json", "csv", "parquet", "arrow")


def read_conversations(
    path_or_id: str | Path, split: str = "train", limit: int | None = None
) -> Sequence[dict[str, Any]]:
    """
    Reads the rows of a dataset: a file of JSON lines, plain or gzipped (`.gz`), or anything that
    `datasets.load_dataset` reads: a Hub id, a folder, a `.json`, `.csv`, `.parquet` or `.arrow` file.

    Args:
        path_or_id (`str` or `Path`): file, folder or Hub id.
        split (`str`): the split of a Hub id or a folder.
        limit (`int`, *optional*): the number of rows to read, from the first one on. Default: all.

    Returns:
        A list, or a `datasets.Dataset`.

    Raises:
        ValueError: if a line is not a JSON object.
        OSError: if the file or dataset does not exist, or if `datasets` is needed but not installed.
    """
    path = Path(path_or_id)
    file_format = path.name.removesuffix(".gz").rpartition(".")[2]
    if path.is_file() and file_format not in _DATASETS_FORMATS:
        return list(islice(_read_json_lines(path), limit))
    if not path.exists() and (path.is_absolute() or file_format in ("jsonl", *_DATASETS_FORMATS)):
        raise FileNotFoundError(f"{path} does not exist. Give a file of conversations or the id of a Hub dataset.")
    try:
        import datasets
    except ImportError as error:
        raise OSError(
            f"Reading {path_or_id} needs the `datasets` package (`pip install datasets`). Without it, give a file of "
            "JSON lines (`.jsonl`, `.jsonl.gz`)."
        ) from error
    if path.is_file():
        rows = datasets.load_dataset(file_format, data_files=str(path), split="train")
    else:
        rows = datasets.load_dataset(str(path_or_id), split=split)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}. Each line must be one JSON object.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: got {type(row).__name__}, each line must be a JSON object.")
            yield row


def from_sharegpt(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Converts turns of `from` and `value` (ShareGPT) to messages of `role` and `content`. Answers at the beginning are
    dropped, because they answer nothing.
    """
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = turn.get("from") or turn.get("role")
        if role not in _SHAREGPT_ROLES:
            raise ValueError(
                f"A turn of `conversations` is from {role!r}, expected one of {sorted(_SHAREGPT_ROLES)}. Rename it."
            )
        content = turn["value"] if turn.get("value") is not None else turn.get("content")
        messages.append({"role": _SHAREGPT_ROLES[role], "content": content})
    first = next((i for i, message in enumerate(messages) if message["role"] != "assistant"), len(messages))
    return messages[first:]


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """
    The tools of a conversation, as chat templates take them: the column `tools`, a list of JSON schemas, which may be
    given as text, together or one by one. None if there are none.

    Raises:
        ValueError: if the column holds something else.
    """
    tools = row.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
        tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools or ()]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"The column `tools` must be a list of JSON schemas, or its JSON: {error}.") from error
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(
            f"The column `tools` must be a list of JSON schemas, or its JSON, got {', '.join(_types(tools))}."
        )
    return without_nulls(tools) or None


def without_nulls(value: Any) -> Any:
    """A copy without the fields that are None, which Arrow puts into dicts that lack what others of a column have."""
    if isinstance(value, Mapping):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(part) for part in value]
    return value


def _types(values: Sequence[Any]) -> list[str]:
    return sorted({type(value).__name__ for value in values})


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], device: torch.device
) -> dict[str, torch.Tensor]:
    """
    Renders a conversation with the chat template, ready to be answered; without a template, as bare text.

    Returns:
        `input_ids` and `attention_mask`, `[1, T]`.

    Raises:
        ValueError: if the template refuses the conversation.
    """
    inputs: Any
    if tokenizer.chat_template is None:
        inputs = tokenizer("\n\n".join(message["content"] for message in messages), return_tensors="pt")
    else:
        try:
            inputs = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ValueError(f"The chat template refuses a conversation of the roles {roles}: {error}") from error
    return {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}


__all__ = ["encode_conversation", "from_sharegpt", "read_conversations", "tools_of", "without_nulls"]
