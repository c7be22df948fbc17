# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Drafters that training starts from: a new one that fits its target's scales, or one with the experts of a trained
drafter, which has the dense layer of EAGLE-1/2 or fewer experts.

Symbols in shape comments: P probe tokens, H hidden size, D tokens that can be drafted, M and N experts of the source
and of the new drafter, W and I inner widths of one expert of each, R rows of a unit.

A *unit* is one inner neuron of an expert with all its weights: the rows it reads with (gate and up, or up alone) and,
last, the column of the down projection that it writes with. An expert is the sum of its units, in any order.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..core.configuration_jakiro import JakiroDraftConfig
from ..core.modeling_jakiro import JakiroDecoderLayer, JakiroMixture
from ..core.target import Target
from ..drafter import JakiroDraftModel

# the fields that determine a drafter's function together with its weights; experts and heads are what changes
_KEPT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "gated_experts",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "fusion_bias",
    "embedding_multiplier",
    "feature_multiplier",
    "final_norm",
    "feature_layers",
    "draft_vocab_size",
)
# tokens to measure a target's scales on
_NUM_PROBE_TOKENS = 128
# the share of the usual random initialization of the fusion layer that is added to the identity
_FUSION_NOISE = 0.25
# a unit that both halves of a dense layer hold writes with (1 ± 0.5) times its weights
_SHARED_DIFFERENCE = 0.5
# logits that choose between copies of the experts, relative to the largest difference between the source's experts
_COPY_SCALE = 2.0


@torch.no_grad()
def new_drafter(
    target: PreTrainedModel | Target,
    draft_token_ids: Sequence[int] | torch.Tensor | None = None,
    **overrides: Any,
) -> JakiroDraftModel:
    """
    Makes a new drafter that learns quickly. Embeddings and features enter the fusion layer at the same size (root mean
    square 1), and the layer starts as their sum. With the published initialization the features, some twenty times
    larger, drown the embeddings of the very tokens that the next ones depend on. A final norm, which starts with the
    sizes of the target's features, keeps the features that the drafter feeds back to itself similar to the target's.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target. A forward of a few tokens measures its scales.
        draft_token_ids (`[D]`, *optional*): the only tokens to draft, in any order; D becomes `draft_vocab_size`. See
            [`~transformers_jakiro.training.data.frequent_tokens`]. Default: all.
        overrides: fields of [`JakiroDraftConfig`]. `embedding_multiplier=1, feature_multiplier=1, final_norm=False`
            initializes the drafter like the published ones.

    Returns:
        The drafter, in float32 on the CPU.

    Raises:
        ValueError: if the target's embeddings or features are not finite, if fields contradict each other, or if
            `draft_token_ids` are not distinct tokens of the target.
    """
    token_ids = None
    if draft_token_ids is not None:
        token_ids = torch.as_tensor(draft_token_ids, device="cpu").sort().values
        overrides = {"draft_vocab_size": len(token_ids), **overrides}
    target = target if isinstance(target, Target) else Target(target)
    config = JakiroDraftConfig.from_target(target.model.config, **{"final_norm": True, **overrides})
    config.check_trainable()
    target.check_fits(config)
    embeddings, features = _probe(target, config)
    multipliers = {
        "embedding_multiplier": 1 / _size("embeddings", embeddings),
        "feature_multiplier": 1 / _size("features", features),
    }
    for name, value in multipliers.items():
        if name not in overrides:
            setattr(config, name, value)
    draft = JakiroDraftModel(config)
    if token_ids is not None:
        draft.draft_token_ids = cast(torch.LongTensor, token_ids)
    draft.check_draft_vocabulary()
    if config.final_norm:
        sizes = features.float().square().mean(dim=(0, 1)).sqrt()  # [H]
        cast(nn.RMSNorm, draft.norm).weight.copy_(sizes * config.feature_multiplier)
    if config.feature_layers is not None:  # at first they add nothing
        draft.feature_fusion.proj.weight.zero_()
    if (config.embedding_multiplier, config.feature_multiplier) != (1, 1):
        identity = torch.eye(config.hidden_size)
        draft.fc.weight.mul_(_FUSION_NOISE).add_(torch.cat((identity, identity), dim=1))
    return draft


