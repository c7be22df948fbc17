# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trains a drafter for your own model from nothing but prompts, in four steps: the target answers the prompts, its hidden
states are written to disk, a drafter learns from them, and its acceptance and speed are measured.

    python examples/train_end_to_end.py                   # the target that ships, word problems, no network
    python examples/train_end_to_end.py --target org/target --data prompts.jsonl --num_rows 60000 --bf16 \\
        --per_device_train_batch_size 8 --num_train_epochs 4 --output_dir draft

All arguments of `JakiroTrainingArguments` are accepted. Each step can be stopped and run again: answers and hidden
states resume by themselves, the training with `--save_strategy steps --resume_from_checkpoint true`.

Hardware: one thread of a busy 2-core x86 server CPU (AMD EPYC), no GPU. Time: 3 to 6 minutes, more than half of it
training. Result: 4.5 to 4.6 tokens per forward of the target on 30 held-out questions, after six epochs over 570
answers of 60 tokens; the drafter predicts the target's most likely token in 68 % of the positions. (The drafter that
ships learned from 10,445 answers for an hour, and reaches 5.2 on these questions.) With such a small target, that is
1.1 times the speed of plain `generate`.

For a 7B model (not run here): `--bf16 --max_new_tokens 512 --max_length 2048`, and prompts like those of your users.
The published drafters learned from 68,000 dialogues, over many epochs. Hidden states take 8 GB per million tokens; if
you do not have the space, leave out step 2 and train on the answers. On several GPUs, run the steps as commands:
`jakiro regenerate`, `jakiro features`, `accelerate launch --config_file examples/accelerate/multi_gpu.yaml
examples/train.py`, `jakiro bench`. Expect 4 or more tokens per forward, but measure them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Subset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from word_problems import make_problems

from transformers_jakiro.apps.demo import run_demo
from transformers_jakiro.conversations import read_conversations
from transformers_jakiro.pair import TARGET
from transformers_jakiro.training.data import prepare_dataset
from transformers_jakiro.training.features import write_features
from transformers_jakiro.training.regeneration import regenerate
from transformers_jakiro.training.trainer import JakiroTrainer, JakiroTrainingArguments


@dataclass
class ScriptArguments:
    target: str = field(default=str(TARGET), metadata={"help": "Folder or Hub id of the target."})
    data: str | None = field(default=None, metadata={"help": "Prompts: JSON lines or Hub id; default: word problems."})
    num_rows: int = field(default=600, metadata={"help": "Number of prompts."})
    num_eval_rows: int = field(default=30, metadata={"help": "Number of prompts held out from these."})
    max_new_tokens: int = field(default=128, metadata={"help": "Token limit per answer."})
    data_dir: str = field(default="draft-data", metadata={"help": "Folder for the answers and hidden states."})


@dataclass
class TrainingArguments(JakiroTrainingArguments):
    output_dir: str = field(default="draft", metadata={"help": "Folder for the drafter."})
    # the recipe that docs/training.md recommends
    learning_rate: float = 1.5e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 20
    contrastive_weight: float = 0.1
    unroll_steps: int = 3
    unroll_start: float = 0.5
    per_device_train_batch_size: int = 8
    num_train_epochs: float = 6.0
    eval_generate_prompts: int = 30
    save_strategy: str = "no"
    report_to: str = "none"


def main():
    script_args, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    folder = Path(script_args.data_dir)
    dtype = "bfloat16" if args.bf16 else "float32"
    tokenizer = AutoTokenizer.from_pretrained(script_args.target)
    target = AutoModelForCausalLM.from_pretrained(script_args.target, dtype=dtype).to(args.device)

    # 1. A drafter has to predict its target's own words: the target answers the prompts.
    if script_args.data is None:
        prompts = make_problems(script_args.num_rows)
    else:
        prompts = read_conversations(script_args.data, limit=script_args.num_rows)
    answers = folder / "answers.jsonl"
    regenerate(target, tokenizer, prompts, answers, max_new_tokens=script_args.max_new_tokens)

    # 2. The target runs over each answer once. (Without this step, the trainer runs it in every epoch.)
    conversations = read_conversations(answers)
    rows = prepare_dataset(conversations, tokenizer, max_length=args.max_length)
    features = write_features(target, rows, folder / "features")

    # 3. Without a `model`, the trainer makes a new drafter for the target.
    trainer = JakiroTrainer(
        target_model=target,
        args=args,
        train_dataset=Subset(features, range(script_args.num_eval_rows, len(features))),
        eval_dataset=Subset(features, range(script_args.num_eval_rows)),
        processing_class=tokenizer,
    )
    trainer.training_data = script_args.data or "sums in words"
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint == "true")
    trainer.save_model()

    # 4. Measure tokens per forward of the target on held-out answers, and compare with plain `generate`.
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics, combined=False)
    print(f"accuracy {metrics['eval_accuracy']:.3f}, acceptance length {metrics['eval_acceptance_length']:.2f}")
    held_out = [row["messages"][0]["content"] for row in conversations[: min(3, script_args.num_eval_rows)]]
    run_demo(held_out, script_args.target, args.output_dir, dtype=dtype)


if __name__ == "__main__":
    main()
