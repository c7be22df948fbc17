# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Writes files atomically: nobody ever sees one half-written."""

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`. If the process is stopped at any moment, the file has its old or its new content."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, payload: Any) -> None:
    """Writes `payload` as JSON, atomically like [`write_text`]."""
    write_text(path, json.dumps(payload, indent=1) + "\n")
