# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
import pickle
import random
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import save
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.processes import kill_at_call, run_until_killed
from helpers.targets import HIDDEN, VOCAB, make_target
from transformers_jakiro.core.target import Target
from transformers_jakiro.training import features as features_module
from transformers_jakiro.training.data import JakiroDataCollator
from transformers_jakiro.training.features import FeatureDataset, write_features

LENGTHS = (5, 9, 3, 7, 8, 20, 11)
SHARD_SIZE = 5200  # 39 tokens: two shards of two batches of two rows


@pytest.fixture
def rows():
    rng = random.Random(0)
    return [
        {
            "input_ids": [rng.randrange(2, VOCAB) for _ in range(n)],
            "loss_mask": [0, *(rng.randrange(2) for _ in range(n - 1))],
        }
        for n in LENGTHS
    ]


def pack(*rows):
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "loss_mask": [bit for row in rows for bit in row["loss_mask"]],
        "position_ids": [position for row in rows for position in range(len(row["input_ids"]))],
    }


@pytest.fixture
def write(rows, tmp_path):
    def write(path="store", rows=rows, target=None, **kwargs):
        arguments = {"batch_size": 2, "shard_size": SHARD_SIZE, "progress": False, **kwargs}
        return write_features(target or make_target(), rows, tmp_path / path, **arguments)

    return write


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.compat
def test_offline_is_online(write, rows):
    stored = write()
    assert len(stored) == len(rows)
    assert [shard["rows"] for shard in stored.index["shards"]] == [4, 3]
    target = Target(make_target())
    for row, read in zip(rows, stored, strict=True):
        assert {name: read[name] for name in row} == row
        (alone,) = target.features(torch.tensor([row["input_ids"]]))
        assert read["hidden_states"].dtype == torch.float32
        assert (read["hidden_states"] - alone).norm() <= 1e-6 * alone.norm()  # one was padded
    assert stored.lengths == list(LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_batches_give_the_same_bits(write, rows, dtype):
    target = make_target(dtype=dtype)
    stored = write(target=target, batch_size=3)
    for first in range(0, len(rows), 3):
        batch = JakiroDataCollator(pad_token_id=0)(rows[first : first + 3])
        online = Target(target).features(batch["input_ids"], batch["attention_mask"])
        offline = JakiroDataCollator(pad_token_id=0)([stored[i] for i in range(first, min(first + 3, len(rows)))])
        assert offline["hidden_states"].dtype == dtype
        assert torch.equal(offline["hidden_states"], online * batch["attention_mask"][..., None])


def test_packed_rows(write, rows):
    packed = [pack(*rows[:2]), pack(rows[2]), pack(*rows[3:6])]
    stored = write(rows=packed)
    alone = [Target(make_target()).features(torch.tensor([row["input_ids"]]))[0] for row in rows]
    for row, read, expected in zip(packed, stored, (alone[:2], alone[2:3], alone[3:6]), strict=True):
        assert {name: read[name] for name in row} == row
        torch.testing.assert_close(read["hidden_states"], torch.cat(expected), rtol=0, atol=1e-5)


def test_stored_dtype(write):
    stored, full = write(dtype=torch.bfloat16), write("full")
    assert torch.equal(stored[3]["hidden_states"], full[3]["hidden_states"].bfloat16())


@pytest.mark.parametrize("moment", ["the fourth forward", "the second shard's last byte", "the second shard's name"])
@pytest.mark.integration
def test_killed_and_resumed(write, tmp_path, monkeypatch, moment):
    write("whole")

    def killed():
        if moment == "the fourth forward":
            monkeypatch.setattr(Target, "features", kill_at_call(4, Target.features))
        elif moment == "the second shard's last byte":
            monkeypatch.setattr(features_module, "_sha256", kill_at_call(2, features_module._sha256))
        else:
            monkeypatch.setattr(features_module, "write_json", kill_at_call(2, features_module.write_json))
        write()

    run_until_killed(killed)
    assert json.loads((tmp_path / "store" / "index.json").read_text())["shards"][1:] == []
    with pytest.raises(ValueError, match=r"is unfinished: it holds 4 of 7 rows"):
        FeatureDataset(tmp_path / "store")
    assert len(FeatureDataset(tmp_path / "store", allow_unfinished=True)) == 4
    forwards = []
    monkeypatch.setattr(
        Target, "features", lambda *args, f=Target.features, **kwargs: forwards.append(1) or f(*args, **kwargs)
    )
    write()
    assert len(forwards) == 1 + 2  # is it the same target, then the batches that are left
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    write()
    assert len(forwards) == 4


def test_resume_with_other_arguments(write, rows):
    write()
    for change, message in (
        ({"rows": rows[::-1]}, r"other arguments: data_sha256 .* \(now "),
        ({"rows": rows[:-1]}, r"num_rows 7 \(now 6\)"),
        ({"batch_size": 4}, r"batch_size 2 \(now 4\)"),
        ({"dtype": torch.float16}, r"dtype float32 \(now float16\)"),
        ({"target": make_target(vocab_size=VOCAB + 1)}, r"target vocab_size 96 \(now 97\)"),
        ({"target": make_target("mistral")}, r"target model_type llama \(now mistral\)"),
    ):
        with pytest.raises(ValueError, match=message):
            write(**change)


def test_resume_with_other_weights(write):
    target = make_target()
    other = LlamaForCausalLM(target.config)
    other.load_state_dict(target.state_dict())
    stored = write(target=other)
    stored.check_target(Target(target))
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(-1)
    with pytest.raises(ValueError, match=r"not this target's.*other weights or another adapter"):
        write(target=other)
    with pytest.raises(ValueError, match=r"not this target's"):
        stored.check_target(Target(other))


def test_disk_need_comes_first(write, tmp_path, monkeypatch, capsys):
    write("announced", progress=True)
    need = sum(LENGTHS) * (4 * HIDDEN + 5) / 1000
    assert f"The features of 63 tokens take {need:.2f}kB; " in capsys.readouterr().err
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 8000))
    monkeypatch.setattr(Target, "features", None)
    with pytest.raises(OSError, match=r"take 8\.38kB, but .* has 8\.00kB free\. Choose another disk"):
        write()
    assert list((tmp_path / "store").iterdir()) == []


