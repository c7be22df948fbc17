# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Slow, obvious references: the formulas of the paper with loops over positions, heads and experts, on tensors under
their original names. Nothing of the package is used here.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F


def rms_norm(vector: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * vector / torch.sqrt((vector**2).mean() + eps)


def rotate(vector: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """Rotary embedding of one head's vector `[D]`: pairs are (d, d + D/2)."""
    half = vector.shape[0] // 2
    angles = torch.tensor([position / theta ** (2 * d / vector.shape[0]) for d in range(half)])
    first, second = vector[:half], vector[half:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))


def attention(weights: Mapping[str, torch.Tensor], prefix: str, inputs: list, num_heads: int, theta: float) -> list:
    """Causal attention with grouped heads over a list of vectors `[H]`."""

    def project(name: str, vector: torch.Tensor) -> torch.Tensor:
        return F.linear(vector, weights[f"{prefix}{name}_proj.weight"], weights.get(f"{prefix}{name}_proj.bias"))

    head_dim = weights[prefix + "q_proj.weight"].shape[0] // num_heads
    group = weights[prefix + "q_proj.weight"].shape[0] // weights[prefix + "k_proj.weight"].shape[0]
    queries = [project("q", vector).split(head_dim) for vector in inputs]
    keys = [project("k", vector).split(head_dim) for vector in inputs]
    values = [project("v", vector).split(head_dim) for vector in inputs]
    outputs = []
    for t in range(len(inputs)):
        heads = []
        for head in range(num_heads):
            query = rotate(queries[t][head], t, theta)
            scores = [query @ rotate(keys[s][head // group], s, theta) / math.sqrt(head_dim) for s in range(t + 1)]
            probabilities = torch.stack(scores).softmax(dim=0)
            heads.append(sum(probabilities[s] * values[s][head // group] for s in range(t + 1)))
        outputs.append(project("o", torch.cat(heads)))
    return outputs


def expert(weights: Mapping[str, torch.Tensor], prefix: str, vector: torch.Tensor) -> torch.Tensor:
    if prefix + "fc.weight" in weights:
        return weights[prefix + "proj.weight"] @ F.gelu(weights[prefix + "fc.weight"] @ vector)
    inner = F.silu(weights[prefix + "gate_proj.weight"] @ vector) * (weights[prefix + "up_proj.weight"] @ vector)
    return weights[prefix + "down_proj.weight"] @ inner


def mixture(weights: Mapping[str, torch.Tensor], prefix: str, num_experts: int, vector: torch.Tensor) -> tuple:
    """What is added to the residual `r` of a position: weighted sum, contrast (or None), outputs of the chosen two."""
    logits = weights[prefix + "gate.weight"] @ vector
    i, j = sorted(range(num_experts), key=lambda index: -logits[index].item())[:2]
    best, second = (expert(weights, f"{prefix}experts.{index}.", vector) for index in (i, j))
    w = torch.stack((logits[i], logits[j])).softmax(dim=0)
    weighted = w[0] * best + w[1] * second
    contrast = None
    if logits.shape[0] == num_experts + 2:
        if num_experts == 2:  # expert 0 is always i, expert 1 always j
            first, other = (expert(weights, f"{prefix}experts.{index}.", vector) for index in (0, 1))
        else:
            first, other = best, second
        v = logits[num_experts:].softmax(dim=0)
        contrast = v[0] * first - v[1] * other if v[0] >= v[1] else v[1] * other - v[0] * first
    return weighted, contrast, (best, second)


def drafter(
    weights: Mapping[str, torch.Tensor],
    embeddings: torch.Tensor,
    features: torch.Tensor,
    *,
    num_layers: int,
    num_heads: int,
    num_experts: int,
    eps: float,
    theta: float = 10000.0,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    Args:
        weights: an original checkpoint.
        embeddings, features (`[T, H]`): one sequence of pairs.

    Returns:
        Autoregressive features `[T, H]`, contrastive features `[T, H]` or None, and the two chosen experts' features
        `[2, T, H]`, the larger gate logit first, or None with a dense layer.
    """
    states = [
        F.linear(torch.cat(pair), weights["fc.weight"], weights.get("fc.bias"))
        for pair in zip(embeddings, features, strict=True)
    ]
    for layer in range(num_layers):
        prefix = f"layers.{layer}."
        inputs = states
        if layer > 0:
            inputs = [rms_norm(state, weights[prefix + "input_layernorm.weight"], eps) for state in states]
        attended = attention(weights, prefix + "self_attn.", inputs, num_heads, theta)
        residuals = [state + output for state, output in zip(states, attended, strict=True)]
        normed = [rms_norm(r, weights[prefix + "post_attention_layernorm.weight"], eps) for r in residuals]
        if num_experts == 1:
            states = [r + expert(weights, prefix + "mlp.", u) for r, u in zip(residuals, normed, strict=True)]
            continue
        mixtures = [mixture(weights, prefix + "mlp_moe.", num_experts, u) for u in normed]
        states = [r + weighted for r, (weighted, _, _) in zip(residuals, mixtures, strict=True)]
    if num_experts == 1:
        return torch.stack(states), None, None
    contrastive = None
    if mixtures[0][1] is not None:
        contrastive = torch.stack([r + contrast for r, (_, contrast, _) in zip(residuals, mixtures, strict=True)])
    heads = [torch.stack([r + both[k] for r, (_, _, both) in zip(residuals, mixtures, strict=True)]) for k in (0, 1)]
    return torch.stack(states), contrastive, torch.stack(heads)
