# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What tells how good a drafter is without generating: the acceptance its trees can expect, and what its experts do.

Symbols in shape comments: B batch, T positions, N experts, R rows that count, C rows of a chunk, D tokens that can
be drafted, L levels of a tree.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from ..core.modeling_jakiro import JakiroDraftModel, JakiroDraftOutput
from ..core.target import Target
from ..core.tree import TreeShape
from .losses import draft_index, rows_per_chunk
from .objective import Batch, Metrics, read_target, unroll

# The n likeliest nodes of a tree are about those whose path is likelier than this over n. Replays of real trees and
# this rule agree within 15 % (tests/test_objective.py); the surer the drafter, the more the rule exceeds them.
_LEAST_PATH_PROBABILITY = 0.15


@torch.no_grad()
def drafting_metrics(draft_model: nn.Module, target: Target, batch: Batch) -> Metrics:
    """
    Metrics of a batch, each a sum and a count.

    - `expected_acceptance_length`: tokens per forward of the target, were the batch's text what the target says. The
      drafter is unrolled along the text as deep as its trees are. A token counts as drafted if it is among the
      `tree_top_k` likeliest at its level, and its path likely enough to be among the tree's nodes. Not for drafters
      with a static tree.
    - `expert_load_0`, `expert_load_1` ...: each expert's mean weight in the mixture.
    - `expert_overlap`: share of tokens that the `tree_top_k` proposals of the two chosen experts have in common.

    Args:
        draft_model ([`JakiroDraftModel`], possibly wrapped for distributed training).
        target, batch: as for [`~transformers_jakiro.training.objective.DraftingObjective`].
    """
    module: JakiroDraftModel = getattr(draft_model, "module", draft_model)
    config = module.config
    shape = TreeShape.from_config(config)
    embeddings, features = read_target(target, batch, module.dtype)
    num_steps = shape.depth - 1 if shape.two_levels else shape.depth
    outputs = unroll(
        draft_model,
        embeddings,
        features.to(module.dtype),
        batch.get("position_ids"),
        num_steps,
        contrastive=lambda step: shape.two_levels and step == num_steps,
        output_expert_hidden_states=config.num_experts > 1,
        output_router_logits=config.num_experts > 1,
    )
    counted = batch["loss_mask"][:, :-1] != 0
    head = target.draft_head(module.draft_token_ids)
    chunk_size = rows_per_chunk(features.device, 3 * (config.draft_vocab_size or config.vocab_size))
    metrics: Metrics = {}
    if shape.static_tree is None:
        metrics["expected_acceptance_length"] = _expected_acceptance(
            outputs, head, module.draft_token_ids, chunk_size, batch, shape, config.head_mode == "decoupled"
        )
    if config.num_experts > 1:
        count = counted.sum()
        for expert, load in enumerate(expert_load(outputs[0].router_logits, counted).nan_to_num()):
            metrics[f"expert_load_{expert}"] = (load * count, count)
        rows = outputs[0].expert_hidden_states[:, counted]  # [2, R, H]
        overlap = [
            expert_overlap(*head(part), config.tree_top_k) * part.shape[1] for part in rows.split(chunk_size, dim=1)
        ]
        metrics["expert_overlap"] = (torch.stack(overlap).nan_to_num().sum(), count)
    return metrics


def _expected_acceptance(
    outputs: list[JakiroDraftOutput],
    head: Callable[[torch.Tensor], torch.Tensor],
    draft_token_ids: torch.LongTensor | None,
    chunk_size: int,
    batch: Batch,
    shape: TreeShape,
    decoupled: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and forwards of a walk through the counted positions of the text."""
    input_ids = batch["input_ids"]
    counted = batch["loss_mask"][:, :-1] != 0  # the pair at t drafts what follows token t + 1
    starts = batch["position_ids"] == 0 if "position_ids" in batch else batch["attention_mask"] == 0
    # a chain has room for every level
    least = -math.inf if shape.top_k == 1 else math.log(_LEAST_PATH_PROBABILITY / shape.num_draft_tokens)
    path = torch.zeros(counted.shape, device=input_ids.device)  # log-probability of the drafted path
    accepted = torch.zeros_like(counted, dtype=torch.long)
    alive = counted.clone()
    for level in range(1, shape.depth + 1):
        # token t + 1 + level follows from the feature at t + level - 1 of this step, at the last level of trees whose
        # last two levels are one forward's from the contrastive feature one position before
        contrastive = shape.two_levels and level == shape.depth
        width = alive.shape[1] - level  # positions that such a token follows
        if width <= 0:
            break
        alive[:, width:] = False
        alive[:, :width] &= ~starts[:, 1 + level :]
        rows = alive[:, :width].clone()
        if not rows.any():
            break
        if contrastive:
            features = outputs[-1].contrastive_hidden_state[None]
        elif decoupled:
            features = outputs[level - 1].expert_hidden_states
        else:
            features = outputs[level - 1].last_hidden_state[None]
        place = level - 1 - contrastive
        features = features[:, :, place : place + width][:, rows]  # [heads, R, H]
        tokens = input_ids[:, 1 + level :][rows]
        kept = []
        scores = path[:, :width][rows]
        for part, token, score in zip(
            features.split(chunk_size, dim=1), tokens.split(chunk_size), scores.split(chunk_size), strict=True
        ):
            log_probs = head(part).float().log_softmax(dim=-1).amax(dim=0)  # [C, D]
            index, known = draft_index(token, draft_token_ids)
            log_prob = log_probs.gather(1, index[:, None]).masked_fill(~known[:, None], -math.inf)
            kept.append(((log_probs > log_prob).sum(dim=1) < shape.top_k) & (log_prob[:, 0] + score > least))
            score += log_prob[:, 0]
        path[:, :width][rows] = scores
        alive[:, :width][rows] = torch.cat(kept)
        accepted += alive
    num_tokens = num_forwards = 0
    for row, positions in zip(accepted.tolist(), counted.tolist(), strict=True):
        place = 0
        while place < len(row):
            if not positions[place]:
                place += 1
                continue
            num_tokens += row[place] + 1
            num_forwards += 1
            place += row[place] + 1
    return torch.tensor(num_tokens, device=input_ids.device), torch.tensor(num_forwards, device=input_ids.device)


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
