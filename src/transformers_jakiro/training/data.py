# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
From any chat dataset to batches: token ids with a mask of the assistant's tokens, and the collator. What a *row* is
says [`~transformers_jakiro.training.packing`].
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..conversations import from_sharegpt
from .packing import PackedDataset, Row, as_integers, best_fit_decreasing, pack_rows

_ACCEPTED = (
    "`messages` or `conversations` (lists of turns), `prompt` with `completion` (strings or lists of turns), `text`, "
    "or `input_ids` with `loss_mask`, `assistant_masks`, `completion_mask` or `labels`"
)
_MASKS = ("loss_mask", "assistant_masks", "completion_mask")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARKERS = (
    "`{% generation %} ... {% endgeneration %}` around what the assistant writes, its end-of-turn token included"
)
# no warning of texts that are too long for the model: they are going to be cut
_QUIET = {"verbose": False}
# rows of a stream among which at least one must count
_STREAM_PATIENCE = 1000


# -- one row ---------------------------------------------------------------------------------------------------------


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    max_length: int | None = None,
    num_prompt_messages: int = 0,
) -> Row:
    """
    One conversation as a row; every turn of the assistant counts, up to and with its end-of-turn token.

    With a chat template that holds `{% generation %}` markers, what stands between them counts. Without, a turn of the
    assistant is what the template adds to the generation prompt of the turns before it: the tokens of
    `apply_chat_template(messages[:i], add_generation_prompt=True)` and of `messages[:i + 1]` are compared. That takes
    a template that never rewrites a turn once others follow, and a rendering per turn.

    Args:
        tokenizer: with a chat template.
        messages: turns with `role` and `content`.
        max_length: tokens to keep.
        num_prompt_messages: the first so many messages do not count, whoever wrote them.

    Raises:
        ValueError: if there is no chat template, no turn of the assistant that counts, or if turns cannot be told
            apart (no markers, and the template rewrites earlier turns).
    """
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    turns = [
        i for i, message in enumerate(messages) if i >= num_prompt_messages and message.get("role") == "assistant"
    ]
    if not turns:
        roles = [message.get("role") for message in messages]
        raise ValueError(
            f"A conversation without a turn of the assistant teaches a drafter nothing: its roles are {roles}"
            + (f", of which the first {num_prompt_messages} are the prompt" if num_prompt_messages else "")
            + ". Remove it from the dataset, or name the answers' role `assistant`."
        )
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, so conversations cannot be tokenized. Load the "
            "tokenizer of the target's chat version, set `tokenizer.chat_template`, or give the dataset as `prompt` "
            "with `completion` strings or as `text`."
        )

    def render(count: int | None = None, **kwargs: Any) -> Mapping[str, list[int]]:
        return tokenizer.apply_chat_template(
            messages[:count], tokenize=True, return_dict=True, tokenizer_kwargs=_QUIET, **kwargs
        )

    def stable_prefix(part: list[int]) -> int:
        shared = _shared_prefix(part, input_ids)
        # one token may straddle the border, it belongs to what follows
        if shared < len(part) - 1:
            raise ValueError(
                "The assistant's tokens cannot be found: the chat template renders the beginning of a conversation "
                f"differently once turns follow (token {shared} of {len(part)} differs). Templates that rewrite "
                f"earlier turns need markers: put {_MARKERS}, in `tokenizer.chat_template`."
            )
        return shared

    if _GENERATION.search(tokenizer.get_chat_template()):
        encoded = render(return_assistant_tokens_mask=True)
        input_ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        if num_prompt_messages:
            start = stable_prefix(render(num_prompt_messages, add_generation_prompt=True)["input_ids"])
            mask[:start] = [0] * start
    else:
        input_ids = list(render()["input_ids"])
        mask = [0] * len(input_ids)
        for turn in turns:
            if turn == 0:
                raise ValueError(
                    "A conversation that begins with the assistant has no prompt to tell its first turn from. Remove "
                    f"that turn, or put {_MARKERS}, in `tokenizer.chat_template`."
                )
            start = stable_prefix(render(turn, add_generation_prompt=True)["input_ids"])
            end = stable_prefix(render(turn + 1)["input_ids"])
            mask[start:end] = [1] * (end - start)
    return {"input_ids": input_ids[:max_length], "loss_mask": mask[:max_length]}


