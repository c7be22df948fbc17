# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
From any chat dataset to batches: rows of token ids and masks, a drafter's vocabulary, and the collator.
[`~transformers_jakiro.training.packing`] defines a *row*, [`~transformers_jakiro.training.tokenization`] makes one.

Symbols in shape comments: B batch, T positions, F width of the stored features.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .packing import PackedDataset, Row, best_fit_decreasing, pack_rows
from .tokenization import RowMaker, missing_tokenizer_error

# a stream must have a row that counts among its first ones
_STREAM_PATIENCE = 1000


# -- datasets --------------------------------------------------------------------------------------------------------


def prepare_dataset(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int | None,
    packing: bool = False,
    assistant_only_loss: bool = True,
    num_proc: int | None = None,
    vocab_size: int | None = None,
    packing_buffer_size: int = 1000,
) -> Any:
    """
    Turns any supported dataset into rows of `input_ids` and `loss_mask`. The columns tell the format; all others are
    dropped, but for `tools` (a list of JSON schemas, or its JSON), which belong to a conversation:

    | columns | what counts |
    | --- | --- |
    | `messages`: turns with `role` and `content` | every turn of the assistant |
    | `conversations`: turns with `from` and `value` (ShareGPT) | the same |
    | `prompt`, `completion`: lists of turns | every turn of the assistant in the completion |
    | `prompt`, `completion`: strings | the completion and an end token |
    | `text` | everything, and an end token |
    | `input_ids` with `loss_mask`, `assistant_masks`, `completion_mask` or `labels` | where all say so (not -100) |

    [`~transformers_jakiro.training.tokenization.tokenize_conversation`] finds the turns of the assistant.

    Rows are cut to `max_length` tokens. A row teaches nothing unless one of the assistant's tokens has a token before
    it and a token after it; other rows are dropped, with a warning that says how many.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset` (stays a stream), a sequence of dicts, or a torch
            dataset. Torch datasets of rows, and rows with `hidden_states`, are returned as they are.
        tokenizer: the target's; may be None for token ids.
        max_length: the largest number of tokens in a row; None: rows are not cut.
        packing: joins samples into rows of up to `max_length` tokens. Samples do not see each other. Packs the whole
            dataset, or `packing_buffer_size` samples at a time for a stream. See
            [`~transformers_jakiro.core.target.check_packing`].
        assistant_only_loss: False lets every token count, whatever the table says.
        num_proc: the number of processes that tokenize a `datasets.Dataset`.
        vocab_size: the target's, to find foreign token ids. Default: the tokenizer's.
        packing_buffer_size: see `packing`.

    Returns:
        A `datasets.Dataset`, a `datasets.IterableDataset`, a list, the dataset itself, or a [`PackedDataset`].

    Raises:
        TypeError: if `dataset` is not a supported dataset.
        ValueError: if the columns are of no known format, if token ids lie outside the vocabulary, if a conversation
            cannot be tokenized, or if no row is left.
    """
    kind = _kind_of(dataset)
    if packing and max_length is None:
        raise ValueError("`packing=True` needs a `max_length`, the length of the packed rows.")
    first = _first_entry(dataset, kind)
    if tokenizer is None and "input_ids" not in first:
        raise missing_tokenizer_error(first)
    if vocab_size is None and tokenizer is not None:
        vocab_size = len(tokenizer)
    plan = _Plan(
        make_row=RowMaker(tokenizer, max_length, vocab_size, assistant_only_loss),
        first=first,
        pack_to=max_length if packing else None,
        packing_buffer_size=packing_buffer_size,
        num_proc=num_proc,
    )
    rows = _ACTIONS[kind][_contents_of(first)](dataset, plan)
    if kind in _STREAMS:
        return rows
    _check_left(len(dataset), len(rows), max_length)
    return rows if plan.pack_to is None else PackedDataset(rows, plan.pack_to)


@dataclass(frozen=True)
class _Plan:
    """How to prepare a dataset."""

    make_row: RowMaker
    first: Mapping[str, Any]  # the dataset's first entry
    pack_to: int | None  # the length of packed rows; None: no packing
    packing_buffer_size: int
    num_proc: int | None


_STREAMS = ("torch stream", "datasets stream")


def _kind_of(dataset: Any) -> str:
    """The kind of a dataset, a key of [`_ACTIONS`]."""
    if isinstance(dataset, Mapping):
        raise TypeError(f"Expected one dataset, got several by name: {sorted(dataset)}. Prepare each split by itself.")
    is_stream = not hasattr(dataset, "__len__")
    if hasattr(dataset, "map") and hasattr(dataset, "column_names"):
        return "datasets stream" if is_stream else "datasets"
    if isinstance(dataset, Dataset):
        return "torch stream" if is_stream else "torch"
    if isinstance(dataset, Sequence):
        return "sequence"
    raise TypeError(
        "Expected a `datasets.Dataset` or `datasets.IterableDataset`, a sequence of dicts or a torch dataset of "
        f"rows, got {type(dataset).__name__}."
    )


