# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Loads what the training commands start from: the target, its tokenizer and the conversations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, extract_commit_hash

from ..conversations import read_conversations
from ..core.compat import set_commit


def load_target_model(name: str | Path, **kwargs: Any) -> PreTrainedModel:
    """
    Loads a target with `AutoModelForCausalLM.from_pretrained`. For a target from the Hub, its config also remembers
    the commit, which new drafters record.
    """
    model = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    if not Path(name).exists():
        options = {key: kwargs[key] for key in ("revision", "cache_dir", "subfolder") if key in kwargs}
        file = cached_file(str(name), "config.json", local_files_only=True, **options)
        set_commit(model.config, extract_commit_hash(file, None))
    return model


def load_target_and_conversations(
    target: str, data: str, dtype: str = "auto", num_samples: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Sequence[dict[str, Any]]]:
    """
    Loads what `jakiro features` and `jakiro regenerate` work on.

    Args:
        target: folder or Hub id of the target.
        data: see [`~transformers_jakiro.conversations.read_conversations`].
        dtype: the precision of the target.
        num_samples: the number of conversations to read, from the first one on. Default: all.

    Returns:
        The target, its tokenizer, and the conversations.
    """
    conversations = read_conversations(data, limit=num_samples)
    tokenizer = AutoTokenizer.from_pretrained(target)
    target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, device_map="auto")
    return target_model, tokenizer, conversations


__all__ = ["load_target_and_conversations", "load_target_model"]
