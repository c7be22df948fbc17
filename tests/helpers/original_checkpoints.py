# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Original checkpoints of Jakiro, Jakiro* and EAGLE-1/2 drafters."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, INNER = 32, 4, 2, 8, 48, 24


def make_original(
    variant: str = "jakiro",
    num_experts: int = 2,
    num_layers: int = 1,
    fc_bias: bool = True,
    qkv_bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, torch.Tensor], dict]:
    """
    Tensors and config of an original checkpoint: `variant` is "jakiro", "star" or "eagle". The names are spelled out
    here once more, on purpose.
    """
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (HIDDEN, 2 * HIDDEN)}
    if fc_bias:
        shapes["fc.bias"] = (HIDDEN,)
    for layer in range(num_layers):
        prefix = f"layers.{layer}."
        for name, rows in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            if qkv_bias:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
        if layer > 0:
            shapes[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
        if variant == "eagle":
            shapes[f"{prefix}mlp.gate_proj.weight"] = (INNER, HIDDEN)
            shapes[f"{prefix}mlp.up_proj.weight"] = (INNER, HIDDEN)
            shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INNER)
            continue
        contrastive = variant == "jakiro" and layer == num_layers - 1
        shapes[f"{prefix}mlp_moe.gate.weight"] = (num_experts + (2 if contrastive else 0), HIDDEN)
        for expert in range(num_experts):
            for name in ("gate_proj", "up_proj") if variant == "jakiro" else ("fc",):
                shapes[f"{prefix}mlp_moe.experts.{expert}.{name}.weight"] = (INNER, HIDDEN)
            name = "down_proj" if variant == "jakiro" else "proj"
            shapes[f"{prefix}mlp_moe.experts.{expert}.{name}.weight"] = (HIDDEN, INNER)
    tensors = {}
    for name, shape in shapes.items():
        offset, scale = (1.0, 0.1) if "norm" in name else (0.0, 1.0 if "gate.weight" in name else 0.3)
        tensors[name] = (offset + scale * torch.randn(shape, generator=generator)).to(dtype)
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 999 if variant == "jakiro" else INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if variant != "eagle":
        config |= {"num_local_experts": num_experts, "num_experts_per_tok": 2}
    if not fc_bias:
        config["bias"] = False
    if qkv_bias:
        config["qkv_bias"] = True
    return tensors, config


def write_original(folder: Path, tensors: dict, config: dict | None, weights: str = "model.safetensors") -> Path:
    """Writes a checkpoint folder; `weights` is one of the four names a loader looks for."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if not weights.endswith(".index.json"):
        save = save_file if weights.endswith(".safetensors") else torch.save
        save(tensors, folder / weights)
        return folder
    stem, suffix = weights.removesuffix(".index.json").split(".")
    save = save_file if suffix == "safetensors" else torch.save
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-0000{part}-of-00002.{suffix}"
        save({name: tensors[name] for name in chosen}, folder / shard)
        weight_map |= dict.fromkeys(chosen, shard)
    (folder / weights).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
