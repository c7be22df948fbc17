# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""One process of several: generates with a target split over them, with and without a drafter."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from transformers_jakiro import JakiroDraftModel


def main(path: str) -> None:
    values = json.loads(Path(path).read_text())
    target = AutoModelForCausalLM.from_pretrained(values["target"], tp_plan="auto").eval()
    draft = JakiroDraftModel.from_pretrained(values["draft"]).eval()
    inputs = {name: torch.tensor(rows) for name, rows in values["inputs"].items()}
    outputs = {}
    for name, options in values["options"].items():
        for assistant in ({}, {"assistant_model": draft}):
            torch.manual_seed(0)
            output = target.generate(**inputs, **options, **assistant)
            outputs[f"{name} {len(assistant)}"] = output.tolist()
    outputs["split"] = target.model.layers[0].mlp.up_proj.weight.to_local().shape[0]
    (Path(values["output_dir"]) / f"{os.environ['RANK']}.json").write_text(json.dumps(outputs))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
