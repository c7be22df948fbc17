# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
One tiny training run, in this process (`run`) or, as a script with the same values in a JSON file, in others: those of
a launcher, or one that is going to be killed.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.training.trainer import JakiroTrainer, JakiroTrainingArguments

VOCAB = 12


def make_target() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=[2, 3],
    )
    return LlamaForCausalLM(config).eval()


def make_draft(target: LlamaForCausalLM, **overrides: Any) -> JakiroDraftModel:
    torch.manual_seed(1)
    return JakiroDraftModel(JakiroDraftConfig.from_target(target.config, **overrides))


def make_rows(number: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Prompts of 3 to 5 tokens and answers of 2 to 17."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(number):
        prompt, answer = (int(torch.randint(*span, (), generator=generator)) for span in ((3, 6), (2, 18)))
        input_ids = torch.randint(4, VOCAB, (prompt + answer,), generator=generator).tolist()
        rows.append({"input_ids": input_ids, "loss_mask": [0] * prompt + [1] * answer})
    return rows


def make_arguments(output_dir: Path | str, **values: Any) -> JakiroTrainingArguments:
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return JakiroTrainingArguments(output_dir=str(output_dir), **{**defaults, **values})


class Kill(TrainerCallback):
    """Ends the process as a lost machine would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    output_dir: Path | str,
    arguments: dict[str, Any],
    num_rows: int,
    num_eval_rows: int = 0,
    kill_at: int | None = None,
    resume: bool = False,
) -> tuple[JakiroTrainer, dict[str, float]]:
    target = make_target()
    trainer = JakiroTrainer(
        model=make_draft(target),
        target_model=target,
        args=make_arguments(output_dir, **arguments),
        train_dataset=make_rows(num_rows),
        eval_dataset=make_rows(num_eval_rows, seed=1) if num_eval_rows else None,
        callbacks=None if kill_at is None else [Kill(kill_at)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, trainer.evaluate() if num_eval_rows else {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    values = json.loads(Path(sys.argv[1]).read_text())
    trainer, metrics = run(**values)
    trainer.save_model()
    if trainer.is_world_process_zero():
        results = {"metrics": metrics, "log_history": trainer.state.log_history}
        (Path(values["output_dir"]) / "results.json").write_text(json.dumps(results))
    trainer.accelerator.wait_for_everyone()  # none may go while another still talks to it
    trainer.accelerator.end_training()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that takes itself down (pytorch/pytorch#190489)
