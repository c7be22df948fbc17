# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The drafter as users have it: the model of `core`, and its ways to and from other places."""

from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedConfig, PreTrainedModel

from .core import modeling_jakiro
from .hub.conversion import load_original
from .hub.publishing import push_to_hub


class JakiroDraftModel(modeling_jakiro.JakiroDraftModel):
    __doc__ = modeling_jakiro.JakiroDraftModel.__doc__

    @classmethod
    def from_original(
        cls,
        pretrained_model_name_or_path: str | Path,
        target: PreTrainedModel | PreTrainedConfig | str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        Reads a checkpoint in the layout of the published Jakiro, Jakiro\\* and EAGLE-1/2/3 drafters.
        See [`~transformers_jakiro.hub.conversion.load_original`].
        """
        return load_original(pretrained_model_name_or_path, target=target, model_class=cls, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """
        As [`~transformers.PreTrainedModel.push_to_hub`], with a model card made for a drafter.
        See [`~transformers_jakiro.hub.publishing.push_to_hub`].
        """
        return push_to_hub(self, repo_id, **kwargs)


__all__ = ["JakiroDraftModel"]
