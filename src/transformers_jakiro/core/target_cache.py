# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The target's key/value cache: whether it can drop rejected tokens, and how it keeps the accepted ones. The only file
that knows the insides of transformers' cache layers.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel, StaticCache, cache_utils
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from .compat import CACHE, TRANSFORMERS
from .device import send
from .hook import is_hook_installed

_STATIC_LAYERS = (StaticLayer, StaticSlidingWindowLayer)
# Quantized layers wrongly report that they are croppable up to 5.23. They have a common base class since 5.21.
# Goes when 5.24 is the oldest version.
_QUANTIZED_LAYER: type = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)
# Layers that share another layer's states have none of their own. There is a class for them since 5.21.
# Goes when 5.21 is the oldest version.
_DUMMY_LAYERS: tuple[type, ...] = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()
_TREE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, *_DUMMY_LAYERS, *_STATIC_LAYERS)


# -- what a cache can do ---------------------------------------------------------------------------------------------


def check_cache(cache: Any, generation_config: GenerationConfig) -> str | None:
    """
    Whether rejected tokens can be taken out of a cache again.

    Returns:
        None if any tree can be, else the reason why only a chain can.

    Raises:
        NotImplementedError: if not even a chain can.
    """
    remedy = (
        f"Use the default dynamic cache (leave out `cache_implementation` and `{CACHE}`), or "
        "`cache_implementation='static'`."
    )
    if cache is None:
        raise NotImplementedError(
            "A drafter needs a key/value cache, and `generate` has none for this target. Leave out `assistant_model`."
        )
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise NotImplementedError(f"A drafter needs a decoder's key/value cache, got {type(cache).__name__}. {remedy}")
    if getattr(cache, "offloading", False):
        raise NotImplementedError(f"Offloaded caches are not supported with a drafter yet. {remedy}")
    if any(isinstance(layer, _QUANTIZED_LAYER) for layer in cache.layers):
        raise NotImplementedError(
            f"Quantized caches cannot drop rejected tokens: quantized states are not kept per token. {remedy}"
        )
    if not is_user_defined(cache, generation_config):  # it is the default one
        remedy = "Leave out `assistant_model`."
    if _says_no(cache):
        raise NotImplementedError(f"A {type(cache).__name__} cannot drop rejected tokens, as drafting needs. {remedy}")
    others = [layer for layer in cache.layers if type(layer) not in _TREE_LAYERS]
    unknown = {type(layer).__name__ for layer in others if not _is_croppable(layer, is_filled=False)}
    if unknown:
        raise NotImplementedError(
            f"Cache layers of the kinds {sorted(unknown)} cannot drop rejected tokens, as drafting needs. {remedy}"
        )
    chain_only = sorted({type(layer).__name__ for layer in others})
    return f"the cache has layers of kind {', '.join(chain_only)}" if chain_only else None


def check_croppable(model: PreTrainedModel, cache: Cache) -> None:
    """
    Checks the cache again after the prompt: only then do linear attention layers know whether they hold a recurrent
    state.

    Raises:
        NotImplementedError: if they do.
    """
    kinds = sorted({type(layer).__name__ for layer in cache.layers if not _is_croppable(layer, is_filled=True)})
    if kinds:
        raise NotImplementedError(
            f"{type(model).__name__} keeps a recurrent state in its cache (layers of kind {', '.join(kinds)}) that "
            "cannot be rolled back to the last accepted token, so nothing can be drafted for it. Leave out "
            "`assistant_model`."
        )


def _is_croppable(layer: Any, is_filled: bool) -> bool:
    if type(layer) in _TREE_LAYERS:
        return True
    # Before 5.17, layers have no `is_croppable`. Of the layers of that time, only this one can be cropped.
    # Goes when 5.17 is the oldest version.
    says = getattr(layer, "is_croppable", type(layer).__name__ == "DynamicIndexedLayer")
    # Linear attention does not know before it is filled; see `check_croppable`.
    return says or (not is_filled and hasattr(layer, "is_croppable") and hasattr(layer, "conv_states"))


