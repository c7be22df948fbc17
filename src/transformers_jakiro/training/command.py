# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Training from the command line: `jakiro train` and `examples/train.py`."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch.utils.data import Subset
from transformers import (
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..conversations import read_conversations
from ..core.configuration_jakiro import JakiroDraftConfig
from ..drafter import JakiroDraftModel
from .arguments import JakiroTrainingArguments
from .data import frequent_tokens, prepare_dataset
from .features import INDEX, FeatureDataset
from .initialization import new_drafter
from .loading import load_target_model
from .packing import Row
from .trainer import JakiroTrainer, feature_store


@dataclass
class ScriptArguments:
    """
    Target, data and drafter. All other arguments are those of
    [`~transformers_jakiro.training.arguments.JakiroTrainingArguments`].
    """

    target: str = field(metadata={"help": "The target: folder or Hub id of a causal language model with a tokenizer."})
    data: str = field(
        metadata={"help": "Conversations: JSON lines (or .gz), a Hub dataset, or the output of `jakiro features`."}
    )
    data_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    num_rows: int | None = field(
        default=None, metadata={"help": "Rows of the data to use, from the first one on; default: all."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Data for evaluation, given like `data`."})
    num_eval_rows: int = field(
        default=0, metadata={"help": "Without `eval_data`: rows to hold out from the beginning of the data."}
    )
    draft_vocab_size: int | None = field(
        default=None,
        metadata={"help": "Tokens that can be drafted, the most frequent of the training data; default: all."},
    )
    target_dtype: str = field(default="auto", metadata={"help": "Precision of the frozen target."})
    target_name: str | None = field(
        default=None, metadata={"help": "Name of the target in the drafter's config, if not `target`."}
    )
    draft: str | None = field(default=None, metadata={"help": "A drafter to train further, instead of a new one."})
    num_experts: int | None = field(
        default=None, metadata={"help": "Number of experts; 1 is the dense layer of EAGLE-2."}
    )
    expert_intermediate_size: int | None = field(default=None, metadata={"help": "Inner width of an expert."})
    gated_experts: bool | None = field(
        default=None, metadata={"help": "Gated experts, or the two-layer experts of Jakiro*."}
    )
    head_mode: str | None = field(default=None, metadata={"help": "contrastive, decoupled or single."})
    embedding_multiplier: float | None = field(
        default=None, metadata={"help": "Factor on the embeddings; measured if not given, published drafters have 1."}
    )
    feature_multiplier: float | None = field(
        default=None, metadata={"help": "Factor on the features; measured if not given, published drafters have 1."}
    )
    final_norm: bool | None = field(
        default=None,
        metadata={"help": "Norm on the drafter's features: new drafters have one, published ones do not."},
    )
    feature_layers: list[int] | None = field(
        default=None, metadata={"help": "Further hidden states of the target that the drafter reads."}
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers of the drafter."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Attention heads of the drafter."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Key/value heads of the drafter."})
    head_dim: int | None = field(default=None, metadata={"help": "Width of an attention head of the drafter."})
    tree_depth: int | None = field(default=None, metadata={"help": "Levels of the trees that it will draft."})
    tree_top_k: int | None = field(default=None, metadata={"help": "Children per node of these trees."})
    tree_width: int | None = field(default=None, metadata={"help": "Nodes of a level that are expanded."})
    num_draft_tokens: int | None = field(default=None, metadata={"help": "Nodes of these trees."})

    def __post_init__(self) -> None:
        if self.eval_data is not None and self.num_eval_rows > 0:
            raise ValueError("`eval_data` and `num_eval_rows` are two ways to say what to evaluate on: choose one.")
        if self.draft is not None and self.draft_config:
            raise ValueError(f"The drafter {self.draft} has its shape already: leave out {sorted(self.draft_config)}.")

    @property
    def draft_config(self) -> dict[str, Any]:
        """The fields of [`JakiroDraftConfig`] that were given."""
        names = JakiroDraftConfig.__annotations__.keys() & self.__dict__.keys()
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if given.get("num_experts") == 1:
            given.setdefault("head_mode", "single")  # the only mode of a single expert
        return given


def parse(argv: Sequence[str], prog: str | None = None) -> tuple[ScriptArguments, JakiroTrainingArguments]:
    """
    Parses the command line. If its first argument is not an option, it names a YAML or JSON file of arguments, which
    those of the command line override.

    Raises:
        ValueError: for unknown arguments, or if the file does not hold a mapping.
        OSError: if the file does not exist.
    """
    parser = HfArgumentParser(
        cast(Any, (ScriptArguments, JakiroTrainingArguments)),  # the annotation of transformers omits classes
        prog=prog,
        usage="%(prog)s [CONFIG.yaml] --target T --data D [options]",
        allow_abbrev=False,
    )
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = _as_options(Path(argv[0]))
    if "--help-all" in argv:
        argv = ["--help"]
    script_args, training_args = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return script_args, training_args


def _as_options(path: Path) -> list[str]:
    """The contents of a configuration file as command-line options, so that both are parsed alike."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one mapping of arguments to values, got {type(values).__name__}.")
    options: list[str] = []
    for name, value in values.items():
        if value is None:  # the default
            continue
        items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        options += [f"--{name}", *map(str, items)]
    return options


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> JakiroTrainer:
    """
    Trains, saves the drafter in `output_dir`, and evaluates it if there is evaluation data.

    Args:
        argv: arguments of the command line; default: those of the process.
        prog: the name of the program in `--help`.

    Returns:
        The trainer, after training.

    Raises:
        ValueError: if arguments, data and models do not fit each other.
        OSError: if something cannot be read or written.
    """
    script_args, args = parse(sys.argv[1:] if argv is None else argv, prog)
    train_dataset, eval_dataset = _read_datasets(script_args)
    target = load_target_model(script_args.target, **{"dtype": script_args.target_dtype, **args.target_kwargs})
    args.target_model_init_kwargs = None
    tokenizer = AutoTokenizer.from_pretrained(script_args.target)
    draft: JakiroDraftModel | str | None = script_args.draft
    if draft is None:
        train_dataset, draft = _new_drafter(script_args, args, train_dataset, target, tokenizer)
    trainer = JakiroTrainer(
        model=draft,
        target_model=target,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
    trainer.training_data = describe_data(script_args.data, script_args.data_split)
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume in ("true", "True") else resume)
    trainer.save_model()
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics, combined=False)
    trainer.accelerator.wait_for_everyone()  # no process may leave while another still talks to it
    trainer.accelerator.end_training()
    return trainer


def _read_datasets(script_args: ScriptArguments) -> tuple[Any, Any]:
    """The data to train on, and the data to evaluate on, if any."""
    dataset = read_data(script_args.data, script_args.data_split, script_args.num_rows)
    if script_args.eval_data is not None:
        return dataset, read_data(script_args.eval_data, script_args.data_split)
    if script_args.num_eval_rows > 0:
        return _hold_out(dataset, script_args.num_eval_rows)
    return dataset, None


def _new_drafter(
    script_args: ScriptArguments,
    args: JakiroTrainingArguments,
    dataset: Any,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Any, JakiroDraftModel]:
    """A new drafter, and the dataset, which is tokenized if the drafter's vocabulary was chosen from it."""
    draft_token_ids = None
    if script_args.draft_vocab_size is not None:
        with args.main_process_first(desc="tokenizing"):  # the other processes find its cache
            dataset, draft_token_ids = _choose_vocabulary(
                dataset, script_args.draft_vocab_size, target, tokenizer, args
            )
    set_seed(args.seed)
    target_name = script_args.target_name or script_args.target
    draft = new_drafter(target, draft_token_ids, target_name_or_path=target_name, **script_args.draft_config)
    return dataset, draft


def read_data(name: str, split: str, limit: int | None = None) -> Any:
    """
    Reads the rows of a feature store, or of anything that
    [`~transformers_jakiro.conversations.read_conversations`] reads.

    Args:
        name: folder of a feature store, file, or Hub id.
        split: of a Hub dataset.
        limit: the number of rows, from the first one on. Default: all.
    """
    if not (Path(name) / INDEX).is_file():
        return read_conversations(name, split, limit)
    dataset = FeatureDataset(name)
    return dataset if limit is None else Subset(dataset, range(min(limit, len(dataset))))


def describe_data(name: str, split: str) -> dict[str, str]:
    """Describes the data for a model card: a Hub id with its split, or a file's name without its folder."""
    path = Path(name)
    return {"name": path.resolve().name} if path.exists() else {"name": name, "split": split}


def _choose_vocabulary(
    dataset: Any,
    size: int,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: JakiroTrainingArguments,
) -> tuple[Any, torch.Tensor]:
    """The dataset, tokenized, and its most frequent tokens, which always include those that end an answer."""
    vocab_size = target.config.get_text_config(decoder=True).vocab_size
    ends: set[int] = set()
    for end in (tokenizer.eos_token_id, target.generation_config.eos_token_id):
        ends.update(end if isinstance(end, list) else [] if end is None else [end])
    rows: Iterable[Row]
    if feature_store(dataset) is None:
        dataset = rows = prepare_dataset(
            dataset, tokenizer, max_length=args.max_length, num_proc=args.dataset_num_proc, vocab_size=vocab_size
        )
    else:
        rows = (_stored_tokens(dataset, index) for index in range(len(dataset)))
    return dataset, frequent_tokens(rows, size, vocab_size, always=ends)


def _stored_tokens(dataset: Any, index: int) -> Row:
    """A row of a feature store, or of a subset of one, without its features."""
    while isinstance(dataset, Subset):
        index = dataset.indices[index]
        dataset = dataset.dataset
    return dataset.tokens(index)


def _hold_out(rows: Any, number: int) -> tuple[Any, Any]:
    """Splits rows into those after the first `number`, and those first ones."""
    if number >= len(rows):
        raise ValueError(
            f"`num_eval_rows={number}` leaves none of the data's {len(rows)} rows for training. Hold out fewer."
        )
    if isinstance(rows, list):
        return rows[number:], rows[:number]
    select = rows.select if hasattr(rows, "select") else lambda indices: Subset(rows, indices)
    return select(range(number, len(rows))), select(range(number))
