# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Tiny EAGLE-3 checkpoints in the published layouts."""

import torch

from helpers.targets import CONTEXT, HIDDEN, VOCAB

INNER, HEADS, KV_HEADS, HEAD_DIM, NUM_LAYERS, EPS, THETA = 40, 4, 2, 8, 8, 1e-5, 500.0
DEFAULT_LAYERS = [2, 4, 5]  # 2, L // 2, L - 3


def feature_layers(options: dict) -> list[int]:
    if "eagle_config" in options:  # names the layers whose output it is
        return [layer + 1 for layer in options["eagle_config"]["eagle_aux_hidden_state_layer_ids"]]
    return options.get("layers") or DEFAULT_LAYERS


def make_eagle3(**options) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and config of a checkpoint."""
    speculators, hidden = options.get("speculators", False), options.get("hidden", HIDDEN)
    num_drafted, num_layers = options.get("num_drafted", 40), options.get("num_layers", 1)
    num_features = len(feature_layers(options))
    shapes = {"fc.weight": (hidden, num_features * HIDDEN), "norm.weight": (hidden,)}
    if options.get("head", True):
        shapes["lm_head.weight"] = (num_drafted, hidden)
    if speculators or hidden != HIDDEN:
        shapes["embed_tokens.weight"] = (VOCAB, hidden)
    if options.get("fc_norm"):
        shapes |= {f"fc_norm.{i}.weight": (HIDDEN,) for i in range(num_features)}
    if options.get("norm_before_fc"):
        shapes["input_norm.weight"] = (num_features * HIDDEN,)
    for index in range(num_layers):
        prefix = f"layers.{index}." if speculators else "midlayer."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            width = 2 * hidden if index == 0 else hidden
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (heads * HEAD_DIM, width)
            if options.get("attention_bias"):
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (heads * HEAD_DIM,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, HEADS * HEAD_DIM)
        for name in ("input_layernorm", "post_attention_layernorm", *(["hidden_norm"] if index == 0 else [])):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        for name in ("gate", "up"):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = (INNER, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, INNER)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        offset, scale = (1.0, 0.2) if "norm" in name else (0.0, 0.3)
        tensors[name] = offset + scale * torch.randn(shape, generator=generator)
    if num_drafted < VOCAB:
        token_ids = torch.randperm(VOCAB, generator=generator)[:num_drafted].sort().values
        tensors["d2t"] = token_ids - torch.arange(num_drafted)
        tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, token_ids, True)
    layer_config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "rope_scaling": None,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "attention_bias": options.get("attention_bias", False),
    }
    config = {"draft_vocab_size": num_drafted}
    names = ("norm_before_residual", "norm_output", "norm_before_fc", "fc_norm", "eagle_config")
    config |= {name: options[name] for name in names if name in options}
    if hidden != HIDDEN:
        config["target_hidden_size"] = HIDDEN
    if not speculators:
        prefix, top = options.get("prefix", ""), ("lm_head.weight", "d2t", "t2d")
        tensors = {name if name in top else prefix + name: tensor for name, tensor in tensors.items()}
        return tensors, {**layer_config, **config, "architectures": ["LlamaForCausalLMEagle3"], "bias": False}
    return tensors, {
        **config,
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.5.0",
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "org/target"}},
        "eagle_aux_hidden_state_layer_ids": options.get("layers"),
        "embed_requires_grad": False,
        "target_hidden_size": None,
        "transformer_layer_config": layer_config,
    }
