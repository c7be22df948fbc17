# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`JakiroTrainer`: trains a drafter on the hidden states of its frozen target."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Subset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import cached_file, extract_commit_hash

from ..core.target import Target, check_packing
from ..drafter import JakiroDraftModel
from ..files import write_json
from ..hub.publishing import TAGS, TRAINING, check_target_name, drafter_card, save_remote_code
from ..measuring.acceptance import accept_lengths, tokens_per_forward
from .data import JakiroDataCollator, check_tokenizer, prepare_dataset
from .features import FeatureDataset
from .initialization import new_drafter
from .metrics import drafting_metrics
from .objective import DraftingObjective


@dataclass
class JakiroTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] and what training a drafter needs besides. Defaults that differ from the
    parent's: `remove_unused_columns=False` (the batches hold more than the drafter's forward takes) and
    `ddp_find_unused_parameters=False` (a drafter uses all of its own).

    > Parameters of the target and the data

    Args:
        target_model_init_kwargs (`dict` or JSON `str`, *optional*):
            Arguments of `AutoModelForCausalLM.from_pretrained` for a `target_model` given by its name.
        max_length (`int`, defaults to 2048):
            Tokens that a sample is cut to, and the length of packed rows.
        packing (`bool`, defaults to `False`):
            Fill rows of `max_length` tokens with several samples, which do not see each other.
        assistant_only_loss (`bool`, defaults to `True`):
            Whether only the assistant's tokens count in training, or those of the prompts, too, from which a drafter
            learns as well. In evaluation only the assistant's do. (Stored features know already what counts.)
        dataset_num_proc (`int`, *optional*):
            Processes that tokenize a `datasets.Dataset`.

    > Parameters of the objective: see [`~transformers_jakiro.training.objective.DraftingObjective`]

    Args:
        regression_weight (`float`, defaults to 1.0), classification_weight (`float`, defaults to 0.1),
        contrastive_weight (`float`, defaults to 0.5), feature_noise (`float`, defaults to 0.2):
            The published values.
        load_balancing_weight (`float`, defaults to 0.01):
            Weight of the load-balancing loss of drafters with more than two experts.
        unroll_steps (`int`, defaults to 1):
            Steps that the drafter is unrolled for in training, from the second on with its own features, as it drafts.
        unroll_start (`float`, defaults to 0.0):
            Share of the training's steps before the drafter is unrolled: features that have yet to become like the
            target's teach little, and an unrolled step costs `unroll_steps` forwards.

    > Parameters of the optimization and the evaluation

    Args:
        max_grad_value (`float`, defaults to 0.5):
            Each element of the gradient of an optimizer step is clipped to ± this, after `max_grad_norm`. 0: no
            clipping by value. (The published recipe clips values alone: `max_grad_norm=0`.)
        eval_generate_prompts (`int`, defaults to 0):
            Prompts of each evaluation set that are also answered by `generate` with the drafter, which gives the
            metric `acceptance_length`. A prompt is what precedes a row's first counted token. 0: none.
        eval_generate_tokens (`int`, defaults to 128):
            New tokens per prompt.
        eval_generate_temperature (`list[float]`, defaults to `[0.0]`):
            Temperatures to generate at. 0 is greedy; another one, say 1, gives `acceptance_length_t1`.

    > Parameters of publishing

    Args:
        hub_remote_code (`bool`, defaults to `False`):
            Publish the code with the drafter, so that it loads without this package (`trust_remote_code=True`).
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are built by the collator."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "A drafter uses all of its parameters: nothing to find."}
    )
    target_model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Arguments of `from_pretrained` for a target given by its name, as JSON."},
    )
    max_length: int = field(
        default=2048, metadata={"help": "Tokens that a sample is cut to, and the length of packed rows."}
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Fill rows of `max_length` with several samples, which do not see each other."},
    )
    assistant_only_loss: bool = field(
        default=True, metadata={"help": "Train on the assistant's tokens only, not on those of the prompts."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenize a `datasets.Dataset`."}
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
        default=1, metadata={"help": "Steps to unroll the drafter for, from the second on with its own features."}
    )
    unroll_start: float = field(
        default=0.0, metadata={"help": "Share of the training before the drafter is unrolled, 0 to 1."}
    )
    feature_noise: float = field(
        default=0.2,
        metadata={"help": "Width of the uniform noise on the input features for a sequence of 512 tokens; 0: none."},
    )
    max_grad_value: float = field(
        default=0.5,
        metadata={"help": "Clip each element of the gradient to this size, after `max_grad_norm`; 0: do not."},
    )
    eval_generate_prompts: int = field(
        default=0,
        metadata={"help": "Prompts per evaluation to measure the acceptance length on, by generating; 0: none."},
    )
    eval_generate_tokens: int = field(default=128, metadata={"help": "New tokens for each of these prompts."})
    eval_generate_temperature: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "Temperatures to generate at; 0 is greedy."}
    )
    hub_remote_code: bool = field(
        default=False, metadata={"help": "Publish the code with the drafter, for users without this package."}
    )

    def __post_init__(self):
        if isinstance(self.target_model_init_kwargs, str):
            self.target_model_init_kwargs = json.loads(self.target_model_init_kwargs)
        for name, least in (
            *(("max_grad_value", 0), ("eval_generate_prompts", 0), ("feature_noise", 0)),
            *(("eval_generate_tokens", 1), ("max_length", 1), ("unroll_steps", 1)),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.unroll_start <= 1:
            raise ValueError(f"`unroll_start` is a share of the training, 0 to 1, got {self.unroll_start}.")
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Without tokens: `Trainer` pickles its arguments into each checkpoint, and publishes them."""
        state = {**self.__dict__, "hub_token": None}
        if self.target_model_init_kwargs is not None:
            state["target_model_init_kwargs"] = _without_token(self.target_model_init_kwargs)
        return state


def _without_token(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "token"}


class JakiroTrainer(Trainer):
    """
    Trains a [`JakiroDraftModel`] for a frozen target.

    The loss of an optimizer step is the mean over all positions that count in it, over the accumulated batches and
    over all processes, however they are distributed. (With `average_tokens_across_devices=False`: the mean of the
    processes' means.) So are the metrics: means over all positions since the last log, or of the evaluation set.

    Args:
        model ([`JakiroDraftModel`], `str` or `Path`, *optional*):
            The drafter, or the folder or Hub id of one, which is loaded in float32. Default: a new one, made by
            [`~transformers_jakiro.training.initialization.new_drafter`].
        target_model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], `str` or `Path`):
            The target, or its folder or Hub id. Frozen, held outside the drafter, never saved. It is put on the
            training device, unless it is quantized (load it there) or was loaded with a `device_map`. Each process
            holds a whole one.
        args ([`JakiroTrainingArguments`], *optional*):
            See there.
        data_collator (`Callable`, *optional*):
            Default: [`~transformers_jakiro.training.data.JakiroDataCollator`].
        train_dataset, eval_dataset (*optional*):
            See [`~transformers_jakiro.training.data.prepare_dataset`]; or a
            [`~transformers_jakiro.training.features.FeatureDataset`], whose rows need no forward of the target.
            `eval_dataset` may be a dict of several.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The target's tokenizer; not needed for tokenised data.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Trains an adapter of the drafter, and saves only that.
        callbacks, kwargs:
            Further arguments of [`~transformers.Trainer`].

    A saved drafter has a `training.json` beside it: the data (what the attribute `training_data` says of them: a name,
    or a mapping with `name`), steps and all arguments. With `push_to_hub=True` it gets a model card that tells them.

    Raises:
        TypeError: if `args` are not [`JakiroTrainingArguments`].
        ValueError: if drafter, target, data and arguments do not fit each other.
    """

    _tag_names = [*TAGS]
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
        self.target = _load_target(target_model, args)
        self.objective = DraftingObjective(
            **{field.name: getattr(args, field.name) for field in fields(DraftingObjective)}
        )
        model = _load_drafter(model, self.target, args)
        if peft_config is not None:
            if isinstance(model, PeftModel):
                raise ValueError(
                    "`model` has an adapter already: leave out `peft_config`, or merge the adapter first."
                )
            model = get_peft_model(model, peft_config)
        if isinstance(model, PeftModel):
            if args.hub_remote_code:
                raise ValueError("`hub_remote_code` is for whole drafters, not for adapters: leave it out, or merge.")
        elif args.push_to_hub:
            check_target_name(model.config)
        if data_collator is None:
            pad_token_id = self.target.config.pad_token_id
            data_collator = JakiroDataCollator(pad_token_id=0 if pad_token_id is None else pad_token_id)
        # Trainer takes these from the tokenizer; but they are to be the target's, as `generate` expects of a drafter
        special_tokens = {
            name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        if processing_class is not None:
            check_tokenizer(processing_class, self.target.config)
        with args.main_process_first(desc="tokenizing"):  # the others find its cache
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
        vars(model.config).pop("use_cache", None)  # set by Trainer, and nothing that a drafter's config knows
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
        """Raises an error if the target cannot tell packed samples apart, or stored features are not its own."""
        if self.args.packing:
            check_packing(self.target, self.args.per_device_train_batch_size)
        several = isinstance(self.eval_dataset, dict)
        for dataset in (self.train_dataset, *(self.eval_dataset.values() if several else [self.eval_dataset])):
            store = feature_store(dataset)
            if store is not None:
                store.check_fits(self.target.model.config, self.target.feature_layers)
                store.check_target(self.target)

    def _check_distribution(self) -> None:
        """Raises `ValueError` for arguments that the way of distribution does not allow."""
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
        # not with `accelerator.prepare_model`, which leaves the target on the CPU under FSDP, and autocasts it
        model = self.target.model.requires_grad_(False).eval()
        if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
            model.to(self.args.device)

    # -- loss and metrics --------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of an optimizer step, and how many positions count in them, over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        num_items = sum(self.objective.num_items(batch) for batch in batches).to(device)
        if self.args.average_tokens_across_devices:
            num_items = self.accelerator.reduce(num_items, "sum")
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ):
        """The drafting objective on one batch, see [`~transformers_jakiro.training.objective.DraftingObjective`]."""
        objective = self.objective
        if self.state.global_step < self.args.unroll_start * self.state.max_steps:
            objective = replace(objective, unroll_steps=1)
        loss, metrics = objective(model, self.target, inputs, num_items_in_batch)
        self._add("train", metrics)
        self._latest = model, {name: value[:1] for name, value in inputs.items()}
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the processes' gradients will be averaged
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        num_rows = self._num_own_rows(inputs["input_ids"].shape[0])
        if num_rows > 0:
            inputs = {name: value[:num_rows] for name, value in inputs.items()}
        if "hidden_states" not in inputs:  # computed once for both
            masks = inputs.get("attention_mask"), inputs.get("position_ids")
            inputs["hidden_states"] = self.target.features(inputs["input_ids"], *masks)
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
        else:  # nothing but repeated rows, there because all processes must make equally many forwards
            self._add("eval", {name: (total * 0, count * 0) for name, (total, count) in metrics.items()})
        return loss.detach(), None, None

    def _num_own_rows(self, batch_size: int) -> int:
        """How many rows of this batch are no repetitions that fill up the processes' last batches."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return batch_size
        return min(max(state.remainder - self.accelerator.process_index * batch_size, 0), batch_size)

    def _add(self, mode: str, metrics: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        sums = self._sums[mode]
        for name, pair in metrics.items():
            total, count = (value.detach().to(self._sum_dtype) for value in pair)
            pair = torch.stack((total, count))
            sums[name] = sums[name] + pair if name in sums else pair

    @property
    def _sum_dtype(self) -> torch.dtype:
        return torch.float32 if self.args.device.type == "mps" else torch.float64

    def _means(self, mode: str) -> dict[str, float]:
        """Means of the metrics over all that was added in all processes since the last call."""
        names = sorted(self._sums[mode])
        if not names:
            return {}
        sums = self.accelerator.reduce(torch.stack([self._sums[mode][name] for name in names]), "sum")
        self._sums[mode].clear()
        return {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count > 0}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Adds the means of the objective's metrics since the last log to those of a training interval, and the metrics
        of trees and experts on one row of the last batch of each process.
        """
        if "loss" in logs:
            model, row = self._latest
            with self.compute_loss_context_manager():
                self._add("train", drafting_metrics(model, self.target, row))
            logs.update(self._means("train"))
        super().log(logs, start_time)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """What `evaluate` and `predict` share: the metrics' means over the set and, if asked for, generating."""
        self._sums["eval"].clear()
        self._prompts.clear()
        # evaluating must not change the random numbers of the training
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            acceptance_lengths = self._acceptance_lengths()
        metrics = {**self._means("eval"), **acceptance_lengths}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _collect_prompts(self, inputs: dict[str, torch.Tensor]) -> None:
        """Keeps the prompts of this process' first rows; the processes share the work."""
        processes = self.accelerator.num_processes
        own = (self.args.eval_generate_prompts + processes - 1 - self.accelerator.process_index) // processes
        for input_ids, loss_mask in zip(inputs["input_ids"], inputs["loss_mask"], strict=True):
            if len(self._prompts) == own:
                return
            length = int(loss_mask.argmax())
            if length > 0:
                self._prompts.append(input_ids[:length])

    def _acceptance_lengths(self) -> dict[str, float]:
        """Tokens per target forward after the prefill, over all prompts, by temperature."""
        if self.args.eval_generate_prompts == 0:
            return {}
        if sum(gather_object([len(self._prompts)])) == 0:
            raise ValueError(
                f"`eval_generate_prompts={self.args.eval_generate_prompts}`, but no row of the evaluation set has a "
                "prompt: tokens before the first one that counts. Set it to 0, or evaluate on conversations."
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
                    self.target.model, draft, prompt[None], temperature, self.args.eval_generate_tokens
                )
            ]
            name = "acceptance_length" if temperature == 0 else f"acceptance_length_t{temperature:g}"
            metrics[name] = tokens_per_forward(gather_object(accepted))
        draft.train(was_training)
        return metrics

    # -- sharing -----------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As [`~transformers.Trainer.save_model`], with `training.json` beside the drafter."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / TRAINING, self.training_record())
        super().save_model(output_dir, _internal_call)

    def training_record(self) -> dict[str, Any]:
        """What the drafter was trained on and how, for its model card."""
        arguments = {
            name: value for name, value in self.args.to_dict().items() if not name.startswith(_NOT_OF_THE_TRAINING)
        }
        if arguments["target_model_init_kwargs"]:
            arguments["target_model_init_kwargs"] = _without_token(arguments["target_model_init_kwargs"])
        changed = {}
        for option in fields(self.args):
            if option.name in arguments and option.name != "accelerator_config":  # whose default is filled in
                default = option.default_factory() if option.default is MISSING else option.default
                value = arguments[option.name]
                if value != default and (value or default is not None):
                    changed[option.name] = value
        data = self.training_data if isinstance(self.training_data, Mapping) else {"name": self.training_data}
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        record = {
            "data": {name: value for name, value in {**data, "rows": rows}.items() if value is not None},
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "rows_per_step": self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "versions": {name: version(name) for name in ("transformers_jakiro", "transformers", "torch")},
            "changed_arguments": changed,
            "arguments": arguments,
        }
        return json.loads(json.dumps(record, default=str))

    def create_model_card(
        self, license: str | None = None, tags: str | list[str] | None = None, model_name: str | None = None
    ) -> None:
        """
        Writes the drafter's model card to `output_dir` ([`~transformers_jakiro.hub.publishing.drafter_card`]) and,
        with `hub_remote_code`, the code. The card of an adapter is that of
        [`~transformers.Trainer.create_model_card`].

        Args:
            license (`str`, *optional*): default: the target's.
            tags (`str` or `list[str]`, *optional*): besides those of every drafter.
            model_name (`str`, *optional*): default: the repository's.
        """
        if not self.is_world_process_zero():
            return
        tags = [tags] if isinstance(tags, str) else tags or []
        folder = Path(self.args.output_dir)
        draft = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(draft, PeftModel):
            super().create_model_card(license=license, model_name=model_name)
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


