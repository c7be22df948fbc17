# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Rows of several samples, without padding and without one sample seeing another.

A *row* is one training sample: `input_ids` and `loss_mask` (1 on the assistant's tokens), lists of the same length T;
if several samples are packed into it also `position_ids`, which restart at 0 for each; and `hidden_states` `[T, F]` if
the target's features were computed before.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch.utils.data import Dataset

Row = dict[str, Any]


def best_fit_decreasing(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """
    Groups of samples whose lengths add up to at most `max_length`: the longest first, each into the fullest group it
    fits into. Deterministic; groups, and samples within them, in the order given.

    ```python
    >>> best_fit_decreasing([3, 9, 5, 1, 2], max_length=10)
    [[0, 2, 4], [1, 3]]
    ```

    Raises:
        ValueError: if a sample is longer than `max_length`.
    """
    if lengths and max(lengths) > max_length:
        raise ValueError(
            f"A sample of {max(lengths)} tokens cannot be packed into rows of `max_length={max_length}`. Cut the "
            "samples, or raise `max_length`."
        )
    groups: list[list[int]] = []
    open_groups: list[tuple[int, int]] = []  # (space left, group), increasing
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = bisect_left(open_groups, (lengths[index], -1))
        space, group = open_groups.pop(fitting) if fitting < len(open_groups) else (max_length, len(groups))
        if group == len(groups):
            groups.append([])
        groups[group].append(index)
        if space > lengths[index]:
            insort(open_groups, (space - lengths[index], group))
    return sorted(sorted(group) for group in groups)


def pack_rows(rows: Sequence[Row]) -> Row:
    """
    One row of several, with positions that restart for each.

    ```python
    >>> pack_rows([{"input_ids": [5, 6], "loss_mask": [0, 1]}, {"input_ids": [7, 8, 9], "loss_mask": [0, 1, 1]}])
    {'input_ids': [5, 6, 7, 8, 9], 'loss_mask': [0, 1, 0, 1, 1], 'position_ids': [0, 1, 0, 1, 2]}
    ```
    """
    positions = [row.get("position_ids", range(len(row["input_ids"]))) for row in rows]
    packed: Row = {
        name: list(chain.from_iterable(as_integers(row[name]) for row in rows)) for name in ("input_ids", "loss_mask")
    }
    packed["position_ids"] = list(chain.from_iterable(positions))
    if "hidden_states" in rows[0]:
        packed["hidden_states"] = torch.cat([torch.as_tensor(row["hidden_states"]) for row in rows])
    return packed


class PackedDataset(Dataset):
    """
    Rows of at most `max_length` tokens, each made of whole samples of another map-style dataset of rows when it is
    asked for. Which samples share a row is decided once, by [`best_fit_decreasing`], from the dataset's `lengths` if
    it has them, else by reading it through.
    """

    def __init__(self, rows: Any, max_length: int):
        self.rows = rows
        lengths = getattr(rows, "lengths", None)
        if lengths is None:
            lengths = [len(rows[i]["input_ids"]) for i in range(len(rows))]
        self.groups = best_fit_decreasing(lengths, max_length)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Row:
        return pack_rows([self.rows[i] for i in self.groups[index]])


def as_integers(values: Any) -> list[int]:
    """A column of a row as a list, whatever it came as."""
    return values if isinstance(values, list) else torch.as_tensor(values).tolist()