def test_features_that_overflow(write, tmp_path, monkeypatch):
    monkeypatch.setattr(Target, "features", lambda *args, f=Target.features, **kwargs: f(*args, **kwargs) * 1e5)
    with pytest.raises(ValueError, match=r"rows 0 to 1 are not finite in float16"):
        write(dtype=torch.float16)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.clear(), r"no rows"),
        (
            lambda rows: rows.insert(2, {"input_ids": [], "loss_mask": []}),
            r"row 2 must be of one length and not empty",
        ),
        (lambda rows: rows[1]["loss_mask"].pop(), r"row 1 must be .* got \{'input_ids': 9, 'loss_mask': 8\}"),
        (lambda rows: rows[3]["input_ids"].__setitem__(2, VOCAB), r"Row 3 .* vocabulary of 96.*own tokenizer"),
        (lambda rows: rows.append(pack(rows[0])), r"Row 7 is packed, unlike row 0"),
    ],
)
def test_malformed_rows(write, rows, change, message):
    change(rows)
    with pytest.raises(ValueError, match=message):
        write()


def test_streams_have_no_size(write, rows):
    with pytest.raises(ValueError, match=r"no length.*instead of a stream"):
        write(rows=iter(rows))


def shard(path, number=2):
    return path / f"features-{number:05d}-of-00002.safetensors"


def edit_index(path, **changes):
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, r"index\.json is missing"),
        (lambda path: shard(path).unlink(), FileNotFoundError, r"00002-of-00002\.safetensors is missing, but index"),
        (lambda path: shard(path).write_bytes(b"cut"), ValueError, r"00002.* has 3 bytes, index\.json says \d+"),
        (lambda path: (path / "index.json").write_text("{"), ValueError, r"index\.json is not valid JSON"),
        (lambda path: edit_index(path, format="?"), ValueError, r"index\.json is not the index of a feature store"),
        (lambda path: edit_index(path, version=2), ValueError, r"format version 2, this package reads 1"),
        (lambda path: edit_index(path, num_rows=9), ValueError, r"unfinished: it holds 7 of 9 rows"),
    ],
)
def test_damaged_store(write, damage, error, message):
    path = write().path
    damage(path)
    with pytest.raises(error, match=message):
        FeatureDataset(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no safetensors", r"is not a safetensors file"),
        (save({"other": torch.zeros(3)}), r"is not the shard described in index\.json: expected .*'offsets'"),
    ],
)
def test_foreign_shard(write, content, message):
    path = write().path
    shard(path).write_bytes(content)
    entries = json.loads((path / "index.json").read_text())["shards"]
    entries[1]["bytes"] = len(content)
    edit_index(path, shards=entries)
    stored = FeatureDataset(path)
    assert stored[1]["input_ids"]
    with pytest.raises(ValueError, match=f"00002.* {message}"):
        stored[5]


def test_verify_finds_a_changed_bit(write):
    path = write().path
    FeatureDataset(path, verify=True)
    content = bytearray(shard(path).read_bytes())
    content[-1] ^= 1
    shard(path).write_bytes(content)
    FeatureDataset(path)
    with pytest.raises(ValueError, match=r"00002.* has changed since it was written"):
        FeatureDataset(path, verify=True)


def test_indices_and_copies(write):
    stored = write()
    assert stored[-1]["input_ids"] == stored[6]["input_ids"]
    for index in (7, -8):
        with pytest.raises(IndexError, match=r"has 7 rows"):
            stored[index]
    stored[0]["hidden_states"].zero_()
    assert stored[0]["hidden_states"].abs().sum() > 0
    assert stored[0]["hidden_states"].untyped_storage().nbytes() == 4 * HIDDEN * LENGTHS[0]


def test_data_loader_workers(write):
    stored = write()
    assert stored[0]["input_ids"]  # a shard is open
    assert len(pickle.dumps(stored)) < 5000
    loader = DataLoader(
        stored,
        batch_size=3,
        num_workers=2,
        collate_fn=JakiroDataCollator(pad_token_id=0),
        multiprocessing_context="fork",
    )
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    here = JakiroDataCollator(pad_token_id=0)([stored[index] for index in range(3)])
    assert all(torch.equal(batches[0][name], value) for name, value in here.items())


def test_check_fits(write):
    stored = write()
    config = make_target().config
    stored.check_fits(config)
    for other, layers, message in (
        (LlamaConfig(**{**config.to_dict(), "hidden_size": 64}), (), r"`hidden_size` 32, training needs 64"),
        (LlamaConfig(**{**config.to_dict(), "vocab_size": 97}), (), r"`vocab_size` 96, training needs 97"),
        (config, (1,), r"`layers` \[-1\], training needs \[1, -1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            stored.check_fits(other, layers)
