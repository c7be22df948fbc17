# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`target.generate(custom_generate=..., assistant_model=draft, trust_remote_code=True)` with a Jakiro drafter."""

from importlib import import_module
from typing import Any

from transformers import GenerationMixin, StoppingCriteriaList, StopStringCriteria


def generate(
    model: Any,
    assistant_model: Any = None,
    streamer: Any = None,
    synced_gpus: bool | None = None,
    tokenizer: Any = None,
    num_assistant_tokens: int | None = None,
    stop_strings: str | list[str] | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    **kwargs: Any,
) -> Any:
    """
    Generates with the decoding loop of the drafter's own code: the code that was loaded with the drafter, or the
    installed package. Uses only transformers' public interface, and replaces nothing in transformers.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        assistant_model (`JakiroDraftModel`): its drafter.
        num_assistant_tokens (`int`, *optional*): nodes per tree. Default: the drafter's.
        kwargs: all other arguments of `generate`, such as `input_ids` `[B, T]`.

    Returns:
        The result of `generate`: tokens `[B, T + new tokens]`, or a `ModelOutput` with `return_dict_in_generate`.

    Raises:
        ValueError: if `assistant_model` is not a Jakiro drafter.
    """
    config = getattr(assistant_model, "config", None)
    if getattr(config, "model_type", None) != "jakiro_draft":
        raise ValueError(
            "This `custom_generate` needs `assistant_model`, a Jakiro drafter loaded with "
            "`AutoModel.from_pretrained(..., trust_remote_code=True)`; got "
            f"{'none' if assistant_model is None else type(assistant_model).__name__}."
        )
    package = type(config).__module__.rpartition(".")[0]
    jakiro_generate = import_module(".generation", package).jakiro_generate
    if stop_strings is not None:  # `generate` does not pass the tokenizer on to a custom loop
        if tokenizer is None:
            raise ValueError("`stop_strings` also needs the `tokenizer`, got none. Give `generate` the target's.")
        stopping_criteria = StoppingCriteriaList(stopping_criteria or [])
        stopping_criteria.append(StopStringCriteria(tokenizer, stop_strings))
    loop = jakiro_generate(
        assistant_model, streamer=streamer, num_assistant_tokens=num_assistant_tokens, synced_gpus=bool(synced_gpus)
    )
    return GenerationMixin.generate(model, custom_generate=loop, stopping_criteria=stopping_criteria, **kwargs)
