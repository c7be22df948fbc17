# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The key map between published checkpoints and [`JakiroDraftModel`]: which of their tensors make up each of ours.

Symbols in shape comments: H hidden size, N experts, I inner width of one expert.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..core.configuration_jakiro import JakiroDraftConfig
from .eagle3 import Layout, eagle3_layout


def _layout(config: JakiroDraftConfig) -> Layout:
    """
    The key map, both ways: each of our tensors is the concatenation, along a dimension, of original tensors.

    Returns:
        `{our name: (dimension, {original name: its shape})}`.

    Raises:
        ValueError: if no original checkpoint has experts of this kind.
    """
    eagle3 = config.fusion == "eagle3"
    if not eagle3:
        _check_has_layout(config)
    fields: dict[str, Any] = config.to_dict()
    hidden, inner = fields["hidden_size"], fields["expert_intermediate_size"]
    q_size = fields["num_attention_heads"] * fields["head_dim"]
    kv_size = fields["num_key_value_heads"] * fields["head_dim"]
    if eagle3:
        layout = eagle3_layout(config)
    else:
        layout = {"fc.weight": (0, {"fc.weight": (hidden, 2 * hidden)})}
        if config.fusion_bias:
            layout["fc.bias"] = (0, {"fc.bias": (hidden,)})
    for layer in range(config.num_hidden_layers):
        ours = f"layers.{layer}"
        attention, norms = f"{ours}.self_attn", ["post_attention_layernorm"]
        qkv, qkv_in = {"q": q_size, "k": kv_size, "v": kv_size}, hidden
        if eagle3 and layer == 0:
            qkv_in = 2 * hidden
            norms += ["input_layernorm", "hidden_norm"]
        layout[f"{attention}.qkv_proj.weight"] = (
            0,
            {f"{attention}.{x}_proj.weight": (rows, qkv_in) for x, rows in qkv.items()},
        )
        if config.attention_bias:
            layout[f"{attention}.qkv_proj.bias"] = (
                0,
                {f"{attention}.{x}_proj.bias": (rows,) for x, rows in qkv.items()},
            )
        layout[f"{attention}.o_proj.weight"] = (0, {f"{attention}.o_proj.weight": (hidden, q_size)})
        if layer > 0:
            norms.append("input_layernorm")
        for norm in norms:
            layout[f"{ours}.{norm}.weight"] = (0, {f"{ours}.{norm}.weight": (hidden,)})

        if config.num_experts == 1:
            mlps = [f"{ours}.mlp"]
        else:
            mlps = [f"{ours}.mlp_moe.experts.{expert}" for expert in range(config.num_experts)]
            # only the last layer has a contrastive branch, hence its two logits
            has_contrast = config.head_mode == "contrastive" and layer == config.num_hidden_layers - 1
            gate_size = config.num_experts + (2 if has_contrast else 0)
            layout[f"{ours}.mlp.gate.weight"] = (0, {f"{ours}.mlp_moe.gate.weight": (gate_size, hidden)})
        if config.gated_experts:
            gate_up = _named(mlps, "gate_proj", inner, hidden) | _named(mlps, "up_proj", inner, hidden)
            layout[f"{ours}.mlp.experts.gate_up_proj.weight"] = (0, gate_up)
            down = _named(mlps, "down_proj", hidden, inner)
        else:
            layout[f"{ours}.mlp.experts.up_proj.weight"] = (0, _named(mlps, "fc", inner, hidden))
            down = _named(mlps, "proj", hidden, inner)
        layout[f"{ours}.mlp.experts.down_proj.weight"] = (1, down)
    return layout


