# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import training_run
from helpers.processes import WarmPython, launch
from helpers.training_run import run

SCRIPT = Path(training_run.__file__)

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def launch_training(python: WarmPython, values: dict, tmp_path: Path) -> dict:
    """Runs [`training_run`] in two processes."""
    launch(python, SCRIPT, values, tmp_path)
    return json.loads((Path(values["output_dir"]) / "results.json").read_text())


def test_two_processes_equal_one(tmp_path, warm_python):
    """
    Rows of different lengths, so that the processes' means differ; an evaluation set that does not fill the last
    batches of both; accumulated batches; gradients clipped by norm and value.
    """
    arguments = {
        "max_steps": 5,
        "learning_rate": 1e-3,  # so that rounding, which Adam enlarges, stays below the tolerance
        "gradient_accumulation_steps": 2,
        "feature_noise": 0.0,
        "max_grad_norm": 0.3,
        "max_grad_value": 0.02,
        "logging_steps": 2,
    }
    values = {"num_rows": 18, "num_eval_rows": 5}
    generating = {"eval_generate_prompts": 4, "eval_generate_tokens": 8}
    one, metrics = run(tmp_path / "one", {**arguments, **generating, "per_device_train_batch_size": 2}, **values)
    two = {**arguments, **generating, "per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    values_of_two = {**values, "output_dir": str(tmp_path / "two"), "arguments": two}
    results = launch_training(warm_python, values_of_two, tmp_path)

    weights = load_file(tmp_path / "two" / "model.safetensors")
    assert weights.keys() == one.model.state_dict().keys()
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=0, msg=name)
    for entry, expected in zip(results["log_history"][:2], one.state.log_history[:2], strict=True):
        for name in ("loss", "grad_norm", "regression", "accuracy", "contrastive_classification"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-5), name
    for name in (
        "eval_loss",
        "eval_regression",
        "eval_accuracy_top3",
        "eval_expected_acceptance_length",
        "eval_expert_load_0",
    ):
        assert results["metrics"][name] == pytest.approx(metrics[name], rel=1e-5), name
    # the processes take 2 of the first 2 + 2 rows each, in turns; one process takes the first 4
    assert results["metrics"]["eval_acceptance_length"] == metrics["eval_acceptance_length"]
