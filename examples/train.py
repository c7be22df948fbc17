# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trains a Jakiro drafter for a target from a file of conversations, one `{"messages": [...]}` per line.

    python examples/train.py --target TARGET --data train.jsonl.gz --output_dir draft \\
        --learning_rate 1e-3 --per_device_train_batch_size 8 --max_steps 500 --bf16

For a 7B target use the published recipe: `--learning_rate 9e-5 --adam_beta2 0.95 --weight_decay 1e-3
--per_device_train_batch_size 4 --num_train_epochs 20 --lr_scheduler_type cosine --warmup_steps 2000 --bf16
--max_length 2048` on ShareGPT dialogues, on 8 GPUs with `accelerate launch`.
"""

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed

from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.data import tokenize_conversation
from transformers_jakiro.trainer import JakiroTrainer, JakiroTrainingArguments


@dataclass
class ScriptArguments:
    target: str = field(metadata={"help": "The target: a causal language model with a tokenizer and chat template."})
    data: str = field(metadata={"help": "Conversations: JSON lines with `messages`, plain or gzipped."})
    max_length: int = field(default=512, metadata={"help": "Tokens a conversation is cut to."})
    num_eval_conversations: int = field(default=128, metadata={"help": "Conversations held out for evaluation."})
    num_experts: int = field(default=2, metadata={"help": "Experts of the drafter; 1 trains a dense EAGLE-2 layer."})
    expert_intermediate_size: int | None = field(default=None, metadata={"help": "Default: the hidden size."})
    target_dtype: str = field(default="auto", metadata={"help": "dtype of the frozen target."})
    target_name: str | None = field(default=None, metadata={"help": "Name of the target in the drafter's config."})


def read_conversations(path: str | Path) -> list[list[dict[str, str]]]:
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["messages"] for line in file]


def main():
    parser = HfArgumentParser((ScriptArguments, JakiroTrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    tokenizer = AutoTokenizer.from_pretrained(script_args.target)
    target = AutoModelForCausalLM.from_pretrained(script_args.target, dtype=script_args.target_dtype)
    draft = JakiroDraftModel(
        JakiroDraftConfig.from_target(
            target.config,
            num_experts=script_args.num_experts,
            head_mode="contrastive" if script_args.num_experts > 1 else "single",
            expert_intermediate_size=script_args.expert_intermediate_size,
            target_name_or_path=script_args.target_name or script_args.target,
        )
    )

    rows = [
        tokenize_conversation(tokenizer, messages, script_args.max_length)
        for messages in read_conversations(script_args.data)
    ]
    rows = [row for row in rows if any(row["loss_mask"][2:])]
    held_out = script_args.num_eval_conversations
    trainer = JakiroTrainer(
        model=draft,
        target_model=target,
        args=training_args,
        train_dataset=rows[held_out:],
        eval_dataset=rows[:held_out],
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    if held_out:
        trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
