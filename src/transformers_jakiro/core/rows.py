# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The rows of a generation: how long each is, when it ends, and what is recorded of it. Everything else that works on a
batch – the target's cache and masks, the random numbers, the output – reads it here.

Rows of a batch accept different numbers of tokens, so they get ahead of one another. They stay **in step**, all with
the same number of tokens, where something wants to see the whole batch at each position, as plain generation shows it:
a processor or criterion that is not known to look at each row by itself, or a target whose rows must be of one length.

Symbols in shape comments: B rows that `generate` was called with, R rows that are still in the target's batch, V
vocabulary.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteriaList

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
        scores, logits (`list`, *optional*): one element `[1, V]` per generated token, if the generation config asks
            for them and the rows are not in step.
        attentions, hidden_states (`tuple`, *optional*): one element per generated token but the first, if the
            generation config asks for them.
    """

    def __init__(self, rows: "Rows", index: int, length: int):
        self._rows = rows
        self.index = index
        self.length = length
        self.tokens: list[int] = []
        self.num_cached = 0
        self.path: list[int] = []
        self.stop_length: int | None = None
        self.finished = False
        self.accept_lengths: list[int] = []
        config = rows.config
        wants = config.return_dict_in_generate
        self.scores: Any = [] if wants and config.output_scores else None
        self.logits: Any = [] if wants and config.output_logits else None
        self.attentions: Any = () if wants and config.output_attentions else None
        self.hidden_states: Any = () if wants and config.output_hidden_states else None

    @property
    def ids(self) -> torch.Tensor:
        """`[1, length]`"""
        return self._rows.buffer[self.index : self.index + 1, : self.length]

    @property
    def num_new_tokens(self) -> int:
        """Tokens that were generated."""
        return len(self.tokens)

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated."""
        return self._rows.max_length - self.length


class Rows:
    """
    All rows of a generation.

    Args:
        input_ids (`[B, T]`): the prompts.
        generation_config, stopping_criteria, logits_processor: the generation's.

    Attributes:
        all (`list[Row]`): the B rows.
        active (`list[Row]`): the R rows in the target's batch, in the order of its tensors.
        judged_alone (`bool`): whether all processors and criteria are known to judge each row by itself.
        in_step (`bool`): whether all rows always have the same number of tokens.
        buffer (`[B, room]`): the tokens of all rows. What processors and criteria see as `input_ids` are views of it.
        most_cached (`int`): tokens of each row that plain generation has in its cache, if what raised says so.
        scores, logits (`tuple`, *optional*): one element `[B, V]` per generated token, if the generation config asks
            for them and the rows are in step.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList,
        logits_processor: Sequence[LogitsProcessor] = (),
    ):
        self.config = generation_config
        max_length, self._end_tokens, self._criteria = compat.host_criteria(stopping_criteria)
        self.max_length: int = generation_config.max_length if max_length is None else max_length
        self.prompt_length = input_ids.shape[1]
        self.device = input_ids.device
        self.buffer = nn.functional.pad(input_ids, (0, _SPARE_TOKENS))
        self.all = [Row(self, index, self.prompt_length) for index in range(input_ids.shape[0])]
        self.active = list(self.all)
        self.judged_alone = all(map(compat.judges_rows_alone, (*logits_processor, *self._criteria)))
        self.in_step = len(self.all) == 1 or not self.judged_alone
        self.scores: Any = None if self.all[0].scores is None else ()
        self.logits: Any = None if self.all[0].logits is None else ()
        self._num_cached_of_prompt = 0
        self._most_chosen = self.most_cached = sys.maxsize
        # without end tokens `generate` has nothing to pad with: all rows go on until the last one stops
        self.pads_ended = len(self.all) == 1 or compat.pads_ended_rows(stopping_criteria)

    @classmethod
    def of_texts(cls, input_ids: torch.Tensor, max_length: int = sys.maxsize) -> "Rows":
        """Rows `[B, T]` outside of `generate`, which end at `max_length` only."""
        return cls(input_ids, GenerationConfig(max_length=max_length), StoppingCriteriaList())

    @property
    def ids(self) -> torch.Tensor:
        """`[B, length]`, of rows in step."""
        return self.buffer[:, : self.all[0].length].contiguous()

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

    @property
    def padding(self) -> int | None:
        """The token that rows in step get once they have ended; None where they go on until all have ended."""
        return compat.padding_token(self.config) if self.pads_ended and len(self.all) > 1 else None

    def begin(self, num_cached: int) -> None:
        """The prompts are in the target's cache, which holds `num_cached` tokens of each."""
        self._num_cached_of_prompt = num_cached
        for row in self.all:
            row.num_cached = num_cached

    def emit(self, place: int, token: int) -> bool:
        """Appends a token to an active row. Returns whether the row ends with it."""
        row = self.active[place]
        with self.no_further_than(row.num_new_tokens + 1, row.num_new_tokens):
            stops = self._append(row, token)
            if self._criteria:
                stops |= bool(self._criteria(row.ids, None).all())
        if stops and row.stop_length is None:
            row.stop_length = row.length
        return stops if self.pads_ended else row.tokens_left == 0

    def emit_in_step(self, tokens: Sequence[int]) -> bool:
        """Appends a token to every row. Returns whether the generation ends with it."""
        num_new_tokens = self.all[0].num_new_tokens
        with self.no_further_than(num_new_tokens + 1, num_new_tokens):
            stops = [self._append(row, token) for row, token in zip(self.all, tokens, strict=True)]
            if self._criteria:
                met = self._criteria(self.ids, self.scores).tolist()
                stops = [stop or other for stop, other in zip(stops, met, strict=True)]
        for row, stop in zip(self.all, stops, strict=True):
            if stop and row.stop_length is None:
                row.stop_length = row.length
        return self.end is not None

    def _append(self, row: Row, token: int) -> bool:
        """Appends a token to a row. Returns whether it is an end token or reaches the limit."""
        if row.length == self.buffer.shape[1]:
            self.buffer = nn.functional.pad(self.buffer, (0, row.length))
        self.buffer[row.index, row.length] = token
        row.tokens.append(token)
        row.length += 1
        return row.length >= self.max_length or token in self._end_tokens

    @contextmanager
    def no_further_than(self, num_new_tokens: int, num_cached: int) -> Iterator[None]:
        """
        Notes how far plain generation, where all rows have the same number of tokens, has come if what is done within
        it raises: how many new tokens it has chosen, and how many of them are in its cache.
        """
        try:
            yield
        except BaseException:
            self._most_chosen, self.most_cached = num_new_tokens, self._num_cached_of_prompt + num_cached
            raise

    @property
    def num_chosen(self) -> int:
        """New tokens of each row that plain generation has chosen by now."""
        longest = max(row.num_new_tokens for row in self.all)
        return min(longest, self._most_chosen, sys.maxsize if self.end is None else self.end - self.prompt_length)

    @property
    def num_cached_of_all(self) -> int:
        """Tokens that are in the target's cache for all active rows and would be in plain generation, too."""
        return min(*self.num_cached, self.most_cached)

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