def _says_no(cache: Cache) -> bool:
    """Whether a kind of cache overrides what its layers say of cropping."""
    own = getattr(type(cache), "is_croppable", None)
    return own is not getattr(Cache, "is_croppable", None) and not cache.is_croppable


def is_user_defined(cache: Cache, generation_config: GenerationConfig) -> bool:
    """Whether the caller of `generate` passed this cache, and so will see what becomes of it."""
    if TRANSFORMERS < (5, 17) and not is_hook_installed():
        # Nothing marks the caller's cache here, so a dynamic cache counts as the caller's.
        # Goes when 5.17 is the oldest version.
        return generation_config.cache_implementation is None
    return bool(getattr(cache, "_is_user_defined", False))


def attention_windows(cache: Cache) -> list[int | None]:
    """The sliding windows of the layers that a model returns attentions of, which linear attention has none of."""
    layers = [
        layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) or not hasattr(layer, "conv_states")
    ]
    return [getattr(layer, "sliding_window", None) for layer in layers]


def is_static(cache: Cache) -> bool:
    """Whether a cache has a fixed capacity that all of its forwards see."""
    return any(isinstance(layer, _STATIC_LAYERS) for layer in cache.layers)


def static_capacity(cache: Cache) -> int:
    """Tokens that a static cache holds, in the layer that holds least."""
    return min(layer.max_cache_len for layer in cache.layers if isinstance(layer, _STATIC_LAYERS))


def fit_static_cache(
    model: PreTrainedModel, cache: Cache, generation_config: GenerationConfig, num_draft_tokens: int
) -> Cache:
    """
    A static cache for the text and a drafted tree. The one that `generate` has made has no room for the tree; its
    layers with a sliding window forget what a rejected token needs again: ours hold all. As its capacity is that of
    the longest generation of this model so far, ours stays the same too, and compiled forwards fit again.

    Raises:
        ValueError: if the cache is the caller's and has too little room.
    """
    max_length = generation_config.max_length
    num_tokens = max_length + num_draft_tokens
    if is_user_defined(cache, generation_config):
        capacity = static_capacity(cache)
        if capacity < num_tokens:
            raise ValueError(
                f"The static cache holds {capacity} tokens, but the prompt, `max_new_tokens` and a drafted tree take "
                f"up to {num_tokens} (in layers with a sliding window, too, which have no more room than it). Pass "
                f"`StaticCache(config, max_cache_len={num_tokens})` or more to a target without sliding windows, or "
                "`cache_implementation='static'` to have one made."
            )
        return cache
    made = max(layer.max_cache_len for layer in cache.layers if isinstance(layer, _STATIC_LAYERS))
    capacity = -(-(max(max_length, made + 1) + num_draft_tokens) // 64) * 64
    cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=capacity)
    cache.layers = [
        StaticLayer(capacity) if type(layer) is StaticSlidingWindowLayer else layer for layer in cache.layers
    ]
    return cache


# -- keeping the accepted tokens -------------------------------------------------------------------------------------


