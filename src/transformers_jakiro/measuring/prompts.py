# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Prompts to measure with: files of JSON lines, data sets of the Hub, and a small set that ships."""

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
        turns (`tuple[str, ...]`): the user's messages; between them stand the target's own answers.
    """

    task: str
    id: str
    turns: tuple[str, ...]


def read_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """
    The prompts of a file of JSON lines with `id`, `task`, `turns` (or `prompt`, one turn or several), or of a data
    set of the Hub with these columns, which needs the `datasets` package.

    Args:
        path (`str` or `Path`): file or Hub id. Rows without `task` get its name, rows without `id` their number.
        limit (`int`, *optional*): how many, from the first on.

    Raises:
        ValueError: if a row has neither `turns` nor `prompt`, or an empty one.
        OSError: if there is no such file or data set.
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
    The prompts of several files, or those that ship if there is none.

    Args:
        files: see [`read_prompts`].
        tasks (`Sequence[str]`, *optional*): which tasks to take; default: all.
        limit (`int`, *optional*): prompts per task.

    Raises:
        ValueError: for tasks that no prompt has, for a prompt that is there twice, and if there are no prompts.
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
        raise ValueError("There are no prompts to measure with: give files that hold some, and `--limit` above 0.")
    return chosen


def in_batches(prompts: Sequence[Prompt], batch_size: int) -> tuple[list[list[Prompt]], list[Prompt]]:
    """
    The prompts of each task, `batch_size` at a time.

    Returns:
        The batches, and what is left out: less than a batch of each task, so that every figure is of full batches.

    Raises:
        ValueError: if `batch_size` is below 1, or no task has as many prompts.
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
            f"`--batch-size {batch_size}` needs as many prompts of a task, which none has: {counts}. Give files with "
            "more prompts, or a smaller batch."
        )
    return batches, left_out


__all__ = ["Prompt", "gather_prompts", "in_batches", "read_prompts"]
