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

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args,
        columns: torch.LongTensor | None = None,
        **kwargs,
    ):
        """
        Appends T positions. With `columns` (`[B, T]`, none beyond the end) each row's go where it says.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._key_buffer is None or end > self._key_buffer.shape[-2]:
            capacity = max(256, 2 * end)
            self._key_buffer = self._grow(self._key_buffer, key_states, start, capacity)
            self._value_buffer = self._grow(self._value_buffer, value_states, start, capacity)
        if columns is None:
            self._key_buffer[..., start:end, :] = key_states
            self._value_buffer[..., start:end, :] = value_states
        else:
            index = columns[:, None, :, None].expand_as(key_states)
            self._key_buffer.scatter_(2, index, key_states)
            self._value_buffer.scatter_(2, index, value_states)
        self.truncate(end)
        return self.keys, self.values

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

    Attributes:
        columns (`torch.LongTensor` of shape `(B, T)`, *optional*): where the next forward writes each row's T
            positions; None appends them.
    """

    def __init__(self, num_hidden_layers: int):
        super().__init__(layers=[GrowingLayer() for _ in range(num_hidden_layers)])
        self.columns: torch.LongTensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        return self.layers[layer_idx].update(key_states, value_states, columns=self.columns)

    def truncate(self, length: int):
        """Keeps the first `length` positions of every layer."""
        for layer in self.layers:
            layer.truncate(length)

    def select(self, rows: torch.LongTensor):
        """Keeps these rows of the batch."""
        for layer in self.layers:
            layer.select(rows)
