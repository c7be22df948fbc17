# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The arguments of [`JakiroTrainer`]."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

# the smallest values of our own arguments
_LEAST = {
    "max_grad_value": 0,
    "eval_generate_prompts": 0,
    "feature_noise": 0,
    "eval_generate_tokens": 1,
    "max_length": 1,
    "unroll_steps": 1,
}
# arguments that name places and accounts, and the beginnings of such names
_PLACES_AND_ACCOUNTS = (
    "output_dir",
    "logging_dir",
    "run_name",
    "project",
    "trackio",
    "local_rank",
    "resume_from_checkpoint",
    "hub_",
    "push_to_hub",
    "report_to",
    "disable_tqdm",
    "debug",
)


@dataclass
class JakiroTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with additional arguments for training a drafter. Two defaults differ from the
    parent's: `remove_unused_columns=False` (batches hold more than the arguments of the drafter's forward) and
    `ddp_find_unused_parameters=False` (a drafter uses all of its parameters).

    > Parameters of the target and the data

    Args:
        target_model_init_kwargs (`dict` or JSON `str`, *optional*):
            Arguments of `AutoModelForCausalLM.from_pretrained` for a `target_model` given by its name.
        max_length (`int`, defaults to 2048):
            Samples are cut to this number of tokens, which is also the length of packed rows.
        packing (`bool`, defaults to `False`):
            Fills rows of `max_length` tokens with several samples, which do not see each other.
        assistant_only_loss (`bool`, defaults to `True`):
            Trains on the assistant's tokens only. With `False` the tokens of the prompts count too; a drafter also
            learns from them. In evaluation only the assistant's tokens count. (Stored features have their own mask.)
        dataset_num_proc (`int`, *optional*):
            The number of processes that tokenize a `datasets.Dataset`.

    > Parameters of the objective: see [`~transformers_jakiro.training.objective.DraftingObjective`]

    Args:
        regression_weight (`float`, defaults to 1.0), classification_weight (`float`, defaults to 0.1),
        contrastive_weight (`float`, defaults to 0.5), feature_noise (`float`, defaults to 0.2):
            The published values.
        load_balancing_weight (`float`, defaults to 0.01):
            Weight of the load-balancing loss of drafters with more than two experts.
        unroll_steps (`int`, defaults to 1):
            The number of steps that the drafter is unrolled for in training. From the second step on it reads its own
            features, as it does when drafting.
        unroll_start (`float`, defaults to 0.0):
            The share of the training's steps before the drafter is unrolled. Features that are not yet similar to the
            target's teach little, and an unrolled step costs `unroll_steps` forwards.

    > Parameters of the optimization and the evaluation

    Args:
        max_grad_value (`float`, defaults to 0.5):
            Clips each element of an optimizer step's gradient to ± this value, after `max_grad_norm`. 0: no clipping
            by value. (The published recipe clips only by value: `max_grad_norm=0`.)
        eval_generate_prompts (`int`, defaults to 0):
            The number of prompts of each evaluation set that `generate` also answers with the drafter, which gives the
            metric `acceptance_length`. A prompt is what precedes a row's first counted token. 0: none.
        eval_generate_tokens (`int`, defaults to 128):
            New tokens per prompt.
        eval_generate_temperature (`list[float]`, defaults to `[0.0]`):
            Temperatures to generate at. 0 decodes greedily; another one, for example 1, adds the metric
            `acceptance_length_t1`.

    > Parameters of publishing

    Args:
        hub_remote_code (`bool`, defaults to `False`):
            Publishes the code with the drafter, so that it loads without this package (`trust_remote_code=True`).
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are built by the collator."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "A drafter uses all of its parameters."}
    )
    target_model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Arguments of `from_pretrained` for a target given by its name, as JSON."},
    )
    max_length: int = field(
        default=2048, metadata={"help": "Samples are cut to this number of tokens, the length of packed rows."}
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Fill rows of `max_length` tokens with several samples, which do not see each other."},
    )
    assistant_only_loss: bool = field(
        default=True, metadata={"help": "Train on the assistant's tokens only, not on those of the prompts."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that tokenize a `datasets.Dataset`."}
    )
    regression_weight: float = field(default=1.0, metadata={"help": "Weight of the SmoothL1 loss of the features."})
    classification_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy of the logits."})
    contrastive_weight: float = field(
        default=0.5, metadata={"help": "Weight of the contrastive branch, relative to the autoregressive one."}
    )
    load_balancing_weight: float = field(
        default=0.01, metadata={"help": "Weight of the load-balancing loss, with more than two experts."}
    )
    unroll_steps: int = field(
        default=1, metadata={"help": "Steps to unroll the drafter for; from the second on it reads its own features."}
    )
    unroll_start: float = field(
        default=0.0, metadata={"help": "Share of the training, 0 to 1, before the drafter is unrolled."}
    )
    feature_noise: float = field(
        default=0.2,
        metadata={"help": "Width of the uniform noise on the input features for a sequence of 512 tokens; 0: none."},
    )
    max_grad_value: float = field(
        default=0.5,
        metadata={"help": "Clip each element of the gradient to ± this value, after `max_grad_norm`; 0: do not."},
    )
    eval_generate_prompts: int = field(
        default=0,
        metadata={"help": "Prompts per evaluation set to measure the acceptance length on, by generating."},
    )
    eval_generate_tokens: int = field(
        default=128, metadata={"help": "New tokens per prompt of `eval_generate_prompts`."}
    )
    eval_generate_temperature: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "Temperatures to generate at; 0 is greedy."}
    )
    hub_remote_code: bool = field(
        default=False, metadata={"help": "Publish the code with the drafter, for users without this package."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.target_model_init_kwargs, str):
            self.target_model_init_kwargs = json.loads(self.target_model_init_kwargs)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.unroll_start <= 1:
            raise ValueError(f"`unroll_start` is a share of the training, 0 to 1, got {self.unroll_start}.")
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Without tokens: `Trainer` pickles its arguments into each checkpoint, and publishes them."""
        state = {**self.__dict__, "hub_token": None}
        if self.target_model_init_kwargs is not None:
            state["target_model_init_kwargs"] = _without_token(self.target_kwargs)
        return state

    @property
    def target_kwargs(self) -> dict[str, Any]:
        """`target_model_init_kwargs`, empty if there are none."""
        assert not isinstance(self.target_model_init_kwargs, str)  # parsed above
        return self.target_model_init_kwargs or {}

    def record(self) -> dict[str, Any]:
        """All arguments that describe the training: without those that name places and accounts."""
        recorded = {name: value for name, value in self.to_dict().items() if not name.startswith(_PLACES_AND_ACCOUNTS)}
        if recorded["target_model_init_kwargs"]:
            recorded["target_model_init_kwargs"] = _without_token(recorded["target_model_init_kwargs"])
        return recorded

    def record_of_changes(self) -> dict[str, Any]:
        """The recorded arguments that differ from their defaults."""
        recorded = self.record()
        changed = {}
        for option in fields(self):
            if option.name not in recorded or option.name == "accelerator_config":  # whose default is filled in
                continue
            value, default = recorded[option.name], _default_of(option)
            if value != default and (value or default is not None):
                changed[option.name] = value
        return changed


def _default_of(option: Field) -> Any:
    return option.default_factory() if option.default_factory is not MISSING else option.default


def _without_token(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "token"}


__all__ = ["JakiroTrainingArguments"]
