# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What a target's forward is called with. That is the model's own business: plain generation asks its
`prepare_inputs_for_generation` before each forward. For a chain of tokens that can be asked, too, but not for a tree.
So it is asked once what it would give for one, two and three tokens after the prompt, and a rule is read off:

```
                        1 token    2 tokens       3 tokens
position_ids            [[9]]      [[9, 10]]      [[9, 10, 11]]      grows with the depth of a node
token_type_ids          [[4]]      [[4, 4]]       [[4, 4, 4]]        is the same for each node
adapter_names           [a, b]     [a, b]         [a, b]             does not change
```

Where an argument follows no such rule, or where the model is not given positions and would count a node's siblings,
chains are drafted. What cannot be asked twice is refused by its name.

Symbols in shape comments: B batch, R rows in the target's batch, n nodes of a tree, L tokens so far.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import Cache

from . import compat
from .device import send
from .rows import Rows
from .tree import DraftTree

_PROBED = (1, 2, 3)  # tokens
# arguments that the loop itself sets, or that masks of its own replace
_OURS = (*compat.CACHES, "attention_mask", "input_ids", "use_cache", "return_dict", "logits_to_keep")


@dataclass
class PerToken:
    """
    An argument with a value for each token.

    Args:
        first (`torch.Tensor`): the values of the first token after the prompt: `[..., B or 1, 1]`, or
            `[B or 1, 1, ...]`.
        step (`torch.Tensor`, *optional*): what values of the first shape grow by from one token to the next.
        dim (`int`): that of the tokens.
    """

    first: torch.Tensor
    step: torch.Tensor | None
    dim: int

    def at(self, depths: torch.Tensor) -> torch.Tensor:
        """The values of tokens `[R, n]`, given how many tokens after the first one they stand."""
        if self.step is not None:
            return self.first + self.step * depths.to(self.first)
        shape = list(self.first.shape)
        shape[self.dim] = depths.shape[1]
        return self.first.expand(shape)

    def select(self, rows: torch.Tensor) -> "PerToken":
        """The same for some rows."""
        dim = 0 if self.dim == 1 else self.first.ndim - 2
        if self.first.shape[dim] == 1:
            return self
        rows = rows.to(self.first.device)
        step = None if self.step is None else self.step.index_select(dim, rows)
        return PerToken(self.first.index_select(dim, rows), step, self.dim)


