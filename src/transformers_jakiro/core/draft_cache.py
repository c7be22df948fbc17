# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The drafter's key/value cache: written in place, so that a draft step costs the same at any context length."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """
    A [`~transformers.cache_utils.DynamicLayer`] that appends into a buffer instead of copying the whole cache: a tree
    takes several drafter forwards, each of which would otherwise copy the context once.

    Args:
        capacity (`int`, *optional*): positions that are taken at once; default: as many as are needed.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.capacity = capacity
        # `[R, heads, capacity, D]`, once the first states have told the other sizes
        self._key_buffer = torch.empty((1, 1, 0, 1))
        self._value_buffer = torch.empty((1, 1, 0, 1))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends T positions `[R, heads, T, D]`. Returns all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self.reserve(end, key_states, value_states)
        self._key_buffer[..., start:end, :] = key_states
        self._value_buffer[..., start:end, :] = value_states
        self.truncate(end)
        return self.keys, self.values

    def write(
        self, key_states: torch.Tensor, value_states: torch.Tensor, columns: torch.Tensor, end: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Writes T positions `[R, heads, T, D]` where `columns` (`[R, T]` or `[1, T]`) says. Returns all up to `end`;
        None: the whole buffer, which then does not grow.
        """
        if end is not None:
            self.reserve(end, key_states, value_states)
        rows = torch.arange(key_states.shape[0], device=columns.device)[:, None]
        self._key_buffer.transpose(1, 2)[rows, columns] = key_states.transpose(1, 2)
        self._value_buffer.transpose(1, 2)[rows, columns] = value_states.transpose(1, 2)
        return self._key_buffer[..., :end, :], self._value_buffer[..., :end, :]

    def reserve(self, end: int, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes room for positions up to `end`, for states like these."""
        if end > self._key_buffer.shape[-2]:
            start = self.get_seq_length()
            capacity = self.capacity or max(256, 2 * end)
            self._key_buffer = self._grow(self._key_buffer, key_states, start, capacity)
            self._value_buffer = self._grow(self._value_buffer, value_states, start, capacity)

    @staticmethod
    def _grow(buffer: torch.Tensor, states: torch.Tensor, length: int, capacity: int) -> torch.Tensor:
        # zeros: in a batch the shorter rows have columns that were never written, and hidden ones may not be NaN
        grown = states.new_zeros(*states.shape[:-2], capacity, states.shape[-1])
        if length > 0:
            grown[..., :length, :] = buffer[..., :length, :]
        return grown

    def truncate(self, length: int) -> None:
        """Keeps the first `length` positions."""
        self.keys = self._key_buffer[..., :length, :]
        self.values = self._value_buffer[..., :length, :]

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows `[R]` of the batch."""
        length = self.get_seq_length()
        self._key_buffer = self._key_buffer[rows]
        self._value_buffer = self._value_buffer[rows]
        self.truncate(length)


class DraftCache(Cache):
    """
    Key/value cache of a drafter with [`GrowingLayer`]s.

    Args:
        capacity (`int`, *optional*): positions, of a cache that never moves and is read as a whole, so that compiled
            forwards fit again.

    Attributes:
        lengths (`list[int]`): positions of each row; empty before the first forward.
        columns (`torch.LongTensor` of shape `(R, T)` or `(1, T)`, *optional*): where the next forward writes the T
            positions of each row; None appends them.
        end (`int`, *optional*): how many positions a forward with `columns` reads; None: all there are.
    """

    def __init__(self, num_hidden_layers: int, capacity: int | None = None):
        self._growing = [GrowingLayer(capacity) for _ in range(num_hidden_layers)]
        super().__init__(layers=[*self._growing])
        self.lengths: list[int] = []
        self.columns: torch.Tensor | None = None
        self.end: int | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes T positions `[R, heads, T, D]` of a layer; returns what its attention reads."""
        if self.columns is None:
            return self._growing[layer_idx].update(key_states, value_states)
        return self._growing[layer_idx].write(key_states, value_states, self.columns, self.end)

    def end_forward(self) -> None:
        """Keeps what belongs to the rows, `lengths` positions, and appends again."""
        self.columns = None
        for layer in self._growing:
            layer.truncate(max(self.lengths))

    def select(self, kept: Sequence[int], rows: torch.Tensor) -> None:
        """Goes on with these rows, given as integers and as a tensor."""
        self.lengths = [self.lengths[place] for place in kept]
        for layer in self._growing:
            layer.select(rows)
            layer.truncate(max(self.lengths))


__all__ = ["DraftCache", "GrowingLayer"]
