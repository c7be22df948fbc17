# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Interprets the names, shapes and configs of EAGLE-3 checkpoints (arXiv 2503.01840) of SafeAILab, SpecForge and
speculators.

Symbols in shape comments: V vocabulary, D tokens that can be drafted.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.configuration_jakiro import JakiroDraftConfig
from .reading import WEIGHTS_FILES, config_int, config_object, matrix_shape, read_weights

# {our name: (dimension of the concatenation, {original name: its shape})}
Layout = dict[str, tuple[int, dict[str, tuple[int, ...]]]]


def is_eagle3(tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, its names without prefix, is an EAGLE-3 drafter in any layout."""
    return "speculators_model_type" in original or any(
        name in ("d2t", "t2d") or name.startswith(("midlayer.", "layers.0.hidden_norm.")) for name in tensors
    )


def unify_eagle3(
    tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Returns the tensors under the names of speculators, and the config with the fields of its
    `transformer_layer_config` merged in.
    """
    renamed = {re.sub(r"^midlayer\.", "layers.0.", name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise ValueError("it has tensors both under `midlayer` and `layers.0`. Do not use this checkpoint.")
    layer_config = config_object(original, "transformer_layer_config")
    return renamed, {**original, **layer_config, "speculators_model_type": "eagle3"}


def infer_eagle3(
    tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any], hidden_size: int, target: PreTrainedConfig | None
) -> dict[str, Any]:
    """
    Infers the fields of [`JakiroDraftConfig`] that are specific to EAGLE-3.

    Args:
        tensors: the result of [`unify_eagle3`].
        original: the result of [`unify_eagle3`].
        hidden_size: the drafter's.
        target: the target's text config.
    """
    if config_object(original, "eagle_config").get("use_aux_hidden_state", True) is not True:
        raise ValueError(
            "its config.json says that `use_aux_hidden_state` is not true: it reads only the target's last hidden "
            "states. Such EAGLE-3 drafters are not supported."
        )
    layer_types = original.get("layer_types")
    if layer_types and (not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)):
        raise ValueError(
            f"its config.json says `layer_types={layer_types!r}`, expected a list of 'full_attention' alone. Other "
            "layers are not supported."
        )
    target_size = config_int(original, "target_hidden_size") or hidden_size
    _, fc_in = matrix_shape(tensors, "fc.weight")
    count = fc_in // target_size
    if fc_in % target_size != 0:
        raise ValueError(
            f"`fc.weight` has shape {(hidden_size, fc_in)}, expected a multiple of the target's hidden size, "
            f"{target_size}: it fuses several of the target's hidden states. Correct `target_hidden_size` in its "
            "config.json, or use the one that belongs to these weights."
        )
    flags = {}
    for name in ("norm_before_residual", "norm_output"):
        flags[name] = original.get(name) or False
        if not isinstance(flags[name], bool):
            raise ValueError(f"its config.json says `{name}={flags[name]!r}`, expected true or false.")
    fusion_norm = "each" if "fc_norm.0.weight" in tensors else "all" if "input_norm.weight" in tensors else None
    verifier = config_object(config_object(original, "speculators_config"), "verifier")
    return {
        "target_name_or_path": verifier.get("name_or_path"),
        "fusion": "eagle3",
        "feature_layers": _feature_layers(original, count, target),
        "fusion_norm": fusion_norm,
        "residual_norm": flags["norm_before_residual"],
        "final_norm": flags["norm_output"],
        "target_hidden_size": None if target_size == hidden_size else target_size,
        "own_head": "lm_head.weight" in tensors,
        "own_embeddings": "embed_tokens.weight" in tensors,
    }


def _feature_layers(original: Mapping[str, Any], count: int, target: PreTrainedConfig | None) -> list[int]:
    """
    The hidden states that an EAGLE-3 drafter fuses, as indices of `output_hidden_states` (i: the input of layer i).

    speculators and vLLM use the same indices. SpecForge and SGLang name the layers whose outputs these are. The
    published drafters name none, and read layers 2, L // 2 and L - 3 of L.
    """
    name, shift = "eagle_aux_hidden_state_layer_ids", 0
    layers = original.get(name)
    if not layers:
        layers, shift = config_object(original, "eagle_config").get(name), 1
    if not layers:
        if target is None:
            raise ValueError(
                "its config.json does not say which of the target's layers it reads; the rule depends on the target's "
                "number of layers. Give `target`."
            )
        num_layers = target.num_hidden_layers
        layers, shift = [2, num_layers // 2, num_layers - 3], 0
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise ValueError(f"its config.json says `{name}={layers!r}`, expected a list of integers. Correct the field.")
    if len(layers) != count:
        raise ValueError(
            f"it reads {len(layers)} of the target's layers ({layers}), but `fc.weight` fuses {count} hidden states. "
            "Use the config.json that belongs to these weights."
        )
    return [layer + shift for layer in layers]


def infer_draft_vocab_size(
    tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any], vocab_size: int
) -> int | None:
    """The number of tokens that an EAGLE-3 drafter can draft, None for all."""
    stated = config_int(original, "draft_vocab_size")
    size = stated or vocab_size
    if "lm_head.weight" in tensors:
        size, _ = matrix_shape(tensors, "lm_head.weight")
        if stated not in (None, size):
            raise ValueError(
                f"its config.json says `draft_vocab_size={stated}`, but its `lm_head.weight` has {size} rows. Use the "
                "config.json that belongs to these weights."
            )
    return None if size == vocab_size else size


def read_draft_token_ids(tensors: Mapping[str, torch.Tensor], config: JakiroDraftConfig) -> torch.Tensor | None:
    """
    Returns the target's tokens `[D]` that an EAGLE-3 drafter can draft, None for all. Reads them from its maps: `d2t`
    `[D]`, the difference between a token's id and its index among them, and `t2d` `[V]`, which tokens they are.
    """
    offsets, chosen = tensors.get("d2t"), tensors.get("t2d")
    size = config.draft_vocab_size
    if size is None:
        if offsets is not None and offsets.any():
            raise ValueError(
                "it drafts all tokens of the target, but its `d2t` says otherwise. Use weights and config.json that "
                "belong together."
            )
        return None
    if offsets is None or offsets.shape != (size,) or offsets.is_floating_point():
        found = "it is missing" if offsets is None else f"it is {offsets.dtype} of shape {tuple(offsets.shape)}"
        raise ValueError(
            f"`d2t` must tell which {size} of the target's {config.vocab_size} tokens it drafts, as {size} integers: "
            f"{found}. Download the checkpoint again."
        )
    token_ids = torch.arange(size) + offsets.long()
    if token_ids.min() < 0 or token_ids.max() >= config.vocab_size or not (token_ids.diff() > 0).all():
        raise ValueError(
            f"`d2t` must give increasing tokens below {config.vocab_size}, got {token_ids.min()} to "
            f"{token_ids.max()}. The checkpoint is damaged, or belongs to another target."
        )
    if chosen is not None and (
        chosen.shape != (config.vocab_size,) or not torch.equal(chosen.nonzero().flatten(), token_ids)
    ):
        raise ValueError(
            "its vocabulary maps `d2t` and `t2d` contradict each other: the checkpoint is damaged, or was saved "
            "without the maps of its training data."
        )
    return token_ids


def eagle3_layout(config: JakiroDraftConfig) -> Layout:
    """The part of the key map that is outside an EAGLE-3 drafter's layers, with the shapes of its tensors."""
    hidden = config.hidden_size
    num_features = len(config.feature_layers or ())
    target_size = config.target_hidden_size or hidden
    layout: Layout = {"feature_fusion.proj.weight": (0, {"fc.weight": (hidden, num_features * target_size)})}
    if config.fusion_norm == "each":
        for index in range(num_features):
            name = f"feature_fusion.norms.{index}.weight"
            layout[name] = (0, {f"fc_norm.{index}.weight": (target_size,)})
    elif config.fusion_norm == "all":
        layout["feature_fusion.norms.0.weight"] = (0, {"input_norm.weight": (num_features * target_size,)})
    layout["norm.weight" if config.final_norm else "head_norm.weight"] = (0, {"norm.weight": (hidden,)})
    if config.own_head:
        layout["lm_head.weight"] = (0, {"lm_head.weight": (config.draft_vocab_size or config.vocab_size, hidden)})
    if config.own_embeddings:
        layout["embed_tokens.weight"] = (0, {"embed_tokens.weight": (config.vocab_size, hidden)})
    return layout


def _target_embeddings(target: PreTrainedModel | PreTrainedConfig | str | Path | None) -> torch.Tensor | None:
    """The target's embeddings `[V, H]`, if they are available: in a model, or as safetensors in a local folder."""
    if isinstance(target, PreTrainedModel):
        return cast(torch.Tensor, target.get_input_embeddings().weight).detach()
    folder = Path(target).expanduser() if isinstance(target, (str, Path)) else None
    if folder is None or not any((folder / name).is_file() for name in WEIGHTS_FILES[:2]):
        return None
    found = [x for name, x in read_weights(folder).items() if re.fullmatch(r"(.*\.)?embed_tokens\.weight", name)]
    return found[0] if len(found) == 1 else None


def drop_target_embeddings(
    tensors: dict[str, torch.Tensor], target: PreTrainedModel | PreTrainedConfig | str | Path | None
) -> None:
    """Removes a drafter's embeddings `[V, H]` if the target's are available and, in the drafter's dtype, equal."""
    own, shared = tensors.get("embed_tokens.weight"), _target_embeddings(target)
    if own is not None and shared is not None and torch.equal(own, shared.to(own)):
        del tensors["embed_tokens.weight"]


__all__ = [
    "Layout",
    "drop_target_embeddings",
    "eagle3_layout",
    "infer_draft_vocab_size",
    "infer_eagle3",
    "is_eagle3",
    "read_draft_token_ids",
    "unify_eagle3",
]
