# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Conversations to token ids with a mask of the assistant's tokens, and the collator that batches them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], max_length: int | None = None
) -> dict[str, list[int]]:
    """
    One conversation as `input_ids` and `loss_mask` (1 on the assistant's tokens), cut after `max_length` tokens.

    Raises:
        ValueError: if the tokenizer's chat template does not mark the assistant's tokens with `{% generation %}`.
    """
    encoded = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = list(encoded["assistant_masks"])
    if not any(mask) and any(message["role"] == "assistant" for message in messages):
        raise ValueError(
            "The chat template marks no assistant tokens. Training needs to know which tokens are the answer: wrap "
            "the assistant's content in `{% generation %} ... {% endgeneration %}` in `tokenizer.chat_template`."
        )
    return {"input_ids": list(encoded["input_ids"])[:max_length], "loss_mask": mask[:max_length]}


@dataclass
class JakiroDataCollator:
    """
    Pads on the right.

    ```python
    >>> JakiroDataCollator(pad_token_id=0)([
    ...     {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}, {"input_ids": [8, 9], "loss_mask": [0, 1]}
    ... ])
    {'input_ids': tensor([[5, 6, 7], [8, 9, 0]]),
     'attention_mask': tensor([[1, 1, 1], [1, 1, 0]]),
     'loss_mask': tensor([[0, 1, 1], [0, 1, 0]])}
    ```
    """

    pad_token_id: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.as_tensor(feature["input_ids"]) for feature in features]
        masks = [torch.as_tensor(feature["loss_mask"]) for feature in features]

        def pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

        return {
            "input_ids": pad(ids, self.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
            "loss_mask": pad(masks, 0),
        }
