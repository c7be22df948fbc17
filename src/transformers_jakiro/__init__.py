# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Jakiro (arXiv 2502.06282) for Hugging Face Transformers: `target.generate(**inputs, assistant_model=draft)` gives the
target's own tokens in fewer forwards.

Importing registers `JakiroDraftConfig` and `JakiroDraftModel` with the Auto classes and lets `generate` use the tree
loop for Jakiro drafters; it has no other side effect. The trainer is imported on first access.
"""
# ruff: noqa: E402 - the versions are checked before imports that fail on unsupported ones

from .core.versions import IncompatibleTransformersError, UnsupportedVersionError, check_versions

check_versions()

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from .candidate_generator import JakiroCandidateGenerator
from .core.configuration_jakiro import JakiroDraftConfig
from .core.drafting import register_drafter
from .core.generation import install_generation_hook, jakiro_generate, remove_generation_hook
from .core.jakiro_drafter import JakiroDrafter
from .core.modeling_jakiro import JakiroDraftOutput
from .core.outputs import JakiroGenerateOutput
from .core.streaming import StepStreamer
from .drafter import JakiroDraftModel

if TYPE_CHECKING:
    from .training.arguments import JakiroTrainingArguments
    from .training.trainer import JakiroTrainer

__version__ = "0.1.0"

# imported on first access, as they import PEFT and accelerate
_LAZY = {"JakiroTrainer": ".training.trainer", "JakiroTrainingArguments": ".training.arguments"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


AutoConfig.register(JakiroDraftConfig.model_type, JakiroDraftConfig, exist_ok=True)
AutoModel.register(JakiroDraftConfig, JakiroDraftModel, exist_ok=True)
register_drafter(JakiroDraftConfig, JakiroDrafter)
try:
    install_generation_hook()
except IncompatibleTransformersError as error:  # the package stays usable without the hook
    warnings.warn(
        f"{error} Until then use `target.generate(**inputs, custom_generate=jakiro_generate(draft))`.", stacklevel=2
    )

__all__ = [
    "IncompatibleTransformersError",
    "JakiroCandidateGenerator",
    "JakiroDraftConfig",
    "JakiroDraftModel",
    "JakiroDraftOutput",
    "JakiroGenerateOutput",
    "JakiroTrainer",
    "JakiroTrainingArguments",
    "StepStreamer",
    "UnsupportedVersionError",
    "install_generation_hook",
    "jakiro_generate",
    "register_drafter",
    "remove_generation_hook",
]
