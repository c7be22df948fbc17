# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The sequences of a generation: how their next tokens are chosen, when they end, what is recorded of them and returned.

Symbols in shape comments: B batch, R some rows of it, T tokens, n nodes of a tree, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TemperatureLogitsWarper
from transformers.generation.utils import GenerateDecoderOnlyOutput

from . import compat
from .device import reads_wait
from .noise import WARPERS, BatchCoupling, SamplingCoupling
from .tree import DraftTree
from .verification import walk_trees


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


class Batch:
    """The sequences of a generation, how their next tokens are chosen, and what is returned in the end."""

    def __init__(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        noise: SamplingCoupling | None,
    ):
        batch_size = input_ids.shape[0]
        self._config, self._processor = generation_config, logits_processor
        self._prompt_length, self._device = input_ids.shape[1], input_ids.device
        self._draws = noise if isinstance(noise, BatchCoupling) else None
        self._all_rows = [
            _Row(
                index,
                input_ids[index : index + 1],
                generation_config,
                compat.row_processors(logits_processor, index, batch_size),
                stopping_criteria,
            )
            for index in range(batch_size)
        ]
        self.rows = list(self._all_rows)  # those that are still in the target's batch
        self.num_drafted_tokens = 0
        self._prefill: dict[str, Any] = {"attentions": None, "hidden_states": None}  # of the prompt, if asked for
        self._pads = batch_size == 1 or compat.pads_ended_rows(stopping_criteria)
        # processors that look at a row's logits alone take the rows together
        self._together = all(type(processor) in (TemperatureLogitsWarper, *WARPERS) for processor in logits_processor)
        # where reading a tensor takes waiting: the choices at all nodes at once, read together with the tree
        self._at_once = (
            reads_wait(self._device)
            and self._together
            and (self._draws is not None or not generation_config.do_sample)
            and self.rows[0].scores is None
            and self.rows[0].logits is None
        )

    @property
    def last_tokens(self) -> torch.LongTensor:
        """`[R]`"""
        return torch.cat([row.ids[:, -1] for row in self.rows])

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated, at most."""
        return max(row.tokens_left for row in self.rows if not row.finished)

    @property
    def unfinished(self) -> list[int]:
        """Of `rows`, those that still generate."""
        return [index for index, row in enumerate(self.rows) if not row.finished]

    @property
    def finished(self) -> bool:
        return not self.unfinished

    def select(self, rows: list[int]) -> None:
        """Goes on with these rows."""
        self.rows = [self.rows[index] for index in rows]
        if self._draws is not None:
            self._draws.rows = [row.index for row in self.rows]

    def start(self, outputs: Any) -> list[list[int]]:
        """Chooses the first tokens from the prompt's outputs."""
        rows = self.unfinished
        tokens = self._choose(rows, outputs.logits[:, -1])
        for row, token in zip(rows, tokens, strict=True):
            self._emit(row, token)
        self._finish_rows()
        for name in self._prefill:
            if getattr(self.rows[0], name) is not None:
                self._prefill[name] = getattr(outputs, name)
        return [[token] for token in tokens]

    def walk(self, tree: DraftTree, outputs: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Walks the trees with the target's choices. Returns each row's visited nodes and emitted tokens."""
        logits = outputs.logits[:, : tree.num_nodes]
        if self._at_once:
            choices = self._choices(tree, logits)
            host = torch.stack((tree.tokens.to(choices.device), tree.parents.to(choices.device), choices))
            tokens, parents, chosen = host.tolist()  # the only wait of a step (adaptive trees take another)

            def choose(rows: list[int], nodes: list[int]) -> list[int]:
                return [chosen[row][node] for row, node in zip(rows, nodes, strict=True)]
        else:
            tokens, parents = torch.stack((tree.tokens, tree.parents)).tolist()

            def choose(rows: list[int], nodes: list[int]) -> list[int]:
                if len(self.rows) == 1:
                    return self._choose(rows, logits[:, nodes[0]])
                return self._choose(rows, logits[rows, nodes])

        walking = self.unfinished
        longest = max(row.length for row in self.rows)
        num_behind = [longest - row.length for row in self.rows]
        is_static = compat.is_static(compat.cache_of(outputs))
        visited, emitted = walk_trees(walking, tokens, parents, choose, self._emit)
        for row in walking:
            first_node = longest - 1 if is_static else -tree.num_nodes
            self.rows[row].record(outputs, row, visited[row], first_node, num_behind[row])
            self.num_drafted_tokens += tree.num_nodes - 1
            if self._at_once and self._draws is not None:
                self._draws.advance(self.rows[row].index, len(emitted[row]))
        self._finish_rows()
        return visited, emitted

    def _choices(self, tree: DraftTree, logits: torch.Tensor) -> torch.LongTensor:
        """The next token at each node `[B, n]`, from logits `[B, n, V]`: what `_choose` gives on the way there."""
        if len(self._processor) > 0 or self._config.do_sample:
            scores = self._processor(None, logits.flatten(0, 1).to(self._device, torch.float32))
            logits = scores.view_as(logits)
        if not self._config.do_sample:
            return logits.argmax(dim=-1)
        numbers = self._draws.numbers(tree.max_depth + 1)  # [B, L, V]
        depths = tree.depths.to(self._device)[..., None]
        return (logits.softmax(dim=-1) / numbers.gather(1, depths.expand_as(logits))).argmax(dim=-1)

    def _choose(self, rows: list[int], logits: torch.Tensor) -> list[int]:
        """The next tokens of some rows from the logits `[R, V]` at their last ones, as plain generation chooses."""
        chosen = [self.rows[row] for row in rows]
        logits = logits.to(copy=True, dtype=torch.float32, device=self._device)
        if chosen[0].logits is not None:
            for row, raw_logits in zip(chosen, logits.clone().split(1), strict=True):
                row.logits += (raw_logits,)
        if len(chosen) == 1:
            scores = chosen[0].processor(chosen[0].ids, logits)
        elif self._together:
            scores = self._processor(None, logits)
        else:
            scores = torch.cat(
                [row.processor(row.ids, row_logits) for row, row_logits in zip(chosen, logits.split(1), strict=True)]
            )
        if chosen[0].scores is not None:
            for row, row_scores in zip(chosen, scores.split(1), strict=True):
                row.scores += (row_scores,)
        if not self._config.do_sample:
            return scores.argmax(dim=-1).tolist()
        probabilities = nn.functional.softmax(scores, dim=-1)
        if self._draws is not None:  # as `torch.multinomial` does it for the whole batch
            return (probabilities / self._draws.take([row.index for row in chosen])).argmax(dim=-1).tolist()
        return torch.multinomial(probabilities, num_samples=1).flatten().tolist()

    def _emit(self, row: int, token: int) -> bool:
        """Appends a token to a row. Returns whether the row ends with it."""
        stops = self.rows[row].emit(token)
        return stops if self._pads else self.rows[row].tokens_left == 0

    def _finish_rows(self) -> None:
        end = self._end if self._all_stopped else None
        for row in self.rows:
            if self._pads:
                row.finished = row.stop_length is not None
            else:  # without padding, rows go on until the last one stops
                row.finished = row.tokens_left == 0 or (end is not None and row.length >= end)

    @property
    def _all_stopped(self) -> bool:
        return all(row.stop_length is not None for row in self._all_rows)

    @property
    def _end(self) -> int:
        """Length of what is returned."""
        return max(row.stop_length for row in self._all_rows)

    def padded_token(self, row: int, index: int) -> int:
        """A generated token of one of all rows, or what stands in its place after the row's end."""
        tokens = self._all_rows[row].tokens
        return tokens[index] if index < len(tokens) else compat.padding_token(self._config)

    @property
    def accept_lengths(self) -> list[list[int]]:
        """See [`JakiroGenerateOutput`]."""
        return [row.accept_lengths for row in self._all_rows]

    @property
    def num_complete(self) -> int:
        """Tokens that have been generated for all rows."""
        if self.finished:
            return self._end - self._prompt_length
        return min(row.length for row in self._all_rows if not row.finished) - self._prompt_length

    def result(self, cache: Cache) -> JakiroGenerateOutput | torch.LongTensor:
        """What `generate` returns."""
        rows, end = self._all_rows, self._end
        sequences = rows[0].ids.new_full((len(rows), end), compat.padding_token(self._config))
        for row, sequence in zip(rows, sequences, strict=True):
            sequence[: row.length] = row.ids[0, :end]
        if not self._config.return_dict_in_generate:
            return sequences
        num_tokens = end - self._prompt_length
        attentions, hidden_states = (
            None if prefill is None else (prefill, *_join([getattr(row, name) for row in rows], num_tokens - 1))
            for name, prefill in self._prefill.items()
        )
        return JakiroGenerateOutput(
            sequences=sequences,
            scores=_join([row.scores for row in rows], num_tokens),
            logits=_join([row.logits for row in rows], num_tokens),
            attentions=attentions,
            hidden_states=hidden_states,
            accept_lengths=self.accept_lengths,
            num_drafted_tokens=self.num_drafted_tokens,
            num_accepted_tokens=sum(sum(row.accept_lengths) for row in rows),
            **{compat.CACHE: cache},
        )


class _Row:
    """One sequence of the batch: its tokens, when it ends, and what is recorded of it."""

    def __init__(
        self,
        index: int,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
    ):
        self.index = index  # in the batch that `generate` was called with
        self.processor = logits_processor
        self._max_length, self._end_tokens, self._criteria = compat.host_criteria(stopping_criteria)
        if self._max_length is None:
            self._max_length = generation_config.max_length
        self.length = input_ids.shape[1]
        # `input_ids` of the processors and criteria are views of this buffer
        self._ids = input_ids.new_empty((1, max(self._max_length, self.length + 1)))
        self._ids[:, : self.length] = input_ids
        self.tokens: list[int] = []  # generated
        self.finished = False
        self.stop_length: int | None = None  # where a criterion or the limit was met first
        self.accept_lengths: list[int] = []
        wants = generation_config.return_dict_in_generate
        self.scores: tuple | None = () if wants and generation_config.output_scores else None
        self.logits: tuple | None = () if wants and generation_config.output_logits else None
        self.attentions: tuple | None = () if wants and generation_config.output_attentions else None
        self.hidden_states: tuple | None = () if wants and generation_config.output_hidden_states else None

    @property
    def ids(self) -> torch.LongTensor:
        """`[1, T]`"""
        return self._ids[:, : self.length]

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated."""
        return self._max_length - self.length

    def emit(self, token: int) -> bool:
        """Appends a token. Returns whether it ends the sequence."""
        self._ids[:, self.length] = token
        self.tokens.append(token)
        self.length += 1
        stops = self.length >= self._max_length or token in self._end_tokens
        if self._criteria:
            stops |= bool(self._criteria(self.ids, self.scores).all())
        if stops and self.stop_length is None:
            self.stop_length = self.length
        return stops

    def record(self, outputs: Any, row: int, visited: list[int], first_node: int, num_behind: int) -> None:
        """
        One element per emitted token, shaped as if it had been computed alone. `row`: in the outputs; `first_node`:
        column of the root in the attentions, of the last ones if negative; `num_behind`: columns before it that are
        not the row's own.
        """
        self.accept_lengths.append(len(visited) - 1)
        for step, node in enumerate(visited):
            if self.hidden_states is not None:
                self.hidden_states += (
                    tuple(states[row : row + 1, node : node + 1].clone() for states in outputs.hidden_states),
                )
            if self.attentions is not None:
                path = visited[: step + 1]
                windows = compat.attention_windows(compat.cache_of(outputs))
                self.attentions += (
                    tuple(
                        _path_attention(weights, row, node, path, first_node, window, num_behind)
                        for weights, window in zip(outputs.attentions, windows, strict=True)
                    ),
                )


def _join(records: list[tuple | None], num_tokens: int) -> tuple | None:
    """The rows' records of each token as one of the batch; zeros for rows that have ended."""
    if records[0] is None or len(records) == 1:
        return records[0]

    def join(parts: list[Any]) -> Any:
        example = next(part for part in parts if part is not None)
        if isinstance(example, torch.Tensor):
            return torch.cat([torch.zeros_like(example) if part is None else part for part in parts])
        layers = range(len(example))
        return tuple(join([None if part is None else part[layer] for part in parts]) for layer in layers)

    return tuple(
        join([record[token] if token < len(record) else None for record in records]) for token in range(num_tokens)
    )


def _path_attention(
    weights: torch.Tensor | None,
    row: int,
    node: int,
    path: list[int],
    first_node: int,
    window: int | None,
    num_behind: int,
) -> torch.Tensor | None:
    """
    A node's attention `[1, heads, 1, prefix + len(path)]` out of the trees' `[B, heads, n, columns]`, where a row's
    prefix is followed by `num_behind` columns that are not its own, then the tree's; with a sliding window at most
    that many.
    """
    if weights is None:
        return None
    root = first_node % weights.shape[-1]
    columns = [*range(root - num_behind), *(root + ancestor for ancestor in path)]
    columns = columns if window is None else columns[-window:]
    return weights[row : row + 1, :, node : node + 1, columns]


__all__ = ["Batch", "JakiroGenerateOutput"]
