# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`target.generate(custom_generate=..., assistant_model=draft, trust_remote_code=True)` with a Jakiro drafter."""

from importlib import import_module

from transformers import GenerationMixin, StoppingCriteriaList, StopStringCriteria


def generate(
    model,
    assistant_model=None,
    streamer=None,
    synced_gpus=None,
    tokenizer=None,
    num_assistant_tokens=None,
    stop_strings=None,
    stopping_criteria=None,
    **kwargs,
):
    """
    The decoding loop of the drafter's own code, whether that was loaded with the drafter or is the installed package,
    through transformers' public interface: nothing of transformers is replaced.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        assistant_model (`JakiroDraftModel`): its drafter.
        num_assistant_tokens (`int`, *optional*): nodes per tree; default: the drafter's.
        kwargs: all other arguments of `generate`.

    Raises:
        ValueError: if `assistant_model` is no Jakiro drafter.
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
    if stop_strings is not None:  # `generate` does not hand the tokenizer on to a loop of one's own
        if tokenizer is None:
            raise ValueError("`stop_strings` needs the `tokenizer`, too.")
        stopping_criteria = StoppingCriteriaList(stopping_criteria or [])
        stopping_criteria.append(StopStringCriteria(tokenizer, stop_strings))
    loop = jakiro_generate(
        assistant_model, streamer=streamer, num_assistant_tokens=num_assistant_tokens, synced_gpus=bool(synced_gpus)
    )
    return GenerationMixin.generate(model, custom_generate=loop, stopping_criteria=stopping_criteria, **kwargs)
