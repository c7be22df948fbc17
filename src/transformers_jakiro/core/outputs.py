# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What a generation records of each step, and what `generate` returns in the end.

Symbols in shape comments: B rows, n nodes of a tree, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.generation.utils import GenerateDecoderOnlyOutput

from . import compat
from .rows import Rows
from .target_cache import attention_windows, is_static
from .tree import DraftTree


@dataclass
class JakiroGenerateOutput(GenerateDecoderOnlyOutput):
    """
    What `generate(..., return_dict_in_generate=True)` returns with a Jakiro drafter: everything that plain `generate`
    returns, in the same shapes, and

    Args:
        accept_lengths (`list[list[int]]`):
            Per row the number of drafted tokens that were accepted in each forward of the target after the prefill.
            Such a forward emits one token more than it accepts.
        num_drafted_tokens (`int`):
            Drafted tokens that were sent to the target.
        num_accepted_tokens (`int`):
            Those of them that the target accepted: the sum of `accept_lengths`.
    """

    accept_lengths: list[list[int]] | None = None
    num_drafted_tokens: int | None = None
    num_accepted_tokens: int | None = None


@dataclass(frozen=True)
class GenerationStatistics:
    """
    What one generation drafted.

    Args:
        accept_lengths (`list[list[int]]`), num_drafted_tokens (`int`): see [`JakiroGenerateOutput`].
    """

    accept_lengths: list[list[int]]
    num_drafted_tokens: int


_COLLECTED: ContextVar[list[GenerationStatistics] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_statistics() -> Iterator[list[GenerationStatistics]]:
    """
    Collects what each generation within it drafts. Unlike `return_dict_in_generate=True`, it does not keep ended rows
    in the batch.
    """
    collected: list[GenerationStatistics] = []
    token = _COLLECTED.set(collected)
    try:
        yield collected
    finally:
        _COLLECTED.reset(token)


class Recorder:
    """Attentions and hidden states of the generated tokens, and counts of what was drafted and accepted."""

    def __init__(self, rows: Rows):
        self._rows = rows
        self._prompt: dict[str, Any] = {"attentions": None, "hidden_states": None}
        self.num_drafted_tokens = 0

    def record_prompt(self, outputs: Any) -> None:
        """Notes what was asked for of the prompt's forward."""
        for name in self._prompt:
            if getattr(self._rows.all[0], name) is not None:
                self._prompt[name] = getattr(outputs, name)

    def record_step(self, tree: DraftTree, outputs: Any, emitted: Sequence[Sequence[int]]) -> None:
        """
        Notes what was asked for of each row's path through the tree, before it is moved in the cache. `emitted`: the
        tokens that each active row has got.
        """
        active = self._rows.active
        longest = max(row.num_cached for row in active)
        cache: Any = compat.cache_of(outputs)
        for place, row in enumerate(active):
            if not row.path:  # it had ended before
                continue
            foreign = longest - row.num_cached
            if emitted[place]:
                self.num_drafted_tokens += tree.num_nodes - 1
                row.accept_lengths.append(len(row.path) - 1)
            if row.hidden_states is not None:
                row.hidden_states += tuple(
                    tuple(states[place : place + 1, node : node + 1].clone() for states in outputs.hidden_states)
                    for node in row.path
                )
            if row.attentions is not None and not any(weights is not None for weights in outputs.attentions or ()):
                row.attentions += (outputs.attentions,) * len(row.path)  # this attention implementation gives none
            elif row.attentions is not None:
                root = longest if is_static(cache) else None
                row.attentions += tuple(
                    tuple(
                        _path_attention(weights, place, row.path[: step + 1], root, tree.num_nodes, window, foreign)
                        for weights, window in zip(outputs.attentions, attention_windows(cache), strict=True)
                    )
                    for step in range(len(row.path))
                )

    def pack(self, cache: Cache) -> Any:
        """What `generate` returns."""
        rows, config = self._rows.all, self._rows.config
        statistics = GenerationStatistics([row.accept_lengths for row in rows], self.num_drafted_tokens)
        collected = _COLLECTED.get()
        if collected is not None:
            collected.append(statistics)
        num_tokens = self._rows.num_complete
        end = self._rows.prompt_length + num_tokens
        sequences: Any = rows[0].ids.new_full((len(rows), end), compat.padding_token(config))
        for row, sequence in zip(rows, sequences, strict=True):
            sequence[: row.length] = row.ids[0, :end]
        if not config.return_dict_in_generate:
            return sequences
        attentions, hidden_states = (
            None if prompt is None else (prompt, *(_join([getattr(row, name) for row in rows], num_tokens - 1) or ()))
            for name, prompt in self._prompt.items()
        )
        return JakiroGenerateOutput(
            sequences=sequences,
            scores=self._scores("scores", num_tokens),
            logits=self._scores("logits", num_tokens),
            attentions=attentions,
            hidden_states=hidden_states,
            accept_lengths=statistics.accept_lengths,
            num_drafted_tokens=statistics.num_drafted_tokens,
            num_accepted_tokens=sum(map(sum, statistics.accept_lengths)),
            **{compat.CACHE: cache},
        )

    def _scores(self, name: str, num_tokens: int) -> tuple | None:
        """The scores or logits of each token."""
        rows = self._rows
        if rows.in_step:
            return getattr(rows, name)
        return _join([getattr(row, name) for row in rows.all], num_tokens)


def _join(records: Sequence[Any], num_tokens: int) -> tuple | None:
    """The rows' records of each token as one of the batch; zeros for rows that have ended."""
    if records[0] is None or len(records) == 1:
        return records[0]

    def join(parts: list[Any]) -> Any:
        example = next(part for part in parts if part is not None)
        if example is None:
            return None
        if isinstance(example, torch.Tensor):
            return torch.cat([torch.zeros_like(example) if part is None else part for part in parts])
        layers = range(len(example))
        return tuple(join([None if part is None else part[layer] for part in parts]) for layer in layers)

    return tuple(
        join([record[token] if token < len(record) else None for record in records]) for token in range(num_tokens)
    )


def _path_attention(
    weights: torch.Tensor | None,
    place: int,
    path: list[int],
    root: int | None,
    num_nodes: int,
    window: int | None,
    num_foreign: int,
) -> torch.Tensor | None:
    """
    The attention `[1, heads, 1, prefix + len(path)]` of the last node of a path, as if its text had been read alone.

    Args:
        weights (`[R, heads, n, columns]`): a layer's.
        place (`int`): of the row among the R.
        path (`list[int]`): the node's ancestors and itself.
        root (`int`, *optional*): column of the root; default: the last `num_nodes` columns are the tree's.
        window (`int`, *optional*): of a layer with a sliding window: columns that the node sees at most.
        num_foreign (`int`): columns before the root that are not this row's own.
    """
    if weights is None:
        return None
    root = weights.shape[-1] - num_nodes if root is None else root
    columns = [*range(root - num_foreign), *(root + ancestor for ancestor in path)]
    columns = columns if window is None else columns[-window:]
    return weights[place : place + 1, :, path[-1] : path[-1] + 1, columns]


__all__ = ["GenerationStatistics", "JakiroGenerateOutput", "Recorder", "collect_statistics"]
