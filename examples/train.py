# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trains a Jakiro drafter for a target, as `jakiro train` does.

    python examples/train.py --target TARGET --data train.jsonl.gz --output_dir draft \\
        --learning_rate 1e-3 --per_device_train_batch_size 8 --max_steps 500 --bf16

The options may stand in a file, those of the command line override it. For the target that ships, data and all:

    python examples/word_problems.py --number 600 > prompts.jsonl
    jakiro regenerate --target src/transformers_jakiro/pair/target --data prompts.jsonl --output answers.jsonl \\
        --max-new-tokens 128
    python examples/train.py examples/configs/laptop.yaml --data answers.jsonl

Hardware: one thread of a busy 2-core x86 server CPU (AMD EPYC), no GPU. Time: 5 minutes for the 500 steps and two
evaluations of the last command. Result: on 100 held-out answers the target's likeliest token is the drafter's in 73 %;
4.8 tokens per forward of the target on four of the questions.

Several GPUs, each with the whole frozen target and a part of every batch:

    accelerate launch --config_file examples/accelerate/multi_gpu.yaml \\
        examples/train.py examples/configs/vicuna_7b.yaml --data sharegpt.jsonl.gz

`multi_gpu.yaml` (data parallel) is the right one as long as a GPU holds the target. `fsdp.yaml` and
`deepspeed_zero2.yaml` shard drafter, gradients and optimizer, which are small; the target stays whole. With DeepSpeed
add `--max_grad_value 0`: it clips gradients by their norm only. A run that was stopped goes on with
`--resume_from_checkpoint true`.

For a 7B model (not run here): `configs/vicuna_7b.yaml` is the published recipe; the one that `docs/training.md`
recommends learns faster. The target takes 14 GB of each GPU in bfloat16; the rest grows with
`per_device_train_batch_size`, `max_length` and the vocabulary (of more than 100k tokens let the drafter use a part:
`--draft_vocab_size 32768`). Store hidden states (`jakiro features`) where there is disk: 8 GB per million tokens.
"""

from transformers_jakiro.training.command import main

if __name__ == "__main__":
    main()
