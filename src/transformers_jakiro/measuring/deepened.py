# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
A target with identity layers: the same tokens, at the layer ratio of a larger model.

The speed-up of a drafter depends on how much more expensive the target is than the drafter's one layer. A small target
with its own trained drafter shows the acceptance of a large one, but not its speed. Inserted layers whose output
projections are zero take time and add nothing to the residual stream.
"""

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel


def layer_positions(num_layers: int, num_deepened: int) -> list[int]:
    """Indices of the real layers among all, spread evenly: [0, 2, 5] for 3 of 8."""
    return [index * num_deepened // num_layers for index in range(num_layers)]


@torch.no_grad()
def deepen(target: PreTrainedModel, num_layers: int) -> list[int]:
    """
    Inserts identity layers into a Llama-like target, in place. Each is a copy of the layer before it, with attention
    and MLP output projections (`self_attn.o_proj`, `mlp.down_proj`) set to zero.

    Args:
        target ([`~transformers.PreTrainedModel`]): a causal language model.
        num_layers (`int`): number of layers afterwards, including the target's own.

    Returns:
        `positions`: index of each real layer among all. Hidden states that a drafter reads (`feature_layers`) move
        along: those before layer i are now those before layer `positions[i]`.

    Raises:
        ValueError: for fewer layers than the target has, and for architectures whose layers cannot be silenced. The
            latter may be noticed only afterwards; load the target again then.
    """
    name = type(target).__name__
    config = target.config.get_text_config(decoder=True)
    decoder = target.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(_outputs(layer) for layer in layers):
        raise ValueError(
            "Identity layers can only be inserted into Llama-like targets, whose layers have `self_attn.o_proj` and "
            f"`mlp.down_proj`. The layers of {name} do not have them. Leave out `--deepen`."
        )
    num_real = len(layers)
    if num_layers < num_real:
        raise ValueError(f"`--deepen` must be at least the target's {num_real} layers, got {num_layers}.")
    device = cast(torch.Tensor, target.get_input_embeddings().weight).device
    tokens = torch.arange(8, device=device)[None] % config.vocab_size
    before = target(tokens).logits
    positions = layer_positions(num_real, num_layers)
    sources = [sum(position <= index for position in positions) - 1 for index in range(num_layers)]
    deepened = []
    for index, source in enumerate(sources):
        layer = layers[source]
        if index not in positions:
            layer = copy.deepcopy(layer)
            for projection in _outputs(layer):
                for parameter in projection.parameters():
                    parameter.zero_()
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                cast(Any, module).layer_idx = index
        deepened.append(layer)
    decoder.layers = nn.ModuleList(deepened)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[source] for source in sources]
    config.num_hidden_layers = num_layers
    if not torch.equal(target(tokens).logits, before):
        raise ValueError(
            f"Inserted layers change what {name} computes, although their output projections are zero: its layers add "
            "something else to the residual stream. Leave out `--deepen`."
        )
    return positions


def _outputs(layer: nn.Module) -> list[nn.Module]:
    """A layer's projections into the residual stream; empty if the layer is not Llama-like."""
    found = [
        getattr(getattr(layer, block, None), projection, None)
        for block, projection in (("self_attn", "o_proj"), ("mlp", "down_proj"))
    ]
    projections = [projection for projection in found if isinstance(projection, nn.Linear)]
    return [*projections] if len(projections) == len(found) else []


__all__ = ["deepen", "layer_positions"]