# names and beginnings of names of arguments that tell places and accounts
_NOT_OF_THE_TRAINING = (
    *("output_dir", "logging_dir", "run_name", "project", "trackio", "local_rank", "resume_from_checkpoint"),
    *("hub_", "push_to_hub", "report_to", "disable_tqdm", "debug"),
)


class _DrafterCallback(TrainerCallback):
    def __init__(self, special_tokens: dict[str, Any]):
        self._special_tokens = special_tokens

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for name, value in self._special_tokens.items():
            setattr(model.config, name, value)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        # here gradients are accumulated, reduced over the processes and unscaled (of a sharded drafter: its own part)
        if args.max_grad_value > 0:
            nn.utils.clip_grad_value_(model.parameters(), args.max_grad_value)


def feature_store(dataset: Any) -> FeatureDataset | None:
    """The feature store that a dataset is, or is a part of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, FeatureDataset) else None


def load_target_model(name: str | Path, **kwargs: Any) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`; the config remembers the commit on the Hub, for new drafters'."""
    model = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    if not Path(name).exists():
        options = {key: kwargs[key] for key in ("revision", "cache_dir", "subfolder") if key in kwargs}
        file = cached_file(str(name), "config.json", local_files_only=True, **options)
        model.config._commit_hash = extract_commit_hash(file, None)
    return model


