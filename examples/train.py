# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trains a Jakiro drafter for a target, like `jakiro train`.

    python examples/train.py --target TARGET --data train.jsonl.gz --output_dir draft \\
        --learning_rate 1e-3 --per_device_train_batch_size 8 --max_steps 500 --bf16

The options may be given in a file; those on the command line override it. For the target that ships, from its data on:

    python examples/word_problems.py --number 600 > prompts.jsonl
    jakiro regenerate --target src/transformers_jakiro/pair/target --data prompts.jsonl --output answers.jsonl \\
        --max-new-tokens 128
    python examples/train.py examples/configs/laptop.yaml --data answers.jsonl

Hardware: one thread of a busy 2-core x86 server CPU (AMD EPYC), no GPU. Time: 5 minutes for the 500 steps and two
evaluations of the last command. Result: on 100 held-out answers, the drafter predicts the target's most likely token
in 73 % of the positions; on four of the questions, 4.8 tokens per forward of the target.

On several GPUs, each with the whole frozen target and a part of every batch:

    accelerate launch --config_file examples/accelerate/multi_gpu.yaml \\
        examples/train.py examples/configs/vicuna_7b.yaml --data sharegpt.jsonl.gz

`multi_gpu.yaml` (data parallel) is the right choice as long as the target fits on one GPU. `fsdp.yaml` and
`deepspeed_zero2.yaml` shard the drafter, its gradients and the optimizer, which are small; the target is not sharded.
With DeepSpeed, add `--max_grad_value 0`, as it clips gradients only by their norm. To continue a stopped run, add
`--resume_from_checkpoint true`.

For a 7B model (not run here): `configs/vicuna_7b.yaml` is the published recipe; the one that `docs/training.md`
recommends learns faster. The target takes 14 GB on each GPU in bfloat16. The rest grows with
`per_device_train_batch_size`, `max_length` and the vocabulary. If that has more than 100k tokens, let the drafter use
a part of it: `--draft_vocab_size 32768`. If you have disk space, store the hidden states (`jakiro features`): 8 GB per
million tokens.
"""

from transformers_jakiro.training.command import main

if __name__ == "__main__":
    main()
