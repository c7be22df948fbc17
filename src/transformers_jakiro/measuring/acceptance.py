# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""How many drafted tokens the target accepts."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..core.outputs import JakiroGenerateOutput


def tokens_per_forward(accept_lengths: Sequence[int]) -> float:
    """
    τ: tokens emitted after the prefill / target forwards after the prefill. Each such forward emits one token more
    than it accepts, so this is one plus the mean of `accept_lengths`; 1 where there was no such forward.

    In a batch it is per row: tokens emitted by the rows / the sum of the forwards that each took part in.
    """
    return 1 + sum(accept_lengths) / len(accept_lengths) if accept_lengths else 1.0


def sampling_options(temperature: float) -> dict[str, Any]:
    """Arguments of `generate`: greedy at temperature 0, else samples from the whole distribution."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def accept_lengths(
    target: Any,
    draft: PreTrainedModel,
    input_ids: torch.Tensor,
    temperature: float,
    max_new_tokens: int,
) -> list[int]:
    """
    Answers a prompt `[1, T]` with the drafter.

    Returns:
        How many drafted tokens each target forward after the prefill accepted.
    """
    output = target.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        assistant_model=draft,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
        **sampling_options(temperature),
    )
    assert isinstance(output, JakiroGenerateOutput)
    assert output.accept_lengths is not None
    return output.accept_lengths[0]


__all__ = ["accept_lengths", "sampling_options", "tokens_per_forward"]
