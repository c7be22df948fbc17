# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Offline features: the frozen target's hidden states, written once and read by every epoch of every drafter.

A feature store is a folder of `features-00001-of-0000N.safetensors` shards and an `index.json`. Each shard holds whole
rows, in the order of the dataset:

| tensor | shape | dtype |
| --- | --- | --- |
| `input_ids` | `[tokens]` | int32 |
| `loss_mask` | `[tokens]` | uint8 |
| `position_ids`, of packed rows only | `[tokens]` | int32 |
| `hidden_states` | `[tokens, F]` | the target's, or the requested one |
| `offsets` | `[rows + 1]` | int64: row i is `offsets[i]:offsets[i + 1]` |

The format is our own and not that of `datasets` because Arrow has no bfloat16, and because a store must end up bit for
bit the same however often its writing was interrupted.

Symbols in shape comments: B batch, T positions, H hidden size, F = H times the number of stored layers.
"""

import hashlib
import shutil
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from ..core.target import Target, check_packing
from ..files import write_json
from .data import JakiroDataCollator, prepare_dataset
from .loading import load_target_and_conversations
from .tokenization import check_tokenizer

INDEX = "index.json"
FORMAT = "transformers-jakiro-features"
VERSION = 1


def write_features(
    target_model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    *,
    feature_layers: Sequence[int] = (),
    batch_size: int = 8,
    shard_size: int | str = "1GB",
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> "FeatureDataset":
    """
    Writes the target's features of `rows` to the feature store `output_dir`.

    A call that was stopped at any moment continues after the last complete shard when repeated with the same
    arguments, and the store ends up bit for bit as if it had not been stopped (on the same machine).

    Args:
        target_model ([`~transformers.PreTrainedModel`]): the target, or a PEFT model around it. Put in eval mode.
        rows: dicts with `input_ids`, `loss_mask` and, if packed, `position_ids`, each a list of the same length T, see
            [`~transformers_jakiro.training.data.prepare_dataset`]. A list or a map-style dataset: it is read twice.
        output_dir (`str` or `Path`): new, empty, or holding an unfinished store of the same call.
        feature_layers (`Sequence[int]`): further hidden states that the drafter will read, see [`JakiroDraftConfig`].
        batch_size (`int`): the number of consecutive rows per forward.
        shard_size (`int` or `str`): the approximate size of a shard, in bytes or as "500MB". One shard is held in
            memory.
        dtype (`torch.dtype`, *optional*): of the stored features. Default: the target's.
        progress (`bool`): announces the disk space needed and shows a progress bar, both on stderr.

    Returns:
        The [`FeatureDataset`] of `output_dir`.

    Raises:
        ValueError: if rows are malformed or not the target's, if the folder holds features of another target, other
            data or other arguments, or if features overflow `dtype`.
        OSError: if the disk lacks the space; raised before the first forward.
    """
    target = Target(target_model, feature_layers)
    target.model.eval()
    dtype = target.model.dtype if dtype is None else dtype
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    lengths, packed, data_sha256 = _scan(rows, target.config.vocab_size)
    header = {
        **_describe_target(target, feature_layers),
        "dtype": _name(dtype),
        "packed": packed,
        "num_rows": len(lengths),
        "num_tokens": sum(lengths),
        "data_sha256": data_sha256,
        "batch_size": batch_size,
        "shard_size": convert_file_size_to_int(shard_size),
    }
    width = target.config.hidden_size * len(header["layers"])
    bytes_per_token = width * dtype.itemsize + sum(column.itemsize for column in _columns(packed).values())
    # shards end where batches end: then the batches, and with them the last bits, do not depend on interruptions
    batches = [range(first, min(first + batch_size, len(rows))) for first in range(0, len(rows), batch_size)]
    plan = _split(batches, lengths, header["shard_size"] // bytes_per_token)

    shards = _resume(output_dir, header)
    if shards:
        FeatureDataset(output_dir, allow_unfinished=True).check_target(target)
    tokens_left = header["num_tokens"] - sum(shard["tokens"] for shard in shards)
    _check_disk(output_dir, tokens_left, tokens_left * bytes_per_token, progress and tokens_left > 0)

    with tqdm(
        total=header["num_tokens"],
        initial=header["num_tokens"] - tokens_left,
        desc="features",
        unit="tok",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for number, shard_batches in enumerate(plan[len(shards) :], start=len(shards) + 1):
            tensors = _compute_shard(target, rows, shard_batches, lengths, width, dtype, bar)
            shards.append(_write_shard(output_dir / f"features-{number:05d}-of-{len(plan):05d}.safetensors", tensors))
            write_json(output_dir / INDEX, {**header, "shards": shards})
    return FeatureDataset(output_dir)


def _describe_target(target: Target, feature_layers: Sequence[int]) -> dict[str, Any]:
    """The beginning of an index: the format, and the target whose features are stored."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "target": {
            "name_or_path": target.model.config.name_or_path,
            "model_type": target.config.model_type,
            "vocab_size": target.config.vocab_size,
            "hidden_size": target.config.hidden_size,
            "dtype": _name(target.model.dtype),
        },
        "layers": [*feature_layers, -1],
    }


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Writes a shard, completely or not at all. Returns its entry in the index."""
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary)
    entry = {
        "file": path.name,
        "rows": len(tensors["offsets"]) - 1,
        "tokens": len(tensors["input_ids"]),
        "bytes": temporary.stat().st_size,
        "sha256": _sha256(temporary),
    }
    temporary.replace(path)
    return entry


class FeatureDataset(Dataset):
    """
    The rows of a feature store. Shards are memory-mapped, so only the parts of a row that are used are read from disk.

    A row is a dict of `input_ids`, `loss_mask` and, if packed, `position_ids` (lists of length T) and of
    `hidden_states` (`[T, F]`, in the stored dtype). Each process opens a shard when it first reads from it.

    Args:
        path (`str` or `Path`): the folder that [`write_features`] wrote.
        verify (`bool`): compares every shard with its checksum, which reads everything once.
        allow_unfinished (`bool`): accepts a store whose writing was interrupted, with the rows it has.

    Raises:
        FileNotFoundError: if the index or a shard is missing.
        ValueError: if the folder is not a feature store of this version, if it is unfinished, or if a shard has
            changed.
    """

    def __init__(self, path: str | Path, verify: bool = False, *, allow_unfinished: bool = False):
        self.path = Path(path)
        self.index = _read_index(self.path)
        self._starts = [0, *accumulate(shard["rows"] for shard in self.index["shards"])]
        self._open_shards: dict[int, dict[str, torch.Tensor]] = {}
        if len(self) != self.index["num_rows"] and not allow_unfinished:
            raise ValueError(
                f"{self.path} is unfinished: it holds {len(self)} of {self.index['num_rows']} rows. Run `jakiro "
                "features` (or `write_features`) again with the same arguments; it continues where it stopped."
            )
        if verify:
            for shard in self.index["shards"]:
                if _sha256(self.path / shard["file"]) != shard["sha256"]:
                    raise ValueError(
                        f"{self.path / shard['file']} has changed since it was written: its checksum is not the one "
                        f"in {INDEX}. {_REWRITE}"
                    )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        tensors, place = self._find(index)
        # a copy: a view would take the whole shard along when it is sent to another process
        return {**self.tokens(index), "hidden_states": tensors["hidden_states"][place].clone()}

    def tokens(self, index: int) -> dict[str, list[int]]:
        """Returns a row, lists of length T, without reading its features."""
        tensors, place = self._find(index)
        return {name: tensors[name][place].tolist() for name in _columns(self.index["packed"])}

    def _find(self, index: int) -> tuple[dict[str, torch.Tensor], slice]:
        """Returns the shard of a row, and the row's place in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Row {index} of {self.path}, which has {len(self)} rows.")
        index %= len(self)
        shard = bisect_right(self._starts, index) - 1
        tensors = self._shard(shard)
        start, end = tensors["offsets"][index - self._starts[shard] :][:2].tolist()
        return tensors, slice(start, end)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}}

    @property
    def lengths(self) -> list[int]:
        """The number of tokens in each row, for a length-grouped sampler. Does not read features."""
        return [
            length
            for shard in range(len(self._starts) - 1)
            for length in self._shard(shard)["offsets"].diff().tolist()
        ]

    def check_fits(self, target_config: PreTrainedConfig, feature_layers: Sequence[int] = ()) -> None:
        """
        Raises `ValueError` if these cannot be the features that a drafter of this target reads. Compares sizes and
        layers with the index; [`~FeatureDataset.check_target`] tells targets of the same sizes apart.
        """
        config = target_config.get_text_config(decoder=True)
        expected = {name: getattr(config, name) for name in ("vocab_size", "hidden_size")}
        expected["layers"] = [*feature_layers, -1]
        got = {**self.index["target"], "layers": self.index["layers"]}
        for name, value in expected.items():
            if got[name] != value:
                raise ValueError(
                    f"The features in {self.path} have `{name}` {got[name]}, training needs {value}. They were "
                    f"written from {self._target_name}. Write this target's features with `jakiro features`, or train "
                    "on conversations and let the trainer compute the features."
                )

    def check_target(self, target: Target) -> None:
        """
        Raises `ValueError` if the target's features of the first row differ from the stored ones by more than
        rounding: the features are of another checkpoint, or of another adapter. Costs one forward.
        """
        row = self[0]
        (features,) = _features(target, [row])
        expected = row["hidden_states"].float()
        # rounding on another machine stays below a few percent; other weights give entirely different features
        if not (expected - features.float()).norm() <= 0.05 * expected.norm():
            raise ValueError(
                f"The features in {self.path} are not this target's: they were written from {self._target_name}, with "
                "other weights or another adapter. Use that target, or write this target's features to another "
                "folder."
            )

    @property
    def _target_name(self) -> str:
        return self.index["target"]["name_or_path"] or "an unnamed target"

    def _shard(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self._open_shards:
            shard = self.index["shards"][number]
            path = self.path / shard["file"]
            names = {*_columns(self.index["packed"]), "hidden_states", "offsets"}
            try:
                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise ValueError(f"{path} is not a safetensors file: {error}. {_REWRITE}") from error
            width = self.index["target"]["hidden_size"] * len(self.index["layers"])
            if (
                tensors.keys() != names
                or tensors["hidden_states"].shape != (shard["tokens"], width)
                or _name(tensors["hidden_states"].dtype) != self.index["dtype"]
                or tensors["offsets"].shape != (shard["rows"] + 1,)
            ):
                raise ValueError(
                    f"{path} is not the shard described in {INDEX}: expected {sorted(names)} with `hidden_states` "
                    f"[{shard['tokens']}, {width}] in {self.index['dtype']}, got "
                    f"{ {name: list(tensor.shape) for name, tensor in sorted(tensors.items())} }. {_REWRITE}"
                )
            self._open_shards[number] = tensors
        return self._open_shards[number]


_REWRITE = "Delete the folder and write the features again."


def _columns(packed: bool) -> dict[str, torch.dtype]:
    columns = {"input_ids": torch.int32, "loss_mask": torch.uint8}
    return {**columns, "position_ids": torch.int32} if packed else columns


def _scan(rows: Sequence[Mapping[str, Any]], vocab_size: int) -> tuple[list[int], bool, str]:
    """Checks every row. Returns the rows' lengths, whether they are packed, and a checksum."""
    if not hasattr(rows, "__len__"):
        raise ValueError(
            "`rows` has no length. Features are written for a dataset of known size: give a list or a map-style "
            "dataset instead of a stream (`list(stream.take(n))`)."
        )
    if len(rows) == 0:
        raise ValueError("There are no rows to write features for.")
    lengths: list[int] = []
    checksum = hashlib.sha256()
    packed = "position_ids" in rows[0]
    for index in range(len(rows)):
        row = rows[index]
        length = len(row["input_ids"])
        if ("position_ids" in row) != packed:
            raise ValueError(f"Row {index} is {'not ' if packed else ''}packed, unlike row 0. Prepare all rows alike.")
        if length == 0 or any(len(row[name]) != length for name in _columns(packed)):
            sizes = {name: len(row[name]) for name in _columns(packed)}
            raise ValueError(
                f"The columns of row {index} must be of one length and not empty, got {sizes}. Make rows with "
                "`prepare_dataset`."
            )
        if not 0 <= min(row["input_ids"]) <= max(row["input_ids"]) < vocab_size:
            raise ValueError(
                f"Row {index} holds token ids outside the target's vocabulary of {vocab_size}. Tokenize the data with "
                "the target's own tokenizer."
            )
        lengths.append(length)
        checksum.update(length.to_bytes(8, "little"))
        for name, dtype in _columns(packed).items():
            checksum.update(torch.tensor(row[name], dtype=dtype).numpy().tobytes())
    return lengths, packed, checksum.hexdigest()


def _split(batches: list[range], lengths: list[int], max_tokens: int) -> list[list[range]]:
    """Groups consecutive batches into shards of at most `max_tokens` tokens, or of a single larger batch."""
    shards: list[list[range]] = []
    tokens = 0
    for batch in batches:
        batch_tokens = sum(lengths[batch.start : batch.stop])
        if not shards or tokens + batch_tokens > max_tokens:
            shards.append([])
            tokens = 0
        shards[-1].append(batch)
        tokens += batch_tokens
    return shards


def _compute_shard(
    target: Target,
    rows: Sequence[Mapping[str, Any]],
    batches: list[range],
    lengths: list[int],
    width: int,
    dtype: torch.dtype,
    bar: tqdm,
) -> dict[str, torch.Tensor]:
    """Computes the tensors of a shard for these batches of rows."""
    lengths = lengths[batches[0].start : batches[-1].stop]
    hidden_states = torch.empty(sum(lengths), width, dtype=dtype)
    columns: dict[str, list[int]] = {}
    end = 0
    for indices in batches:
        batch, start = [rows[index] for index in indices], end
        for row, features in zip(batch, _features(target, batch), strict=True):
            for name in _columns("position_ids" in row):
                columns.setdefault(name, []).extend(row[name])
            hidden_states[end : end + len(features)] = features
            end += len(features)
        if not hidden_states[start:end].isfinite().all():
            raise ValueError(
                f"The features of rows {indices.start} to {indices.stop - 1} are not finite in {_name(dtype)}. "
                "Store them in a dtype with a wider range: bfloat16 or float32."
            )
        bar.update(end - start)
    dtypes = _columns("position_ids" in columns)
    return {
        **{name: torch.tensor(values, dtype=dtypes[name]) for name, values in columns.items()},
        "hidden_states": hidden_states,
        "offsets": torch.tensor([0, *accumulate(lengths)]),
    }


def _features(target: Target, batch: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Computes the features of each row, `[T, F]` on the CPU, in one forward."""
    rows = [{name: row[name] for name in _columns("position_ids" in row)} for row in batch]
    inputs = JakiroDataCollator(pad_token_id=0)(rows)  # any id will do: nothing sees the padding
    tensors: dict[str, Any] = {
        name: value.to(target.model.device) for name, value in inputs.items() if name != "loss_mask"
    }
    features = target.features(**tensors).cpu()
    return [feature[: len(row["input_ids"])] for row, feature in zip(batch, features, strict=True)]


def _resume(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the shards of an interrupted call with the same arguments, none if there was no such call."""
    if not (path / INDEX).exists():
        return []
    index = _read_index(path)
    # a name has many spellings, and may stand for other weights now: `check_target` compares the features instead
    differences = {
        name: (index.get(name), value)
        for name, value in header.items()
        if name != "target" and index.get(name) != value
    } | {
        f"target {name}": (index["target"][name], value)
        for name, value in header["target"].items()
        if name != "name_or_path" and index["target"][name] != value
    }
    if differences:
        listed = ", ".join(f"{name} {before} (now {now})" for name, (before, now) in differences.items())
        raise ValueError(
            f"{path} holds features written with other arguments: {listed}. Repeat those to finish or reuse it, or "
            "write to another folder."
        )
    return index["shards"]


def _read_index(path: Path) -> dict[str, Any]:
    """Reads the index of a store, and checks that all shards are there in full length."""
    file = path / INDEX
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {path} is not a feature store. Write one with `jakiro features`.")
    try:
        index = loads(file.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}. {_REWRITE}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{file} is not the index of a feature store. Write one with `jakiro features`.")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{file} has format version {index.get('version')}, this package reads {VERSION}. Upgrade "
            "transformers-jakiro, or write the features again."
        )
    for shard in index["shards"]:
        shard_file = path / shard["file"]
        if not shard_file.is_file():
            raise FileNotFoundError(f"{shard_file} is missing, but {INDEX} lists it. Copy the whole folder.")
        size = shard_file.stat().st_size
        if size != shard["bytes"]:
            raise ValueError(
                f"{shard_file} has {size} bytes, {INDEX} says {shard['bytes']}: it was cut or replaced. {_REWRITE}"
            )
    return index


def _check_disk(path: Path, tokens: int, needed: int, announce: bool) -> None:
    free = shutil.disk_usage(path).free
    need = f"The features of {tokens} tokens take {tqdm.format_sizeof(needed, 'B')}"
    room = f"{path} has {tqdm.format_sizeof(free, 'B')} free"
    if needed > free:
        raise OSError(
            f"{need}, but {room}. Choose another disk, fewer or shorter rows, or a smaller dtype; or let the trainer "
            "compute the features as it goes."
        )
    if announce:
        print(f"{need}; {room}.", file=sys.stderr)


def _sha256(path: Path) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run_features(
    target: str,
    data: str,
    output: str,
    *,
    max_length: int | None = None,
    packing: bool = False,
    all_tokens: bool = False,
    dtype: str = "auto",
    num_samples: int | None = None,
    **arguments: Any,
) -> None:
    """The `jakiro features` command: loads the target, prepares the data, and calls [`write_features`]."""
    target_model, tokenizer, conversations = load_target_and_conversations(target, data, dtype, num_samples)
    check_tokenizer(tokenizer, target_model.config)
    if packing:
        check_packing(Target(target_model))
    rows = prepare_dataset(
        conversations, tokenizer, max_length=max_length, packing=packing, assistant_only_loss=not all_tokens
    )
    features = write_features(target_model, rows, output, **arguments)
    size = tqdm.format_sizeof(sum(shard["bytes"] for shard in features.index["shards"]), "B")
    print(f"Saved {len(features)} rows, {features.index['num_tokens']} tokens, {size} in {output}")
