# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Tokenizes the entries of chat datasets: token ids with a mask of the assistant's tokens.

Symbols in shape comments: T positions.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..conversations import from_sharegpt, tools_of, without_nulls
from .packing import Row, as_integers

_ACCEPTED = (
    "`messages` or `conversations` (lists of turns), `prompt` with `completion` (strings or lists of turns), `text`, "
    "or `input_ids` with `loss_mask`, `assistant_masks`, `completion_mask` or `labels`"
)
_MASKS = ("loss_mask", "assistant_masks", "completion_mask")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARKERS = (
    "`{% generation %} ... {% endgeneration %}` around what the assistant writes, its end-of-turn token included"
)
# no warning about texts too long for the model: they are cut later
_QUIET = {"verbose": False}

_Messages = list[dict[str, Any]]
_Renderer = Callable[..., Mapping[str, list[int]]]


# -- conversations and completions -----------------------------------------------------------------------------------


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    max_length: int | None = None,
    num_prompt_messages: int = 0,
    tools: list[dict[str, Any]] | None = None,
) -> Row:
    """
    Tokenizes a conversation into a row. Every turn of the assistant counts, including its end-of-turn token.

    If the chat template holds `{% generation %}` markers, the tokens between them count. Otherwise a turn of the
    assistant is what the template adds to the generation prompt of the turns before it: the tokens of
    `apply_chat_template(messages[:i], add_generation_prompt=True)` are compared with those of `messages[:i + 1]`. This
    requires a template that never rewrites a turn once others follow, and renders the conversation once per turn.

    Args:
        tokenizer: with a chat template.
        messages: turns with `role` and `content`.
        max_length: the row is cut to this number of tokens.
        num_prompt_messages: this number of messages at the beginning never counts, whoever wrote them.
        tools: what the assistant may call, as JSON schemas; the chat template puts them into the text.

    Returns:
        `input_ids` and `loss_mask`, lists of length T.

    Raises:
        ValueError: if there is no chat template, if no turn of the assistant counts, or if turns cannot be told
            apart (no markers, and the template rewrites earlier turns).
    """
    turns = _counted_turns(messages, num_prompt_messages)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, so conversations cannot be tokenized. Load the "
            "tokenizer of the target's chat version, set `tokenizer.chat_template`, or give the dataset as `prompt` "
            "with `completion` strings or as `text`."
        )
    render = partial(_render, tokenizer, tools)
    given = without_nulls(messages)
    if _GENERATION.search(tokenizer.get_chat_template(tools=tools)):
        input_ids, mask = _mask_by_markers(render, given, num_prompt_messages)
    else:
        input_ids, mask = _mask_by_prefixes(render, given, turns)
    return {"input_ids": input_ids[:max_length], "loss_mask": mask[:max_length]}


def _counted_turns(messages: Sequence[Mapping[str, Any]], num_prompt_messages: int) -> list[int]:
    """The indices of the assistant's messages after the prompt."""
    roles = [message.get("role") for message in messages]
    turns = [i for i, role in enumerate(roles) if i >= num_prompt_messages and role == "assistant"]
    if not turns:
        prompt = f", of which the first {num_prompt_messages} are the prompt" if num_prompt_messages else ""
        raise ValueError(
            f"A conversation without a turn of the assistant teaches a drafter nothing: its roles are {roles}{prompt}."
            " Remove it from the dataset, or name the answers' role `assistant`."
        )
    return turns


def _mask_by_markers(render: _Renderer, messages: _Messages, num_prompt_messages: int) -> tuple[list[int], list[int]]:
    """`input_ids` and `loss_mask` by the chat template's own `{% generation %}` markers."""
    encoded = render(messages, return_assistant_tokens_mask=True)
    input_ids = list(encoded["input_ids"])
    mask = list(encoded["assistant_masks"])
    if num_prompt_messages:
        prompt = render(messages[:num_prompt_messages], add_generation_prompt=True)
        start = _stable_prefix(prompt["input_ids"], input_ids)
        mask[:start] = [0] * start
    return input_ids, mask


