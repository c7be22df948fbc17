# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`JakiroTrainer`: trains a drafter on the hidden states of its frozen target."""

from collections import defaultdict
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from .data import JakiroDataCollator
from .objective import DraftingObjective
from .target import Target


@dataclass
class JakiroTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] and what the drafter's loss needs. Defaults that differ from the parent's:
    `remove_unused_columns=False` (the batches hold more than the drafter's forward takes).
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are built by the collator."})
    regression_weight: float = field(default=1.0, metadata={"help": "Weight of the SmoothL1 loss of the features."})
    classification_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy of the logits."})
    contrastive_weight: float = field(
        default=0.5, metadata={"help": "Weight of the contrastive branch, relative to the autoregressive one."}
    )
    feature_noise: float = field(
        default=0.2,
        metadata={"help": "Width of the uniform noise on the input features for a sequence of 512 tokens; 0: none."},
    )


class JakiroTrainer(Trainer):
    """
    Trains a [`JakiroDraftModel`] for a frozen target.

    Args:
        model ([`JakiroDraftModel`]): the drafter.
        target_model ([`~transformers.PreTrainedModel`]): the target. Held outside the drafter, frozen, never saved.
        args ([`JakiroTrainingArguments`]): see there.
        train_dataset, eval_dataset: rows of `input_ids` and `loss_mask`, see
            [`~transformers_jakiro.data.tokenize_conversation`].
        kwargs: further arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: if drafter and target do not fit.
    """

    def __init__(self, model=None, target_model: PreTrainedModel | None = None, args=None, **kwargs: Any):
        if target_model is None:
            raise ValueError("`JakiroTrainer` needs the `target_model` that the drafter is to draft for.")
        self.target = Target(target_model)
        self.target.check_fits(model.config)
        pad_token_id = self.target.config.pad_token_id
        kwargs.setdefault(
            "data_collator", JakiroDataCollator(pad_token_id=0 if pad_token_id is None else pad_token_id)
        )
        super().__init__(model=model, args=args, **kwargs)
        self.objective = DraftingObjective(
            **{field.name: getattr(self.args, field.name) for field in fields(DraftingObjective)}
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.target.model.requires_grad_(False).eval().to(self.args.device)
        self._metrics: dict[str, dict[str, list[torch.Tensor]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ):
        """The drafting objective on one batch, see [`~transformers_jakiro.objective.DraftingObjective`]."""
        loss, metrics = self.objective(model, self.target, inputs)
        sums = self._metrics["train" if model.training else "eval"]
        for name, (total, count) in metrics.items():
            sums[name].append(total / count)
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the loss terms since the last call."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        prefix = "eval_" if mode == "eval" else ""
        for name, values in self._metrics[mode].items():
            logs[prefix + name] = torch.stack(values).mean().item()
        self._metrics[mode].clear()
        super().log(logs, start_time)
