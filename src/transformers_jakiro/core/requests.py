# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What is refused before anything is prepared or read, and what a target can verify."""

import sys
import warnings
from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationConfig, PreTrainedModel

from . import compat
from .drafting import require_drafter_class
from .masks import why_no_trees
from .rotary import RotaryBorders
from .target_cache import check_cache, is_static

# packages between a user's call of `generate` and this file, which may be loaded as remote code
_LIBRARIES = ("transformers", "transformers_modules", "torch", "peft", "contextlib", __name__.split(".")[0])


def check_request(model: PreTrainedModel, assistant: Any, generation_config: GenerationConfig) -> None:
    """
    Refuses what a drafter cannot do for a target.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        assistant: what `generate` was given as `assistant_model`; one of ours.
        generation_config ([`~transformers.GenerationConfig`]): the call's.

    Raises:
        ValueError: for a vocabulary or hidden size that differs, beams, and a generation without a cache.
        NotImplementedError: for kinds of targets that cannot be drafted for (yet).
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"A drafter needs a decoder-only target, and {name} is an encoder-decoder model.")
    if compat.is_stateful(model):
        raise NotImplementedError(
            f"{name} carries a recurrent state that cannot be rolled back to the last accepted token, so nothing can "
            "be drafted for it. Leave out `assistant_model`."
        )
    if compat.activates_adapters(model):
        raise NotImplementedError(
            f"{name} has an activated LoRA (`alora_invocation_tokens`), which counts the tokens of a forward from its "
            "end: of a tree it would adapt other nodes. Leave out `assistant_model`, or disable the adapter."
        )
    for role, module in (("target", model), ("drafter", assistant)):
        check_mode(role, module)
    require_drafter_class(assistant).view(assistant, model)
    if (generation_config.num_beams or 1) > 1:
        raise ValueError(
            f"Drafting needs `num_beams=1`, got {generation_config.num_beams}: beam search would run without the "
            "drafter. Leave out `num_beams` or `assistant_model`."
        )
    if not isinstance(generation_config.output_hidden_states or False, bool):
        raise NotImplementedError(
            "With a drafter, `output_hidden_states` gives those of all layers or none, got "
            f"{generation_config.output_hidden_states}. Pass True and take the ones you need."
        )
    if generation_config.use_cache is False:
        raise ValueError("Drafting needs the key/value cache, got `use_cache=False`. Pass `use_cache=True`.")


def check_mode(role: str, module: Any) -> None:
    """
    Refuses train mode where it makes a difference: with gradient checkpointing models drop their cache, and what
    dropout draws for a tree is not what it draws for a token. `module`: the target or the drafter.
    """
    if not getattr(module, "training", False):
        return
    remedy = f"Call `.eval()` on the {role} while generating."
    for part in module.modules():
        if getattr(part, "gradient_checkpointing", False):
            raise ValueError(
                f"The {role} is in train mode with gradient checkpointing, in which models keep no key/value cache. "
                f"{remedy}"
            )
        drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        named = [
            name for name, value in vars(part).items() if "drop" in name and isinstance(value, float) and value > 0
        ]
        if drops or named:
            raise ValueError(
                f"The {role} is in train mode, with dropout in its {type(part).__name__}, so its answers depend on "
                f"chance. {remedy}"
            )


def check_prompt(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
    """Raises `ValueError` for an empty prompt `[B, 0]`."""
    if input_ids.shape[1] == 0 and model_kwargs.get("inputs_embeds") is None:
        raise ValueError(
            "The prompt is empty: a drafter reads what the target makes of the prompt, so there must be at least one "
            "token, for example the tokenizer's `bos_token`."
        )


def why_only_chains(model: PreTrainedModel, cache: Cache, generation_config: GenerationConfig) -> str | None:
    """
    Why a target can verify chains only, as far as its attention and cache tell; None if they allow trees.

    Raises:
        NotImplementedError: if its cache cannot even do that.
    """
    return check_cache(cache, generation_config) or why_no_trees(model)


def accept_chains(model: PreTrainedModel, cache: Cache, reason: str) -> None:
    """
    Warns that chains are drafted, and why.

    Raises:
        NotImplementedError: for a static cache.
    """
    name = type(model).__name__
    if is_static(cache):
        raise NotImplementedError(
            f"With a static cache, {name} must be able to verify trees, but {reason}. Use the default dynamic cache."
        )
    warnings.warn(f"The drafter proposes chains instead of trees for {name}: {reason}.", stacklevel=_level_of_caller())


def check_borders(model: PreTrainedModel, cache: Cache, borders: RotaryBorders) -> None:
    """Raises `NotImplementedError` if a generation in a static cache may come to where rotary embeddings change."""
    if is_static(cache):
        raise NotImplementedError(
            f"The rotary embeddings of {type(model).__name__} change at a length of {sorted(borders.borders)} tokens, "
            "which this generation may come to. Use the default dynamic cache, or leave out `assistant_model`."
        )


def _level_of_caller() -> int:
    """The `stacklevel` at which the function that calls this one finds whoever called `generate`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level


__all__ = ["accept_chains", "check_borders", "check_prompt", "check_request", "why_only_chains"]
