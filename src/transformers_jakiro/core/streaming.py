# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Streamers: what they are told of each step.

Symbols in shape comments: B batch, k tokens of a step.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from transformers.generation.streamers import BaseStreamer

from .rows import Rows
from .tree import DraftTree


@runtime_checkable
class StepStreamer(Protocol):
    """
    A streamer that wants to know what each forward of the target brought. Its `put_step` is called in place of `put`
    for generated tokens.
    """

    def put_step(self, tokens: torch.Tensor, tree: DraftTree | None, visited: list[int]) -> None:
        """
        Args:
            tokens (`[k]`): the new tokens; all but the last were drafted and accepted.
            tree ([`DraftTree`]): the tree, None for the token that the prompt's forward gave.
            visited (`list[int]`): nodes of the tree that were accepted, the root first.
        """

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


class StreamFeeder:
    """
    Hands each step's tokens to a streamer, if there is one: at once to a [`StepStreamer`], else one by one, like
    `generate`. A token of a batch is put once all rows have reached it.

    Raises:
        ValueError: for a [`StepStreamer`] of several rows.
    """

    def __init__(self, streamer: BaseStreamer | StepStreamer | None, rows: Rows):
        self._streamer = streamer
        self._rows = rows
        self._num_put = 0
        if isinstance(streamer, StepStreamer) and len(rows.all) > 1:
            raise ValueError(
                f"A streamer with `put_step` takes one sequence, got a batch of {len(rows.all)}. Pass one prompt at a "
                "time, or a streamer without it."
            )

    def put(self, emitted: Sequence[Sequence[int]], tree: DraftTree | None = None) -> None:
        """Ends a step that gave each row the tokens `emitted`."""
        if isinstance(self._streamer, StepStreamer):
            self._streamer.put_step(torch.tensor(emitted[0]), tree, list(self._rows.active[0].path))
        elif self._streamer is not None:
            complete = self._rows.num_complete
            for index in range(self._num_put, complete):
                with self._rows.no_further_than(index + 1, index):
                    self._streamer.put(self._rows.padded_tokens(index))
            self._num_put = max(self._num_put, complete)

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()


__all__ = ["StepStreamer", "StreamFeeder"]