class TargetCache:
    """
    The target's cache while trees are verified. As a context manager it prepares the cache for tokens that may be
    rejected, and hands it back as plain `generate` leaves it, however the generation ends.

    Args:
        cache ([`~transformers.Cache`]): one that [`check_cache`] has accepted, filled with the prompt.
        batch_size (`int`): rows.
        chain_only (`bool`): whether only chains are verified, for rows in step, in any cache that can be cropped.
    """

    def __init__(self, cache: Cache, batch_size: int, chain_only: bool = False):
        self.cache = cache
        self.is_static = is_static(cache)
        self._chain_only = chain_only
        self._is_ragged = batch_size > 1 or self.is_static  # rows may differ in length, or lie in fixed columns
        self._is_batch = batch_size > 1 and not chain_only
        self._before: list[tuple[Any, bool | None]] = []

    def __enter__(self) -> Self:
        # Only after the prompt: a recording layer with a sliding window keeps all of the prompt.
        self._before = [(layer, getattr(layer, "record_past", None)) for layer in self.cache.layers]
        self.cache.activate_past_recording()
        if self._is_batch:
            self.cache.layers = [
                _RaggedSlidingLayer(layer) if type(layer) is DynamicSlidingWindowLayer else layer
                for layer in self.cache.layers
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for index, (layer, record_past) in enumerate(self._before):
            ours = self.cache.layers[index]
            if isinstance(ours, _RaggedSlidingLayer):
                ours.hand_back(layer)
                self.cache.layers[index] = layer
            if record_past is not None:
                layer.record_past = record_past

    def keep(self, nodes: torch.Tensor, paths: Sequence[Sequence[int]], lengths: Sequence[int], size: int) -> None:
        """
        Drops all tokens of the last forward but each row's accepted path.

        Args:
            nodes (`[B, k]`): the paths as a tensor; shorter ones are padded.
            paths (`B` lists of integers): indices among the nodes of the last forward, increasing.
            lengths (`B` integers): tokens of each row before that forward.
            size (`int`): nodes of that forward.
        """
        layer: Any
        if self._chain_only:
            for layer in self.cache.layers:
                # Layers that a model does not fill can be cropped since 5.22. Goes when that is the oldest version.
                if getattr(layer, "is_initialized", True):
                    layer.crop(len(paths[0]) - size)
        elif self._is_ragged:
            self._keep_rows(nodes, paths, lengths, size)
        else:
            is_prefix = not paths[0] or paths[0][-1] == len(paths[0]) - 1
            for layer in self.cache.layers:
                _keep_nodes(layer, size, nodes[0], is_prefix)

    def _keep_rows(
        self, nodes: torch.Tensor, paths: Sequence[Sequence[int]], lengths: Sequence[int], size: int
    ) -> None:
        """
        Moves each row's path to the end of its own tokens, so that token t of a row stands in column t. Rows shorter
        than the longest have columns after their end that mean nothing.
        """
        new_lengths = [length + len(path) for length, path in zip(lengths, paths, strict=True)]
        columns = send(lengths, nodes.device)[:, None] + torch.arange(nodes.shape[1], device=nodes.device)
        rows = torch.arange(nodes.shape[0], device=nodes.device)[:, None]
        layer: Any
        for layer in self.cache.layers:
            if type(layer) not in (DynamicLayer, _RaggedSlidingLayer, *_STATIC_LAYERS) or not layer.is_initialized:
                continue  # layers that share another layer's states
            fixed = isinstance(layer, _STATIC_LAYERS)
            num_keys = max(lengths) + size if fixed else layer.keys.shape[-2]
            first = max(lengths) + size - num_keys  # column of the first key in the layer
            start, end = 0, max(new_lengths) - first
            if isinstance(layer, _RaggedSlidingLayer):
                layer.cumulative_length = max(new_lengths)
                start = max(0, min(new_lengths) - layer.sliding_window + 1 - first)
            rows, nodes, columns = (index.to(layer.keys.device) for index in (rows, nodes, columns))
            source, place = nodes + (num_keys - size), columns - first
            for name in ("keys", "values"):
                states = getattr(layer, name)
                by_column = states.transpose(1, 2)
                by_column[rows, place] = by_column[rows, source]  # `scatter_` would copy all of them
                if not fixed:
                    setattr(layer, name, states[..., start:end, :])
            if fixed:
                _shorten_static(layer, max(lengths) + size - max(new_lengths))

    def crop_to(self, length: int) -> None:
        """
        Keeps `length` tokens, whatever an interrupted forward has appended to some of the layers. Layers without a
        state per token stay as that forward left them, as in plain generation.
        """
        layer: Any
        for layer in self.cache.layers:
            if type(layer) not in (*_TREE_LAYERS, _RaggedSlidingLayer) or isinstance(layer, _DUMMY_LAYERS):
                continue
            extra = int(layer.get_seq_length()) - length
            if extra > 0 and isinstance(layer, _STATIC_LAYERS):
                _shorten_static(layer, extra)
            elif extra > 0:
                _keep_nodes(layer, extra, torch.empty(0, dtype=torch.long), is_prefix=True)

    def select(self, rows: torch.Tensor, num_columns: int) -> None:
        """Goes on with these rows of the batch, the longest of which is `num_columns` shorter than that of all."""
        layer: Any
        for layer in self.cache.layers:
            if type(layer) not in (DynamicLayer, _RaggedSlidingLayer) or not layer.is_initialized:
                continue  # layers that share another layer's states
            end = layer.keys.shape[-2] - num_columns
            layer.keys = layer.keys[rows.to(layer.keys.device), :, :end]
            layer.values = layer.values[rows.to(layer.values.device), :, :end]
            if isinstance(layer, _RaggedSlidingLayer):
                layer.cumulative_length -= num_columns


class _RaggedSlidingLayer(DynamicSlidingWindowLayer):
    """For a batch whose rows are of different lengths: keeps the window of the shortest, and hands out all it has."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any):
        super().__init__(sliding_window=layer.sliding_window)
        if layer.is_initialized:
            self.lazy_initialization(layer.keys, layer.values)
            self.keys, self.values = layer.keys, layer.values
            self.cumulative_length = layer.cumulative_length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends states `[B, heads, n, D]`; returns all there are."""
        self.cumulative_length += key_states.shape[-2]
        return DynamicLayer.update(self, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        length = self.keys.shape[-2]
        return length + query_length, self.cumulative_length - length

    def hand_back(self, layer: DynamicSlidingWindowLayer) -> None:
        """Gives `layer` the states of this one, at most a window of them."""
        if self.is_initialized:
            layer.lazy_initialization(self.keys, self.values)
            layer.keys = self.keys[..., 1 - layer.sliding_window :, :]
            layer.values = self.values[..., 1 - layer.sliding_window :, :]
            layer.cumulative_length = self.cumulative_length


def _keep_nodes(layer: Any, size: int, nodes: torch.Tensor, is_prefix: bool) -> None:
    """
    Keeps `nodes` (`[k]`, increasing) of the last `size` tokens of a layer without copying those before them;
    `is_prefix`: nodes are 0 … k - 1, so nothing has to move.
    """
    if isinstance(layer, _DUMMY_LAYERS) or not layer.is_initialized:
        return
    if size != nodes.shape[0]:
        base = layer.keys.shape[-2] - size
        end = base + nodes.shape[0]
        if not is_prefix:
            index = nodes.to(layer.keys.device) + base
            layer.keys[..., base:end, :] = layer.keys.index_select(-2, index)
            layer.values[..., base:end, :] = layer.values.index_select(-2, index)
        layer.keys, layer.values = layer.keys[..., :end, :], layer.values[..., :end, :]
    if not isinstance(layer, DynamicSlidingWindowLayer):
        return
    layer.cumulative_length -= size - nodes.shape[0]
    keys: Any = layer.keys
    values: Any = layer.values
    if layer.cumulative_length >= layer.sliding_window and not isinstance(layer, _RaggedSlidingLayer):
        layer.keys = keys[..., 1 - layer.sliding_window :, :]
        layer.values = values[..., 1 - layer.sliding_window :, :]


def _shorten_static(layer: StaticLayer, num_tokens: int) -> None:
    """Takes the last tokens of a static layer back."""
    # Layers have `crop` since 5.24. Goes when 5.24 is the oldest version.
    if TRANSFORMERS >= (5, 24):
        layer.crop(-num_tokens)
        return
    layer.cumulative_length.sub_(num_tokens)
    if isinstance(layer, StaticSlidingWindowLayer):
        layer.cumulative_length_int -= num_tokens


__all__ = [
    "TargetCache",
    "attention_windows",
    "check_cache",
    "check_croppable",
    "fit_static_cache",
    "is_static",
    "is_user_defined",
    "static_capacity",
]
