# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""From a batch to the drafter's loss and metrics: what one training step computes (arXiv 2502.06282, section 3.3)."""

from dataclasses import dataclass

import torch

from .losses import contrastive_parallel_loss
from .modeling_jakiro import JakiroDraftModel
from .target import Target


@dataclass(frozen=True)
class DraftingObjective:
    """
    The training objective of a drafter. Fields as in [`JakiroTrainingArguments`].

    Calling it on a batch gives the loss (a scalar, the mean over the positions that count) and the metrics, each as a
    sum and a count, so that means over many batches and processes are exact.
    """

    regression_weight: float = 1.0
    classification_weight: float = 0.1
    contrastive_weight: float = 0.5
    feature_noise: float = 0.2

    @staticmethod
    def num_items(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """How many positions of a batch count: what its loss is a mean over (a scalar)."""
        return (batch["loss_mask"][:, :-1] != 0).sum()

    def __call__(
        self,
        draft_model: torch.nn.Module,
        target: Target,
        batch: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """
        Args:
            draft_model ([`JakiroDraftModel`], possibly wrapped for distributed training).
            target ([`Target`]): the frozen target.
            batch: `input_ids [B, T]`, `loss_mask [B, T]`, and `attention_mask [B, T]` or, for packed rows,
                `position_ids [B, T]`; `hidden_states [B, T, H]` if the target's features were computed before.
            num_items_in_batch (a scalar, *optional*): the positions that count in all batches of an optimizer step.
                The loss is then this batch's share of their mean, so that the batches' losses add up to it.
        """
        input_ids, attention_mask = batch["input_ids"], batch.get("attention_mask")
        position_ids = batch.get("position_ids")
        features = batch.get("hidden_states")
        if features is None:
            features = target.features(input_ids, attention_mask, position_ids)
        with torch.no_grad():
            embeddings = target.embed(input_ids)
        drafter_features = features
        if draft_model.training and self.feature_noise > 0:
            noise = (torch.rand_like(features) - 0.5) * (self.feature_noise * 512 / input_ids.shape[1])
            drafter_features = features + noise
        module: JakiroDraftModel = getattr(draft_model, "module", draft_model)
        dtype = module.dtype
        # the pair at index t: the embedding of token t + 1 and the feature at t
        drafted = draft_model(
            inputs_embeds=embeddings[:, 1:].to(input_ids.device, dtype),
            hidden_states=drafter_features[:, :-1].to(input_ids.device, dtype),
            attention_mask=None if attention_mask is None else attention_mask[:, 1:],
            position_ids=None if position_ids is None else position_ids[:, :-1],
            output_contrastive_hidden_state=module.config.head_mode == "contrastive",
        )
        loss, terms = contrastive_parallel_loss(
            drafted.last_hidden_state,
            drafted.contrastive_hidden_state,
            features,
            batch["loss_mask"],
            target.head,
            regression_weight=self.regression_weight,
            classification_weight=self.classification_weight,
            contrastive_weight=self.contrastive_weight,
        )
        num_items = self.num_items(batch)
        # a position without a predecessor has no contrastive prediction
        num_contrastive_items = (batch["loss_mask"][:, 1:-1] != 0).sum()
        metrics = {}
        for name, term in terms.items():
            count = num_contrastive_items if name.startswith("contrastive_") else num_items
            metrics[name] = (term * count, count)
        if num_items_in_batch is not None:
            loss = loss * (num_items / num_items_in_batch)
        return loss, metrics
