# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The drafter as users have it: the model of `core`, with methods that read original checkpoints and publish it."""

from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .core import modeling_jakiro


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
        from .hub.conversion import load_original  # here: importing the package is not to import the Hub's part

        return cast(Self, load_original(pretrained_model_name_or_path, target=target, model_class=cls, **kwargs))

    # transformers wraps its own method, which hides its signature
    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        Publishes the drafter like [`~transformers.PreTrainedModel.push_to_hub`], with a model card made for drafters.
        See [`~transformers_jakiro.hub.publishing.push_to_hub`].
        """
        from .hub.publishing import push_to_hub

        return push_to_hub(self, repo_id, **kwargs)

    @torch.no_grad()
    def fold_multipliers(self) -> None:
        """
        Moves the config's `embedding_multiplier` and `feature_multiplier` into the weights, and sets them to 1: the
        same function, for formats that know no multipliers. Such a drafter is hard to train further.
        """
        parts: Any = self
        scale = self.config.feature_multiplier
        if (self.config.embedding_multiplier, scale) == (1, 1):
            return
        parts.fc.weight[:, : self.config.hidden_size] *= self.config.embedding_multiplier / scale
        if parts.fc.bias is not None:
            parts.fc.bias /= scale
        if self.config.feature_layers is not None:
            parts.feature_fusion.proj.weight /= scale
        for layer in parts.layers:
            if isinstance(layer.input_layernorm, nn.Identity):
                layer.self_attn.qkv_proj.weight *= scale
            for projection in (layer.self_attn.o_proj, layer.mlp.experts.down_proj):
                projection.weight /= scale
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                if isinstance(norm, modeling_jakiro.JakiroRMSNorm) and norm.eps is not None:
                    norm.eps /= scale**2
        if self.config.final_norm:
            parts.norm.eps /= scale**2
            parts.norm.weight /= scale
        parts.config.rms_norm_eps /= scale**2
        self.config.embedding_multiplier = self.config.feature_multiplier = 1.0


__all__ = ["JakiroDraftModel"]
