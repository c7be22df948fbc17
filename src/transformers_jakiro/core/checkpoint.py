# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Checks the files of a checkpoint folder that may be damaged or hostile: nothing outside the folder is read.
"""

import json
import re
from pathlib import Path
from typing import Any

# config.json and indices; those of the largest models have less than one
_LARGEST_JSON = 100 * 2**20


def check_folder(folder: Path, with_config: bool) -> None:
    """
    Raises `ValueError` unless all weights that [`~transformers.PreTrainedModel`] would read are safetensors in this
    folder, and, `with_config`, `FileNotFoundError` or `ValueError` unless `config.json` is a JSON object.
    """
    if any(folder.glob("shard-*.safetensors")):
        raise ValueError(
            f"{folder} holds a distributed checkpoint. Save the drafter with `save_pretrained(folder)`, as one that "
            "any process can read."
        )
    if with_config:
        model_type = read_json(folder / "config.json").get("model_type")
        if not isinstance(model_type, str | None):
            raise ValueError(f"{folder / 'config.json'} says `model_type={model_type!r}`, expected a string.")
    for path in folder.glob("*.safetensors.index*.json"):
        index = read_json(path)
        read_shards_index(path, index)
        if not isinstance(index.get("metadata"), dict):
            raise ValueError(f"{path} must have `metadata`, an object. Download it again.")


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is missing in {path.parent}: download it from where the weights are from."
        )
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {_LARGEST_JSON}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}. Download it again.")
    return content


def read_shards_index(index_path: Path, index: dict[str, Any]) -> dict[str, set[str]]:
    """The files of an index, each with the names of its tensors; `ValueError` for files outside of its folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index_path} must have `weight_map`, from tensor names to file names. Download it again.")
    suffix = ".safetensors" if ".safetensors.index" in index_path.name else ".bin"
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, set()).add(name)
    for shard in shards:
        if not re.fullmatch(r"[\w-][\w.-]*", shard) or not shard.endswith(suffix):
            raise ValueError(
                f"{index_path} names the shard {shard!r}, expected a plain file name ending in {suffix}, inside "
                "the same folder. Do not use this checkpoint."
            )
    return shards


__all__ = ["check_folder", "read_json", "read_shards_index"]
