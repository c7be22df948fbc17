# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The rows of a generation: how long each is, when it ends, and what is recorded of it. Everything else that works on a
batch – the target's cache and masks, the random numbers, the output – reads it here.

Symbols in shape comments: B rows that `generate` was called with, R rows that are still in the target's batch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteriaList

from . import compat

_SPARE_TOKENS = 256  # room for new tokens, doubled when it is used up


class Row:
    """
    One sequence.

    Attributes:
        index (`int`): its place among the B rows.
        length (`int`): its tokens, padding and prompt included.
        tokens (`list[int]`): what was generated.
        num_cached (`int`): tokens in the target's cache: all but the last one, once that is chosen.
        path (`list[int]`): nodes of the current tree that were visited so far, the root first.
        stop_length (`int`, *optional*): length at which a criterion or the limit was met first.
        finished (`bool`): whether nothing more is generated. Without padding a row goes on past its stop.
        accept_lengths (`list[int]`): drafted tokens accepted in each forward after the prompt's.
        scores, logits, attentions, hidden_states (`tuple`, *optional*): one element per generated token, if the
            generation config asks for them; of the latter two without the first token's.
    """

    def __init__(
        self,
        index: int,
        input_ids: torch.Tensor,  # [1, T]
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList,
    ):
        self.index = index
        max_length, self._end_tokens, self._criteria = compat.host_criteria(stopping_criteria)
        self._max_length: int = generation_config.max_length if max_length is None else max_length
        self.length = input_ids.shape[1]
        # what processors and criteria see as `input_ids` are views of this buffer
        self._ids = nn.functional.pad(input_ids, (0, _SPARE_TOKENS))
        self.tokens: list[int] = []
        self.num_cached = 0
        self.path: list[int] = []
        self.stop_length: int | None = None
        self.finished = False
        self.accept_lengths: list[int] = []
        wants = generation_config.return_dict_in_generate
        self.scores: Any = () if wants and generation_config.output_scores else None
        self.logits: Any = () if wants and generation_config.output_logits else None
        self.attentions: Any = () if wants and generation_config.output_attentions else None
        self.hidden_states: Any = () if wants and generation_config.output_hidden_states else None

    @property
    def ids(self) -> torch.Tensor:
        """`[1, length]`"""
        return self._ids[:, : self.length]

    @property
    def num_new_tokens(self) -> int:
        """Tokens that were generated."""
        return len(self.tokens)

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated."""
        return self._max_length - self.length

    def append(self, token: int) -> bool:
        """Appends a token. Returns whether a criterion or the limit is met."""
        if self.length == self._ids.shape[1]:
            self._ids = nn.functional.pad(self._ids, (0, self.length))
        self._ids[:, self.length] = token
        self.tokens.append(token)
        self.length += 1
        stops = self.length >= self._max_length or token in self._end_tokens
        if self._criteria:
            stops |= bool(self._criteria(self.ids, self.scores).all())
        if stops and self.stop_length is None:
            self.stop_length = self.length
        return stops


class Rows:
    """
    All rows of a generation.

    Args:
        input_ids (`[B, T]`): the prompts.
        generation_config, stopping_criteria: the generation's.

    Attributes:
        all (`list[Row]`): the B rows.
        active (`list[Row]`): the R rows in the target's batch, in the order of its tensors.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList,
    ):
        self.config = generation_config
        self.prompt_length = input_ids.shape[1]
        self.device = input_ids.device
        self.all = [
            Row(index, ids[None], generation_config, stopping_criteria) for index, ids in enumerate(input_ids.unbind())
        ]
        self.active = list(self.all)
        self._num_cached_of_prompt = 0
        self._most_chosen = self._most_cached = sys.maxsize
        # without end tokens `generate` has nothing to pad with: all rows go on until the last one stops
        self.pads_ended = len(self.all) == 1 or compat.pads_ended_rows(stopping_criteria)

    @classmethod
    def of_texts(cls, input_ids: torch.Tensor, max_length: int = sys.maxsize) -> "Rows":
        """Rows `[B, T]` outside of `generate`, which end at `max_length` only."""
        return cls(input_ids, GenerationConfig(max_length=max_length), StoppingCriteriaList())

    @property
    def last_tokens(self) -> torch.Tensor:
        """`[R]`"""
        return torch.cat([row.ids[:, -1] for row in self.active])

    @property
    def num_cached(self) -> list[int]:
        """Tokens of each active row in the target's cache."""
        return [row.num_cached for row in self.active]

    @property
    def unfinished(self) -> list[int]:
        """Places among the active rows of those that still generate."""
        return [place for place, row in enumerate(self.active) if not row.finished]

    @property
    def finished(self) -> bool:
        """Whether nothing more is generated."""
        return all(row.finished for row in self.active)

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated, at most."""
        return max(row.tokens_left for row in self.active if not row.finished)

    @property
    def end(self) -> int | None:
        """The length of what is returned; None as long as a row has not stopped."""
        ends = [row.stop_length for row in self.all if row.stop_length is not None]
        return max(ends) if len(ends) == len(self.all) else None

    @property
    def num_complete(self) -> int:
        """Tokens that have been generated for all rows."""
        if self.finished and self.end is not None:
            return self.end - self.prompt_length
        return min(row.length for row in self.active if not row.finished) - self.prompt_length

    def begin(self, num_cached: int) -> None:
        """The prompts are in the target's cache, which holds `num_cached` tokens of each."""
        self._num_cached_of_prompt = num_cached
        for row in self.all:
            row.num_cached = num_cached

    def emit(self, place: int, token: int) -> bool:
        """Appends a token to an active row. Returns whether the row ends with it."""
        row = self.active[place]
        with self.no_further_than(row.num_new_tokens + 1, row.num_new_tokens):
            stops = row.append(token)
        return stops if self.pads_ended else row.tokens_left == 0

    @contextmanager
    def no_further_than(self, num_new_tokens: int, num_cached: int) -> Iterator[None]:
        """
        Notes how far plain generation, where all rows have the same number of tokens, has come if what is done within
        it raises: how many new tokens it has chosen, and how many of them are in its cache.
        """
        try:
            yield
        except BaseException:
            self._most_chosen, self._most_cached = num_new_tokens, self._num_cached_of_prompt + num_cached
            raise

    @property
    def num_chosen(self) -> int:
        """New tokens of each row that plain generation has chosen by now."""
        longest = max(row.num_new_tokens for row in self.all)
        return min(longest, self._most_chosen, sys.maxsize if self.end is None else self.end - self.prompt_length)

    @property
    def num_cached_of_all(self) -> int:
        """Tokens that are in the target's cache for all active rows and would be in plain generation, too."""
        return min(*self.num_cached, self._most_cached)

    def finish_step(self) -> None:
        """Notes which rows have ended with the last step's tokens."""
        end = self.end
        for row in self.active:
            if self.pads_ended:
                row.finished = row.stop_length is not None
            else:
                row.finished = row.tokens_left == 0 or (end is not None and row.length >= end)

    def drop_finished(self) -> list[int]:
        """Goes on without the rows that have ended. Returns the places of the others."""
        kept = self.unfinished
        self.active = [self.active[place] for place in kept]
        return kept

    def padded_tokens(self, index: int) -> torch.Tensor:
        """Generated token number `index` of all rows `[B]`, padding where a row has ended."""
        padding = compat.padding_token(self.config)
        return torch.tensor([row.tokens[index] if index < len(row.tokens) else padding for row in self.all])


__all__ = ["Row", "Rows"]
