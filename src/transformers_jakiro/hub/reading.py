# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Reads the weights and fields of a checkpoint folder that may be damaged or hostile. Runs no code from it, and takes no
more memory than the size of the files.
"""

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

from ..core.checkpoint import read_json, read_shards_index

# in order of preference
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a folder, by name and with their stored shapes. Memory-maps if the format allows it."""
    for name in WEIGHTS_FILES:
        path = folder / name
        if path.is_file():
            return _read_shards(path) if path.suffix == ".json" else _read_weights_file(path)
    raise FileNotFoundError(f"No weights in {folder}: expected one of {', '.join(WEIGHTS_FILES)}.")


def _read_shards(index_path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard, listed in sorted(read_shards_index(index_path, read_json(index_path)).items()):
        path = index_path.parent / shard
        if not path.is_file():
            raise FileNotFoundError(
                f"{shard} is missing in {path.parent}, but listed in {index_path.name}: download it."
            )
        content = _read_weights_file(path)
        if listed != content.keys():
            raise ValueError(
                f"{path} does not hold the tensors that {index_path.name} lists for it: missing "
                f"{sorted(listed - content.keys()) or 'none'}, unexpected "
                f"{sorted(content.keys() - listed) or 'none'}. Download both again."
            )
        tensors.update(content)
    return tensors


def _check_pickles(path: Path) -> None:
    """
    Raises `ValueError` if tuples in a pickle hold other tuples again and again. If each of 60 tuples holds the
    previous one twice, hashing the last one never ends. State dicts have no such tuples.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = [archive.open(name) for name in archive.namelist() if name.endswith("data.pkl")]
            num_pickles = 1
    else:
        files = [path.open("rb")]
        num_pickles = 5  # of torch < 1.6: three of its own, the content, the storages' names
    for file in files:
        with file:
            for _ in range(num_pickles):
                _check_pickle(file)


def _check_pickle(file: IO[bytes]) -> None:
    tuples: set[Any] = set()
    num_repeated = 0
    previous = ""
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("BINPUT", "LONG_BINPUT") and "TUPLE" in previous:
            tuples.add(argument)
        elif operation.name in ("BINGET", "LONG_BINGET") and argument in tuples:
            num_repeated += 1
        previous = operation.name
    if num_repeated > 20:
        raise ValueError(f"it repeats tuples {num_repeated} times, which no state dict does")


def _read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            _check_pickles(path)
            # only the zip format of torch >= 1.6 can be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file can make the unpickler raise anything
        with path.open("rb") as file:
            is_pointer = file.read(24) == b"version https://git-lfs."
        remedy = "It is a Git LFS pointer: run `git lfs pull`." if is_pointer else "Download it again."
        raise ValueError(f"{path} cannot be read, it is damaged or not a weights file: {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(content).__name__}.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            where = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise ValueError(f"{path} must hold tensors only, got {type(tensor).__name__} under {where}.")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{path} must hold dense tensors on the CPU, `{name}` is {tensor.layout} on {tensor.device}."
            )
    tensors = {name: tensor.detach() for name, tensor in content.items()}
    # a pickled tensor may repeat one number a billion times; a tensor that is there twice (tied) is fine
    stated, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if stated > 2 * size:
        raise ValueError(
            f"{path} has {size} bytes, but says that its tensors have {stated}. Do not use this checkpoint."
        )
    return tensors


def config_int(original: Mapping[str, Any], name: str) -> int | None:
    """Returns a positive integer from `config.json`, None if it is absent or null."""
    value = original.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"its config.json says `{name}={value!r}`, expected a positive integer. Correct the field.")
    return value


def matrix_shape(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, int]:
    """Returns the shape of a tensor that must be a matrix `[rows, columns]`."""
    if name not in tensors:
        raise ValueError(
            f"`{name}` is missing. Download the checkpoint again; if it is complete, it is not such a drafter."
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"`{name}` has shape {shape}, expected a matrix. The checkpoint is damaged: download it again."
        )
    return shape[0], shape[1]


def config_object(original: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an object from `config.json`, empty if it is absent or null."""
    value = original.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"its config.json says `{name}={value!r}`, expected an object. Correct the field.")
    return value or {}


__all__ = ["WEIGHTS_FILES", "config_int", "config_object", "matrix_shape", "read_weights"]
