# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Infers the architecture of a published drafter from the names and shapes of its tensors. Its config only supplies what
shapes cannot tell, as it holds fields that do not apply.

Symbols in shape comments: V vocabulary, H hidden size.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..core.configuration_jakiro import JakiroDraftConfig
from .eagle3 import infer_draft_vocab_size, infer_eagle3, is_eagle3
from .reading import config_int, matrix_shape

_PUBLISHED_MAX_POSITIONS = 2048  # the default of the published code


def infer_config(
    tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any], target: PreTrainedConfig | None
) -> JakiroDraftConfig:
    """
    Args:
        tensors: original tensors without prefix, including ignored ones.
        original: the checkpoint's `config.json`.
        target: the target's config.

    Raises:
        ValueError: if tensors that determine the architecture are missing or odd, or if config, tensors and target
            contradict each other.
    """
    text_config = target.get_text_config(decoder=True) if target is not None else None
    values = _infer_architecture(tensors, original)
    if is_eagle3(tensors, original):
        values |= infer_eagle3(tensors, original, values["hidden_size"], text_config)
    _check_against_config(original, values)
    values["vocab_size"] = config_int(original, "vocab_size")
    if text_config is not None:
        _check_against_target(values, text_config)
        values["vocab_size"] = text_config.vocab_size
        values["target_name_or_path"] = getattr(target, "name_or_path", None) or None
    elif values["vocab_size"] is None:
        raise ValueError("its config.json lacks `vocab_size`: give `target`, or add the target's to config.json.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values[name] = getattr(text_config, name, None) if text_config is not None else original.get(name)
    source = "its config.json" if text_config is None else "the config of the target"
    _check_embeddings(tensors, (values["vocab_size"], values["hidden_size"]), source)
    values["rms_norm_eps"] = _rms_norm_eps(original)
    values["max_position_embeddings"] = config_int(original, "max_position_embeddings") or _PUBLISHED_MAX_POSITIONS
    values["rope_parameters"] = _rope_parameters(original)
    values["static_tree"] = original.get("static_tree")
    if values.get("fusion") == "eagle3":
        values["draft_vocab_size"] = infer_draft_vocab_size(tensors, original, values["vocab_size"])
    try:
        return JakiroDraftConfig(**values)
    except (StrictDataclassError, KeyError, TypeError) as error:
        raise ValueError(f"its config.json results in an invalid config: {error}") from error


def _check_against_target(values: Mapping[str, Any], target: PreTrainedConfig) -> None:
    """Raises `ValueError` if the drafter's sizes are not those of the target."""
    read_size = values.get("target_hidden_size") or values["hidden_size"]
    for name, got in (("hidden_size", read_size), ("vocab_size", values["vocab_size"])):
        expected = getattr(target, name)
        if got not in (None, expected):
            raise ValueError(
                f"the drafter has `{name}={got}`, the target {expected}. A drafter only fits the target "
                "it was trained for: give that one."
            )


def _check_embeddings(tensors: Mapping[str, torch.Tensor], expected: tuple[int, int], source: str) -> None:
    """Raises `ValueError` if the drafter has embeddings that are not of the `expected` shape `[V, H]`."""
    embeddings = tensors.get("embed_tokens.weight")
    if embeddings is not None and tuple(embeddings.shape) != expected:
        raise ValueError(
            f"`embed_tokens.weight` has shape {tuple(embeddings.shape)}, expected {expected} by `vocab_size` in "
            f"{source}. Use the config or the target that belongs to these weights."
        )


def _rms_norm_eps(original: Mapping[str, Any]) -> float:
    eps = original.get("rms_norm_eps")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise ValueError(
            f"its config.json must have `rms_norm_eps`, a number between 0 and 1, got {eps!r}. Add the target's."
        )
    return float(eps)


def _infer_architecture(tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of [`JakiroDraftConfig`] that follow from names, shapes and the number of attention heads."""
    hidden_size, fc_in = matrix_shape(tensors, "fc.weight")
    if fc_in != 2 * hidden_size and not is_eagle3(tensors, original):
        raise ValueError(
            f"`fc.weight` has shape {(hidden_size, fc_in)}, expected {(hidden_size, 2 * hidden_size)}: it must fuse "
            "one embedding and one feature of the target's hidden size."
        )
    num_layers = count_indices(tensors, r"layers\.(\d+)\.self_attn\..+")
    num_heads = config_int(original, "num_attention_heads")
    if num_heads is None:
        raise ValueError("its config.json lacks `num_attention_heads`, which shapes cannot tell. Add it.")
    q_size, _ = matrix_shape(tensors, "layers.0.self_attn.q_proj.weight")
    kv_size, _ = matrix_shape(tensors, "layers.0.self_attn.k_proj.weight")
    head_dim = q_size // num_heads
    if q_size % num_heads != 0 or kv_size % head_dim != 0:
        raise ValueError(
            f"`num_attention_heads={num_heads}` in its config.json does not divide the attention: q_proj has {q_size} "
            f"rows, k_proj {kv_size}. Correct it to the head count that the drafter was trained with."
        )

    num_experts, inner_size, gated = _infer_experts(tensors, num_layers)
    head_mode = "single" if num_experts == 1 else "contrastive" if gated else "decoupled"
    activation = original.get("hidden_act", "silu") if gated else "gelu"  # Jakiro* ignores the field
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise ValueError(
            f"its config.json says `hidden_act={activation!r}`, which is not an activation of Transformers. Correct "
            "the field."
        )
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": kv_size // head_dim,
        "head_dim": head_dim,
        "hidden_act": activation,
        "attention_bias": any(f"layers.0.self_attn.{x}_proj.bias" in tensors for x in "qkv"),
        "fusion_bias": "fc.bias" in tensors,
        "num_experts": num_experts,
        "num_experts_per_tok": min(2, num_experts),
        "expert_intermediate_size": inner_size,
        "gated_experts": gated,
        "head_mode": head_mode,
    }


def _infer_experts(tensors: Mapping[str, torch.Tensor], num_layers: int) -> tuple[int, int, bool]:
    """The number of experts, the inner width of an expert, and whether experts are gated."""
    moe = "layers.0.mlp_moe."
    num_experts = count_indices(tensors, re.escape(moe) + r"experts\.(\d+)\..+")
    gated = count_indices(tensors, re.escape(moe) + r"experts\.(\d+)\.(fc|proj)\..+") == 0
    if num_experts == 0:
        inner_size, _ = matrix_shape(tensors, "layers.0.mlp.gate_proj.weight")
        return 1, inner_size, gated
    inner_size, _ = matrix_shape(tensors, f"{moe}experts.0.{'gate_proj' if gated else 'fc'}.weight")
    gate = f"layers.{num_layers - 1}.mlp_moe.gate.weight"
    gate_size, _ = matrix_shape(tensors, gate)
    expected = num_experts + (2 if gated else 0)
    if gate_size != expected:
        kind = "gated experts (Jakiro: two more rows than experts)" if gated else "two-layer experts (Jakiro*)"
        raise ValueError(
            f"`{gate}` has {gate_size} rows, expected {expected} for {num_experts} {kind}. The checkpoint lacks "
            "experts, or its variant is not supported."
        )
    return num_experts, inner_size, gated


def _check_against_config(original: Mapping[str, Any], inferred: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the checkpoint's config contradicts the architecture inferred from its tensors."""
    same = ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "num_experts_per_tok")
    counterparts = {**{name: name for name in same}, "num_local_experts": "num_experts"}
    if inferred.get("fusion") == "eagle3":  # published configs have the target's number, which nothing reads
        del counterparts["num_hidden_layers"]
    if inferred["head_mode"] != "contrastive":  # in Jakiro's configs the field is the target's, and ignored
        counterparts["intermediate_size"] = "expert_intermediate_size"
    for name, ours in counterparts.items():
        stated = config_int(original, name)
        if stated not in (None, inferred[ours]):
            raise ValueError(
                f"its config.json says `{name}={stated}`, its tensors say {inferred[ours]}. Use the config.json that "
                "belongs to these weights, or correct the field."
            )
    flags = [("qkv_bias", inferred["attention_bias"], "layers.0.self_attn.{q,k,v}_proj.bias")]
    if inferred.get("fusion") == "eagle3":
        fusion_norm = inferred["fusion_norm"]
        flags += [
            ("attention_bias", inferred["attention_bias"], "layers.0.self_attn.{q,k,v}_proj.bias"),
            ("fc_norm", fusion_norm == "each", "fc_norm.0.weight"),
            ("norm_before_fc", fusion_norm == "all", "input_norm.weight"),
        ]
    else:
        flags.insert(0, ("bias", inferred["fusion_bias"], "fc.bias"))
    for name, found, which in flags:
        stated = original.get(name)
        if stated is None and name != "bias":  # many configs do not mention the others
            continue
        if stated is not None and not isinstance(stated, bool):
            raise ValueError(f"its config.json says `{name}={stated!r}`, expected true or false.")
        if found != (stated is not False):
            says = f"lacks `{name}`, which means true" if stated is None else f"says `{name}={json.dumps(stated)}`"
            raise ValueError(
                f"`{which}` is {'there' if found else 'missing'}, but its config.json {says}. If the weights are "
                f'complete, put `"{name}": {json.dumps(found)}` into config.json.'
            )


def _rope_parameters(original: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters from the old fields `rope_theta` and `rope_scaling`, or the new `rope_parameters`."""
    scaling = original.get("rope_parameters") or original.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"its config.json says `rope_scaling={scaling!r}`, expected null or an object.")
    if scaling.get("partial_rotary_factor", original.get("partial_rotary_factor")) not in (None, 1):
        raise ValueError(
            "its config.json has a `partial_rotary_factor`: drafters that rotate parts of heads are not supported."
        )
    theta = scaling.get("rope_theta", original.get("rope_theta"))
    theta = 10000.0 if theta is None else theta  # the published code's default
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise ValueError(f"its config.json says `rope_theta={theta!r}`, expected a positive number.")
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type != "default" and rope_type not in ROPE_INIT_FUNCTIONS:
        raise ValueError(
            f"its config.json says that the rotary type is {rope_type!r}, expected one of "
            f"{['default', *ROPE_INIT_FUNCTIONS]}. Correct the field."
        )
    rest = {name: value for name, value in scaling.items() if name != "type"}
    return {**rest, "rope_type": rope_type, "rope_theta": float(theta)}


def count_indices(names: Mapping[str, Any], pattern: str) -> int:
    """The number of distinct indices, the group in `pattern`. Gaps show later, as missing and unexpected tensors."""
    return len({match.group(1) for name in names if (match := re.fullmatch(pattern, name))})


__all__ = ["count_indices", "infer_config"]
