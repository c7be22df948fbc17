# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The drafter's forwards, over what it reads of the target and over the levels of a tree, and its cache between them.

Symbols in shape comments: R rows, T pairs, H hidden size, F width of what the drafter reads of the target, W nodes of
a level.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig

from .attention import PACKED_HEADS
from .compat import compiled_call
from .device import send
from .draft_cache import DraftCache
from .masks import GrowingMask
from .modeling_jakiro import JakiroDraftOutput

# Queries of a forward whose masks pack heads; a longer one, a prompt, takes the model's own mask.
MAX_QUERIES = 64


class Pairs:
    """
    What the drafter has yet to read: features of the target, each with the embedding of the next token.

    Args:
        features (`[R, T, F]`): of T tokens.
        embeddings (`[R, T, H]`): of these tokens.
        counts (`R` integers): how many of the T each row has, the first ones.
    """

    def __init__(self, features: torch.Tensor, embeddings: torch.Tensor, counts: Sequence[int]):
        self.features = features
        self.next_embeddings = embeddings.roll(-1, dims=1)  # the last one is not known yet
        self.counts = list(counts)

    def set_next(self, embedding: torch.Tensor) -> None:
        """The embedding `[R, 1, H]` of the token after the last pair of each row."""
        if len(set(self.counts)) == 1:
            self.next_embeddings[:, self.counts[0] - 1] = embedding[:, 0]
        else:  # a row without pairs has ended, and nobody looks at what it drafts
            last = send(self.counts, embedding.device).clamp(min=1) - 1
            self.next_embeddings.scatter_(1, last[:, None, None].expand_as(embedding), embedding)

    def append(self, other: "Pairs") -> None:
        """Takes in further pairs of each row."""
        self.features = _append(self.features, other.features, self.counts)
        self.next_embeddings = _append(self.next_embeddings, other.next_embeddings, self.counts)
        self.counts = [old + new for old, new in zip(self.counts, other.counts, strict=True)]

    def select(self, kept: Sequence[int], rows: torch.Tensor) -> None:
        """Goes on with these rows, given as integers and as a tensor."""
        self.counts = [self.counts[place] for place in kept]
        longest = max(self.counts)
        self.features = self.features[rows, :longest]
        self.next_embeddings = self.next_embeddings[rows, :longest]


