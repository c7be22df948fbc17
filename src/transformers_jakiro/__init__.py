# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Jakiro (arXiv 2502.06282) for Hugging Face Transformers: `target.generate(**inputs, assistant_model=draft)` gives the
target's own tokens in fewer forwards.

Importing registers `JakiroDraftConfig` and `JakiroDraftModel` with the Auto classes and lets `generate` use the tree
loop for Jakiro drafters; it has no other side effect.
"""

import warnings

from transformers import AutoConfig, AutoModel

from ._compat import IncompatibleTransformersError
from .candidate_generator import JakiroCandidateGenerator
from .configuration_jakiro import JakiroDraftConfig
from .generation import (
    JakiroGenerateOutput,
    StepStreamer,
    install_generation_hook,
    jakiro_generate,
    remove_generation_hook,
)
from .modeling_jakiro import JakiroDraftModel, JakiroDraftOutput

__version__ = "0.1.0"

AutoConfig.register(JakiroDraftConfig.model_type, JakiroDraftConfig, exist_ok=True)
AutoModel.register(JakiroDraftConfig, JakiroDraftModel, exist_ok=True)
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
    "StepStreamer",
    "install_generation_hook",
    "jakiro_generate",
    "remove_generation_hook",
]
