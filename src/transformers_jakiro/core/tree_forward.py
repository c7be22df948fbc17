# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The target's forwards over trees in one generation.

Symbols in shape comments: B batch, n nodes of a tree, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationConfig

from . import compat
from .device import send
from .target import Target
from .tree import DraftTree
from .tree_attention import TreeAttentionMask


class TreeForward:
    """The target's forwards over trees in one generation, and its cache between them."""

    def __init__(
        self,
        target: Target,
        cache: Cache,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        batch_size: int,
        prompt_length: int,
        static_sizes: Sequence[int] = (),
        chain_only: bool = False,
    ):
        model = target.model
        self._model, self._cache = model, cache
        self._is_static = compat.is_static(cache)
        # with a static cache forwards have few shapes: trees are filled up to one of these numbers of nodes
        self._sizes = static_sizes if self._is_static else ()
        self._forward = model
        if self._is_static:
            compile_config = compat.compile_config_of(model, model_kwargs, generation_config)
            self._forward = model if compile_config is None else compat.compiled_call(model, compile_config)
        self._lengths = [int(prompt_length)] * batch_size  # cached tokens of each row
        self._is_batch = batch_size > 1  # when it began
        self._chain_only = chain_only
        # only now: a cache that records the past keeps the whole prompt in layers with a sliding window
        self._recording = compat.start_recording(cache, self._is_batch)
        padding = model_kwargs.get("attention_mask")
        if padding is not None:
            padding = torch.nn.functional.pad(padding, (0, int(prompt_length) - padding.shape[1]), value=1)
        self._padding = padding
        self._device = compat.execution_device(model.get_input_embeddings())
        capacity = compat.static_capacity(cache) if self._is_static else None
        self._mask = None if self._chain_only else TreeAttentionMask(model, padding, self._device, capacity)
        positions = model_kwargs.get("position_ids")
        # position of the next token less the number of cached tokens: nonzero with left padding
        self._position_offset = None
        if positions is not None:
            self._position_offset = positions[..., -1:].to(self._device) + 1 - int(prompt_length)
        self._kwargs = {
            compat.CACHE: cache,
            "use_cache": True,
            "return_dict": True,
            "output_hidden_states": generation_config.output_hidden_states or target.output_hidden_states,
        }
        if generation_config.output_attentions:
            self._kwargs["output_attentions"] = True
        self._num_nodes = 0

    def run(self, tree: DraftTree) -> Any:
        """
        The target's outputs for all nodes: logits `[B, n, V]`, hidden states `[B, n, H]`; with a static cache there
        may be more, which mean nothing. Extends the cache.
        """
        tree = _filled_up(tree, min((size for size in self._sizes if size >= tree.num_nodes), default=0))
        self._num_nodes = tree.num_nodes
        shortest, longest = min(self._lengths), max(self._lengths)
        kwargs = dict(self._kwargs)
        if self._position_offset is not None:
            first = self._position_offset + longest
            if shortest < longest:
                first = first - longest + send(self._lengths, self._device)[:, None]
            kwargs["position_ids"] = tree.depths.to(self._device) + first
        if self._mask is not None:
            kwargs["attention_mask"] = self._mask.build(tree, self._cache, self._lengths)
        elif self._padding is not None:  # a chain: the model's own causal mask does
            missing = longest + tree.num_nodes - self._padding.shape[1]
            kwargs["attention_mask"] = torch.nn.functional.pad(self._padding, (0, missing), value=1)
        return self._forward(input_ids=tree.tokens.to(self._device), **kwargs)

    def keep(self, visited: list[list[int]]) -> torch.LongTensor:
        """
        Keeps each row's accepted path of the last tree in the cache. Returns their nodes as a tensor `[B, k]`; what a
        row has less than k is 0.
        """
        longest = max(map(len, visited))
        nodes = send([path + [0] * (longest - len(path)) for path in visited], self._device)
        lengths = self._lengths
        self._lengths = [length + len(path) for length, path in zip(lengths, visited, strict=True)]
        if self._chain_only:
            self._cache.crop(longest - self._num_nodes)
        elif not (self._is_batch or self._is_static):
            is_prefix = not visited[0] or visited[0][-1] == longest - 1
            compat.keep_nodes(self._cache, self._num_nodes, nodes[0], is_prefix)
        else:
            compat.keep_rows(self._cache, self._num_nodes, nodes, lengths, self._lengths)
        return nodes

    def select(self, kept: Sequence[int]) -> None:
        """Goes on with these rows of the batch."""
        rows, longest = send(kept, self._device), max(self._lengths)
        self._lengths = [self._lengths[row] for row in kept]
        compat.select_rows(self._cache, rows, longest - max(self._lengths))
        self._mask.select(rows)
        if self._position_offset is not None and self._position_offset.shape[-2] > 1:
            self._position_offset = self._position_offset.index_select(-2, rows.to(self._device))

    def close(self) -> None:
        """Leaves the cache as plain `generate` leaves it."""
        compat.stop_recording(self._cache, self._recording)


def _filled_up(tree: DraftTree, num_nodes: int) -> DraftTree:
    """A tree with at least so many nodes: further ones below the root."""
    missing = num_nodes - tree.num_nodes
    if missing <= 0:
        return tree
    tokens, parents = (nn.functional.pad(values, (0, missing)) for values in (tree.tokens, tree.parents))
    return DraftTree(tokens, parents, max_depth=max(1, tree.max_depth))


__all__ = ["TreeForward"]
