# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What a benchmark has measured so far, on disk, so that a stopped run can continue."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .summary import PromptRecord


class Journal:
    """
    What has been measured: one line of JSON per prompt (or batch) and temperature.

    Args:
        path (`Path`, *optional*): the file. Without one, nothing is kept beyond the process.
        conditions (`dict`): what the figures depend on.

    Raises:
        ValueError: if the file holds figures measured under other conditions.
    """

    def __init__(self, path: Path | None, conditions: dict[str, Any]):
        self._path = path
        self.records: dict[tuple[float, str, str], PromptRecord] = {}
        self.skipped: dict[str, str] | None = None
        conditions = json.loads(json.dumps(conditions))
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):  # interrupted while it was written
            lines.pop()
            path.write_text("".join(lines), encoding="utf-8")
        for line in lines:
            entry = json.loads(line)
            if "conditions" in entry:
                _check_same(path, entry["conditions"], conditions)
            elif "skipped" in entry:
                self.skipped = entry["skipped"]
            else:
                record = PromptRecord.from_dict(entry["record"])
                self.records[record.temperature, record.task, record.id] = record
        if not lines:
            self._write({"conditions": conditions})

    def add(self, record: PromptRecord) -> None:
        """Keeps a record."""
        self.records[record.temperature, record.task, record.id] = record
        self._write({"record": asdict(record)})

    def skip(self, reasons: dict[str, str]) -> None:
        """Keeps which methods cannot run, and why."""
        self.skipped = reasons
        self._write({"skipped": reasons})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    flat = [{**values, **values["arguments"]} for values in (before, now)]
    differing = [
        f"{name} {flat[0].get(name)!r} (now {flat[1].get(name)!r})"
        for name in dict.fromkeys((*flat[0], *flat[1]))
        if name != "arguments" and flat[0].get(name) != flat[1].get(name)
    ]
    if differing:
        raise ValueError(
            f"{path} holds figures measured under other conditions: {', '.join(differing)}. Use the same conditions "
            "to continue, or choose another `--output`."
        )


__all__ = ["Journal"]
