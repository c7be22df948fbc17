# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Prompts to measure with: files of JSON lines, datasets of the Hub, and a small set that ships."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..conversations import read_conversations

SHIPPED = Path(__file__).with_name("prompts.jsonl")


class Prompt(NamedTuple):
    """
    What a user asks, turn by turn.

    Args:
        task (`str`): kind of prompt; figures are reported per task.
        id (`str`): unique within its task.
        turns (`tuple[str, ...]`): the user's messages. The answers between them are the target's own.
    """

    task: str
    id: str
    turns: tuple[str, ...]


def read_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """
    Reads prompts from a file of JSON lines with `id`, `task` and `turns` (or `prompt`, one turn or several), or from a
    dataset of the Hub with these columns. The latter needs the `datasets` package.

    Args:
        path (`str` or `Path`): file or Hub id. Its name is the task of rows without `task`; the row's number is the
            id of rows without `id`.
        limit (`int`, *optional*): read only this number of rows.

    Raises:
        ValueError: if a row has neither `turns` nor `prompt`, or an empty turn.
        OSError: if there is no such file or dataset.
    """
    prompts = []
    for number, row in enumerate(read_conversations(path, limit=limit)):
        turns = row.get("turns") or row.get("prompt") or []
        turns = [turns] if isinstance(turns, str) else turns
        if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise ValueError(
                f"Row {number} of {path} must have `turns`, a list of the user's messages, or `prompt`; "
                f"got {dict(row)}."
            )
        prompts.append(Prompt(str(row.get("task", Path(path).stem)), str(row.get("id", number)), tuple(turns)))
    return prompts


def gather_prompts(
    files: Sequence[str | Path] = (), tasks: Sequence[str] | None = None, limit: int | None = None
) -> list[Prompt]:
    """
    The prompts of several files; if there are none, the prompts that ship.

    Args:
        files: see [`read_prompts`].
        tasks (`Sequence[str]`, *optional*): tasks to take; default: all.
        limit (`int`, *optional*): prompts per task at most.

    Raises:
        ValueError: for tasks without prompts, for duplicate ids within a task, and if no prompts are left.
    """
    prompts = [prompt for file in files or (SHIPPED,) for prompt in read_prompts(file)]
    known = list(dict.fromkeys(prompt.task for prompt in prompts))
    unknown = [task for task in tasks or () if task not in known]
    if unknown:
        raise ValueError(f"`--tasks` must name tasks of the prompts: there are {known}, got {unknown}.")
    taken: dict[str, list[Prompt]] = {task: [] for task in known if tasks is None or task in tasks}
    for prompt in prompts:
        of_task = taken.get(prompt.task)
        if of_task is None:
            continue
        if any(prompt.id == other.id for other in of_task):
            raise ValueError(f"Ids must be unique within a task: {prompt.task} has {prompt.id!r} twice.")
        of_task.append(prompt)
    chosen = [prompt for of_task in taken.values() for prompt in of_task[:limit]]
    if not chosen:
        raise ValueError("There are no prompts to measure with. Give files with prompts, and a `--limit` above 0.")
    return chosen


def in_batches(prompts: Sequence[Prompt], batch_size: int) -> tuple[list[list[Prompt]], list[Prompt]]:
    """
    Groups the prompts of each task into batches of `batch_size`.

    Returns:
        The batches, and the prompts left out because they do not fill a batch.

    Raises:
        ValueError: if `batch_size` is below 1, or no task has enough prompts for a batch.
    """
    if batch_size < 1:
        raise ValueError(f"`--batch-size` must be at least 1, got {batch_size}.")
    tasks: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        tasks.setdefault(prompt.task, []).append(prompt)
    batches, left_out = [], []
    for of_task in tasks.values():
        end = len(of_task) - len(of_task) % batch_size
        batches += [of_task[start : start + batch_size] for start in range(0, end, batch_size)]
        left_out += of_task[end:]
    if prompts and not batches:
        counts = ", ".join(f"{task} {len(of_task)}" for task, of_task in tasks.items())
        raise ValueError(
            f"`--batch-size {batch_size}` needs as many prompts in a task, but none has: {counts}. Give files with "
            "more prompts, or choose a smaller batch."
        )
    return batches, left_out


__all__ = ["Prompt", "gather_prompts", "in_batches", "read_prompts"]
