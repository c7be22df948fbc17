# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Packed query heads: attention over a tree without a copy of the context per query head.

With a mask, "sdpa" attention repeats all keys and values for each of the G query heads that share them. Packed, these
heads become rows of one head instead, and keys and values are read where they are:

```
query [B, heads, n, D]           packed [B, key/value heads, G * n, D]
  head 0:  q00 q01 q02             head 0:  q00 q01 q02 q10 q11 q12
  head 1:  q10 q11 q12             (G = 2 heads of n = 3 nodes; row g * n + i is node i of head g)
```

The mask has a row for each, in the same order ([`~transformers_jakiro.core.masks.GrowingMask`]). Whoever passes such a
mask says so with `packed_heads=G`: to the target as an argument of its forward, which hands it to its attention.

Symbols in shape comments: B batch, n query tokens, D head size, G query heads per key/value head.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import use_gqa_in_sdpa
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED_HEADS = "packed_heads"  # the argument that says how many query heads a mask packs
TAKES_PACKED_HEADS = "_transformers_jakiro_takes_packed_heads"  # attribute of the attention that knows this argument
# models of transformers that do something of their own with the mask
_READ_THE_MASK_THEMSELVES = {"doge"}
# how attention functions are to see a module whose query heads are packed
_UNGROUPED = SimpleNamespace(num_key_value_groups=1, is_causal=False, training=False)


def pack_heads(query: torch.Tensor, num_key_value_heads: int) -> torch.Tensor:
    """`[B, heads, n, D]` → `[B, key/value heads, G * n, D]`. See the module."""
    batch_size, num_heads, length, head_dim = query.shape
    groups = num_heads // num_key_value_heads
    return query.reshape(batch_size, num_key_value_heads, groups * length, head_dim)


def unpack_heads(output: torch.Tensor, groups: int) -> torch.Tensor:
    """Takes [`pack_heads`] back in an attention's output: `[B, G * n, key/value heads, D]` → `[B, n, heads, D]`."""
    batch_size, rows, num_key_value_heads, head_dim = output.shape
    output = output.view(batch_size, groups, rows // groups, num_key_value_heads, head_dim)
    return output.permute(0, 2, 3, 1, 4).flatten(2, 3)


def num_packed_heads(model: PreTrainedModel) -> int:
    """
    G where packing the query heads of a target saves copies of its keys and values; else 1.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return 1
    if not type(model).__module__.startswith("transformers.") or config.model_type in _READ_THE_MASK_THEMSELVES:
        return 1
    # not ours if another package has replaced it, or other code that was published with a drafter came first
    if not hasattr(ALL_ATTENTION_FUNCTIONS["sdpa"], TAKES_PACKED_HEADS):
        return 1
    mask = torch.empty(1, 1, 1, 1, device=model.device)
    if use_gqa_in_sdpa(mask, mask, mask):  # the device's attention takes groups of query heads with a mask
        return 1
    modules = [module for module in model.get_decoder().modules() if hasattr(module, "num_key_value_groups")]
    groups = {module.num_key_value_groups for module in modules}
    return groups.pop() if len(groups) == 1 else 1


def packed_attention(
    original: Callable[..., tuple[torch.Tensor, None]],
    module: nn.Module,
    query: torch.Tensor,  # [B, heads, n, D]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    packed_heads: int = 1,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    The "sdpa" attention, which also takes a mask of packed query heads, `[B, 1, G * n, keys]`, with `packed_heads=G`.
    Returns `[B, n, heads, D]` and None, as every attention function.
    """
    if packed_heads == 1:
        return original(module, query, key, value, attention_mask, *args, **kwargs)
    packed = pack_heads(query, query.shape[1] // packed_heads)
    output, _ = original(_UNGROUPED, packed, key, value, attention_mask, *args, **kwargs)
    return unpack_heads(output, packed_heads), None


__all__ = ["num_packed_heads", "pack_heads", "packed_attention", "unpack_heads"]
