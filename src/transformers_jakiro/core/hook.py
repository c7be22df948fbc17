# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What importing the package changes in transformers: `generate` and pipelines take our drafters as assistants, and
"sdpa" attention reads the masks of our trees.
"""

import copy
import functools
import inspect
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import transformers
from transformers import AutoConfig, AutoModel, Cache, GenerationConfig, GenerationMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pipelines import base as pipelines

from .attention import TAKES_PACKED_HEADS, packed_attention
from .compat import CACHE
from .versions import IncompatibleTransformersError

_HOOKED = {
    "_assisted_decoding": (
        "self",
        "input_ids",
        "logits_processor",
        "stopping_criteria",
        "generation_config",
        "synced_gpus",
        "streamer",
        "assistant_model",
        "model_kwargs",
    ),
    "_validate_generation_mode": ("self", "generation_mode", "generation_config", "generation_mode_kwargs"),
    "_prepare_generation_config": ("self", "generation_config", "kwargs"),
}
_CALLED = {
    "_prefill": ("self", "input_ids", "generation_config", "model_kwargs"),
    "_optimize_model_for_decode": ("self",),
}
_HOOKED_IN_PIPELINES = {"load_assistant_model": ("model", "assistant_model", "assistant_tokenizer")}
_HOOKED_ATTENTION = ("module", "query", "key", "value", "attention_mask")
_ORIGINAL = "_transformers_jakiro_original"  # attribute of what the hook puts in place: what stood there before
_LOOPS = "_transformers_jakiro_loops"
_EXPLICIT = "_explicit_num_assistant_tokens"


def check_signatures() -> None:
    """Raises [`IncompatibleTransformersError`] if a method this package relies on is gone or changed."""
    functions = [
        (f"{owner.__name__}.{name}", getattr(owner, name, lambda: None), expected)
        for owner, names in ((GenerationMixin, {**_HOOKED, **_CALLED}), (pipelines, _HOOKED_IN_PIPELINES))
        for name, expected in names.items()
    ]
    functions.append(("ALL_ATTENTION_FUNCTIONS['sdpa']", ALL_ATTENTION_FUNCTIONS["sdpa"], _HOOKED_ATTENTION))
    for name, function, expected in functions:
        parameters = inspect.signature(inspect.unwrap(function)).parameters
        missing = [parameter for parameter in expected if parameter not in parameters]
        if missing:
            raise IncompatibleTransformersError(
                f"`{name}` of transformers {transformers.__version__} lacks the parameters {missing} "
                "that `generate(assistant_model=<Jakiro drafter>)` relies on. Another package may have replaced it: "
                "import transformers_jakiro before that package."
            )


def install_hook(is_ours: Callable[[Any], bool], validate: Callable[..., None], decode: Callable[..., Any]) -> None:
    """
    Lets `generate(assistant_model=...)` of every model use `decode` for the assistants that `is_ours`, and only for
    them, and `pipeline(..., assistant_model=...)` take them or their folder or Hub id; the "sdpa" attention learns to
    read packed tree masks (see [`num_packed_heads`]). Idempotent; [`remove_hook`] takes it back. Copies of this code
    in one process (the package, and what was loaded with checkpoints) share the hook: the first one installs it, each
    adds its loop for its own drafters.

    Args:
        is_ours: says whether an assistant is ours.
        validate: called with (target, assistant, generation_config) before anything is prepared.
        decode: the decoding loop, called with the arguments of `GenerationMixin._assisted_decoding`.

    Raises:
        IncompatibleTransformersError: if the signatures changed; nothing is installed then.
    """
    check_signatures()
    loop = (is_ours, validate, decode)
    if is_hook_installed():
        loops = getattr(GenerationMixin._assisted_decoding, _LOOPS)
        if loop not in loops:
            loops.append(loop)
        return
    loops = [loop]

    def assisted_decoding(original, self, *args, **kwargs):
        for is_ours, _, decode in loops:
            if is_ours(kwargs.get("assistant_model")):
                return decode(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    def validate_generation_mode(original, self, generation_mode, generation_config, generation_mode_kwargs):
        assistant_model = generation_mode_kwargs.get("assistant_model")
        for is_ours, validate, _ in loops:
            if is_ours(assistant_model):
                validate(self, assistant_model, generation_config)
                generation_config = copy.copy(generation_config)
                generation_config.num_return_sequences = 1  # other assistants cannot do more
        return original(self, generation_mode, generation_config, generation_mode_kwargs)

    def prepare_generation_config(original, self, generation_config, *args, **kwargs):
        # `generate` fills in a default of 20: remember whether the number was asked for
        explicit = kwargs.get("num_assistant_tokens")
        for config in (generation_config, self.generation_config):
            if explicit is None and config is not None:  # pipelines of 5.15 prepare theirs before; goes with 5.15
                explicit = getattr(config, _EXPLICIT, config.num_assistant_tokens)
        prepared, model_kwargs = original(self, generation_config, *args, **kwargs)
        setattr(prepared, _EXPLICIT, explicit)
        if isinstance(model_kwargs.get(CACHE), Cache):  # goes when 5.17 is the oldest version: it marks it itself
            model_kwargs[CACHE]._is_user_defined = True
        return prepared, model_kwargs

    def load_assistant_model(original, model, assistant_model, assistant_tokenizer):
        # the original wants a tokenizer beside each assistant, or the same special tokens: a drafter needs neither
        drafter = assistant_model
        if isinstance(drafter, str | os.PathLike):
            config = AutoConfig.from_pretrained(drafter)
            if any(is_ours(SimpleNamespace(config=config)) for is_ours, _, _ in loops):
                drafter = AutoModel.from_pretrained(drafter, dtype=model.dtype).to(model.device)
        if any(is_ours(drafter) for is_ours, _, _ in loops):
            return drafter, None
        return original(model, assistant_model, assistant_tokenizer)

    for owner, name, wrapper in (
        (GenerationMixin, "_assisted_decoding", assisted_decoding),
        (GenerationMixin, "_validate_generation_mode", validate_generation_mode),
        (GenerationMixin, "_prepare_generation_config", prepare_generation_config),
        (pipelines, "load_assistant_model", load_assistant_model),
    ):
        setattr(owner, name, _bind(wrapper, getattr(owner, name)))
    setattr(GenerationMixin._assisted_decoding, _LOOPS, loops)
    attention = _bind(packed_attention, ALL_ATTENTION_FUNCTIONS["sdpa"])
    setattr(attention, TAKES_PACKED_HEADS, True)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)


def _bind(wrapper: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def hooked(*args, **kwargs):
        return wrapper(original, *args, **kwargs)

    setattr(hooked, _ORIGINAL, original)
    return hooked


def is_hook_installed() -> bool:
    return hasattr(GenerationMixin._assisted_decoding, _ORIGINAL)


def remove_hook(is_ours: Callable[[Any], bool]) -> None:
    """
    Takes back the loop that was installed with `is_ours`, and with the last one the hook: `GenerationMixin`, the
    pipelines and the attention get their own functions back. Does nothing if it is not installed.
    """
    if not is_hook_installed():
        return
    loops = getattr(GenerationMixin._assisted_decoding, _LOOPS)
    loops[:] = [loop for loop in loops if loop[0] is not is_ours]
    if not loops:
        for owner, names in ((GenerationMixin, _HOOKED), (pipelines, _HOOKED_IN_PIPELINES)):
            for name in names:
                setattr(owner, name, getattr(getattr(owner, name), _ORIGINAL))
        if hasattr(ALL_ATTENTION_FUNCTIONS["sdpa"], _ORIGINAL):
            ALL_ATTENTION_FUNCTIONS.register("sdpa", getattr(ALL_ATTENTION_FUNCTIONS["sdpa"], _ORIGINAL))


def explicit_num_assistant_tokens(generation_config: GenerationConfig) -> int | None:
    """`num_assistant_tokens` if the caller or the target's generation config set it, else None."""
    return getattr(generation_config, _EXPLICIT, None)
