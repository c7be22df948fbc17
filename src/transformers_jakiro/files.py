# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Files that are never seen half-written."""

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes `text` as `path`, which holds its old or its new content whenever the process is stopped."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, payload: Any) -> None:
    """Writes `payload` as JSON, like [`write_text`]."""
    write_text(path, json.dumps(payload, indent=1) + "\n")
