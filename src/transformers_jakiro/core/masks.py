# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Additive attention masks for forwards over trees, the target's and the drafter's.

Symbols in shape comments: B batch, P tokens in the cache (the prefix), n nodes, G query heads that a mask packs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from .attention import num_packed_heads
from .device import send
from .tree import DraftTree

_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
_LAYER_TYPES = ("full_attention", "sliding_attention")


def layer_types(config: PreTrainedConfig) -> dict[str, int]:
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
    if implementation not in _IMPLEMENTATIONS:
        return (
            f"its attention implementation '{implementation}' takes no mask of arbitrary shape "
            "(`target.set_attn_implementation('sdpa')` does)"
        )
    # these count keys where a tree would need them to count positions
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its attention biases (ALiBi) follow the order of the tokens in memory"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "its local attention (GPT-Neo) follows the order of the tokens in memory"
    unsupported = [kind for kind in layer_types(config) if kind not in _LAYER_TYPES]
    return f"it has layers of the kinds {unsupported}" if unsupported else None


class GrowingMask:
    """
    A mask for a prefix and a block of new tokens. The columns of the prefix are written once, those of the block for
    each forward, so the cost does not grow with the context.

    ```
                    prefix      block
    row         0 1 2 3 4 5     7 4 9     rows of a batch differ in length: token t of each stands in column t, and the
    4 tokens    1 1 1 1 . .     ...       all blocks begin after the longest prefix
    6 tokens    1 1 1 1 1 1     ...
    ```

    A mask repeats its rows for each of the G query heads that it packs: row `g * n + i` is node i for head g, as in
    [`~transformers_jakiro.core.attention.pack_heads`].

    Args:
        dtype, device: of the masks.
        num_heads (`int`): G.
        capacity (`int`, *optional*): columns of a static cache. Masks always have this width, and hide what comes
            after the block.
        num_rows (`int`): rows to make room for at first.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        num_heads: int = 1,
        capacity: int | None = None,
        num_rows: int = 0,
    ):
        self.minimum = torch.finfo(dtype).min
        self._dtype = dtype
        self._device = device
        self._num_heads = num_heads
        self._capacity = capacity
        self._buffer = torch.zeros((1, 1, num_rows, 0), dtype=dtype, device=device)
        self._prefix = 0  # columns that are written as prefix
        self._end = 0  # columns that ever held a block; later ones are hidden

    def clear(self) -> None:
        """Forgets what was written: the batch has other rows now."""
        self._buffer = self._buffer.new_zeros((1, 1, self._buffer.shape[2], 0))
        self._prefix = 0

    def build(self, lengths: Sequence[int], block: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """
        The mask of one forward, valid until the next one is built.

        Args:
            lengths (`B` integers): P of each row.
            block (`[B or 1, 1, n, C]`): the additive mask of the new tokens among themselves.
            padding (`[B, tokens]` bool, *optional*): False where the prompt is padded.

        Returns:
            `[B, 1, G * n, max(P) + C]`, or the capacity wide.
        """
        shortest, longest = min(lengths), max(lengths)
        if longest > shortest:
            columns = torch.arange(shortest, longest, device=self._device)
            beyond = self.hide(columns >= send(lengths, self._device)[:, None, None, None])
            parts = (beyond.expand(-1, -1, block.shape[2], -1), block.expand(len(lengths), -1, -1, -1))
            block = torch.cat(parts, dim=-1)
        return self.write(shortest, block, padding)

    def causal(self, lengths: Sequence[int], num_new: int, padding: torch.Tensor | None = None) -> torch.Tensor:
        """
        The mask of `num_new` tokens after each row's own P: each sees these and the new ones up to itself. Unlike in
        [`~GrowingMask.build`], the new tokens of a row begin at its own column P.
        """
        shortest, longest = min(lengths), max(lengths)
        if shortest == longest:
            block = torch.full((1, 1, num_new, num_new), self.minimum, dtype=self._dtype, device=self._device)
            return self.write(shortest, block.triu(1), padding)
        columns = torch.arange(shortest, longest + num_new, device=self._device)
        seen = send(lengths, self._device)[:, None] + torch.arange(num_new, device=self._device)
        return self.write(shortest, self.hide(columns > seen[:, None, :, None]), padding)

    def hide(self, hidden: torch.Tensor) -> torch.Tensor:
        """An additive mask that hides where `hidden` is True."""
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, self.minimum)

    def write(self, prefix: int, block: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """[`~GrowingMask.build`] for a block `[B or 1, 1, n, C]` that begins at column `prefix` in all rows."""
        num_rows, end = self._num_heads * block.shape[2], prefix + block.shape[3]
        batch_size = max(self._buffer.shape[0], block.shape[0], 1 if padding is None else padding.shape[0])
        if batch_size != self._buffer.shape[0] or num_rows > self._buffer.shape[2] or end > self._buffer.shape[3]:
            # rows of a multiple of 64 are aligned as the attention kernels need them
            width = self._capacity or 64 * (2 * end // 64 + 4)
            self._buffer = self._buffer.new_full(
                (batch_size, 1, max(num_rows, self._buffer.shape[2]), width), self.minimum
            )
            self._prefix = self._end = 0
        if prefix != self._prefix:
            new = slice(min(prefix, self._prefix), prefix)  # was block, is prefix
            self._buffer[..., new] = 0
            if padding is not None:
                hidden = ~padding[:, None, None, new]
                self._buffer[..., new][..., : hidden.shape[-1]].masked_fill_(hidden, self.minimum)
            self._prefix = prefix
        mask = self._buffer[:, :, :num_rows]
        mask[..., prefix:end].unflatten(2, (self._num_heads, -1)).copy_(block.unsqueeze(2))
        if self._capacity is None:
            return mask[..., :end]
        self._buffer[..., end : self._end] = self.minimum
        self._end = max(self._end, end)
        return mask


class TreeMask:
    """
    The masks with which an unmodified target processes whole trees. A node sees the prefix, its ancestors and itself,
    and in layers with a sliding window no token further back than the window:

    ```
                   prefix    tree
    tree            p p p    7 4 9 2
    7 ── 4 ── 2  7  1 1 1    1 . . .
     └── 9       4  1 1 1    1 1 . .
                 9  1 1 1    1 . 1 .
                 2  1 1 1    1 1 . 1     sliding window of 4:  2  . . 1   1 1 . 1
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        padding (`[B, P]`, *optional*): the prompt's 2D attention mask, 0 where it is padded.
        device (`torch.device`): of the masks.
        capacity (`int`, *optional*): of a static cache, see [`GrowingMask`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        padding: torch.Tensor | None,
        device: torch.device,
        capacity: int | None = None,
    ):
        self._config = model.config.get_text_config(decoder=True)
        self._layer_types = layer_types(self._config)
        self._as_dict = getattr(self._config, "layer_types", None) is not None
        self._device = device
        self._capacity = capacity
        self.num_heads = num_packed_heads(model)
        self._full = GrowingMask(model.dtype, device, self.num_heads, capacity)
        self._padding = None if padding is None else padding.to(device) != 0  # [B, P]

    def build(self, tree: DraftTree, cache: Cache, lengths: Sequence[int]) -> Any:
        """
        The `attention_mask` argument of the target's forward over the tree's nodes: `[B, 1, G * n, P + n]` (a block
        mask of that shape for flex attention), or a dict of one per kind of attention for the models that take that.

        Args:
            tree ([`DraftTree`]): `[B, n]`.
            cache ([`~transformers.Cache`]): the target's.
            lengths (`B` integers): cached tokens of each row.
        """
        block = self._full.hide(~tree.ancestor_mask.to(self._device))[:, None]  # [B, 1, n, n]
        masks: dict[str, Any] = {}
        for kind, layer_idx in self._layer_types.items():
            window = self._config.sliding_window if kind == "sliding_attention" else None
            if window is None or max(lengths) + tree.max_depth < window:
                masks[kind] = self._full.build(lengths, block, self._padding)
            else:
                masks[kind] = self._sliding(tree, block, lengths, cache, layer_idx, window)
        if self._config._attn_implementation == "flex_attention":
            masks = {kind: _as_block_mask(mask) for kind, mask in masks.items()}
        return masks if self._as_dict else next(iter(masks.values()))

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows of the batch."""
        self._full.clear()
        if self._padding is not None:
            self._padding = self._padding[rows.to(self._device)]

    def _sliding(
        self,
        tree: DraftTree,
        block: torch.Tensor,  # [B, 1, n, n]
        lengths: Sequence[int],
        cache: Cache,
        layer_idx: int,
        window: int,
    ) -> torch.Tensor:
        """The mask `[B, 1, G * n, keys + n]` of layers with a sliding window, for the keys that their cache holds."""
        offset = 0 if self._capacity else cache.get_mask_sizes(tree.num_nodes, layer_idx)[1]
        prefix_lengths = send(lengths, self._device)[:, None]  # [B, 1]
        indices = prefix_lengths + tree.depths.to(self._device)  # [B, n]
        first = (indices - window + 1)[:, None, :, None]  # the first token that a node still sees
        keys = torch.arange(offset, max(lengths), device=self._device)
        visible = (keys >= first) & (keys < prefix_lengths[..., None, None])  # [B, 1, n, keys]
        if self._padding is not None:
            missing = max(0, max(lengths) - self._padding.shape[1])
            padding = nn.functional.pad(self._padding, (0, missing), value=True)
            visible = visible & padding[:, None, None, offset : offset + keys.shape[0]]
        block = block.masked_fill(indices[:, None, None, :] < first, self._full.minimum)
        mask = torch.cat((self._full.hide(~visible), block), dim=-1).repeat(1, 1, self.num_heads, 1)
        if self._capacity is None:
            return mask
        return nn.functional.pad(mask, (0, self._capacity - mask.shape[-1]), value=self._full.minimum)


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


__all__ = ["GrowingMask", "TreeMask", "layer_types", "why_no_trees"]
