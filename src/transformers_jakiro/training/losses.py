# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Loss of contrastive parallel decoding (arXiv 2502.06282, section 3.3): pure functions on tensors.

Symbols in shape comments: B batch, T positions, H hidden size, V vocabulary, D tokens that can be drafted,
R rows that count, M branches and steps that predict a row, C rows of a chunk.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def counted_pairs(loss_mask: torch.Tensor) -> torch.Tensor:
    """
    Says which pairs of a batch count. Pair t joins the feature at t with the token at t + 1; it counts if position t
    does, for the feature at t + 1. The last position begins no pair.

    Args:
        loss_mask (`[B, T]`): nonzero at the positions that count.

    Returns:
        `[B, T - 1]`, bool.
    """
    return loss_mask[:, :-1] != 0


def contrastive_parallel_loss(
    autoregressive_features: Sequence[torch.Tensor],
    contrastive_features: Sequence[torch.Tensor | None],
    target_hidden_states: torch.Tensor,
    loss_mask: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    position_ids: torch.Tensor | None = None,
    regression_weight: float = 1.0,
    classification_weight: float = 0.1,
    contrastive_weight: float = 0.5,
    draft_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    draft_token_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """
    `loss = w_reg · (r₁ + w_con · r₂) + w_cls · (c₁ + w_con · c₂)`, branch 1 the autoregressive and branch 2 the
    contrastive one. Each branch is compared with the target's features, elementwise (`r`, SmoothL1 averaged over H)
    and after the head (`c`, cross-entropy with the target's distribution), averaged over the positions that count.
    The default weights are the published ones. With several unrolled steps (the drafter reads its own features from
    the second step on), the loss is the sum over the steps.

    The logits of all positions are never held at once: rows go through the head in chunks, whose gradients are
    computed immediately.

    Args:
        autoregressive_features (each `[B, T, H]` or `[B, T - 1, H]`): `g` of each step; index t predicts the target's
            feature at t + 1. Step s starts s - 1 positions after the beginning of a sample.
        contrastive_features (same shapes, or None for a step without them): `c` of each step; index t predicts the
            target's feature at t + 2.
        target_hidden_states (`[B, T, H]`): `f`, the frozen target's features.
        loss_mask (`[B, T]`): 1 at the positions that count (the response). Position t counts for the feature at t + 1,
            whichever branch predicts it, so the last position of a sample must not count.
        head: the function of the target's logits, `[..., H]` → `[..., V]`.
        position_ids (`[B, T]`, *optional*): positions in each of a row's packed samples. Default: one sample per row.
        draft_head (*optional*): the function of the logits of the tokens that can be drafted, `[..., H]` → `[..., D]`
            ([`~transformers_jakiro.core.target.Target.draft_head`]). Default: `head`.
        draft_token_ids (`[D]`, *optional*): the tokens that can be drafted, increasing. Default: all.

    Returns:
        The loss (a scalar) and metrics, each a sum over positions and the number of positions (scalars):
        `regression`, `classification`, and how often the target's likeliest token (of all V) is among the one, two or
        three likeliest of a branch: `accuracy`, `accuracy_top2`, `accuracy_top3`. Metrics of the contrastive branch
        begin with `contrastive_`, those of later steps end with `_step2` and so on.

    Raises:
        ValueError: if no position counts.
    """
    mask = counted_pairs(loss_mask)
    if not mask.any():
        raise ValueError(
            "`loss_mask` selects no position of this batch (the last position of a row never counts). Every batch "
            "must hold at least one response token: check the dataset's masks and the truncation length."
        )
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device).expand_as(mask) if position_ids is None else position_ids[:, :-1]
    places = places[mask]  # [R], of each row in its sample
    names: list[tuple[str, int]] = []
    features: list[torch.Tensor] = []
    presence: list[torch.Tensor] = []
    weights: list[float] = []
    for step, feature in enumerate(autoregressive_features, start=1):
        names.append(("", step))
        features.append(feature[:, :length][mask])
        presence.append(places >= step - 1)
        weights.append(1.0)
    for step, contrastive in enumerate(contrastive_features, start=1):
        if contrastive is not None:
            names.append(("contrastive_", step))
            features.append(contrastive[:, :length].roll(1, dims=1)[mask])  # index t predicts what t + 1 does
            presence.append(places >= step)
            weights.append(contrastive_weight)
    present = torch.stack(presence)  # [M, R]: whether a branch predicts a row
    counts = present.sum(dim=1)
    row_weights = present * (torch.tensor(weights, device=mask.device) / counts.clamp(min=1))[:, None]
    target_features = target_hidden_states[:, 1:][mask]  # [R, H]
    draft_head = draft_head or head

    def compare(predicted, rows):  # [M, C, H]
        expected = target_features[rows]
        target_logits = head(expected).float()  # [C, V]
        logits = draft_head(predicted).float()  # [M, C, D]
        regression = F.smooth_l1_loss(predicted.float(), expected.float().expand_as(predicted), reduction="none").mean(
            dim=-1
        )
        classification = distillation_loss(logits, target_logits, draft_token_ids)  # [M, C]
        with torch.no_grad():
            index, known = draft_index(target_logits.argmax(dim=-1), draft_token_ids)
            threshold = logits.gather(-1, index.expand(logits.shape[:-1])[..., None])
            # comparisons as float32: booleans would be summed as int64, at the cost of the head
            rank = torch.gt(logits, threshold, out=torch.empty_like(logits)).sum(dim=-1)
            terms = (regression, classification, *((rank < k) & known for k in (1, 2, 3)))
            sums = torch.stack([(term * present[:, rows]).sum(dim=1) for term in terms])  # [terms, M]
        loss = regression_weight * regression + classification_weight * classification
        return (loss * row_weights[:, rows]).sum(), sums

    num_logits = head(target_features[:1]).shape[-1] + len(names) * draft_head(target_features[:1]).shape[-1]
    chunk_size = rows_per_chunk(target_features.device, num_logits)
    loss, sums = _ChunkedLoss.apply(torch.stack(features), compare, chunk_size)
    metrics = {}
    for kind, values in zip(_TERMS, sums, strict=True):
        for (branch, step), value, count in zip(names, values, counts, strict=True):
            metrics[f"{branch}{kind}" + (f"_step{step}" if step > 1 else "")] = (value, count)
    return loss, metrics


