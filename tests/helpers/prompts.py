# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Prompts of random tokens, one or a batch."""

from collections.abc import Sequence

import torch

from helpers.targets import VOCAB

LENGTHS = (3, 11, 6, 1)


def make_prompt(length: int, seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    """Token ids `[1, length]` without the special ones."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(min(3, vocab_size - 2), vocab_size, (1, length), generator=generator)


def make_batch(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of these lengths `[B]`, padded on the left: ids and mask `[B, max(lengths)]`."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = make_prompt(length, seed=seed + row)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}