class TargetInputs:
    """
    The arguments of a target's forwards over trees and chains.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        rows ([`Rows`]): the generation's.
        outputs ([`~transformers.utils.ModelOutput`]): of the prompt's forward.
        model_kwargs (`dict`): what `generate` has prepared for it.
        why_no_trees (`str`, *optional*): why only chains are drafted anyway.

    Attributes:
        why_no_trees (`str`, *optional*): why only chains can be drafted.
        has_row_values (`bool`): whether some argument may hold a value for each row.
        padding (`[B, L]`, *optional*): the 2D attention mask of the prompt, 0 where it is padded.

    Raises:
        NotImplementedError: for arguments that cannot be asked for twice.
    """

    def __init__(
        self, model: Any, rows: Rows, outputs: Any, model_kwargs: dict[str, Any], why_no_trees: str | None = None
    ):
        self._model = model
        self._rows = rows
        self._device = compat.execution_device(model.get_input_embeddings())
        _refuse_streams(model, model_kwargs)
        self._length = rows.num_cached[0]
        copies = {name: _copied(value) for name, value in model_kwargs.items()}
        versions = {name: value._version for name, value in copies.items() if isinstance(value, torch.Tensor)}
        lines = list(self._ask(outputs, dict(copies)))
        for name, version in versions.items():
            if copies[name]._version > version:
                raise NotImplementedError(
                    f"{type(model).__name__} writes into its argument `{name}` at each token, which cannot be taken "
                    "back when a drafted token is rejected. Leave out `assistant_model`."
                )
        self.why_no_trees = why_no_trees
        self.padding = self._padding(lines[0].get("attention_mask"), model_kwargs.get("attention_mask"))
        self._per_token: dict[str, PerToken] = {}
        self._constant: dict[str, Any] = {}
        for name in dict.fromkeys(name for line in lines for name in line):
            if name not in _OURS and not name.startswith("output_"):
                self._add(name, [line.get(name) for line in lines])
        positions = self._per_token.get("position_ids")
        if self.why_no_trees is None and (positions is None or positions.step is None):
            self.why_no_trees = "its forward is given no `position_ids`, so it would count the siblings in a tree"
        self.has_row_values = any(
            value is not None and not isinstance(value, (bool, int, float, str)) for value in self._constant.values()
        )
        # for a chain the model is asked anew each time
        self._outputs = outputs
        self._kwargs = compat.next_model_kwargs(model, outputs, dict(model_kwargs))

    def forget_outputs(self) -> None:
        """Chains will not be asked for."""
        self._outputs = None

    def check_rereads(self, borders: Iterable[int]) -> None:
        """
        Raises `NotImplementedError` if the model begins its cache anew at one of these lengths without reading the
        text again, as those of Phi do in some versions of transformers: their plain generation forgets the text.
        """
        ids = self._rows.ids
        for border in borders:
            text = ids[:, :1].expand(-1, border + 1)
            line = self._model.prepare_inputs_for_generation(text, next_sequence_length=1, **self._kwargs)
            if line.get(compat.CACHE) is None and line["input_ids"].shape[1] <= border:
                raise NotImplementedError(
                    f"{type(self._model).__name__} changes its rotary positions (RoPE) at {border} tokens, where this "
                    "version of transformers drops the cache without reading the text again. Update transformers, "
                    "stay below that length, or leave out `assistant_model`."
                )

    @property
    def num_tokens(self) -> int:
        """The tokens of the longest row, prompt and last token included, as its position tells."""
        return self._first_position + max(self._rows.num_cached) - self._length + 1

    @cached_property
    def _first_position(self) -> int:
        """The position after the prompt, in the longest row."""
        positions = self._per_token.get("position_ids")
        return self._length if positions is None else int(positions.first.max())

    def _ask(self, outputs: Any, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What the model's forward would get for one, two … tokens after the prompt."""
        ids = self._rows.ids
        for num_tokens in _PROBED:
            kwargs = compat.next_model_kwargs(self._model, outputs, kwargs)
            ids = torch.cat((ids, ids[:, -1:] if ids.shape[1] else ids.new_zeros((ids.shape[0], 1))), dim=1)
            line = self._model.prepare_inputs_for_generation(ids, next_sequence_length=num_tokens, **kwargs)
            if line.get(compat.CACHE) is None:  # of so long a text it would begin its cache anew
                new = ids[:, -num_tokens:]
                line = self._model.prepare_inputs_for_generation(new, next_sequence_length=num_tokens, **kwargs)
            shape = None if line.get("input_ids") is None else tuple(line["input_ids"].shape)
            if shape != (ids.shape[0], num_tokens):
                reads = "no ids" if shape is None else f"ids of the shape {shape}"
                raise NotImplementedError(
                    f"Of {num_tokens} tokens after the prompt, {type(self._model).__name__} reads {reads}, so it "
                    f"cannot verify them: {(ids.shape[0], num_tokens)} was expected. Leave out `assistant_model`."
                )
            yield line

    def _padding(self, prepared: Any, given: torch.Tensor | None) -> torch.Tensor | None:
        mask = prepared if isinstance(prepared, torch.Tensor) and prepared.ndim == 2 else given
        if mask is None:
            return None
        if mask.ndim != 2:
            raise NotImplementedError(
                f"With a drafter, `attention_mask` must have 2 dimensions, got the shape {tuple(mask.shape)}: it is "
                "not known how another kind of mask goes on over a tree. Leave out `assistant_model`."
            )
        mask = mask[:, : self._length]
        return torch.nn.functional.pad(mask, (0, self._length - mask.shape[1]), value=1)

    def _add(self, name: str, values: Sequence[Any]) -> None:
        """Reads the rule of an argument off what it is for one, two and three tokens."""
        if any(isinstance(value, Cache) for value in values):
            raise NotImplementedError(
                f"{type(self._model).__name__} is given a second cache, `{name}`, which cannot be rolled back to the "
                "last accepted token. Leave out `assistant_model`."
            )
        if all(_equal(values[0], value) for value in values[1:]):
            self._constant[name] = values[0]
            return
        rule = _rule(values, len(self._rows.all)) if all(isinstance(value, torch.Tensor) for value in values) else None
        if rule is not None:
            self._per_token[name] = rule
        else:
            self.why_no_trees = f"its argument `{name}` changes from token to token"

    def of_tree(self, tree: DraftTree, lengths: Sequence[int]) -> dict[str, Any]:
        """
        The arguments of a forward over trees, without masks and cache.

        Args:
            tree ([`DraftTree`]): `[R, n]`.
            lengths (`R` integers): cached tokens of each row.
        """
        arguments = {**self._constant, "input_ids": tree.tokens.to(self._device)}
        if self._per_token:
            depths = tree.depths.to(self._device) + (max(lengths) - self._length)
            if min(lengths) < max(lengths):
                depths = depths + (send(lengths, self._device)[:, None] - max(lengths))
            arguments.update({name: rule.at(depths) for name, rule in self._per_token.items()})
        return arguments

    def of_chain(self, tree: DraftTree, with_text: bool = True) -> dict[str, Any]:
        """
        The arguments of a forward over chains `[B, n]`: what the model prepares for these tokens.

        Args:
            tree ([`DraftTree`]): of one node per level.
            with_text (`bool`): whether the model gets to see the whole text, at whose length it may begin its cache
                anew, or the chains alone.
        """
        kwargs = self._kwargs
        for _ in range(tree.num_nodes - 1):
            kwargs = compat.next_model_kwargs(self._model, self._outputs, dict(kwargs))
        ids = torch.cat((self._rows.ids, tree.tokens[:, 1:].to(self._rows.device)), dim=1)
        ids = ids if with_text else ids[:, -tree.num_nodes :]
        arguments = self._model.prepare_inputs_for_generation(ids, next_sequence_length=tree.num_nodes, **kwargs)
        arguments.pop("logits_to_keep", None)  # all of them
        return arguments

    def keep(self, outputs: Any, num_tokens: int) -> None:
        """Takes in how many tokens of a chain were accepted, and what its forward gave."""
        self._outputs = outputs
        for _ in range(num_tokens):
            self._kwargs = compat.next_model_kwargs(self._model, outputs, self._kwargs)

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows of the batch. No argument may hold values for rows but those for tokens."""
        self._per_token = {name: rule.select(rows) for name, rule in self._per_token.items()}


def _refuse_streams(model: Any, model_kwargs: Mapping[str, Any]) -> None:
    for name, value in model_kwargs.items():
        if isinstance(value, Iterator):
            raise NotImplementedError(
                f"`{name}` is an iterator, which {type(model).__name__} reads on at each token. It cannot be taken "
                "back when a drafted token is rejected. Leave out `assistant_model`."
            )


def _copied(value: Any) -> Any:
    """A tensor that the model may write into, which is seen."""
    if not isinstance(value, torch.Tensor):
        return value
    with torch.inference_mode(False):
        return value.clone()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or (
            one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and (one is other or bool(one == other))


def _rule(values: Sequence[torch.Tensor], batch_size: int) -> PerToken | None:
    """The rule of an argument that differs for one, two and three tokens; None if there is none."""
    shapes = [list(value.shape) for value in values]
    if any(len(shape) != len(shapes[0]) or len(shape) < 2 for shape in shapes):
        return None
    differing = [dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    last = values[-1]
    if len(differing) != 1 or [shape[differing[0]] for shape in shapes] != list(_PROBED):
        return None
    dim = differing[0]
    if any(not torch.equal(value, last.narrow(dim, 0, value.shape[dim])) for value in values):
        return None
    first, second = last.narrow(dim, 0, 1), last.narrow(dim, 1, 1)
    if torch.equal(last, first.expand_as(last)):
        return PerToken(first.clone(), None, dim) if dim in (1, last.ndim - 1) else None
    step = second - first
    if (
        dim != last.ndim - 1
        or first.shape[-2] not in (1, batch_size)
        or not torch.equal(last.narrow(dim, 2, 1), second + step)
    ):
        return None
    return PerToken(first.clone(), step, dim)


__all__ = ["PerToken", "TargetInputs"]