def _mask_by_prefixes(render: _Renderer, messages: _Messages, turns: list[int]) -> tuple[list[int], list[int]]:
    """`input_ids` and `loss_mask` from what the chat template adds for each of the assistant's `turns`."""
    input_ids = list(render(messages)["input_ids"])
    mask = [0] * len(input_ids)
    for turn in turns:
        if turn == 0:
            raise ValueError(
                "A conversation that begins with the assistant has no prompt to tell its first turn from. Remove "
                f"that turn, or put {_MARKERS}, in `tokenizer.chat_template`."
            )
        before = render(messages[:turn], add_generation_prompt=True)
        after = render(messages[: turn + 1])
        start = _stable_prefix(before["input_ids"], input_ids)
        end = _stable_prefix(after["input_ids"], input_ids)
        mask[start:end] = [1] * (end - start)
    return input_ids, mask


def _render(
    tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None, messages: _Messages, **options: Any
) -> Mapping[str, list[int]]:
    encoded = tokenizer.apply_chat_template(
        messages, tools=cast(Any, tools), tokenize=True, return_dict=True, tokenizer_kwargs=_QUIET, **options
    )
    return cast(Mapping[str, list[int]], encoded)


def _stable_prefix(part: Sequence[int], whole: Sequence[int]) -> int:
    """The length of `part`, which must be the beginning of `whole`, less a token that straddles its end."""
    shared = _shared_prefix(part, whole)
    if shared < len(part) - 1:
        raise ValueError(
            "The assistant's tokens cannot be found: the chat template renders the beginning of a conversation "
            f"differently once turns follow (token {shared} of {len(part)} differs). Templates that rewrite "
            f"earlier turns need markers: put {_MARKERS}, in `tokenizer.chat_template`."
        )
    return shared


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def _tokenize_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any, tools: list[dict[str, Any]] | None = None
) -> Row:
    """For strings, everything after the prompt counts, including an end token that is appended."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError(
            "`prompt` and `completion` must both be strings or both be lists of turns, got "
            f"{type(prompt).__name__} and {type(completion).__name__}."
        )
    if not isinstance(prompt, str):
        return tokenize_conversation(tokenizer, [*prompt, *completion], None, len(prompt), tools)
    input_ids = list(tokenizer(prompt + completion, **_QUIET)["input_ids"])
    if tokenizer.eos_token_id is not None and input_ids[-1:] != [tokenizer.eos_token_id]:
        input_ids.append(tokenizer.eos_token_id)
    start = _shared_prefix(tokenizer(prompt, **_QUIET)["input_ids"], input_ids) if prompt else 0
    return {"input_ids": input_ids, "loss_mask": [0] * start + [1] * (len(input_ids) - start)}


def _tokenized(row: Mapping[str, Any]) -> Row:
    """A row from `input_ids` with masks or labels, without the padding that `attention_mask` marks."""
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
    tokenized: Row = {
        "input_ids": columns["input_ids"],
        "loss_mask": [int(all(values)) for values in zip(*masks, strict=True)],
    }
    if "position_ids" in columns:
        tokenized["position_ids"] = columns["position_ids"]
    return tokenized


# -- entries of any format -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowMaker:
    """
    Makes rows from a dataset's entries, in any of the formats that
    [`~transformers_jakiro.training.data.prepare_dataset`] lists.

    Args:
        tokenizer: the target's; may be None for token ids.
        max_length: rows are cut to this number of tokens; None: rows are not cut.
        vocab_size: the target's, to find foreign token ids; None: they are not checked.
        assistant_only_loss: False lets every token count.
    """

    tokenizer: PreTrainedTokenizerBase | None
    max_length: int | None
    vocab_size: int | None
    assistant_only_loss: bool

    def __call__(self, entry: Mapping[str, Any]) -> Row:
        """Makes a row of `input_ids`, `loss_mask` and perhaps `position_ids`, lists of length T."""
        entry = {name: value for name, value in entry.items() if value is not None}  # Arrow fills in None
        row = {name: values[: self.max_length] for name, values in self._tokenize(entry).items()}
        input_ids = row["input_ids"]
        if self.vocab_size is not None and input_ids and not 0 <= min(input_ids) <= max(input_ids) < self.vocab_size:
            raise ValueError(
                f"A row holds the token ids {min(input_ids)} to {max(input_ids)}, the vocabulary has "
                f"{self.vocab_size} (0 to one less). The dataset was tokenized with another tokenizer: use the "
                "target's."
            )
        if not self.assistant_only_loss:
            row["loss_mask"] = [1] * len(input_ids)
        return row

    def _tokenize(self, entry: Mapping[str, Any]) -> Row:
        if "input_ids" in entry and any(name in entry for name in (*_MASKS, "labels")):
            return _tokenized(entry)
        tokenize = next((tokenize for columns, tokenize in _TEXT_FORMATS if columns <= entry.keys()), None)
        if tokenize is None:
            raise ValueError(f"The dataset's columns are of no known format: {sorted(entry)}. Expected {_ACCEPTED}.")
        if self.tokenizer is None:
            raise missing_tokenizer_error(entry)
        return tokenize(self.tokenizer, entry)


def missing_tokenizer_error(columns: Iterable[str]) -> ValueError:
    """The error for a dataset that cannot be tokenized without a tokenizer."""
    return ValueError(f"A dataset with the columns {sorted(columns)} needs the target's tokenizer, got None.")


# columns, and the function that tokenizes them; the first match applies
_TEXT_FORMATS: tuple[tuple[set[str], Callable[[PreTrainedTokenizerBase, Mapping[str, Any]], Row]], ...] = (
    (
        {"messages"},
        lambda tokenizer, entry: tokenize_conversation(tokenizer, entry["messages"], tools=tools_of(entry)),
    ),
    (
        {"conversations"},
        lambda tokenizer, entry: tokenize_conversation(
            tokenizer, from_sharegpt(entry["conversations"]), tools=tools_of(entry)
        ),
    ),
    (
        {"prompt", "completion"},
        lambda tokenizer, entry: _tokenize_completion(
            tokenizer, entry["prompt"], entry["completion"], tools_of(entry)
        ),
    ),
    ({"text"}, lambda tokenizer, entry: _tokenize_completion(tokenizer, "", entry["text"])),
)


# -- the tokenizer ---------------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, target_config: PreTrainedConfig) -> None:
    """
    Checks that a tokenizer can be the target's. Vocabularies padded beyond the tokenizer's length are fine, and so are
    special tokens beyond the vocabulary that text cannot contain, such as image placeholders. Warns if only one of
    `bos_token_id` and `eos_token_id` is the target's: chat versions often end with another token than their config
    says.

    Raises:
        ValueError: if the tokenizer makes token ids outside the target's vocabulary, or if neither its `bos` nor its
            `eos` token is the target's.
    """
    config = target_config.get_text_config(decoder=True)
    remedy = "Load the target's own tokenizer: `AutoTokenizer.from_pretrained(target)`."
    _check_token_ids(tokenizer, config.vocab_size, remedy)
    agree: dict[str, bool] = {}
    for name in ("bos_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(config, name, None)
        if ours is not None and theirs is not None:
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


def _check_token_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int, remedy: str) -> None:
    """Raises `ValueError` if a tokenizer makes token ids outside a vocabulary."""
    if len(tokenizer) > vocab_size:
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if max({*tokenizer.get_vocab().values()} - special) >= vocab_size:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, the target's vocabulary {vocab_size}. {remedy}"
            )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name)
        if token is not None and token >= vocab_size:
            raise ValueError(
                f"The tokenizer's `{name}` is {token}, outside the target's vocabulary of {vocab_size}. {remedy}"
            )
