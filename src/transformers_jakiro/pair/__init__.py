# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The pair that ships with the package: a toy target, its drafter, and questions for them."""

import json
from pathlib import Path

_FOLDER = Path(__file__).parent
TARGET = _FOLDER / "target"
DRAFT = _FOLDER / "draft"
PROMPTS = _FOLDER / "prompts.jsonl"


def prompts() -> list[str]:
    """The questions: 21 of GSM8K that the drafter was not trained on."""
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


__all__ = ["DRAFT", "PROMPTS", "TARGET", "prompts"]
