# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Measures how good a drafter is without generating: the acceptance its trees can expect, and what its experts do.

Symbols in shape comments: B batch, T positions, H hidden size, N experts, R rows that count, C rows of a chunk, V
vocabulary, D tokens that can be drafted.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from ..core.modeling_jakiro import JakiroDraftOutput
from ..core.target import Target
from ..core.tree import TreeShape
from .losses import counted_pairs, draft_index, rows_per_chunk
from .objective import Batch, Metrics, read_target, unroll, unwrap

# The n likeliest nodes of a tree are roughly those whose path is likelier than this over n. The rule agrees with
# replays of real trees within 15 % (tests/test_objective.py); the surer the drafter, the more it overestimates them.
_LEAST_PATH_PROBABILITY = 0.15


@torch.no_grad()
def drafting_metrics(draft_model: nn.Module, target: Target, batch: Batch) -> Metrics:
    """
    Computes the metrics of a batch, each a sum and a count (scalars).

    - `expected_acceptance_length`: tokens per forward of the target if the target said the batch's text. The drafter
      is unrolled along the text to the depth of its trees. A token counts as drafted if it is among the `tree_top_k`
      likeliest at its level and its path is likely enough to be among the tree's nodes. Not for drafters with a static
      tree.
    - `expert_load_0`, `expert_load_1` ...: each expert's mean weight in the mixture.
    - `expert_overlap`: the share of tokens that the `tree_top_k` proposals of the two chosen experts have in common.

    Args:
        draft_model ([`JakiroDraftModel`], possibly wrapped for distributed training).
        target: as for [`~transformers_jakiro.training.objective.DraftingObjective`].
        batch: as for [`~transformers_jakiro.training.objective.DraftingObjective`], `[B, T]`.
    """
    module = unwrap(draft_model)
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
    counted = counted_pairs(batch["loss_mask"])
    head = target.draft_head(module.draft_token_ids)
    chunk_size = rows_per_chunk(features.device, 3 * (config.draft_vocab_size or config.vocab_size))
    metrics: Metrics = {}
    if shape.static_tree is None:
        metrics["expected_acceptance_length"] = _expected_acceptance(
            outputs, head, module.draft_token_ids, chunk_size, batch, shape, config.head_mode == "decoupled"
        )
    if config.num_experts > 1:
        metrics |= _expert_metrics(outputs[0], counted, head, chunk_size, config.tree_top_k)
    return metrics


def _expert_metrics(
    output: JakiroDraftOutput,
    counted: torch.Tensor,  # [B, T - 1]
    head: Callable[[torch.Tensor], torch.Tensor],
    chunk_size: int,
    top_k: int,
) -> Metrics:
    count = counted.sum()
    loads = expert_load(cast(torch.Tensor, output.router_logits), counted).nan_to_num()
    metrics: Metrics = {f"expert_load_{expert}": (load * count, count) for expert, load in enumerate(loads)}
    rows = cast(torch.Tensor, output.expert_hidden_states)[:, counted]  # [2, R, H]
    overlaps = []
    for part in rows.split(chunk_size, dim=1):
        logits_a, logits_b = head(part)
        overlaps.append(expert_overlap(logits_a, logits_b, top_k) * part.shape[1])
    metrics["expert_overlap"] = (torch.stack(overlaps).nan_to_num().sum(), count)
    return metrics


def _expected_acceptance(
    outputs: list[JakiroDraftOutput],
    head: Callable[[torch.Tensor], torch.Tensor],
    draft_token_ids: torch.Tensor | None,
    chunk_size: int,
    batch: Batch,
    shape: TreeShape,
    decoupled: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens and the forwards of a walk through the counted positions of the text (scalars)."""
    input_ids = batch["input_ids"]
    counted = counted_pairs(batch["loss_mask"])  # the pair at t drafts what follows token t + 1
    starts = batch["position_ids"] == 0 if "position_ids" in batch else batch["attention_mask"] == 0
    # a chain has room for every level
    least = -math.inf if shape.top_k == 1 else math.log(_LEAST_PATH_PROBABILITY / shape.num_draft_tokens)
    path = torch.zeros(counted.shape, device=input_ids.device)  # log-probability of the drafted path
    accepted = torch.zeros_like(counted, dtype=torch.long)
    alive = counted.clone()
    for level in range(1, shape.depth + 1):
        width = alive.shape[1] - level  # positions followed by a token at this level
        if width <= 0:
            break
        alive[:, width:] = False
        alive[:, :width] &= ~starts[:, 1 + level :]
        rows = alive[:, :width].clone()
        if not rows.any():
            break
        features = _features_of_level(outputs, level, width, shape, decoupled)[:, rows]  # [heads, R, H]
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
    num_tokens, num_forwards = _walk(accepted.tolist(), counted.tolist())
    return torch.tensor(num_tokens, device=input_ids.device), torch.tensor(num_forwards, device=input_ids.device)


def _features_of_level(
    outputs: list[JakiroDraftOutput], level: int, width: int, shape: TreeShape, decoupled: bool
) -> torch.Tensor:
    """
    The features that token t + 1 + level follows from, for `width` positions t: `[heads, B, width, H]`. They are at
    t + level - 1 of the level's step. If the last two levels of a tree are from one forward, the last level's are the
    contrastive features one position earlier.
    """
    contrastive = shape.two_levels and level == shape.depth
    place = level - 1 - contrastive
    if contrastive:
        features = cast(torch.Tensor, outputs[-1].contrastive_hidden_state)[None]
    elif decoupled:
        features = cast(torch.Tensor, outputs[level - 1].expert_hidden_states)
    else:
        features = cast(torch.Tensor, outputs[level - 1].last_hidden_state)[None]
    return features[:, :, place : place + width]


def _walk(accepted: list[list[int]], counted: list[list[int]]) -> tuple[int, int]:
    """
    The tokens and forwards of generating the counted positions of all rows, where a forward at a position adds one
    token and those `accepted` there.
    """
    num_tokens = num_forwards = 0
    for row, positions in zip(accepted, counted, strict=True):
        place = 0
        while place < len(row):
            if not positions[place]:
                place += 1
                continue
            num_tokens += row[place] + 1
            num_forwards += 1
            place += row[place] + 1
    return num_tokens, num_forwards


@torch.no_grad()
def expert_load(router_logits: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """
    Measures what each expert contributes: its mean weight in the autoregressive mixture.

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
    Measures how similar the proposals of a position's two experts are: the share of common tokens among their k
    likeliest next tokens, 1 for the same k tokens, 0 for none in common.

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