def _tokenize_completion(tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any) -> Row:
    """Of strings what follows the prompt counts, and the end token after it."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError(
            "`prompt` and `completion` must both be strings or both be lists of turns, got "
            f"{type(prompt).__name__} and {type(completion).__name__}."
        )
    if not isinstance(prompt, str):
        return tokenize_conversation(tokenizer, [*prompt, *completion], num_prompt_messages=len(prompt))
    input_ids = list(tokenizer(prompt + completion, **_QUIET)["input_ids"])
    if tokenizer.eos_token_id is not None and input_ids[-1:] != [tokenizer.eos_token_id]:
        input_ids.append(tokenizer.eos_token_id)
    start = _shared_prefix(tokenizer(prompt, **_QUIET)["input_ids"], input_ids) if prompt else 0
    return {"input_ids": input_ids, "loss_mask": [0] * start + [1] * (len(input_ids) - start)}


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def _tokenized(row: Mapping[str, Any]) -> Row:
    """A row of `input_ids` and masks or labels, without the padding that `attention_mask` tells."""
    columns = {
        name: as_integers(row[name]) for name in ("input_ids", *_MASKS, "labels", "position_ids") if name in row
    }
    input_ids = columns["input_ids"]
    kept = as_integers(row["attention_mask"]) if "attention_mask" in row else [1] * len(input_ids)
    lengths = {name: len(values) for name, values in columns.items()} | {"attention_mask": len(kept)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a row must be of one length, got {lengths}.")
    columns = {name: [v for v, keep in zip(values, kept, strict=True) if keep] for name, values in columns.items()}
    masks = [columns[name] for name in _MASKS if name in columns]
    if "labels" in columns:
        masks.append([label != -100 for label in columns["labels"]])
    tokenized = {
        "input_ids": columns["input_ids"],
        "loss_mask": [int(all(values)) for values in zip(*masks, strict=True)],
    }
    return tokenized | ({"position_ids": columns["position_ids"]} if "position_ids" in columns else {})


def _prepare_row(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    vocab_size: int | None,
    assistant_only_loss: bool,
) -> Row:
    """A row of a dataset in any of the accepted formats, see [`prepare_dataset`]."""
    row = {name: value for name, value in row.items() if value is not None}  # Arrow fills in None
    if "input_ids" in row and any(name in row for name in (*_MASKS, "labels")):
        prepared = _tokenized(row)
    elif "messages" in row:
        prepared = tokenize_conversation(tokenizer, row["messages"])
    elif "conversations" in row:
        prepared = tokenize_conversation(tokenizer, from_sharegpt(row["conversations"]))
    elif "prompt" in row and "completion" in row:
        prepared = _tokenize_completion(tokenizer, row["prompt"], row["completion"])
    elif "text" in row:
        prepared = _tokenize_completion(tokenizer, "", row["text"])
    else:
        raise ValueError(f"The dataset's columns are of no known format: {sorted(row)}. Expected {_ACCEPTED}.")
    prepared = {name: values[:max_length] for name, values in prepared.items()}
    input_ids = prepared["input_ids"]
    if vocab_size is not None and input_ids and not 0 <= min(input_ids) <= max(input_ids) < vocab_size:
        raise ValueError(
            f"A row holds the token ids {min(input_ids)} to {max(input_ids)}, the vocabulary has {vocab_size} "
            "(0 to one less). The dataset was tokenized with another tokenizer: use the target's."
        )
    if not assistant_only_loss:
        prepared["loss_mask"] = [1] * len(input_ids)
    return prepared


def _counts(row: Row) -> bool:
    """
    Whether a row teaches both branches anything: at a counting position t the feature at t + 1 is predicted, by the
    autoregressive branch from t and by the contrastive branch from t - 1, all of the same sample.
    """
    mask = row["loss_mask"]
    positions = row["position_ids"] if "position_ids" in row else range(len(mask))
    return any(mask[t] and positions[t] > 0 and positions[t + 1] > 0 for t in range(len(mask) - 1))


def frequent_tokens(rows: Iterable[Row], size: int, vocab_size: int, always: Iterable[int] = ()) -> torch.LongTensor:
    """
    A drafter's vocabulary: the tokens that occur most often where rows count. Of equally frequent ones, those with the
    smaller ids.

    ```python
    >>> frequent_tokens([{"input_ids": [9, 5, 7, 5], "loss_mask": [0, 1, 1, 1]}], size=3, vocab_size=12, always=[2])
    tensor([2, 5, 7])
    ```

    Args:
        rows: tokenised, see [`prepare_dataset`].
        size: how many tokens.
        vocab_size: the target's.
        always: tokens to take in any case, such as those that end an answer.

    Returns:
        `[size]`, int64, increasing.

    Raises:
        ValueError: if so many tokens cannot be chosen, or there are tokens outside the vocabulary.
    """
    always = sorted(set(always))
    if not max(1, len(always)) <= size <= vocab_size:
        raise ValueError(
            f"`size` must lie between 1 (or the number of tokens to take always, here {len(always)}) and the "
            f"vocabulary of {vocab_size}, got {size}."
        )
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for row in chain(rows, [{"input_ids": always, "loss_mask": [1] * len(always)}]):
        tokens = torch.as_tensor(row["input_ids"], dtype=torch.int64)
        tokens = tokens[torch.as_tensor(row["loss_mask"], dtype=torch.bool)]
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise ValueError(
                f"Tokens {tokens.min()} to {tokens.max()} are not all of the vocabulary of {vocab_size}. Tokenize "
                "with the target's tokenizer."
            )
        counts.index_add_(0, tokens, torch.ones_like(tokens))
    counts[torch.tensor(always, dtype=torch.int64)] = torch.iinfo(torch.int64).max
    return counts.argsort(descending=True, stable=True)[:size].sort().values


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
    Any supported dataset as rows of `input_ids` and `loss_mask`. The format is recognised from the columns; others are
    left out:

    | columns | counts |
    | --- | --- |
    | `messages`: turns with `role` and `content` | every turn of the assistant, see [`tokenize_conversation`] |
    | `conversations`: turns with `from` and `value` (ShareGPT) | the same |
    | `prompt`, `completion`: lists of turns | every turn of the assistant in the completion |
    | `prompt`, `completion`: strings | the completion and an end token |
    | `text` | everything, and an end token |
    | `input_ids` with `loss_mask`, `assistant_masks`, `completion_mask` or `labels` | where all say so (not: -100) |

    Rows are cut after `max_length` tokens. Those that then have no token of the assistant with one before and one
    after it teach nothing and are dropped, with a warning that says how many.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset` (stays streaming), a sequence of dicts, or a torch
            dataset. Torch datasets of rows, and rows with `hidden_states`, pass as they are.
        tokenizer: the target's; None will do for token ids.
        max_length: tokens of a row, at most; None: not cut.
        packing: join samples into rows of up to `max_length` tokens, without one seeing another. Over the whole
            dataset, or over `packing_buffer_size` samples at a time when streaming. See
            [`~transformers_jakiro.core.target.check_packing`].
        assistant_only_loss: False lets every token count, whatever the table says.
        num_proc: processes that tokenize a `datasets.Dataset`.
        vocab_size: the target's, to find foreign token ids. Default: the tokenizer's.
        packing_buffer_size: see `packing`.

    Returns:
        `datasets.Dataset`, `datasets.IterableDataset`, a list, the dataset itself, or a [`PackedDataset`].

    Raises:
        TypeError: if it is no such dataset.
        ValueError: if the columns are of no known format, token ids lie outside the vocabulary, a conversation cannot
            be tokenized, or no row is left.
    """
    if isinstance(dataset, Mapping):
        raise TypeError(f"Expected one dataset, got several by name: {sorted(dataset)}. Prepare each split by itself.")
    if packing and max_length is None:
        raise ValueError("`packing=True` needs a `max_length`, the length of the packed rows.")
    from_hub = hasattr(dataset, "map") and hasattr(dataset, "column_names")
    streaming = not hasattr(dataset, "__len__")
    if not from_hub and not isinstance(dataset, Dataset | Sequence):
        raise TypeError(
            "Expected a `datasets.Dataset` or `datasets.IterableDataset`, a sequence of dicts or a torch dataset of "
            f"rows, got {type(dataset).__name__}."
        )
    first = next(iter(dataset), None) if streaming else dataset[0] if len(dataset) else None
    if first is None:
        raise ValueError("The dataset is empty.")
    if tokenizer is None and "input_ids" not in first:
        raise ValueError(f"A dataset with the columns {sorted(first)} needs the target's tokenizer, got None.")
    if vocab_size is None and tokenizer is not None:
        vocab_size = len(tokenizer)
    prepare = partial(
        _prepare_row,
        tokenizer=tokenizer,
        max_length=max_length,
        vocab_size=vocab_size,
        assistant_only_loss=assistant_only_loss,
    )

    is_rows = "input_ids" in first and "loss_mask" in first
    if "hidden_states" in first or (is_rows and not from_hub and isinstance(dataset, Dataset)):
        rows = dataset
    elif from_hub and streaming:
        return dataset.map(
            _StreamPreparer(prepare, packing),
            batched=True,
            batch_size=packing_buffer_size if packing else 1,
            remove_columns=list(first),
        )
    elif from_hub:
        rows = dataset.map(prepare, remove_columns=dataset.column_names, num_proc=num_proc, desc="Tokenizing")
        rows = rows.filter(_counts, num_proc=num_proc, desc="Dropping rows without an answer")
    elif not streaming:
        rows = [row for row in (prepare(dataset[i]) for i in range(len(dataset))) if _counts(row)]
    if streaming and (packing or not is_rows):
        raise TypeError(
            f"A stream of type {type(dataset).__name__} must hold rows of `input_ids` and `loss_mask`, and cannot be "
            "packed. Use a `datasets.IterableDataset`."
        )
    if not streaming:
        _check_left(len(dataset), len(rows), max_length)
    return PackedDataset(rows, max_length) if packing else rows


