# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Packs several samples into a row, without padding; no sample sees another.

A *row* is what one line of a batch is made of: `input_ids` and `loss_mask` (1 on the assistant's tokens), lists of the
same length T. A row of several samples also has `position_ids`, which restart at 0 for each sample. A row whose
features were computed in advance has `hidden_states` `[T, F]`.
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
    Groups samples so that the lengths in a group add up to at most `max_length`: the longest sample first, each into
    the fullest group with room for it. Deterministic; groups, and the samples within a group, keep the order given.

    ```python
    >>> best_fit_decreasing([3, 9, 5, 1, 2], max_length=10)
    [[0, 2, 4], [1, 3]]
    ```

    Returns:
        The indices of the samples in each group.

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
    Joins several rows into one, whose positions restart for each. `hidden_states` `[T, F]` are joined too.

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
    Rows of at most `max_length` tokens, each packed from whole rows of another map-style dataset on access.
    [`best_fit_decreasing`] decides once which samples share a row, by the `lengths` of the dataset if it has them;
    otherwise the dataset is read once to measure them.
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
    """Converts a column of a row to a list: `[T]`, given as a list, a tensor or an array."""
    return values if isinstance(values, list) else torch.as_tensor(values).tolist()
