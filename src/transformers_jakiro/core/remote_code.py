# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Where the code that is published with a drafter begins: `AutoModel.from_pretrained(..., trust_remote_code=True)` loads
the drafter from here where `transformers_jakiro` is not installed, and `target.generate(assistant_model=draft)` then
uses the tree loop. Not for import from the package, which does the same by itself.

transformers copies the files that it finds by following lines of the form `from .module import name`, and gives each
copy of this file classes of its own: so config and drafter must be loaded from this same file.
"""

# ruff: noqa: E402 - the versions are checked before imports that fail on unsupported ones

from .versions import IncompatibleTransformersError, check_versions

check_versions("install a newer transformers-jakiro and import it before the drafter is loaded")

import warnings

from .configuration_jakiro import JakiroDraftConfig
from .drafting import register_drafter
from .generation import install_generation_hook
from .jakiro_drafter import JakiroDrafter
from .modeling_jakiro import JakiroDraftModel

# `save_pretrained` then copies this file and all that it needs, as it was loaded
JakiroDraftConfig.__module__ = JakiroDraftModel.__module__ = __name__
register_drafter(JakiroDraftConfig, JakiroDrafter)
try:
    install_generation_hook()
except IncompatibleTransformersError as error:  # the drafter stays usable without the hook
    warnings.warn(
        f"{error} Until then use `target.generate(..., assistant_model=draft, custom_generate=<this repository>, "
        "trust_remote_code=True)`.",
        stacklevel=2,
    )

__all__ = ["JakiroDraftConfig", "JakiroDraftModel"]