def _check_left(num_rows: int, num_left: int, max_length: int | None) -> None:
    """Warns about rows that were dropped; raises `ValueError` if none is left."""
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
    What the `map` of a stream calls with a batch of columns. The number of rows that are going to be dropped is not
    known: it warns at the first, and a stream that begins with nothing but such rows is an error.
    """

    def __init__(self, prepare: partial[Row], packing: bool):
        self.prepare = prepare
        self.max_length: int | None = prepare.keywords["max_length"]
        self.packing = packing
        self.num_seen = self.num_kept = 0
        self.warned = False

    def __call__(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        batch = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [row for row in map(self.prepare, batch) if _counts(row)]
        self.num_seen += len(batch)
        self.num_kept += len(rows)
        if not self.warned and (self.num_kept or self.num_seen >= _STREAM_PATIENCE):
            _check_left(self.num_seen, self.num_kept, self.max_length)
            self.warned = self.num_kept < self.num_seen
        if self.packing:
            groups = best_fit_decreasing([len(row["input_ids"]) for row in rows], self.max_length)
            rows = [pack_rows([rows[i] for i in group]) for group in groups]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ("input_ids", "loss_mask"))}


# -- checks before training ------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, target_config: PreTrainedConfig) -> None:
    """
    Raises `ValueError` if a tokenizer cannot be the target's: it makes token ids outside the target's vocabulary, or
    neither its `bos` nor its `eos` token is the target's. If one of these two differs – chat versions often have
    another end token than their config says – there is a warning.

    Vocabularies padded beyond the tokenizer's length are fine, and so are special tokens beyond the vocabulary that
    text cannot hold, such as image placeholders.
    """
    config = target_config.get_text_config(decoder=True)
    remedy = "Load the target's own tokenizer: `AutoTokenizer.from_pretrained(target)`."
    if len(tokenizer) > config.vocab_size:
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if max({*tokenizer.get_vocab().values()} - special) >= config.vocab_size:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, the target's vocabulary {config.vocab_size}. {remedy}"
            )
    agree = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(config, name, None)
        if ours is not None and ours >= config.vocab_size:
            raise ValueError(
                f"The tokenizer's `{name}` is {ours}, outside the target's vocabulary of {config.vocab_size}. {remedy}"
            )
        if name != "pad_token_id" and ours is not None and theirs is not None:
            agree[name] = ours in (theirs if isinstance(theirs, list) else [theirs])
    if all(agree.values()):
        return
    differences = ", ".join(
        f"`{name}` is {getattr(tokenizer, name)}, the target's {getattr(config, name)}"
        for name in agree
        if not agree[name]
    )
    if not any(agree.values()):
        raise ValueError(f"This is not the target's tokenizer: its {differences}. {remedy}")
    warnings.warn(f"Is this the target's tokenizer? Its {differences}.", stacklevel=2)


# -- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class JakiroDataCollator:
    """
    Pads rows on the right, and takes each sample's last token out of the mask: nothing follows it to be predicted.

    ```python
    >>> JakiroDataCollator(pad_token_id=0)([
    ...     {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}, {"input_ids": [8, 9], "loss_mask": [1, 1]}
    ... ])
    {'input_ids': tensor([[5, 6, 7], [8, 9, 0]]),
     'loss_mask': tensor([[0, 1, 0], [1, 0, 0]]),
     'attention_mask': tensor([[1, 1, 1], [1, 1, 0]])}
    ```

    Packed rows get no attention mask: the positions tell the samples, and padding is one more of them.

    ```python
    >>> JakiroDataCollator(pad_token_id=0, pad_to_multiple_of=4)([
    ...     {"input_ids": [5, 6, 7, 8, 9], "loss_mask": [1, 1, 1, 1, 1], "position_ids": [0, 1, 2, 0, 1]}
    ... ])
    {'input_ids': tensor([[5, 6, 7, 8, 9, 0, 0, 0]]),
     'loss_mask': tensor([[1, 1, 0, 1, 0, 0, 0, 0]]),
     'position_ids': tensor([[0, 1, 2, 0, 1, 0, 1, 2]])}
    ```

    `hidden_states` `[T, F]` of the rows become `[B, T, F]`, zero at padding.

    Args:
        pad_token_id (`int`): any id of the vocabulary.
        pad_to_multiple_of (`int`, *optional*): pads further, to a length that the hardware likes.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        required, optional = {"input_ids", "loss_mask"}, {"position_ids", "hidden_states"}
        names = features[0].keys() & (required | optional)
        if not required <= names or any(row.keys() & (required | optional) != names for row in features):
            raise ValueError(
                "The rows of a batch must hold `input_ids` and `loss_mask`, and all of them or none `position_ids` "
                f"and `hidden_states`; got {sorted({name for row in features for name in row})}. Make rows with "
                "`prepare_dataset`."
            )
        rows = {name: [torch.as_tensor(row[name]) for row in features] for name in names}
        lengths = [len(row) for row in rows["input_ids"]]
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(lengths) // multiple) * multiple

        def pad(name: str, value: int = 0) -> torch.Tensor:
            padded = rows[name][0].new_full((len(lengths), length, *rows[name][0].shape[1:]), value)
            for row, content in zip(padded, rows[name], strict=True):
                row[: len(content)] = content
            return padded

        batch = {"input_ids": pad("input_ids", self.pad_token_id), "loss_mask": pad("loss_mask")}
        # position in the padding, negative before it
        padding = torch.arange(length) - torch.tensor(lengths)[:, None]  # [B, T]
        if "position_ids" in rows:
            batch["position_ids"] = torch.where(padding < 0, pad("position_ids"), padding)
            is_followed = batch["position_ids"][:, 1:] > 0
        else:
            batch["attention_mask"] = (padding < 0).long()
            is_followed = batch["attention_mask"][:, 1:] > 0
        batch["loss_mask"][:, :-1] *= is_followed
        batch["loss_mask"][:, -1] = 0
        if "hidden_states" in rows:
            batch["hidden_states"] = pad("hidden_states")
        return batch


# -- files -----------------------------------------------------------------------------------------------------------