def _first_entry(dataset: Any, kind: str) -> Mapping[str, Any]:
    if kind in _STREAMS:
        first = next(iter(dataset), None)
    else:
        first = dataset[0] if len(dataset) else None
    if first is None:
        raise ValueError("The dataset is empty.")
    return first


def _contents_of(entry: Mapping[str, Any]) -> str:
    """What a dataset's entries are: the columns of [`_ACTIONS`]."""
    if "hidden_states" in entry:
        return "features"
    return "rows" if _is_row(entry) else "raw"


def _is_row(entry: Mapping[str, Any]) -> bool:
    return "input_ids" in entry and "loss_mask" in entry


def _make_rows(dataset: Any, plan: _Plan) -> list[Row]:
    rows = (plan.make_row(dataset[i]) for i in range(len(dataset)))
    return [row for row in rows if _counts(row)]


def _map_dataset(dataset: Any, plan: _Plan) -> Any:
    rows = dataset.map(plan.make_row, remove_columns=dataset.column_names, num_proc=plan.num_proc, desc="Tokenizing")
    return rows.filter(_counts, num_proc=plan.num_proc, desc="Dropping rows without an answer")


def _map_stream(dataset: Any, plan: _Plan) -> Any:
    return dataset.map(
        _StreamPreparer(plan.make_row, plan.pack_to),
        batched=True,
        batch_size=1 if plan.pack_to is None else plan.packing_buffer_size,
        remove_columns=list(plan.first),
    )


def _keep(dataset: Any, plan: _Plan) -> Any:
    return dataset


def _keep_stream(dataset: Any, plan: _Plan) -> Any:
    if plan.pack_to is not None or not _is_row(plan.first):
        raise TypeError(
            f"A stream of type {type(dataset).__name__} must hold rows of `input_ids` and `loss_mask`, and cannot be "
            "packed. Use a `datasets.IterableDataset`."
        )
    return dataset


# the kind of a dataset, and what is done with it, by its contents
_ACTIONS: dict[str, dict[str, Callable[[Any, _Plan], Any]]] = {
    "sequence": {"raw": _make_rows, "rows": _make_rows, "features": _keep},
    "torch": {"raw": _make_rows, "rows": _keep, "features": _keep},
    "torch stream": {"raw": _keep_stream, "rows": _keep_stream, "features": _keep_stream},
    "datasets": {"raw": _map_dataset, "rows": _map_dataset, "features": _keep},
    "datasets stream": {"raw": _map_stream, "rows": _map_stream, "features": _keep_stream},
}


def _counts(row: Row) -> bool:
    """
    Whether a row teaches both branches anything. At a position t that counts, the feature at t + 1 is predicted: by
    the autoregressive branch from t, and by the contrastive branch from t - 1, all within one sample.
    """
    mask = row["loss_mask"]
    positions = row["position_ids"] if "position_ids" in row else range(len(mask))
    return any(mask[t] and positions[t] > 0 and positions[t + 1] > 0 for t in range(len(mask) - 1))


def _check_left(num_rows: int, num_left: int, max_length: int | None) -> None:
    """Warns if rows were dropped; raises `ValueError` if none is left."""
    rule = f"no token of the assistant (with one before and one after it) within `max_length={max_length}` tokens"
    if num_left == 0:
        raise ValueError(
            f"None of {num_rows} rows can be trained on: they have {rule}. Check the masks or the chat template's "
            "`{% generation %}` markers, and raise `max_length` if prompts are longer."
        )
    if num_left < num_rows:
        warnings.warn(f"Dropped {num_rows - num_left} of {num_rows} rows: they have {rule}.", stacklevel=3)


class _StreamPreparer:
    """
    The function that the `map` of a stream calls with a batch of columns. The number of rows that will be dropped is
    unknown: it warns about the first one, and raises an error if a stream begins with nothing but such rows.
    """

    def __init__(self, make_row: RowMaker, pack_to: int | None):
        self.make_row = make_row
        self.pack_to = pack_to
        self.num_seen = 0
        self.num_kept = 0
        self.warned = False

    def __call__(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        entries = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [row for row in map(self.make_row, entries) if _counts(row)]
        self.num_seen += len(entries)
        self.num_kept += len(rows)
        if not self.warned and (self.num_kept or self.num_seen >= _STREAM_PATIENCE):
            _check_left(self.num_seen, self.num_kept, self.make_row.max_length)
            self.warned = self.num_kept < self.num_seen
        if self.pack_to is not None:
            groups = best_fit_decreasing([len(row["input_ids"]) for row in rows], self.pack_to)
            rows = [pack_rows([rows[i] for i in group]) for group in groups]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ("input_ids", "loss_mask"))}


# -- the drafter's vocabulary ----------------------------------------------------------------------------------------