def distillation_loss(
    draft_logits: torch.Tensor,
    target_logits: torch.Tensor,
    draft_token_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Cross-entropy of the target's distribution with the drafter's.

    If only some tokens can be drafted, the target's probabilities of the others drop out of the sum, and the rest are
    not scaled up to 1: the result is the expected `-log draft_prob` of the tokens that can be drafted. Its gradient is
    that of the cross-entropy of the target's distribution *among* these tokens, times their total probability.
    Positions where the target says something else hardly count, since whatever is drafted there is lost.

    Args:
        draft_logits (`[..., C, D]`), target_logits (`[C, V]`): float32.
        draft_token_ids (`[D]`, *optional*): the tokens of the draft logits. Default: all, D = V.

    Returns:
        `[..., C]`.
    """
    target_probs = target_logits.softmax(dim=-1)
    if draft_token_ids is not None:
        target_probs = target_probs[..., draft_token_ids]
    return -(target_probs * draft_logits.log_softmax(dim=-1)).sum(dim=-1)


_TERMS = ("regression", "classification", "accuracy", "accuracy_top2", "accuracy_top3")


def draft_index(token_ids: torch.Tensor, draft_token_ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds tokens among those that can be drafted.

    Args:
        token_ids (`[...]`): ids in the target's vocabulary.
        draft_token_ids (`[D]`, *optional*): the tokens that can be drafted, increasing. Default: all.

    Returns:
        Indices into `draft_token_ids` and whether a token is there at all (bool), both `[...]`. The index of an absent
        token is that of another token.
    """
    if draft_token_ids is None:
        return token_ids, torch.ones_like(token_ids, dtype=torch.bool)
    index = torch.searchsorted(draft_token_ids, token_ids).clamp(max=len(draft_token_ids) - 1)
    return index, draft_token_ids[index] == token_ids


def rows_per_chunk(device: torch.device, num_logits: int) -> int:
    """The number of rows of `num_logits` to hold at once: what fits in a CPU's cache, or enough to fill a GPU."""
    budget = 2**24 if device.type == "cpu" else 2**29  # bytes of float32 logits
    return max(1, budget // (4 * num_logits))


class _ChunkedLoss(torch.autograd.Function):
    """
    A sum over rows whose gradient is computed chunk by chunk in the forward pass, so that only one chunk has logits at
    a time. `compare([M, C, H], rows)` returns a chunk's loss and statistics, which are added up.
    """

    @staticmethod
    def forward(ctx, features, compare, chunk_size):
        wants_gradient = ctx.needs_input_grad[0]
        if wants_gradient:  # float16 would lose small gradients, since loss scaling comes later
            dtype = torch.float32 if features.dtype == torch.float16 else features.dtype
            gradient = torch.empty_like(features, dtype=dtype)
        loss = statistics = 0
        for start in range(0, features.shape[1], chunk_size):
            rows = slice(start, start + chunk_size)
            predicted = features[:, rows].detach()
            with torch.set_grad_enabled(wants_gradient):
                part, part_statistics = compare(predicted.requires_grad_(wants_gradient), rows)
            if wants_gradient:
                gradient[:, rows] = torch.autograd.grad(part, predicted)[0]
            loss, statistics = loss + part.detach(), statistics + part_statistics
        if wants_gradient:
            ctx.save_for_backward(gradient)
            ctx.dtype = features.dtype
        return loss, statistics

    @staticmethod
    def backward(ctx, loss_gradient, _):
        (gradient,) = ctx.saved_tensors
        return (gradient * loss_gradient).to(ctx.dtype), None, None


def load_balancing_loss(router_logits: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """
    The load-balancing loss of Mixtral, `N · Σₑ fₑ · Pₑ`: `fₑ` is the share of positions that choose expert e as one of
    their two, and `Pₑ` the mean of its routing probability over all experts. It is 2 if all experts are used equally,
    and at most N. With two experts it is always 2, without a gradient.

    Args:
        router_logits (`[B, T, N]`): from the drafter's `output_router_logits`, N ≥ 2.
        loss_mask (`[B, T]`): 1 at the positions that count, at least one.

    Returns:
        A scalar, float32.
    """
    num_experts = router_logits.shape[-1]
    loss = load_balancing_loss_func(
        (router_logits.float().flatten(0, 1),), num_experts=num_experts, top_k=2, attention_mask=loss_mask
    )
    return cast(torch.Tensor, loss)
