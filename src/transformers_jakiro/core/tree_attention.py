# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Attention masks that let an unmodified target process a whole tree in one forward.

Symbols in shape comments: B batch, P tokens in the cache (the prefix), n nodes of the tree, G rows per node.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, PreTrainedModel

from .compat import num_packed_heads
from .device import send
from .tree import DraftTree

SUPPORTED_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
SUPPORTED_LAYER_TYPES = ("full_attention", "sliding_attention")


def layer_types(config) -> dict[str, int]:
    """
    The kinds of attention in a model and the first layer of each, as `transformers.masking_utils` tells them apart:
    by `layer_types` where the config has it (the model then takes one mask per kind), else one kind for all layers.
    """
    if getattr(config, "layer_types", None) is not None:
        return {kind: config.layer_types.index(kind) for kind in dict.fromkeys(config.layer_types)}
    if getattr(config, "sliding_window", None) is not None:
        return {"sliding_attention": 0}
    if getattr(config, "attention_chunk_size", None) is not None:
        return {"chunked_attention": 0}
    return {"full_attention": 0}


def why_no_trees(model: PreTrainedModel) -> str | None:
    """Why a target's attention cannot verify trees, or None if it can."""
    config = model.config.get_text_config(decoder=True)
    implementation = config._attn_implementation
    if implementation not in SUPPORTED_IMPLEMENTATIONS:
        return (
            f"its attention implementation '{implementation}' takes no mask of arbitrary shape "
            "(`target.set_attn_implementation('sdpa')` does)"
        )
    # these count keys where a tree would need them to count positions
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its attention biases (ALiBi) follow the order of the tokens in memory"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "its local attention (GPT-Neo) follows the order of the tokens in memory"
    unsupported = [kind for kind in layer_types(config) if kind not in SUPPORTED_LAYER_TYPES]
    return f"it has layers of the kinds {unsupported}" if unsupported else None


