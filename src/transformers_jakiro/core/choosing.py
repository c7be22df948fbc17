# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
How the target's next tokens are chosen: as plain generation chooses them, processors and random numbers included.

Symbols in shape comments: R rows in the target's batch, n nodes of a tree, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper

from .device import reads_wait
from .noise import WARPERS, TargetNoise
from .rows import Row, Rows
from .tree import DraftTree
from .verification import walk_in_step, walk_trees


class TokenChooser:
    """
    Chooses the tokens of a generation's rows.

    Args:
        rows ([`Rows`]): the generation's.
        generation_config, logits_processor: the generation's.
        noise ([`TargetNoise`], *optional*): what the target draws from. None: `torch.multinomial`, for rows in step.
    """

    def __init__(
        self,
        rows: Rows,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        noise: TargetNoise | None,
    ):
        self._rows = rows
        self._samples = generation_config.do_sample
        self._processor: Any = logits_processor
        self._noise = noise
        # processors that look at a row's logits alone take all rows, or all nodes, together
        self._takes_rows_together = all(
            type(processor) in (TemperatureLogitsWarper, *WARPERS) for processor in logits_processor
        )
        # where reading a tensor means waiting, the choices at all nodes are made at once and read with the tree
        self._takes_nodes_together = (
            reads_wait(rows.device)
            and self._takes_rows_together
            and (not self._samples or (noise is not None and noise.samples_nodes))
            and rows.scores is None
            and rows.logits is None
        )

    def choose_first(self, logits: torch.Tensor) -> list[list[int]]:
        """Appends the first token to each row, from the logits `[R, V]` of the prompts. Returns them."""
        rows = self._rows
        if rows.in_step:
            tokens = self._choose_in_step(logits)
            rows.emit_in_step(tokens)
        else:
            tokens = self._choose(rows.active, logits)
            for place, token in enumerate(tokens):
                rows.emit(place, token)
        rows.finish_step()
        return [[token] for token in tokens]

    def walk(self, tree: DraftTree, logits: torch.Tensor) -> list[list[int]]:
        """
        Walks each row's tree with the target's choices; the rows take the tokens and the path.

        Args:
            tree ([`DraftTree`]): `[R, n]`.
            logits (`[R, n, V]`): the target's, of each node. Nodes after the first n mean nothing.

        Returns:
            The tokens that each active row has got; none for rows that had ended.
        """
        logits = logits[:, : tree.num_nodes]
        tokens, parents, choose = (self._read_nodes if self._takes_nodes_together else self._read_tree)(tree, logits)
        rows = self._rows
        for row, row_tokens, row_parents in zip(rows.active, tokens, parents, strict=True):
            if (row_tokens[0], row_parents[0]) != (row.tokens[-1], 0):
                raise ValueError(
                    f"The root of a draft tree must be the last token, {row.tokens[-1]}, and its own parent, got the "
                    f"token {row_tokens[0]} with the parent {row_parents[0]}. Correct the drafter's `propose`."
                )
        unfinished = rows.unfinished
        paths = [row.path for row in rows.active]
        if rows.in_step:
            places = list(range(len(rows.active)))
            emitted = walk_in_step(tokens, parents, lambda nodes: choose(places, nodes), rows.emit_in_step, paths)
            emitted = [row_emitted if place in unfinished else [] for place, row_emitted in enumerate(emitted)]
        else:
            emitted = walk_trees(unfinished, tokens, parents, choose, rows.emit, paths)
        for row in rows.active:
            if len(row.path) - 1 > tree.max_depth or row.path != sorted(row.path):
                raise ValueError(
                    "In a draft tree, parents must stand before their children, and no node may be deeper than "
                    f"`max_depth`. The target accepted the nodes {row.path} of a tree with "
                    f"max_depth={tree.max_depth}. Correct the drafter's `propose`."
                )
        rows.finish_step()
        return emitted

    def _read_tree(self, tree: DraftTree, logits: torch.Tensor) -> tuple[Any, Any, Callable[..., list[int]]]:
        """The tree on the host, and a choice made where a walk gets to."""
        tokens, parents = torch.stack((tree.tokens, tree.parents)).tolist()
        active = self._rows.active

        def choose(places: list[int], nodes: list[int]) -> list[int]:
            at_nodes = logits[:, nodes[0]] if len(active) == 1 else logits[places, nodes]
            if self._rows.in_step:
                return self._choose_in_step(at_nodes)
            return self._choose([active[place] for place in places], at_nodes)

        return tokens, parents, choose

    def _read_nodes(self, tree: DraftTree, logits: torch.Tensor) -> tuple[Any, Any, Callable[..., list[int]]]:
        """The tree and the choices at all nodes, on the host: the only wait of a step, unless trees are adaptive."""
        choices = self._choose_at_nodes(tree, logits)
        host = torch.stack((tree.tokens.to(choices.device), tree.parents.to(choices.device), choices))
        tokens, parents, chosen = host.tolist()

        def choose(places: list[int], nodes: list[int]) -> list[int]:
            found = [chosen[place][node] for place, node in zip(places, nodes, strict=True)]
            return self._padded(found) if self._rows.in_step else found

        return tokens, parents, choose

    def _choose_at_nodes(self, tree: DraftTree, logits: torch.Tensor) -> torch.Tensor:
        """The next token at each node, `[R, n]`."""
        if len(self._processor) > 0 or self._samples:
            scores = self._processor(None, logits.flatten(0, 1).to(self._rows.device, torch.float32))
            logits = scores.view_as(logits)
        if not self._samples:
            return logits.argmax(dim=-1)
        assert self._noise is not None
        return self._noise.sample_nodes(self._rows.active, logits.softmax(dim=-1), tree)

    def _choose_in_step(self, logits: torch.Tensor) -> list[int]:
        """The next token of every row, from the logits `[B, V]` at their last ones: as in plain generation."""
        rows = self._rows
        logits = logits.to(copy=True, dtype=torch.float32, device=rows.device)
        if rows.logits is not None:
            rows.logits += (logits.clone(),)  # processors may write into theirs
        num_new_tokens = rows.all[0].num_new_tokens
        with rows.no_further_than(num_new_tokens, num_new_tokens):
            scores = self._processor(rows.ids, logits)
        if rows.scores is not None:
            rows.scores += (scores,)
        return self._padded(self._pick(rows.all, scores))

    def _padded(self, tokens: list[int]) -> list[int]:
        """Rows in step that have ended get padding instead of their next tokens."""
        padding = self._rows.padding
        if padding is None:
            return tokens
        ended = [row.stop_length is not None for row in self._rows.all]
        return [padding if end else token for end, token in zip(ended, tokens, strict=True)]

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> list[int]:
        """The next tokens of some rows that are not in step, from the logits `[R, V]` at their last ones."""
        logits = logits.to(copy=True, dtype=torch.float32, device=self._rows.device)
        if rows[0].logits is not None:
            for row, row_logits in zip(rows, logits.clone().split(1), strict=True):
                row.logits.append(row_logits)
        if self._takes_rows_together:
            scores = self._processor(None, logits)
        else:
            parts = []
            for row, row_logits in zip(rows, logits.split(1), strict=True):
                with self._rows.no_further_than(row.num_new_tokens, row.num_new_tokens):
                    parts.append(self._processor(row.ids, row_logits))
            scores = torch.cat(parts)
        if rows[0].scores is not None:
            for row, row_scores in zip(rows, scores.split(1), strict=True):
                row.scores.append(row_scores)
        return self._pick(rows, scores)

    def _pick(self, rows: Sequence[Row], scores: torch.Tensor) -> list[int]:
        """The tokens with the best scores `[R, V]`, or sampled from them."""
        if not self._samples:
            return scores.argmax(dim=-1).tolist()
        probabilities = nn.functional.softmax(scores, dim=-1)
        if self._noise is None:
            return torch.multinomial(probabilities, num_samples=1).flatten().tolist()
        return self._noise.sample(rows, probabilities).tolist()


__all__ = ["TokenChooser"]
