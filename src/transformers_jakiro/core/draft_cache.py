# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The drafter's key/value cache: written in place, so that a draft step costs the same at any context length."""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """
    A [`~transformers.cache_utils.DynamicLayer`] that appends into a buffer instead of copying the whole cache: a tree
    takes several drafter forwards, each of which would otherwise copy the context once.
    """

    def __init__(self, capacity: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.capacity = capacity  # that is taken at once; None: as much as is needed
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Appends T positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        self.reserve(start + key_states.shape[-2], key_states, value_states)
        self._key_buffer[..., start : start + key_states.shape[-2], :] = key_states
        self._value_buffer[..., start : start + key_states.shape[-2], :] = value_states
        self.truncate(start + key_states.shape[-2])
        return self.keys, self.values

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor, columns: torch.LongTensor, end: int | None):
        """
        Writes T positions where `columns` (`[B, T]` or `[1, T]`) says. Returns all up to `end`; None: the whole
        buffer, which then does not grow.
        """
        if end is not None:
            self.reserve(end, key_states, value_states)
        rows = torch.arange(key_states.shape[0], device=columns.device)[:, None]
        self._key_buffer.transpose(1, 2)[rows, columns] = key_states.transpose(1, 2)
        self._value_buffer.transpose(1, 2)[rows, columns] = value_states.transpose(1, 2)
        return self._key_buffer[..., :end, :], self._value_buffer[..., :end, :]

    def reserve(self, end: int, key_states: torch.Tensor, value_states: torch.Tensor):
        """Makes room up to a position."""
        if self._key_buffer is None or end > self._key_buffer.shape[-2]:
            start = self.get_seq_length()
            capacity = self.capacity or max(256, 2 * end)
            self._key_buffer = self._grow(self._key_buffer, key_states, start, capacity)
            self._value_buffer = self._grow(self._value_buffer, value_states, start, capacity)

    @staticmethod
    def _grow(buffer: torch.Tensor | None, states: torch.Tensor, length: int, capacity: int) -> torch.Tensor:
        # zeros, as in a batch the shorter rows have columns that were never written, and hidden ones may not be NaN
        grown = states.new_zeros(*states.shape[:-2], capacity, states.shape[-1])
        if buffer is not None:
            grown[..., :length, :] = buffer[..., :length, :]
        return grown

    def truncate(self, length: int):
        """Keeps the first `length` positions."""
        self.keys = self._key_buffer[..., :length, :]
        self.values = self._value_buffer[..., :length, :]

    def select(self, rows: torch.LongTensor):
        """Keeps these rows of the batch."""
        length = self.get_seq_length()
        self._key_buffer, self._value_buffer = self._key_buffer[rows], self._value_buffer[rows]
        self.truncate(length)


class DraftCache(Cache):
    """
    Key/value cache of a drafter with [`GrowingLayer`]s.

    Args:
        capacity (`int`, *optional*): positions, of a cache that never moves and is read as a whole, so that compiled
            forwards fit again.

    Attributes:
        columns (`torch.LongTensor` of shape `(B, T)` or `(1, T)`, *optional*): where the next forward writes the T
            positions of each row; None appends them.
        end (`int`, *optional*): how many positions a forward with `columns` reads; None: all there are.
    """

    def __init__(self, num_hidden_layers: int, capacity: int | None = None):
        super().__init__(layers=[GrowingLayer(capacity) for _ in range(num_hidden_layers)])
        self.columns: torch.LongTensor | None = None
        self.end: int | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        if self.columns is None:
            return self.layers[layer_idx].update(key_states, value_states)
        return self.layers[layer_idx].write(key_states, value_states, self.columns, self.end)

    def truncate(self, length: int):
        """Keeps the first `length` positions of every layer."""
        for layer in self.layers:
            layer.truncate(length)

    def select(self, rows: torch.LongTensor):
        """Keeps these rows of the batch."""
        for layer in self.layers:
            layer.select(rows)