class TreeAttentionMask:
    """
    Additive masks for the target's tree forwards of one generation. A node sees the prefix, its ancestors and itself,
    and in layers with a sliding window no token further back than the window:

    ```
                   prefix    tree
    tree            p p p    7 4 9 2
    7 ── 4 ── 2  7  1 1 1    1 . . .
     └── 9       4  1 1 1    1 1 . .
                 9  1 1 1    1 . 1 .
                 2  1 1 1    1 1 . 1     sliding window of 4:  2  . . 1   1 1 . 1
    ```

    The prefix columns of the full mask are written once, so a step costs the same at any context length. In a batch
    token t of each row stands in column t: the prefixes of shorter rows end earlier, the trees of all begin behind the
    longest. Each row stands there G times in a row where the attention packs query heads, `rows_per_node`.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        padding (`[B, P]`, *optional*): the prompt's 2D attention mask, 0 where it is padded.
        capacity (`int`, *optional*): of a static cache: masks are always as wide, and what is behind the tree hidden.
    """

    def __init__(
        self, model: PreTrainedModel, padding: torch.Tensor | None, device: torch.device, capacity: int | None = None
    ):
        self._capacity = capacity
        self._config = model.config.get_text_config(decoder=True)
        self._layer_types = layer_types(self._config)
        self._as_dict = getattr(self._config, "layer_types", None) is not None
        self._dtype, self._device = model.dtype, device
        self._minimum = torch.finfo(self._dtype).min
        self.rows_per_node = num_packed_heads(model)
        self._hidden = None if padding is None else padding.to(device) == 0  # [B, P]
        self._buffer: torch.Tensor | None = None  # [B, nodes, G, columns]
        self._prefix = 0

    def build(self, tree: DraftTree, cache: Cache, lengths: Sequence[int]) -> Any:
        """
        The `attention_mask` argument of the target's forward over the tree's nodes: `[B, 1, n * G, P + n]` (a block
        mask of that shape for flex attention), or a dict of one such mask per kind of attention for the models that
        take it so. `lengths`: cached tokens of each row, P of the longest.
        """
        block = torch.zeros(tree.ancestor_mask.shape, dtype=self._dtype, device=self._device)
        block.masked_fill_(~tree.ancestor_mask, self._minimum)
        masks: dict[str, Any] = {}
        for kind, layer_idx in self._layer_types.items():
            window = self._config.sliding_window if kind == "sliding_attention" else None
            if window is None or max(lengths) + tree.max_depth < window:
                masks[kind] = self._full_mask(block, lengths)
            else:
                masks[kind] = self._sliding_mask(tree, block, lengths, cache, layer_idx, window)
        if self._config._attn_implementation == "flex_attention":
            masks = {kind: _as_block_mask(mask) for kind, mask in masks.items()}
        return masks if self._as_dict else next(iter(masks.values()))

    def select(self, rows: torch.LongTensor) -> None:
        """Goes on with these rows of the batch."""
        self._buffer = None
        if self._hidden is not None:
            self._hidden = self._hidden[rows.to(self._device)]

    def _full_mask(self, block: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        batch_size, num_nodes = block.shape[:2]
        shortest, longest = min(lengths), max(lengths)
        end = longest + num_nodes
        if self._buffer is None or end > self._buffer.shape[-1] or num_nodes > self._buffer.shape[1]:
            width = self._capacity or 64 * (2 * end // 64 + 4)  # rows stay aligned for the attention kernels
            self._buffer = block.new_full((batch_size, num_nodes, self.rows_per_node, width), self._minimum)
            self._prefix = 0
        new = slice(self._prefix, shortest)  # was tree, is prefix
        self._buffer[..., new] = 0
        if self._hidden is not None:
            hidden = self._hidden[:, None, None, new]
            self._buffer[..., new][..., : hidden.shape[-1]].masked_fill_(hidden, self._minimum)
        self._prefix = shortest
        if longest > shortest:
            columns = torch.arange(shortest, longest, device=self._device)
            behind = columns >= send(lengths, self._device)[:, None, None, None]
            self._buffer[..., shortest:longest] = behind * self._minimum
        self._buffer[:, :num_nodes, :, longest:end] = block[:, :, None]
        return self._buffer[:, None, :num_nodes].flatten(2, 3)[..., : self._capacity or end]

    def _sliding_mask(
        self, tree: DraftTree, block: torch.Tensor, lengths: Sequence[int], cache: Cache, layer_idx: int, window: int
    ) -> torch.Tensor:
        offset = 0 if self._capacity else cache.get_mask_sizes(tree.num_nodes, layer_idx)[1]
        prefix_lengths = send(lengths, self._device)[:, None]  # [B, 1]
        indices = prefix_lengths + tree.depths.to(self._device)  # [B, n]
        first = (indices - window + 1)[:, None, :, None]  # the first token that a node still sees
        keys = torch.arange(offset, max(lengths), device=self._device)
        visible = (keys >= first) & (keys < prefix_lengths[..., None, None])  # [B, 1, n, prefix keys]
        if self._hidden is not None:
            hidden = torch.nn.functional.pad(self._hidden, (0, max(0, max(lengths) - self._hidden.shape[1])))
            visible = visible & ~hidden[:, None, None, offset : offset + keys.shape[0]]
        prefix = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
        prefix.masked_fill_(~visible, self._minimum)
        block = block[:, None].masked_fill(indices[:, None, None, :] < first, self._minimum)
        mask = torch.cat((prefix, block), dim=-1)[:, :, :, None]
        mask = mask.expand(-1, -1, -1, self.rows_per_node, -1).flatten(2, 3)
        if self._capacity is None:
            return mask
        return torch.nn.functional.pad(mask, (0, self._capacity - mask.shape[-1]), value=self._minimum)


def _as_block_mask(mask: torch.Tensor) -> BlockMask:
    """An additive mask `[B, 1, n, keys]` as flex attention takes it."""
    visible = (mask == 0)[:, 0].contiguous()
    batch_size, num_queries, num_keys = visible.shape
    return create_block_mask(
        lambda batch, head, query, key: visible[batch, query, key],
        B=batch_size,
        H=None,
        Q_LEN=num_queries,
        KV_LEN=num_keys,
        device=visible.device,
    )
