# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`JakiroTrainer`: trains a drafter on the hidden states of its frozen target."""

import json
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput

from ..core.target import Target, check_packing
from ..drafter import JakiroDraftModel
from ..files import write_json
from ..hub.publishing import TAGS, TRAINING, check_target_name, drafter_card, save_remote_code
from ..measuring.acceptance import accept_lengths, tokens_per_forward
from .arguments import JakiroTrainingArguments
from .data import JakiroDataCollator, prepare_dataset
from .features import FeatureDataset
from .initialization import new_drafter
from .loading import load_target_model
from .metrics import drafting_metrics
from .objective import Batch, DraftingObjective, Metrics, target_features
from .tokenization import check_tokenizer


class JakiroTrainer(Trainer):
    """
    Trains a [`JakiroDraftModel`] for a frozen target.

    The loss of an optimizer step is the mean over all positions that count in its accumulated batches and in all
    processes, however the positions are distributed. (With `average_tokens_across_devices=False`: the mean of the
    processes' means.) Metrics are means as well, over all positions since the last log, or of the evaluation set.

    Args:
        model ([`JakiroDraftModel`], `str` or `Path`, *optional*):
            The drafter, or its folder or Hub id, from which it is loaded in float32. Default: a new one, made by
            [`~transformers_jakiro.training.initialization.new_drafter`].
        target_model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], `str` or `Path`):
            The target, or its folder or Hub id. It is frozen, held outside the drafter, and never saved. It is put on
            the training device, unless it is quantized (load it there) or was loaded with a `device_map`. Each process
            holds a complete target.
        args ([`~transformers_jakiro.training.arguments.JakiroTrainingArguments`], *optional*):
            The arguments of the training.
        data_collator (`Callable`, *optional*):
            Default: [`~transformers_jakiro.training.data.JakiroDataCollator`].
        train_dataset, eval_dataset (*optional*):
            Any dataset that [`~transformers_jakiro.training.data.prepare_dataset`] accepts, or a
            [`~transformers_jakiro.training.features.FeatureDataset`], whose rows need no forward of the target.
            `eval_dataset` may be a dict of several.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The target's tokenizer; not needed for tokenized data.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Trains an adapter of the drafter, and saves only the adapter.
        callbacks, kwargs:
            Further arguments of [`~transformers.Trainer`].

    A drafter is saved with a `training.json`: the data (from the attribute `training_data`: a name, or a mapping with
    `name`), the number of steps, and all arguments. With `push_to_hub=True` it also gets a model card that lists them.

    Raises:
        TypeError: if `args` are not [`~transformers_jakiro.training.arguments.JakiroTrainingArguments`].
        ValueError: if drafter, target, data and arguments do not fit each other.
    """

    args: JakiroTrainingArguments
    objective: DraftingObjective
    training_data: Mapping[str, Any] | str | None = None

    def __init__(
        self,
        model: JakiroDraftModel | PeftModel | str | Path | None = None,
        target_model: PreTrainedModel | PeftModel | str | Path | None = None,
        args: JakiroTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = JakiroTrainingArguments(output_dir="tmp_trainer")
        elif not isinstance(args, JakiroTrainingArguments):
            raise TypeError(f"`args` must be `JakiroTrainingArguments`, got `{type(args).__name__}`.")
        target_model = _load_target(target_model, args)
        model = _load_drafter(model, target_model, args)
        self.target = _fitting_target(target_model, model)
        self.objective = DraftingObjective(
            **{each.name: getattr(args, each.name) for each in fields(DraftingObjective)}
        )
        if peft_config is not None:
            model = _add_adapter(model, peft_config)
        _check_publishing(model, args)
        if data_collator is None:
            pad_token_id = self.target.config.pad_token_id
            data_collator = JakiroDataCollator(pad_token_id=0 if pad_token_id is None else pad_token_id)
        # Trainer takes these from the tokenizer, but `generate` expects the target's in a drafter's config
        special_tokens = {
            name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        if processing_class is not None:
            check_tokenizer(processing_class, self.target.config)
        with args.main_process_first(desc="tokenizing"):  # the other processes find its cache
            train_dataset = self._prepare(train_dataset, processing_class, args, args.assistant_only_loss)
            if isinstance(eval_dataset, Mapping):
                eval_dataset = {name: self._prepare(one, processing_class, args) for name, one in eval_dataset.items()}
            else:
                eval_dataset = self._prepare(eval_dataset, processing_class, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        vars(model.config).pop("use_cache", None)  # set by Trainer; no field of a drafter's config
        self._check_distribution()
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by `num_items_in_batch`
        self.add_callback(_DrafterCallback(special_tokens))
        self._place_target()
        self._check_data()
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}
        self._prompts: list[torch.Tensor] = []

    def _prepare(
        self,
        dataset: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        args: JakiroTrainingArguments,
        assistant_only_loss: bool = True,
    ) -> Any:
        if dataset is None or feature_store(dataset) is not None:
            return dataset
        return prepare_dataset(
            dataset,
            tokenizer,
            max_length=args.max_length,
            packing=args.packing,
            assistant_only_loss=assistant_only_loss,
            num_proc=args.dataset_num_proc,
            vocab_size=self.target.config.vocab_size,
        )

    def _check_data(self) -> None:
        """Raises an error if the target cannot tell packed samples apart, or if stored features are not its own."""
        if self.args.packing:
            check_packing(self.target, self.args.per_device_train_batch_size)
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for dataset in (self.train_dataset, *evaluated.values()):
            store = feature_store(dataset)
            if store is not None:
                store.check_fits(self.target.model.config, self.target.feature_layers)
                store.check_target(self.target)

    def _check_distribution(self) -> None:
        """Raises `ValueError` for arguments that the kind of distributed training does not allow."""
        if self.is_deepspeed_enabled and self.args.max_grad_value > 0:
            raise ValueError(
                "DeepSpeed clips gradients by their norm only: set `max_grad_value=0`, and `max_grad_norm` to taste."
            )
        if self.is_fsdp_enabled and self.args.eval_generate_prompts > 0:
            raise ValueError(
                "`eval_generate_prompts` needs the whole drafter in each process, but FSDP shards it: set it to 0, "
                "and measure saved drafters with `jakiro bench`."
            )

    def _place_target(self) -> None:
        # `accelerator.prepare_model` would leave the target on the CPU under FSDP, and autocast it
        model = self.target.model.requires_grad_(False).eval()
        if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
            model.to(self.args.device)

    # -- loss and metrics --------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | None]:
        """Returns the batches of an optimizer step, and the number of positions that count, over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        num_items = torch.stack([self.objective.num_items(batch) for batch in batches]).sum().to(device)
        if self.args.average_tokens_across_devices:
            num_items = self.accelerator.reduce(num_items, "sum")
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Computes the loss of a batch `[B, T]`, a scalar, with the
        [`~transformers_jakiro.training.objective.DraftingObjective`].
        """
        objective = self.objective
        if self.state.global_step < self.args.unroll_start * self.state.max_steps:
            objective = replace(objective, unroll_steps=1)
        loss, metrics = objective(model, self.target, inputs, num_items_in_batch)
        self._add("train", metrics)
        self._latest = model, {name: value[:1] for name, value in inputs.items()}
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the processes' gradients will be averaged
        return (loss, None) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Evaluates a batch `[B, T]`: adds up its metrics, and returns its loss (a scalar) as the first value."""
        inputs = self._prepare_inputs(inputs)
        num_rows = self._num_own_rows(inputs["input_ids"].shape[0])
        if num_rows > 0:
            inputs = {name: value[:num_rows] for name, value in inputs.items()}
        inputs["hidden_states"] = target_features(self.target, inputs)  # once, for loss and metrics
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, metrics = self.objective(model, self.target, inputs)
            num_items = self.objective.num_items(inputs)
            metrics = {
                "loss": (loss * num_items, num_items),
                **metrics,
                **drafting_metrics(model, self.target, inputs),
            }
        if num_rows > 0:
            self._add("eval", metrics)
            self._collect_prompts(inputs)
        else:  # only repeated rows, which are there because all processes must run the same number of forwards
            self._add("eval", {name: (total * 0, count * 0) for name, (total, count) in metrics.items()})
        return loss.detach(), None, None

    def _num_own_rows(self, batch_size: int) -> int:
        """The number of rows of this batch that do not merely repeat others to fill the processes' last batches."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return batch_size
        return min(max(state.remainder - self.accelerator.process_index * batch_size, 0), batch_size)

    def _add(self, mode: str, metrics: Metrics) -> None:
        sums = self._sums[mode]
        for name, sum_and_count in metrics.items():
            pair = torch.stack([value.detach().to(self._sum_dtype) for value in sum_and_count])
            sums[name] = sums[name] + pair if name in sums else pair

    @property
    def _sum_dtype(self) -> torch.dtype:
        return torch.float32 if self.args.device.type == "mps" else torch.float64

    def _means(self, mode: str) -> dict[str, float]:
        """The means of the metrics over everything that all processes have added since the last call."""
        names = sorted(self._sums[mode])
        if not names:
            return {}
        sums = self.accelerator.reduce(torch.stack([self._sums[mode][name] for name in names]), "sum")
        self._sums[mode].clear()
        return {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count > 0}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs. The logs of a training interval also get the means of the objective's metrics since the last log, and the
        metrics of trees and experts, measured on one row of each process.
        """
        if "loss" in logs:
            self._unroll_on_latest_row()
            logs.update(self._means("train"))
        super().log(logs, start_time)

    def _unroll_on_latest_row(self) -> None:
        """Measures trees and experts by unrolling the drafter on the first row of this process' last batch."""
        model, row = self._latest
        with self.compute_loss_context_manager():
            self._add("train", drafting_metrics(model, self.target, row))

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Runs `evaluate` and `predict`: computes the means of the metrics and, if requested, generates."""
        self._sums["eval"].clear()
        self._prompts.clear()
        # evaluation must not change the random numbers of the training
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            acceptance_lengths = self._acceptance_lengths()
        metrics = {**self._means("eval"), **acceptance_lengths}
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **prefixed})

    def _collect_prompts(self, inputs: Batch) -> None:
        """Keeps the prompts of this process' first rows. The processes share the work."""
        processes = self.accelerator.num_processes
        own = (self.args.eval_generate_prompts + processes - 1 - self.accelerator.process_index) // processes
        for input_ids, loss_mask in zip(inputs["input_ids"], inputs["loss_mask"], strict=True):
            if len(self._prompts) == own:
                return
            length = int(loss_mask.argmax())
            if length > 0:
                self._prompts.append(input_ids[:length])

    def _acceptance_lengths(self) -> dict[str, float]:
        """Generates, and returns the tokens per target forward after the prefill, over all prompts, by temperature."""
        if self.args.eval_generate_prompts == 0:
            return {}
        if sum(gather_object([len(self._prompts)])) == 0:
            raise ValueError(
                f"`eval_generate_prompts={self.args.eval_generate_prompts}`, but no row of the evaluation set has a "
                "prompt, that is, tokens before the first one that counts. Set it to 0, or evaluate on conversations."
            )
        draft = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        was_training = draft.training
        draft.eval()
        metrics = {}
        for temperature in self.args.eval_generate_temperature:
            torch.manual_seed(self.args.seed)
            accepted = [
                length
                for prompt in self._prompts
                for length in accept_lengths(
                    self.target.model,
                    draft,
                    cast(torch.LongTensor, prompt[None]),
                    temperature,
                    self.args.eval_generate_tokens,
                )
            ]
            name = "acceptance_length" if temperature == 0 else f"acceptance_length_t{temperature:g}"
            metrics[name] = tokens_per_forward(gather_object(accepted))
        draft.train(was_training)
        return metrics

    # -- sharing -----------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the drafter like [`~transformers.Trainer.save_model`], and a `training.json` beside it."""
        if self.args.should_save:
            folder = Path(output_dir or self._output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / TRAINING, self.training_record())
        super().save_model(output_dir, _internal_call)

    def training_record(self) -> dict[str, Any]:
        """What the drafter was trained on and how, for its model card."""
        data = self.training_data if isinstance(self.training_data, Mapping) else {"name": self.training_data}
        rows = len(cast(Sized, self.train_dataset)) if hasattr(self.train_dataset, "__len__") else None
        record = {
            "data": {name: value for name, value in {**data, "rows": rows}.items() if value is not None},
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "rows_per_step": self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "versions": {name: version(name) for name in ("transformers_jakiro", "transformers", "torch")},
            "changed_arguments": self.args.record_of_changes(),
            "arguments": self.args.record(),
        }
        return json.loads(json.dumps(record, default=str))

    @property
    def _output_dir(self) -> Path:
        assert self.args.output_dir is not None  # TrainingArguments has set a default
        return Path(self.args.output_dir)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Writes the drafter's model card to `output_dir` ([`~transformers_jakiro.hub.publishing.drafter_card`]) and,
        with `hub_remote_code`, the code. The card of an adapter is made by
        [`~transformers.Trainer.create_model_card`], to which the other arguments are passed.

        Args:
            license (`str`, *optional*): default: the target's.
            tags (`str` or `list[str]`, *optional*): added to the tags of every drafter.
            model_name (`str`, *optional*): default: the repository's.
        """
        if not self.is_world_process_zero():
            return
        tags = [tags] if isinstance(tags, str) else tags or []
        folder = self._output_dir
        draft = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(draft, PeftModel):
            super().create_model_card(
                language=language,
                license=license,
                model_name=model_name,
                finetuned_from=finetuned_from,
                tasks=tasks,
                dataset_tags=dataset_tags,
                dataset=dataset,
                dataset_args=dataset_args,
            )
            card = ModelCard.load(folder / "README.md")
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS, *tags]))
            card.save(folder / "README.md")
            return
        card = drafter_card(
            draft.config,
            self.hub_model_id or model_name or folder.absolute().name,
            num_parameters=draft.num_parameters(),
            training=self.training_record(),
            license=license,
            tags=tags,
            remote_code=self.args.hub_remote_code,
            token=self.args.hub_token,
        )
        card.save(folder / "README.md")
        if self.args.hub_remote_code:
            save_remote_code(folder)


class _DrafterCallback(TrainerCallback):
    def __init__(self, special_tokens: dict[str, Any]):
        self._special_tokens = special_tokens

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for name, value in self._special_tokens.items():
            setattr(model.config, name, value)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        # gradients are now accumulated, reduced over the processes and unscaled (a sharded drafter has its own part)
        if args.max_grad_value > 0:
            nn.utils.clip_grad_value_(model.parameters(), args.max_grad_value)


def feature_store(dataset: Any) -> FeatureDataset | None:
    """The feature store that a dataset is, or is a subset of; None for other datasets."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, FeatureDataset) else None


def _load_target(
    target_model: PreTrainedModel | PeftModel | str | Path | None, args: JakiroTrainingArguments
) -> PreTrainedModel:
    if target_model is None:
        raise ValueError("`JakiroTrainer` needs the `target_model` that the drafter will draft for.")
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO stage 3 would shard the frozen target, whose embeddings and head the drafter uses. A "
            "drafter is small: use stage 2 (`examples/accelerate/deepspeed_zero2.yaml`)."
        )
    if isinstance(target_model, (str, Path)):
        return load_target_model(target_model, **{"dtype": "auto", **args.target_kwargs})
    if args.target_model_init_kwargs is not None:
        raise ValueError("`target_model_init_kwargs` is for a `target_model` given by its name; this one is loaded.")
    return cast(PreTrainedModel, target_model)  # or a PEFT model, which acts as one


def _load_drafter(
    model: JakiroDraftModel | PeftModel | str | Path | None,
    target_model: PreTrainedModel,
    args: JakiroTrainingArguments,
) -> JakiroDraftModel | PeftModel:
    if model is None:
        set_seed(args.seed)
        return new_drafter(target_model)
    if isinstance(model, (str, Path)):
        return JakiroDraftModel.from_pretrained(model, dtype=torch.float32)
    return model


def _fitting_target(target_model: PreTrainedModel, model: JakiroDraftModel | PeftModel) -> Target:
    """The target as the drafter sees it. Raises `ValueError` if the drafter cannot be trained for it."""
    drafter = cast(JakiroDraftModel, model)  # or a PEFT model, which acts as one
    drafter.config.check_trainable()
    target = Target.of(target_model, drafter)
    target.check_fits(drafter.config)
    drafter.check_draft_vocabulary()
    return target


def _add_adapter(model: JakiroDraftModel | PeftModel, peft_config: PeftConfig) -> PeftModel:
    if isinstance(model, PeftModel):
        raise ValueError("`model` has an adapter already: leave out `peft_config`, or merge the adapter first.")
    return cast(PeftModel, get_peft_model(model, peft_config))


def _check_publishing(model: JakiroDraftModel | PeftModel, args: JakiroTrainingArguments) -> None:
    if isinstance(model, PeftModel):
        if args.hub_remote_code:
            raise ValueError("`hub_remote_code` is for whole drafters, not for adapters: leave it out, or merge.")
    elif args.push_to_hub:
        check_target_name(model.config)


__all__ = ["JakiroTrainer", "feature_store"]