def frequent_tokens(rows: Iterable[Row], size: int, vocab_size: int, always: Iterable[int] = ()) -> torch.Tensor:
    """
    Chooses a drafter's vocabulary: the tokens that occur most often at the positions that count. Among equally
    frequent tokens, smaller ids win.

    ```python
    >>> frequent_tokens([{"input_ids": [9, 5, 7, 5], "loss_mask": [0, 1, 1, 1]}], size=3, vocab_size=12, always=[2])
    tensor([2, 5, 7])
    ```

    Args:
        rows: tokenized, see [`prepare_dataset`].
        size: the number of tokens to choose.
        vocab_size: the target's.
        always: tokens to include in any case, such as those that end an answer.

    Returns:
        `[size]`, int64, increasing.

    Raises:
        ValueError: if `size` tokens cannot be chosen, or if there are tokens outside the vocabulary.
    """
    always = sorted(set(always))
    if not max(1, len(always)) <= size <= vocab_size:
        raise ValueError(
            f"`size` must lie between 1 (or the number of tokens to include always, here {len(always)}) and the "
            f"vocabulary of {vocab_size}, got {size}."
        )
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for row in chain(rows, [{"input_ids": always, "loss_mask": [1] * len(always)}]):
        tokens = torch.as_tensor(row["input_ids"], dtype=torch.int64)
        tokens = tokens[torch.as_tensor(row["loss_mask"], dtype=torch.bool)]
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise ValueError(
                f"The tokens {tokens.min()} to {tokens.max()} are not all of the vocabulary of {vocab_size}. Tokenize "
                "the data with the target's tokenizer."
            )
        counts.index_add_(0, tokens, torch.ones_like(tokens))
    counts[torch.tensor(always, dtype=torch.int64)] = torch.iinfo(torch.int64).max
    return counts.argsort(descending=True, stable=True)[:size].sort().values


# -- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class JakiroDataCollator:
    """
    Pads rows on the right. The last token of each sample is taken out of the mask: no token follows it that could be
    predicted.

    ```python
    >>> JakiroDataCollator(pad_token_id=0)([
    ...     {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}, {"input_ids": [8, 9], "loss_mask": [1, 1]}
    ... ])
    {'input_ids': tensor([[5, 6, 7], [8, 9, 0]]),
     'loss_mask': tensor([[0, 1, 0], [1, 0, 0]]),
     'attention_mask': tensor([[1, 1, 1], [1, 1, 0]])}
    ```

    Packed rows get no attention mask: their positions tell the samples apart, and the padding is one more sample.

    ```python
    >>> JakiroDataCollator(pad_token_id=0, pad_to_multiple_of=4)([
    ...     {"input_ids": [5, 6, 7, 8, 9], "loss_mask": [1, 1, 1, 1, 1], "position_ids": [0, 1, 2, 0, 1]}
    ... ])
    {'input_ids': tensor([[5, 6, 7, 8, 9, 0, 0, 0]]),
     'loss_mask': tensor([[1, 1, 0, 1, 0, 0, 0, 0]]),
     'position_ids': tensor([[0, 1, 2, 0, 1, 0, 1, 2]])}
    ```

    All tensors are `[B, T]`. The rows' `hidden_states` `[T, F]`, if they have them, become `[B, T, F]`, zero at the
    padding.

    Args:
        pad_token_id (`int`): any id of the vocabulary.
        pad_to_multiple_of (`int`, *optional*): pads further, to a length that suits the hardware.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        columns = _columns(features)
        lengths = [len(row) for row in columns["input_ids"]]
        multiple = self.pad_to_multiple_of or 1
        length = math.ceil(max(lengths) / multiple) * multiple
        batch = {
            "input_ids": _pad(columns["input_ids"], length, self.pad_token_id),
            "loss_mask": _pad(columns["loss_mask"], length),
        }
        # position in the padding, negative before it
        padding = torch.arange(length) - torch.tensor(lengths)[:, None]  # [B, T]
        if "position_ids" in columns:
            batch["position_ids"] = torch.where(padding < 0, _pad(columns["position_ids"], length), padding)
            is_followed = batch["position_ids"][:, 1:] > 0
        else:
            batch["attention_mask"] = (padding < 0).long()
            is_followed = batch["attention_mask"][:, 1:] > 0
        batch["loss_mask"][:, :-1] *= is_followed
        batch["loss_mask"][:, -1] = 0
        if "hidden_states" in columns:
            batch["hidden_states"] = _pad(columns["hidden_states"], length)
        return batch


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[torch.Tensor]]:
    """The columns of a batch that training needs, a tensor per row; all rows must have the same ones."""
    required = {"input_ids", "loss_mask"}
    known = required | {"position_ids", "hidden_states"}
    names = rows[0].keys() & known
    if not required <= names or any(row.keys() & known != names for row in rows):
        raise ValueError(
            "The rows of a batch must hold `input_ids` and `loss_mask`, and either all or none of them `position_ids` "
            f"and `hidden_states`; got {sorted({name for row in rows for name in row})}. Make rows with "
            "`prepare_dataset`."
        )
    return {name: [torch.as_tensor(row[name]) for row in rows] for name in names}


def _pad(rows: list[torch.Tensor], length: int, value: int = 0) -> torch.Tensor:
    """Pads rows `[T, ...]` of at most `length` positions on the right, to `[B, length, ...]`."""
    first, *others = rows
    # `pad_sequence` pads to the longest row: the first one becomes that
    first = pad(first, [0, 0] * (first.ndim - 1) + [0, length - len(first)], value=value)
    return pad_sequence([first, *others], batch_first=True, padding_value=value)
