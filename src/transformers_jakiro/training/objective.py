# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
From a batch to the drafter's loss and metrics: what one training step computes (arXiv 2502.06282, section 3.3).

Symbols in shape comments: B batch, T positions, H hidden size, N experts, S unrolled steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache

from ..core.modeling_jakiro import JakiroDraftOutput
from ..core.target import Target
from ..drafter import JakiroDraftModel
from .losses import contrastive_parallel_loss, counted_pairs, load_balancing_loss

Batch = dict[str, torch.Tensor]
Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class DraftingObjective:
    """
    The training objective of a drafter. [`JakiroTrainingArguments`] explains the fields.

    Calling it on a batch returns the loss (a scalar, the mean over the positions that count) and the metrics, each as
    a sum and a count (scalars), so that means over many batches and processes are exact.
    """

    regression_weight: float = 1.0
    classification_weight: float = 0.1
    contrastive_weight: float = 0.5
    load_balancing_weight: float = 0.01
    feature_noise: float = 0.2
    unroll_steps: int = 1

    @staticmethod
    def num_items(batch: Batch) -> torch.Tensor:
        """The number of positions that count in a batch, over which its loss is the mean (a scalar)."""
        return counted_pairs(batch["loss_mask"]).sum()

    def __call__(
        self,
        draft_model: nn.Module,
        target: Target,
        batch: Batch,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> tuple[torch.Tensor, Metrics]:
        """
        Args:
            draft_model ([`JakiroDraftModel`], possibly wrapped for distributed training).
            target ([`Target`]): the frozen target.
            batch: `input_ids [B, T]`, `loss_mask [B, T]`, and `attention_mask [B, T]` (padding on the right) or, for
                packed rows, `position_ids [B, T]`; `hidden_states [B, T, F]` if the features were computed in advance.
            num_items_in_batch (a scalar, *optional*): the number of positions that count in all batches of an
                optimizer step. The loss is then this batch's share of their mean: the batches' losses add up to it.
        """
        module = unwrap(draft_model)
        config = module.config
        position_ids = batch.get("position_ids")
        embeddings, features = read_target(target, batch, module.dtype)
        inputs = features
        if draft_model.training and self.feature_noise > 0:
            noise = torch.rand_like(features, dtype=torch.float32) - 0.5
            inputs = features + (noise * (self.feature_noise * 512) / sample_lengths(batch)[..., None]).to(features)
        routes = config.num_experts > 2 and self.load_balancing_weight > 0
        outputs = unroll(
            draft_model,
            embeddings,
            inputs.to(module.dtype),
            position_ids,
            self.unroll_steps,
            # drafting also uses it in the last step only
            contrastive=lambda step: config.head_mode == "contrastive" and step == self.unroll_steps,
            output_router_logits=routes,
        )
        loss, metrics = contrastive_parallel_loss(
            [cast(torch.Tensor, output.last_hidden_state) for output in outputs],
            [output.contrastive_hidden_state for output in outputs],
            features[..., -config.hidden_size :],
            batch["loss_mask"],
            target.head,
            position_ids,
            regression_weight=self.regression_weight,
            classification_weight=self.classification_weight,
            contrastive_weight=self.contrastive_weight,
            draft_head=target.draft_head(module.draft_token_ids),
            draft_token_ids=module.draft_token_ids,
        )
        num_items = self.num_items(batch)
        if routes:
            router_logits = cast(torch.Tensor, outputs[0].router_logits)
            balance = load_balancing_loss(router_logits, counted_pairs(batch["loss_mask"]))
            loss = loss + self.load_balancing_weight * balance
            metrics["load_balancing"] = (balance.detach() * num_items, num_items)
        if num_items_in_batch is not None:
            loss = loss * (num_items / num_items_in_batch)
        return loss, metrics


def unwrap(draft_model: nn.Module) -> JakiroDraftModel:
    """The drafter itself, which may be wrapped for distributed training."""
    return cast(JakiroDraftModel, getattr(draft_model, "module", draft_model))


def target_features(target: Target, batch: Batch) -> torch.Tensor:
    """The target's features of a batch, `[B, T, F]`: those in the batch, or from a forward."""
    if "hidden_states" in batch:
        return batch["hidden_states"]
    names = ("input_ids", "attention_mask", "position_ids")
    inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    return target.features(**inputs)


def read_target(target: Target, batch: Batch, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings `[B, T, H]` of a batch's tokens in `dtype`, and the target's features `[B, T, F]` in the target's."""
    input_ids = batch["input_ids"]
    features = target_features(target, batch)
    with torch.no_grad():
        embeddings = target.embed(input_ids)
    return embeddings.to(input_ids.device, dtype), features.to(input_ids.device)


def sample_lengths(batch: Batch) -> torch.Tensor:
    """The number of tokens in each token's sample, `[B, T]` for packed rows, else `[B, 1]`."""
    if "position_ids" not in batch:
        return batch["attention_mask"].sum(dim=1, keepdim=True)
    samples = (batch["position_ids"] == 0).long().cumsum(dim=1)  # 1, 1, 1, 2, 2 ...
    sizes = torch.zeros_like(samples).scatter_add(1, samples - 1, torch.ones_like(samples))
    return sizes.gather(1, samples - 1)


def unroll(
    draft_model: nn.Module,
    embeddings: torch.Tensor,
    features: torch.Tensor,
    position_ids: torch.Tensor | None,
    num_steps: int,
    contrastive: Callable[[int], bool],
    **outputs: bool,
) -> list[JakiroDraftOutput]:
    """
    Runs the drafter along a known text the way it drafts. In the first step every position reads the target's
    features. In step s each position reads the feature that the drafter computed for the previous position in step
    s - 1, and attends to the target's features up to s - 1 positions back and to the drafter's own of steps 2 to s
    (training-time test; EAGLE-3, arXiv 2503.01840). What each position sees in steps 1, 2 and 3 of a text of four
    pairs:

        step 1     step 1 | 2         step 1 | 2      | 3
        1 0 0 0    0 0 0 0 | 1 0 0 0   0 0 0 0 | 0 0 0 0 | 1 0 0 0
        1 1 0 0    1 0 0 0 | 0 1 0 0   0 0 0 0 | 1 0 0 0 | 0 1 0 0
        1 1 1 0    1 1 0 0 | 0 0 1 0   1 0 0 0 | 0 1 0 0 | 0 0 1 0
        1 1 1 1    1 1 1 0 | 0 0 0 1   1 1 0 0 | 0 0 1 0 | 0 0 0 1

    Args:
        draft_model ([`JakiroDraftModel`], possibly wrapped).
        embeddings (`[B, T, H]`), features (`[B, T, F]`): of the text's tokens, in the drafter's dtype.
        position_ids (`[B, T]`, *optional*): positions in each of a row's packed samples.
        num_steps (`int`): S.
        contrastive (`Callable`): whether a step (counted from 1) also computes contrastive features.
        outputs: further outputs to ask the drafter for.

    Returns:
        The S outputs, with features of shape `[B, T - 1, H]`. In step s the first s - 1 positions of a sample are
        meaningless.
    """
    # the pair at index t: the embedding of token t + 1 and the feature at t
    embeddings, hidden_states = embeddings[:, 1:], features[:, :-1]
    length, device = embeddings.shape[1], embeddings.device
    cache = DynamicCache() if num_steps > 1 else None
    if position_ids is None:
        positions = torch.arange(length, device=device)[None]
    else:
        positions = position_ids[:, :-1]
    attention_mask = None  # causal, within each sample
    if num_steps > 1:
        samples = (positions == 0).cumsum(dim=1)
        blocks = [(samples[:, :, None] == samples[:, None, :]).tril_()]  # [B, T - 1, T - 1], of what each step left
        own = torch.eye(length, dtype=torch.bool, device=device).expand_as(blocks[0])
    results = []
    for step in range(1, num_steps + 1):
        if step > 1:  # a position now sees what the previous one saw, and itself
            blocks = [*(nn.functional.pad(block[:, :-1], (0, 0, 1, 0)) for block in blocks), own]
        # with a cache, the drafter does not keep packed samples apart itself
        if step > 1 or (num_steps > 1 and position_ids is not None):
            hidden = ~torch.cat(blocks, dim=-1)[:, None]
            minimum = torch.finfo(embeddings.dtype).min
            attention_mask = embeddings.new_zeros(hidden.shape).masked_fill_(hidden, minimum)
        output = draft_model(
            inputs_embeds=embeddings,
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=positions.expand(embeddings.shape[0], -1),
            cache=cache,
            output_contrastive_hidden_state=contrastive(step),
            **outputs,
        )
        results.append(output)
        # one position later; the first position then reads something meaningless
        hidden_states = output.last_hidden_state.roll(1, dims=1)
    return results
