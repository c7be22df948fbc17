# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Reads the payload of `jakiro bench`: the content of `results.json`, which `results.schema.json` describes."""

from typing import Any


def rows_of(payload: dict[str, Any], temperature: float, task: str | None = None) -> list[dict[str, Any]]:
    """The rows of the summary at one temperature, of one task or of all."""
    return [
        row
        for row in payload["summary"]
        if row["temperature"] == temperature and (task is None or row["task"] == task)
    ]


def temperatures_of(payload: dict[str, Any]) -> list[float]:
    """The temperatures in the order in which they were measured."""
    return list(dict.fromkeys(row["temperature"] for row in payload["summary"]))


def methods_of(payload: dict[str, Any]) -> list[str]:
    """The names of the methods that ran, in order."""
    return list(dict.fromkeys(row["method"] for row in payload["summary"]))


def tasks_of(payload: dict[str, Any]) -> list[str]:
    """The tasks in order. If there are several, `mean` comes last."""
    tasks = list(dict.fromkeys(row["task"] for row in payload["summary"] if row["task"] != "mean"))
    return [*tasks, "mean"] if len(tasks) > 1 else tasks


__all__ = ["methods_of", "rows_of", "tasks_of", "temperatures_of"]
