# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""How many drafted tokens the target accepts."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import GenerationMixin, PreTrainedModel

from ..core.outputs import JakiroGenerateOutput


def tokens_per_forward(accept_lengths: Sequence[int]) -> float:
    """
    τ: tokens emitted after the prefill / target forwards after the prefill. Each such forward emits one token more
    than it accepts, so τ is one plus the mean of `accept_lengths`. Without such a forward it is 1.

    In a batch, τ is per row: tokens emitted by all rows / the number of forwards of each row, summed over the rows.
    """
    return 1 + sum(accept_lengths) / len(accept_lengths) if accept_lengths else 1.0


def sampling_options(temperature: float) -> dict[str, Any]:
    """Arguments of `generate`: greedy at temperature 0, otherwise sampling from the whole distribution."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def accept_lengths(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    input_ids: torch.Tensor,
    temperature: float,
    max_new_tokens: int,
) -> list[int]:
    """
    Answers a prompt with the drafter.

    Args:
        target, draft: the two models.
        input_ids (`torch.LongTensor` of shape `(1, T)`): the prompt.
        temperature (`float`): 0 is greedy.
        max_new_tokens (`int`): length of the answer at most.

    Returns:
        How many drafted tokens each target forward after the prefill accepted.
    """
    output = cast(GenerationMixin, target).generate(
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
