# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Reads the files of a checkpoint folder that may be damaged or hostile: nothing outside of the folder, no code, and no
more memory than the files are large.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# in order of preference
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is missing in {path.parent}: download it from where the weights are from."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}. Download it again.")
    return content


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, memory-mapped where the format allows it."""
    for name in WEIGHTS_FILES:
        path = folder / name
        if path.is_file():
            return _read_shards(path) if path.suffix == ".json" else _read_weights_file(path)
    raise FileNotFoundError(f"No weights in {folder}: expected one of {', '.join(WEIGHTS_FILES)}.")


def _read_shards(index_path: Path) -> dict[str, torch.Tensor]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index_path} must have `weight_map`, from tensor names to file names. Download it again.")
    suffix = ".safetensors" if index_path.name.startswith("model.safetensors") else ".bin"
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not re.fullmatch(r"[\w-][\w.-]*", shard) or not shard.endswith(suffix):
            raise ValueError(
                f"{index_path} names the shard {shard!r}, expected a plain file name ending in {suffix}, inside "
                "the same folder. Do not use this checkpoint."
            )
        path = index_path.parent / shard
        if not path.is_file():
            raise FileNotFoundError(
                f"{shard} is missing in {path.parent}, but listed in {index_path.name}: download it."
            )
        content = _read_weights_file(path)
        listed = {name for name, file in weight_map.items() if file == shard}
        if listed != content.keys():
            raise ValueError(
                f"{path} does not hold the tensors that {index_path.name} lists for it: missing "
                f"{sorted(listed - content.keys()) or 'none'}, unexpected "
                f"{sorted(content.keys() - listed) or 'none'}. Download both again."
            )
        tensors.update(content)
    return tensors


def _read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # only the zip format of torch >= 1.6 can be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler stumble over
        with path.open("rb") as file:
            is_pointer = file.read(24) == b"version https://git-lfs."
        remedy = "It is a Git LFS pointer: run `git lfs pull`." if is_pointer else "Download it again."
        raise ValueError(f"{path} cannot be read, it is damaged or no weights file: {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(content).__name__}.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path} must hold tensors only, got {type(tensor).__name__} under {name!r}.")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{path} must hold dense tensors on the CPU, `{name}` is {tensor.layout} on {tensor.device}."
            )
    return {name: tensor.detach() for name, tensor in content.items()}