def _check_has_layout(config: JakiroDraftConfig) -> None:
    """Raises `ValueError` if the layouts of Jakiro and EAGLE-1/2 have no drafter of this kind."""
    kind = (config.gated_experts, config.num_experts > 1, config.head_mode)
    if kind not in ((True, True, "contrastive"), (False, True, "decoupled"), (True, False, "single")):
        raise ValueError(
            "The original layout has gated experts with a contrastive branch (Jakiro), two-layer experts with "
            "decoupled heads (Jakiro*) or one gated expert with a single head (EAGLE-1/2), got "
            f"gated_experts={config.gated_experts}, num_experts={config.num_experts}, head_mode='{config.head_mode}'. "
            "Save this drafter with `save_pretrained` instead."
        )
    if (config.embedding_multiplier, config.feature_multiplier) != (1, 1):
        raise ValueError(
            "The original layout has no multipliers of embeddings and features, got "
            f"embedding_multiplier={config.embedding_multiplier}, feature_multiplier={config.feature_multiplier}. "
            "Call `draft.fold_multipliers()` first."
        )
    if config.final_norm:
        raise ValueError(
            "The original layout has no norm after the experts, got `final_norm=True`. Save this drafter with "
            "`save_pretrained` instead; to export a drafter, train it with `final_norm=False`."
        )
    if config.feature_layers is not None:
        raise ValueError(
            "Drafters in the original layout read only the target's last hidden states, got "
            f"feature_layers={config.feature_layers}. Save this drafter with `save_pretrained` instead."
        )
    if config.draft_vocab_size is not None:
        raise ValueError(
            f"The original layout knows no part of the vocabulary to draft, got `draft_vocab_size="
            f"{config.draft_vocab_size}` of {config.vocab_size}. Save this drafter with `save_pretrained` instead."
        )


def _named(modules: list[str], projection: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{module}.{projection}.weight": shape for module in modules}


def original_shapes(config: JakiroDraftConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for _, sources in _layout(config).values() for name, shape in sources.items()}


def check_tensors(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises `ValueError` that lists the tensors that are missing, unexpected or not of the shape in `shapes`."""
    problems = [f"`{name}` {shape} is missing" for name, shape in shapes.items() if name not in tensors]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in shapes:
            problems.append(f"`{name}` {shape} is unexpected")
        elif shape != shapes[name]:
            problems.append(f"`{name}` has shape {shape}, expected {shapes[name]}")
    if problems:
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(
            f"its {len(tensors)} tensors are not the {len(shapes)} of {what} of this architecture:\n  "
            + "\n  ".join(problems[:12])
            + more
            + "\nDownload the checkpoint again; if it is complete, its architecture is not supported."
        )


def original_state_dict_to_jakiro(
    tensors: Mapping[str, torch.Tensor], config: JakiroDraftConfig
) -> dict[str, torch.Tensor]:
    """
    Renames and fuses the tensors of an original checkpoint (without embeddings and head).

    Args:
        tensors (`Mapping[str, torch.Tensor]`): the published tensors and shapes, names without prefix.
        config ([`JakiroDraftConfig`]): the architecture they belong to.

    Returns:
        `dict[str, torch.Tensor]`: the state dict of a [`JakiroDraftModel`], which shares no memory with `tensors`.

    Raises:
        ValueError: if tensors are missing, unexpected or of a wrong shape, or if there is no original layout for the
            architecture.
    """
    check_tensors(tensors, original_shapes(config), "an original checkpoint")
    return {
        name: torch.cat([tensors[source] for source in sources], dim=dim)
        for name, (dim, sources) in _layout(config).items()
    }


def jakiro_state_dict_to_original(
    tensors: Mapping[str, torch.Tensor], config: JakiroDraftConfig
) -> dict[str, torch.Tensor]:
    """
    The exact inverse of [`original_state_dict_to_jakiro`], for state dicts or anything shaped like one (gradients).

    Args:
        tensors (`Mapping[str, torch.Tensor]`): the state dict of a [`JakiroDraftModel`].
        config ([`JakiroDraftConfig`]): the drafter's config.

    Returns:
        `dict[str, torch.Tensor]`: contiguous tensors under their original names and with their original shapes.

    Raises:
        ValueError: if tensors are missing, unexpected or of a wrong shape, or if there is no original layout for the
            architecture.
    """
    if config.fusion == "eagle3":
        raise ValueError(
            "An EAGLE-3 drafter is not written back. It is not trained here, so the checkpoint that it was converted "
            "from holds the same weights in a layout that other loaders read. The layouts of Jakiro and EAGLE-1/2 "
            "have no place for them (a head and norms of its own, attention over embedding and feature)."
        )
    layout = _layout(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (dim, sources) in layout.items():
        shape = list(next(iter(sources.values())))
        shape[dim] = sum(source[dim] for source in sources.values())
        shapes[name] = tuple(shape)
    check_tensors(tensors, shapes, "a JakiroDraftModel")
    original = {}
    for name, (dim, sources) in layout.items():
        parts = tensors[name].split([shape[dim] for shape in sources.values()], dim=dim)
        original.update({source: part.clone() for source, part in zip(sources, parts, strict=True)})
    return {name: tensor.contiguous() for name, tensor in original.items()}


__all__ = ["check_tensors", "jakiro_state_dict_to_original", "original_shapes", "original_state_dict_to_jakiro"]