class DraftForward:
    """
    Runs the drafter in one generation.

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter. Not changed.
    """

    def __init__(self, draft_model: Any):
        config = draft_model.config
        parameter = next(draft_model.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self._draft_model = draft_model
        self._forward: Callable[..., JakiroDraftOutput] = draft_model
        self._num_heads = config.num_attention_heads // config.num_key_value_heads  # that a mask packs
        self.cache = DraftCache(config.num_hidden_layers)
        self._mask = GrowingMask(self.dtype, self.device, self._num_heads, num_rows=self._num_heads * MAX_QUERIES)
        self._static_length: int | None = None  # pairs of each read but the prompt's, where shapes are fixed
        self._padding: torch.Tensor | None = None  # [R, pairs] bool, False where the prompt is padded
        self._num_pads: torch.Tensor | None = None  # [R, 1] of the pairs in the cache, if there is padding
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None  # of the levels of the tree
        self._block: torch.Tensor | None = None  # [R, 1, W, nodes of the tree so far]
        self._self_block = torch.zeros((0, 0), dtype=self.dtype, device=self.device)  # [W, W]: nodes see themselves

    def make_static(self, capacity: int, num_nodes: int, depth: int, compile_config: CompileConfig | None) -> None:
        """
        Gives all forwards but the prompt's fixed shapes.

        Args:
            capacity (`int`): pairs of a row at most.
            num_nodes (`int`): nodes that are expanded in a tree at most.
            depth (`int`): levels of a tree at most.
            compile_config ([`~transformers.CompileConfig`], *optional*): how to compile the forwards; None: not.
        """
        self._static_length = depth + 1  # what a step brings at most
        # room for the padding of a read, then for the nodes of a tree
        columns = capacity + self._static_length + num_nodes
        columns += -columns % 64
        config = self._draft_model.config
        self.cache = DraftCache(config.num_hidden_layers, columns)
        self._mask = GrowingMask(
            self.dtype, self.device, self._num_heads, columns, num_rows=self._num_heads * MAX_QUERIES
        )
        if compile_config is not None:
            self._forward = compiled_call(self._draft_model, compile_config)

    @property
    def is_static(self) -> bool:
        return self._static_length is not None

    def add_padding(self, attention_mask: torch.Tensor) -> None:
        """Notes which tokens of the prompt `[R, T]` are padding."""
        attention_mask = attention_mask.to(self.device, torch.bool)
        if self._padding is None and attention_mask.all():
            return
        if self._padding is None:
            length = max(self.cache.lengths, default=0)
            self._padding = attention_mask.new_ones((attention_mask.shape[0], length))
        self._padding = torch.cat((self._padding, attention_mask), dim=1)

    def read(self, pairs: Pairs, **outputs: bool) -> JakiroDraftOutput:
        """Reads pairs into the cache. Returns the features `[R, T, H]` that the model has for them."""
        starts = self.cache.lengths or [0] * len(pairs.counts)
        features, next_embeddings = pairs.features, pairs.next_embeddings
        forward: Callable[..., JakiroDraftOutput] = self._draft_model
        if self._static_length is not None and min(starts) > 0 and features.shape[1] <= self._static_length:
            missing = (0, 0, 0, self._static_length - features.shape[1])
            features = nn.functional.pad(features, missing)
            next_embeddings = nn.functional.pad(next_embeddings, missing)
            forward = self._forward
        if self._padding is not None and min(starts) < self._padding.shape[1]:
            arguments = self._in_padded_prompt(self._padding, min(starts) + features.shape[1], min(starts))
        else:
            arguments = self._after_prompt(starts, features.shape[1])
        self.cache.lengths = [start + count for start, count in zip(starts, pairs.counts, strict=True)]
        output = forward(
            inputs_embeds=next_embeddings,
            hidden_states=features,
            cache=self.cache,
            **arguments,
            **outputs,
        )
        self.cache.end_forward()
        return output

    def _in_padded_prompt(self, padding: torch.Tensor, end: int, start: int) -> dict[str, Any]:
        """Mask and positions of the pairs `start` to `end` where the padding of the prompt `[R, tokens]` counts."""
        known = padding[:, :end]
        known = nn.functional.pad(known, (0, end - known.shape[1]), value=True)
        self._num_pads = (~known).sum(dim=-1, keepdim=True)
        position_ids = (known.cumsum(dim=-1) - 1).clamp(min=0)[:, start:]
        return {"attention_mask": known.long(), "position_ids": position_ids}

    def _after_prompt(self, starts: Sequence[int], num_new: int) -> dict[str, Any]:
        """Mask and positions of pairs after those in the cache. Rows may differ in number."""
        if max(starts) == 0:
            return {}
        columns = self._first_columns(starts) + torch.arange(num_new, device=self.device)
        arguments: dict[str, Any] = {"position_ids": columns if self._num_pads is None else columns - self._num_pads}
        if columns.shape[0] > 1 or self.is_static:
            self.cache.columns = columns
            self.cache.end = None if self.is_static else max(starts) + num_new
        if columns.shape[0] > 1 or self.is_static or num_new <= MAX_QUERIES:
            arguments["attention_mask"] = self._mask.causal(starts, num_new, self._padding)
            arguments[PACKED_HEADS] = self._num_heads
        return arguments

    def _first_columns(self, lengths: Sequence[int]) -> torch.Tensor:
        """The column after each row's pairs: `[R, 1]`, or `[1, 1]` where it is the same."""
        if min(lengths) == max(lengths):
            return torch.full((1, 1), lengths[0], device=self.device)
        return send(lengths, self.device)[:, None]

    def begin_tree(self, depth: int) -> None:
        """Prepares for a tree of `depth` levels. All nodes of a level have the same position in their row."""
        self._block = None
        if depth > 1:
            first = self._first_columns(self.cache.lengths)
            if self._num_pads is not None:
                first = first - self._num_pads
            positions = first + torch.arange(depth - 1, device=self.device)
            self._rotary = self._draft_model.rotary_factors(positions)

    def expand(
        self,
        level: int,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        parents: torch.Tensor,
        **outputs: bool,
    ) -> JakiroDraftOutput:
        """
        One forward over the nodes of a level that get children.

        Args:
            level (`int`): 1 for the root's children.
            embeddings, features (`[R, W, H]`): of each node's token, and its parent's feature.
            parents (`[R, W]`): each node's parent among the nodes of the last call.
        """
        width = parents.shape[1]
        self._block = self._extend_block(parents)
        if self.is_static:
            first = max(self.cache.lengths) + self._block.shape[-1] - width
            self.cache.columns = torch.arange(first, first + width, device=self.device)[None]
            self.cache.end = None
        assert self._rotary is not None, "`begin_tree` comes first"
        cos, sin = self._rotary
        return self._forward(
            inputs_embeds=embeddings,
            hidden_states=features,
            attention_mask=self._mask.build(self.cache.lengths, self._block, self._padding),
            position_embeddings=(cos[:, :, level - 1 : level], sin[:, :, level - 1 : level]),
            cache=self.cache,
            **{PACKED_HEADS: self._num_heads},
            **outputs,
        )

    def _extend_block(self, parents: torch.Tensor) -> torch.Tensor:
        """The mask block of a level: each node sees what its parent sees of the tree, and itself."""
        width = parents.shape[1]
        if self._self_block.shape[0] != width:
            self._self_block = self._mask.hide(~torch.eye(width, dtype=torch.bool, device=self.device))
        itself = self._self_block.expand(parents.shape[0], 1, -1, -1)
        if self._block is None:
            return itself
        index = parents[:, None, :, None].expand(-1, 1, -1, self._block.shape[-1])
        return torch.cat((self._block.gather(2, index), itself), dim=-1)

    def end_tree(self) -> None:
        """Takes the tree out of the cache."""
        self.cache.end_forward()

    def select(self, kept: Sequence[int], rows: torch.Tensor) -> None:
        """Goes on with these rows, given as integers and as a tensor."""
        if self._padding is not None:
            self._padding = self._padding[rows]
        if not self.cache.lengths:  # the prompt is yet to be read
            return
        self.cache.select(kept, rows)
        self._mask.clear()
        if self._num_pads is not None:
            self._num_pads = self._num_pads[rows]


def _append(old: torch.Tensor, new: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """`new` (`[R, T', X]`) after the first `counts` of `old` (`[R, T, X]`) in each row."""
    if min(counts) == old.shape[1]:
        return torch.cat((old, new), dim=1)
    joined = nn.functional.pad(old, (0, 0, 0, new.shape[1]))
    columns = send(counts, new.device)[:, None] + torch.arange(new.shape[1], device=new.device)
    joined.scatter_(1, columns[..., None].expand_as(new), new)
    return joined[:, : max(counts) + new.shape[1]]


__all__ = ["DraftForward", "Pairs"]
