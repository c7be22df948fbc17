# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The target's forwards over trees, and its cache between them.

Symbols in shape comments: R rows in the target's batch, n nodes of a tree, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Container, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import Cache, GenerationConfig

from . import compat
from .attention import PACKED_HEADS
from .device import send
from .inputs import TargetInputs
from .masks import TreeMask
from .rows import Rows
from .target import Target
from .target_cache import TargetCache, static_capacity
from .tree import DraftTree


class TreeForward:
    """
    Runs the target over trees. Per step: [`~TreeForward.run`], a walk that fills in the rows' paths, then
    [`~TreeForward.keep`]. As a context manager it leaves the cache as plain `generate` does, also after an exception:
    then what was accepted of the last tree is kept.

    Args:
        target ([`Target`]): the target.
        cache ([`~transformers.Cache`]): holds the prompts.
        rows ([`Rows`]): the generation's.
        inputs ([`TargetInputs`]): the arguments of its forwards.
        generation_config ([`~transformers.GenerationConfig`]): the generation's.
        model_kwargs (`dict`): what the prompt's forward was called with.
        sizes (`Sequence[int]`): with a static cache trees are filled up to one of these numbers of nodes, so that
            forwards have few shapes.
        chain_only (`bool`): whether all trees are chains, and the model's own causal mask does.
        borders (`Container[int]`): numbers of tokens beyond which a model may begin its cache anew.
    """

    def __init__(
        self,
        target: Target,
        cache: Cache,
        rows: Rows,
        inputs: TargetInputs,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        sizes: Sequence[int] = (),
        chain_only: bool = False,
        borders: Container[int] = (),
    ):
        model = target.model
        self._rows = rows
        self._chain_only = chain_only
        self._borders = borders
        self._cache = TargetCache(cache, len(rows.all), chain_only)
        self._sizes = sizes if self._cache.is_static else ()
        self._model: Any = model
        self._forward: Callable[..., Any] = model
        if self._cache.is_static:
            compile_config = compat.compile_config_of(model, model_kwargs, generation_config)
            self._forward = model if compile_config is None else compat.compiled_call(model, compile_config)
        self._inputs = inputs
        self._device = compat.execution_device(model.get_input_embeddings())
        capacity = static_capacity(cache) if self._cache.is_static else None
        self._mask = None if chain_only else TreeMask(model, inputs.padding, self._device, capacity)
        self._kwargs = {
            compat.CACHE: cache,
            "use_cache": True,
            "return_dict": True,
            "output_hidden_states": generation_config.output_hidden_states or target.output_hidden_states,
        }
        if generation_config.output_attentions:
            self._kwargs["output_attentions"] = True
        if self._mask is not None and self._mask.num_heads > 1:
            self._kwargs[PACKED_HEADS] = self._mask.num_heads
        self._size = 0  # nodes of the last forward, until its accepted ones are kept
        self._asks = chain_only or bool(borders)  # the model, for the arguments of its forwards
        self._outputs: Any = None  # of the last forward, where the model is asked
        self._longest = self._first_length = rows.num_cached[0]  # cached tokens of the longest row, now and at first

    def __enter__(self) -> Self:
        self._cache.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._size > 0:
                for row in self._rows.active:  # sliding windows cannot be taken back once they have moved
                    del row.path[max(0, self._rows.most_cached - row.num_cached) :]
                self.keep()
            if error is not None:
                self._cache.crop_to(self._rows.num_cached_of_all)
            elif self._rows.end is not None and not self._rows.pads_ended:  # rows may have gone on past the end
                self._cache.crop_to(self._first_length + self._rows.end - self._rows.prompt_length - 1)
        finally:
            self._cache.__exit__(kind, error, traceback)

    @property
    def cache(self) -> Cache:
        """The target's."""
        return self._cache.cache

    def run(self, tree: DraftTree) -> Any:
        """
        The target's outputs for all nodes: logits `[R, n, V]`, hidden states `[R, n, H]`. With a static cache there
        may be more nodes, which mean nothing. Extends the cache; the rows' paths begin anew.
        """
        for row in self._rows.active:
            row.path.clear()
        tree = _filled_up(tree, min((size for size in self._sizes if size >= tree.num_nodes), default=0))
        if self._borders and self._rows.all[0].length - 1 in self._borders:
            self._begin_anew()
        if self._mask is None:
            outputs = self._forward(**{**self._inputs.of_chain(tree, not self._borders), **self._kwargs})
        else:
            lengths = self._rows.num_cached
            mask = self._mask.build(tree, self.cache, lengths)
            outputs = self._forward(**{**self._inputs.of_tree(tree, lengths), **self._kwargs, "attention_mask": mask})
        self._outputs = outputs if self._asks else None
        self._size = tree.num_nodes
        return outputs

    def _begin_anew(self) -> None:
        """Reads the text into a new cache where the model asks for it: LongRoPE has rotated the old one otherwise."""
        arguments = self._inputs.of_chain(DraftTree.root_only(self._rows.last_tokens))
        if arguments.get(compat.CACHE) is not None:
            return
        self._cache.__exit__(None, None, None)
        self._cache = TargetCache(compat.dynamic_cache(self._model), len(self._rows.all), self._chain_only)
        self._cache.__enter__()
        self._kwargs[compat.CACHE] = self.cache
        self._model(**{**arguments, compat.CACHE: self.cache, "use_cache": True, "logits_to_keep": 1})
        self._cache.crop_to(self._rows.num_cached[0])  # the last token is read again, with what is drafted

    def keep(self) -> torch.Tensor:
        """
        Keeps each row's path through the last tree in the cache. Returns the paths' nodes `[R, k]`; shorter paths are
        padded with 0.
        """
        rows = self._rows.active
        paths = [row.path for row in rows]
        longest = max(map(len, paths))
        nodes = send([path + [0] * (longest - len(path)) for path in paths], self._device)
        self._cache.keep(nodes, paths, [row.num_cached for row in rows], self._size)
        if self._asks:
            self._inputs.keep(self._outputs, len(paths[0]))
        for row in rows:
            row.num_cached += len(row.path)
        self._size = 0
        self._longest = max(self._rows.num_cached)
        return nodes

    def catch_up(self) -> None:
        """Reads the last tokens of rows that ended before others. Plain generation has them in its cache."""
        rows, first = self._rows, self._first_length
        late = [row for row in rows.active if row.num_new_tokens < rows.num_chosen]
        late = [row for row in late if row.num_cached - first < row.num_new_tokens]
        if late:
            self.run(DraftTree.root_only(rows.last_tokens))
            for row in late:
                row.path.append(0)
            self.keep()

    def select(self, kept: Sequence[int]) -> None:
        """Goes on with some rows of the batch, the active ones; `kept` are the places that they had before."""
        rows, longest = send(kept, self._device), max(self._rows.num_cached)
        self._cache.select(rows, self._longest - longest)
        self._longest = longest
        self._inputs.select(rows)
        if self._mask is not None:
            self._mask.select(rows)


def _filled_up(tree: DraftTree, num_nodes: int) -> DraftTree:
    """A tree with at least `num_nodes` nodes: further ones below the root."""
    missing = num_nodes - tree.num_nodes
    if missing <= 0:
        return tree
    tokens, parents = (nn.functional.pad(values, (0, missing)) for values in (tree.tokens, tree.parents))
    return DraftTree(tokens, parents, max_depth=max(1, tree.max_depth))


__all__ = ["TreeForward"]
