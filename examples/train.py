# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Trains a Jakiro drafter for a target, as `jakiro train` does.

    python examples/train.py --target TARGET --data train.jsonl.gz --output_dir draft \\
        --learning_rate 1e-3 --per_device_train_batch_size 8 --max_steps 500 --bf16

The options may stand in a file, those of the command line override it:

    python examples/train.py examples/configs/laptop.yaml --data train.jsonl

Several GPUs, each with the whole frozen target and a part of every batch:

    accelerate launch --config_file examples/accelerate/multi_gpu.yaml \\
        examples/train.py examples/configs/vicuna_7b.yaml --data sharegpt.jsonl.gz

`multi_gpu.yaml` (data parallel) is the right one as long as a GPU holds the target. `fsdp.yaml` and
`deepspeed_zero2.yaml` shard drafter, gradients and optimizer, which are small; the target stays whole. With DeepSpeed
add `--max_grad_value 0`: it clips gradients by their norm only. A run that was stopped goes on with
`--resume_from_checkpoint true`.
"""

from transformers_jakiro.train import main

if __name__ == "__main__":
    main()
