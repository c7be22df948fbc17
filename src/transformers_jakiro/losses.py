# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Loss of contrastive parallel decoding (arXiv 2502.06282, section 3.3): pure functions on tensors.

Symbols in shape comments: B batch, T positions, H hidden size, V vocabulary, R rows that count.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def contrastive_parallel_loss(
    autoregressive_features: torch.Tensor,
    contrastive_features: torch.Tensor | None,
    target_hidden_states: torch.Tensor,
    loss_mask: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    regression_weight: float = 1.0,
    classification_weight: float = 0.1,
    contrastive_weight: float = 0.5,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    `loss = w_reg · (r₁ + w_con · r₂) + w_cls · (c₁ + w_con · c₂)`, branch 1 the autoregressive and branch 2 the
    contrastive one. Each branch is compared with the target's features, elementwise (`r`, SmoothL1 averaged over H)
    and after the head (`c`, cross-entropy of the target's distribution), averaged over the positions that count.
    The default weights are the published ones.

    Args:
        autoregressive_features (`[B, T, H]` or `[B, T - 1, H]`): `g`, index t predicts the target's feature at t + 1.
        contrastive_features (same shape, or None): `c`, index t predicts the target's feature at t + 2.
        target_hidden_states (`[B, T, H]`): `f`, the frozen target's features.
        loss_mask (`[B, T]`): 1 at the positions that count (the response). Position t counts for the feature at t + 1,
            whichever branch predicts it, so the last position never counts.
        head: the target's logits function, `[..., H]` → `[..., V]`.

    Returns:
        The loss (a scalar) and its terms, detached: `regression`, `classification`, and with a contrastive branch
        `contrastive_regression`, `contrastive_classification`; also the share of rows in which a branch's most likely
        token is the target's, `accuracy` and `contrastive_accuracy`.

    Raises:
        ValueError: if no position counts.
    """
    mask = loss_mask[:, :-1].bool()
    if not mask.any():
        raise ValueError(
            "`loss_mask` selects no position of this batch (the last position of a row never counts). Every batch "
            "must hold at least one response token: check the dataset's masks and the truncation length."
        )
    target_features = target_hidden_states[:, 1:][mask]  # [R, H]
    with torch.no_grad():
        target_logits = head(target_features).float()  # [R, V]
        target_probs = target_logits.softmax(dim=-1)
        target_tokens = target_logits.argmax(dim=-1)

    def compare(features, rows):  # [R', H], index of the rows among R
        logits = head(features).float()
        regression = F.smooth_l1_loss(features.float(), target_features[rows].float())
        classification = F.cross_entropy(logits, target_probs[rows])
        accuracy = (logits.detach().argmax(dim=-1) == target_tokens[rows]).float().mean()
        return regression, classification, accuracy

    regression, classification, accuracy = compare(autoregressive_features[:, : mask.shape[1]][mask], slice(None))
    terms = {"regression": regression, "classification": classification, "accuracy": accuracy}
    if contrastive_features is not None:
        # the feature at t + 1 is predicted by the contrastive feature of t - 1, which the first position lacks
        has_predecessor = mask.nonzero()[:, 1] > 0
        regression_2, classification_2, accuracy_2 = compare(
            contrastive_features[:, : mask.shape[1] - 1][mask[:, 1:]], has_predecessor
        )
        terms["contrastive_regression"] = regression_2
        terms["contrastive_classification"] = classification_2
        terms["contrastive_accuracy"] = accuracy_2
        regression = regression + contrastive_weight * regression_2
        classification = classification + contrastive_weight * classification_2
    loss = regression_weight * regression + classification_weight * classification
    return loss, {name: term.detach() for name, term in terms.items()}


def load_balancing_loss(router_logits: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """
    `N · Σₑ fₑ · Pₑ` with `fₑ` the share of positions that choose expert e among their two and `Pₑ` the mean of its
    routing probability over all experts, as Mixtral has it: 2 where all experts are used alike, N at most. With two
    experts it is always 2, without a gradient.

    Args:
        router_logits (`[B, T, N]`): from the drafter's `output_router_logits`, N ≥ 2.
        loss_mask (`[B, T]`): 1 at the positions that count, at least one.

    Returns:
        A scalar, float32.
    """
    num_experts = router_logits.shape[-1]
    return load_balancing_loss_func(
        (router_logits.float().flatten(0, 1),), num_experts=num_experts, top_k=2, attention_mask=loss_mask
    )


@torch.no_grad()
def expert_load(router_logits: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """
    What each expert contributes: its mean weight in the autoregressive mixture.

    Args:
        router_logits (`[B, T, N]`): from the drafter's `output_router_logits`, N ≥ 2.
        loss_mask (`[B, T]`): 1 at the positions that count, at least one.

    Returns:
        `[N]`, float32, sum 1.
    """
    rows = router_logits[loss_mask.bool()].float()
    top_logits, chosen = rows.topk(2, dim=-1)
    return torch.zeros_like(rows).scatter(-1, chosen, top_logits.softmax(dim=-1)).mean(dim=0)


@torch.no_grad()
def expert_overlap(expert_logits_a: torch.Tensor, expert_logits_b: torch.Tensor, k: int) -> torch.Tensor:
    """
    How alike the proposals of a position's two experts are: the share of common tokens among their k likeliest next
    ones, 1 for the same k tokens, 0 for none in common.

    Args:
        expert_logits_a, expert_logits_b (`[R, V]`): next-token logits of the two chosen experts' features (the
            drafter's `output_expert_hidden_states`, then the target's head) at the R ≥ 1 positions that count.
        k (`int`): at most V.

    Returns:
        The mean over positions, a scalar, float32.
    """
    tokens_a, tokens_b = (logits.topk(k, dim=-1).indices for logits in (expert_logits_a, expert_logits_b))
    common = (tokens_a[:, :, None] == tokens_b[:, None, :]).sum(dim=(1, 2))
    return common.float().mean() / k