def _probe(target: Target, config: JakiroDraftConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's embeddings and last hidden states of tokens from all over its vocabulary, each `[1, P, H]`."""
    device = cast(torch.Tensor, target.embeddings.weight).device
    tokens = torch.linspace(0, config.vocab_size - 1, _NUM_PROBE_TOKENS, device=device).long()[None]
    features = target.features(cast(torch.LongTensor, tokens))[..., -config.hidden_size :]
    return target.embed(tokens), features


def _size(name: str, values: torch.Tensor) -> float:
    """The root mean square of the target's embeddings or features."""
    size = values.float().square().mean().sqrt().item()
    if not 0 < size < float("inf"):
        raise ValueError(
            f"The target's {name} have a root mean square of {size}: its weights are damaged, or {values.dtype} is "
            "too narrow for it."
        )
    return size


@torch.no_grad()
def upcycle(source: JakiroDraftModel, config: JakiroDraftConfig, seed: int = 0) -> JakiroDraftModel:
    r"""
    Makes a drafter with the shape of `config` from a trained one. Fusion layer, attention and norms are copied; the
    experts are made from the source's:

    - **1 → 2 experts.** The inner units of the dense layer are dealt to the two experts in the order of their
      importance, and write with twice their weights. The routing rows of the gate are zero, so each expert has weight
      1/2. If the two experts have more units than the dense layer, its most important units go to both, with 1.5 and
      0.5 times their weights; the remaining places get fresh units that write nothing yet. *Exact*: the
      autoregressive feature is the dense one for every input if `2 * expert_intermediate_size` is at least the dense
      width. If it is less, the least important units are left out.
    - **M → kM experts** (1 → 2k goes by way of 2). The new drafter has k copies of all M experts. A random direction
      per copy (orthogonal to the mean direction, as far as that is known) is added to its routing rows, so that a
      token goes to the two best experts of one copy. *Exact* from a dense source, with widths as above. From M ≥ 2,
      exact for the tokens (most of them) whose direction weighs more than the difference of their two experts' logits;
      the other tokens get one expert twice.
    - **M → M experts.** A copy, with another `head_mode` or width. Exact unless experts become narrower.

    A unit's importance is the product of the norms of the rows it reads with, scaled by the norm before them, and of
    the column that it writes with.

    The contrastive rows `b_1, b_2` are the source's, if it has them: exact for M = N. Otherwise they point along the
    bias of the fusion layer, the one direction known to be common to the experts' inputs, so that the first of the two
    experts is the positive one for nearly all tokens, and remains so in the first steps. Without that bias they are
    zero, and the first expert is the positive one until they move. (With N > 2, the first expert is the one with the
    larger routing logit, as always.) In any case the contrastive branch has yet to learn what it predicts.

    No two experts are equal, and none has a vanishing gradient. Fresh units read with random rows; in the first step
    only their down projection has a gradient.

    Args:
        source ([`JakiroDraftModel`]): for example `JakiroDraftModel.from_original("org/eagle-drafter")`. Not changed.
        config ([`JakiroDraftConfig`]): of the new drafter. May differ from the source's in `num_experts`,
            `expert_intermediate_size`, `head_mode` and the fields of trees.
        seed (`int`): of the random directions and fresh units. The global random state is not used.

    Returns:
        [`JakiroDraftModel`]: in the source's dtype, on its device; shares no memory with the source.

    Raises:
        ValueError: if `config` contradicts the source in another field, has fewer experts, or has a number of experts
            that is not a multiple of the source's (of 2 for a dense source).

    Example:

    ```python
    >>> dense = JakiroDraftModel.from_original("org/eagle-drafter", target=target)
    >>> config = JakiroDraftConfig(
    ...     **{**dense.config.to_dict(), "num_experts": 2, "num_experts_per_tok": 2, "head_mode": "contrastive"}
    ... )
    >>> draft = upcycle(dense, config)
    ```
    """
    _check(source.config, config)
    generator = torch.Generator().manual_seed(seed)
    bias = source.fc.bias if config.fusion_bias else torch.zeros(config.hidden_size)
    common = torch.nn.functional.normalize(bias.double().cpu(), dim=0)
    weights = {name: weight for name, weight in source.state_dict().items() if ".mlp." not in name}
    for index, layer in enumerate(cast(Sequence[JakiroDecoderLayer], source.layers)):
        is_last = index == config.num_hidden_layers - 1
        norm = layer.post_attention_layernorm.weight.double().cpu()
        mixture = _upcycle_mixture(layer.mlp, norm, common, config, is_last, generator)
        weights |= {f"layers.{index}.mlp.{name}": weight for name, weight in mixture.items()}
    weights = {
        name: weight.to(source.dtype if weight.is_floating_point() else None, copy=True)
        for name, weight in weights.items()
    }
    draft = JakiroDraftModel.from_pretrained(None, config=config, state_dict=weights, dtype=source.dtype)
    return draft.to(source.device)


def _check(old: JakiroDraftConfig, new: JakiroDraftConfig) -> None:
    new.check_consistency()
    old.check_trainable()
    new.check_trainable()
    differences = [
        f"`{name}` is {getattr(old, name)!r} in the source and {getattr(new, name)!r} in `config`"
        for name in _KEPT_FIELDS
        if getattr(old, name) != getattr(new, name)
    ]
    if differences:
        raise ValueError(
            f"Upcycling can change a drafter's experts, but nothing else: {'; '.join(differences)}. Start from "
            "the source's own config: `JakiroDraftConfig(**{**source.config.to_dict(), 'num_experts': ...})`."
        )
    step = 2 if old.num_experts == 1 and new.num_experts > 1 else old.num_experts
    if new.num_experts % step:
        raise ValueError(
            f"`num_experts` must be a multiple of {step} to upcycle a drafter with "
            f"`num_experts={old.num_experts}`, got {new.num_experts}."
        )


def _upcycle_mixture(
    source: JakiroMixture,
    norm: torch.Tensor,  # [H] weight of the norm before the experts
    common: torch.Tensor,  # [H] unit vector that the experts' inputs have in common, or zeros
    config: JakiroDraftConfig,
    is_last: bool,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """The weights of a layer's gate and experts."""
    hidden_size = config.hidden_size
    inner_size = cast(int, config.expert_intermediate_size)
    num_experts = config.num_experts
    units = _units(source)  # [M, W, R, H]
    if num_experts == 1:
        return _weights(_resize(units[0], inner_size, norm, config, generator)[None], config)
    if source.num_experts == 1:
        experts = _halves(units[0], inner_size, norm, config, generator)
        routing = torch.zeros(2, hidden_size, dtype=norm.dtype)
        contrast = None
    else:
        experts = torch.stack([_resize(expert, inner_size, norm, config, generator) for expert in units])
        rows = source.gate.weight.to(norm)
        routing = rows[: source.num_experts]
        contrast = rows[source.num_experts :] if source.head_mode == "contrastive" else None

    copies = num_experts // len(experts)
    if copies > 1:
        directions = torch.randn(copies, hidden_size, generator=generator, dtype=norm.dtype)
        # copies get similar numbers of tokens if what all tokens have in common does not decide between them
        directions -= torch.outer(directions @ common, common)
        directions -= directions.mean(dim=0)  # with two copies: a direction and its opposite
        differences = torch.cdist(routing, routing).max()
        # random logits are 1 / sqrt(H) of those of a direction that the inputs share
        length = hidden_size**0.5 * torch.maximum(_COPY_SCALE * differences, 1.0 / norm.norm())
        directions *= length / directions.norm(dim=1, keepdim=True)
        routing = (directions[:, None] + routing).flatten(0, 1)
        experts = experts.repeat(copies, 1, 1, 1)
    gate = [routing]
    if is_last and config.head_mode == "contrastive":
        if contrast is None:
            half = 2.0 / norm.norm() * common  # the experts' inputs are about as long as `norm`: logits stay below 2
            contrast = torch.stack((half, -half))
        gate.append(contrast)
    return {"gate.weight": torch.cat(gate), **_weights(experts, config)}


def _units(mixture: JakiroMixture) -> torch.Tensor:
    """All units of a layer, `[N, I, R, H]`; R is 3 for gated experts (gate, up, down), else 2."""
    experts, num_experts = mixture.experts, mixture.num_experts
    read = experts.gate_up_proj if experts.gated else experts.up_proj
    rows = read.weight.cpu().unflatten(0, (2 if experts.gated else 1, num_experts, -1))  # [R - 1, N, I, H]
    columns = experts.down_proj.weight.cpu().T.unflatten(0, (num_experts, -1))  # [N, I, H]
    return torch.cat((rows.permute(1, 2, 0, 3), columns[:, :, None]), dim=2)


def _weights(units: torch.Tensor, config: JakiroDraftConfig) -> dict[str, torch.Tensor]:
    """The inverse of [`_units`]: from units `[N, I, R, H]` to weights."""
    rows, columns = units[:, :, :-1].permute(2, 0, 1, 3).flatten(0, 2), units[:, :, -1].flatten(0, 1)
    name = "gate_up_proj" if config.gated_experts else "up_proj"
    return {f"experts.{name}.weight": rows, "experts.down_proj.weight": columns.T.contiguous()}


def _by_importance(units: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """The units `[W, R, H]` of one expert, the most important first."""
    importance = (units[:, :-1] * norm.float()).norm(dim=-1).prod(dim=-1) * units[:, -1].float().norm(dim=-1)
    return units[importance.argsort(descending=True, stable=True)]


def _fresh(count: int, like: torch.Tensor, config: JakiroDraftConfig, generator: torch.Generator) -> torch.Tensor:
    """Units that read with random rows and write nothing, `[count, R, H]`."""
    units = torch.randn(count, *like.shape[1:], generator=generator) * config.initializer_range
    units[:, -1] = 0
    return units.to(like)


def _resize(
    expert: torch.Tensor, size: int, norm: torch.Tensor, config: JakiroDraftConfig, generator: torch.Generator
) -> torch.Tensor:
    """One expert `[W, R, H]`, cut to its `size` most important units or filled up with fresh ones, `[size, R, H]`."""
    if size < len(expert):
        return _by_importance(expert, norm)[:size]
    return torch.cat((expert, _fresh(size - len(expert), expert, config, generator)))


def _halves(
    dense: torch.Tensor, size: int, norm: torch.Tensor, config: JakiroDraftConfig, generator: torch.Generator
) -> torch.Tensor:
    """Two experts `[2, size, R, H]` whose mean is a dense layer `[W, R, H]`, as far as their width allows."""
    units = _by_importance(dense, norm)[: 2 * size]
    num_shared = min(len(units), 2 * size - len(units))
    shared, single = units[:num_shared], units[num_shared:]
    sign = torch.where(torch.rand(num_shared, generator=generator) < 0.5, -1.0, 1.0).to(units)
    halves = []
    for expert, side in enumerate((1.0, -1.0)):
        ours, theirs = shared.clone(), single[expert::2].clone()
        ours[:, -1] *= (1.0 + side * _SHARED_DIFFERENCE * sign)[:, None]
        theirs[:, -1] *= 2.0
        half = torch.cat((ours, theirs))
        halves.append(torch.cat((half, _fresh(size - len(half), half, config, generator))))
    return torch.stack(halves)


__all__ = ["new_drafter", "upcycle"]