def _load_target(
    target_model: PreTrainedModel | PeftModel | str | Path | None, args: JakiroTrainingArguments
) -> Target:
    if target_model is None:
        raise ValueError("`JakiroTrainer` needs the `target_model` that the drafter is to draft for.")
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO stage 3 would shard the frozen target, whose embeddings and head the drafter uses. A "
            "drafter is small: use stage 2 (`examples/accelerate/deepspeed_zero2.yaml`)."
        )
    if isinstance(target_model, (str, Path)):
        target_model = load_target_model(target_model, **{"dtype": "auto", **(args.target_model_init_kwargs or {})})
    elif args.target_model_init_kwargs is not None:
        raise ValueError("`target_model_init_kwargs` is for a `target_model` given by its name; this one is loaded.")
    return Target(target_model)


def _load_drafter(
    model: JakiroDraftModel | PeftModel | str | Path | None, target: Target, args: JakiroTrainingArguments
) -> JakiroDraftModel | PeftModel:
    if model is None:
        set_seed(args.seed)
        model = new_drafter(target)
    elif isinstance(model, (str, Path)):
        model = JakiroDraftModel.from_pretrained(model, dtype=torch.float32)
    model.config.check_trainable()
    target.check_fits(model.config)
    target.feature_layers = tuple(model.config.feature_layers or ())
    model.check_draft_vocabulary()
    return model


__all__ = ["JakiroTrainer", "JakiroTrainingArguments", "load_target_model"]
