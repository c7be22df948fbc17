# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Damaged and hostile checkpoint folders: loading and converting them ends in a clear error, soon, with little memory,
and runs no code and reads no file outside of the folder. What could hang or take all memory runs in a copy of the
process.
"""

import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import struct
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.eagle3_checkpoints import make_eagle3
from helpers.original_checkpoints import make_original, write_original
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.hub.conversion import convert_original, load_original

MEMORY, SECONDS = 2**30, 120
ODD = [
    *(None, True, -1, 0, 3, 2**31, 10**18, 10**30, 1.5, math.nan, math.inf, "", "x", [], [1], [[0]], {}, {"a": 1}),
    *({"rope_type": "yarn"}, {"rope_type": "default", "rope_theta": math.nan}, {"rope_type": "linear", "factor": "x"}),
]
# of transformers' own configs, and of the formats that are read
FURTHER_KEYS = [
    *("quantization_config", "transformers_weights", "attn_implementation", "_attn_implementation", "fusion_config"),
    *("num_labels", "layer_types", "auto_map", "torch_dtype", "rope_scaling", "per_layer_config", "sub_configs"),
    *("speculators_model_type", "transformer_layer_config", "eagle_config", "draft_vocab_size", "target_hidden_size"),
    *("head_dim", "bias", "qkv_bias", "attention_bias", "static_tree", "rope_theta", "norm_output", "fc_norm"),
]
Load = Callable[[Path], object]


KINDS: dict[str, Load] = {"saved": JakiroDraftModel.from_pretrained, "jakiro": load_original, "eagle3": load_original}


def make_folder(kind: str, folder: Path) -> Path:
    """A sound checkpoint for `KINDS[kind]`."""
    if kind == "eagle3":
        tensors, config = make_eagle3()
        config["eagle_aux_hidden_state_layer_ids"] = [1, 2, 3]
        return write_original(folder, tensors, config)
    original = write_original(folder.with_name("original"), *make_original())
    return convert_original(original, folder) if kind == "saved" else original


def limited(function: Callable[[], object]) -> None:
    """Runs `function` in a copy of this process that may take 1 GiB more than it has, and two minutes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        try:
            function()
            sender.send(None)
        except BaseException:
            sender.send(traceback.format_exc())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    done = receiver.poll(SECONDS)
    if not done:
        process.kill()
    process.join()
    assert done, "it hangs, or the process died"
    failure = receiver.recv()
    assert failure is None, failure


def check_all(kind: str, sound: Path, changes: Iterator[tuple[object, Callable[[Path], None]]]) -> None:
    """Each changed copy of a folder is loaded, or refused with an error of the right kind."""
    case = sound.with_name("case")
    for label, change in changes:
        shutil.copytree(sound, case)
        change(case)
        problem = None
        try:
            KINDS[kind](case)
        except Exception as error:
            problem = error
        # quantized checkpoints may need another package
        assert problem is None or isinstance(problem, ValueError | OSError | ImportError), f"{label}: {problem!r}"
        assert problem is None or len(str(problem)) > 20, f"{label}: {problem!r} explains nothing"
        shutil.rmtree(case)


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", KINDS)
def test_any_field_may_be_anything(kind, tmp_path):
    sound = make_folder(kind, tmp_path / "sound")
    keys = sorted({*json.loads((sound / "config.json").read_text()), *FURTHER_KEYS})

    def changes():
        for index, key in enumerate(keys):
            for value in ODD[index % 3 :: 3]:
                yield (key, value), lambda folder, key=key, value=value: edit_config(folder, **{key: value})

    limited(lambda: check_all(kind, sound, changes()))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes(kind, name, tmp_path):
    sound = make_folder(kind, tmp_path / "sound")
    data = (sound / name).read_bytes()

    def damage(seed: int) -> bytes:
        numbers, damaged = random.Random(seed), bytearray(data)
        where = numbers.randrange(min(len(data), 2500))  # mostly the header
        how = seed % 4
        if how == 0:
            return data[: numbers.randrange(len(data))]
        if how == 1:
            damaged[where] = numbers.randrange(256)
        elif how == 2:
            damaged[where:where] = numbers.randbytes(numbers.randrange(1, 40))
        else:
            damaged[where : where + 8] = data[-8:]
        return bytes(damaged)

    def changes():
        for seed in range(120):
            yield seed, lambda folder, seed=seed: (folder / name).write_bytes(damage(seed))

    limited(lambda: check_all(kind, sound, changes()))


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 2**20}, r"mismatched `fc.bias` is \(32,\), expected \(1048576,\)"),
        ({"expert_intermediate_size": 2**24}, r"down_proj.weight` is \(32, 48\), expected \(32, 33554432\)"),
        ({"num_experts": 2**20}, r"expected \(32, 25165824\)"),
        ({"head_dim": 2**24}, r"expected \(32, 67108864\)"),
        ({"num_hidden_layers": 256}, r"missing \['layers.1.input_layernorm.weight'"),
        ({"draft_vocab_size": 2**24, "vocab_size": 2**24}, r"missing \['draft_token_ids'\]"),
        (
            {"fusion": "eagle3", "feature_layers": [1], "own_embeddings": True, "vocab_size": 2**24},
            r"missing \['embed_tokens.weight'",
        ),
        ({"num_hidden_layers": 257}, r"`num_hidden_layers` must be at most 256, got 257"),
        ({"hidden_size": 2**20 + 1}, r"`hidden_size` must be at most 1048576"),
        ({"vocab_size": 10**30}, r"`vocab_size` must be at most 16777216"),
        ({"num_experts": 10**18}, r"`num_experts` must be at most"),
        ({"hidden_act": "x"}, r"`hidden_act` must be an activation of Transformers, got 'x'"),
        ({"rms_norm_eps": math.nan}, r"`rms_norm_eps` must be a positive number, got nan"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            r"(not the configuration of a Jakiro drafter|not known to Transf).*factor",
        ),
        ({"hidden_size": "32"}, r"not the configuration of a Jakiro drafter: .*hidden_size"),
        ({"dtype": 3}, r"`dtype` must be .*, got 3"),
        ({"model_type": ["x"]}, r"says `model_type=\['x'\]`, expected a string"),
    ],
)
def test_sizes_that_the_weights_do_not_have(values, message, tmp_path):
    """Nothing is allocated for them."""
    sound = make_folder("saved", tmp_path / "sound")
    edit_config(sound, **values)

    def load():
        with pytest.raises(ValueError, match=message):
            JakiroDraftModel.from_pretrained(sound)

    limited(load)


def header(content: dict, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header({}, 2**62),
        header({}, 90 * 2**20),
        header({"fc.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**62]}}),
        header({"fc.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}),
        header({"fc.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"fc.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + bytes(4),
        header({"fc.weight": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"fc.weight": 3}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_headers(kind, data, tmp_path):
    sound = make_folder(kind, tmp_path / "sound")
    (sound / "model.safetensors").write_bytes(data)

    def load():
        with pytest.raises(ValueError, match=r"damaged"):
            KINDS[kind](sound)

    limited(load)


def test_numbers_that_are_not_in_the_file(tmp_path):
    """A pickled tensor of any size may repeat one number; a check of its contents would take all memory."""
    tensors, config = make_original()
    large = {32: 2**16, 64: 2**17}
    tensors = {
        name: torch.zeros(1).expand(*(large.get(size, size) for size in tensor.shape))
        for name, tensor in tensors.items()
    }
    folder = write_original(tmp_path, tensors, config, "pytorch_model.bin")

    def load():
        with pytest.raises(ValueError, match=r"has \d+ bytes, but says that its tensors have \d+. Do not use"):
            load_original(folder)

    limited(load)


def test_nested_values(tmp_path):
    """Describing them would take for ever."""
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    folder = write_original(tmp_path, {"fc.weight": nested}, make_original()[1], "pytorch_model.bin")

    def load():
        with pytest.raises(ValueError, match=r"must hold tensors only, got list under 'fc.weight'"):
            load_original(folder)

    limited(load)


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_keys(zipped, tmp_path):
    """Hashing the key would take for ever."""
    folder = write_original(tmp_path, {}, make_original()[1], "pytorch_model.bin")
    path = folder / "pytorch_model.bin"
    key = b")q\x00" + b"".join(bytes([*b"h", i, *b"h", i, 0x86, *b"q", i + 1]) for i in range(60))  # (x, x)
    data = b"\x80\x02}" + key + b"K\x01s."
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", b"3\n")
    else:
        numbers = [0x1950A86A20F9469CFC6C, 1001, {}]  # how files of torch < 1.6 begin
        path.write_bytes(b"".join(pickle.dumps(number, protocol=2) for number in numbers) + data)

    def load():
        with pytest.raises(ValueError, match=r"repeats tuples 120 times"):
            load_original(folder)

    limited(load)


def test_convert_writes_nothing(tmp_path):
    sound = make_folder("jakiro", tmp_path / "sound")
    (sound / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"damaged"):
        convert_original(sound, tmp_path / "new" / "converted")
    assert not (tmp_path / "new").exists()


def test_large_config(tmp_path):
    sound = make_folder("saved", tmp_path / "sound")
    with (sound / "config.json").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(ValueError, match=r"has 105906176 bytes, expected at most 104857600"):
        JakiroDraftModel.from_pretrained(sound)


# -- files and code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.json", "model.safetensors.index.x.json", "x.safetensors.index.json"]
)
@pytest.mark.parametrize("shard", ["../outside.safetensors", "{}/outside.safetensors", "a/../../outside.safetensors"])
def test_shards_outside_of_the_folder(index, shard, tmp_path):
    """Whichever of transformers' ways leads to the index."""
    sound = make_folder("saved", tmp_path / "sound")
    names = load_file(sound / "model.safetensors")
    (sound / "model.safetensors").rename(tmp_path / "outside.safetensors")
    shard = shard.format(tmp_path)
    (sound / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    edit_config(sound, **({"transformers_weights": index} if index.startswith("x") else {}))
    options = {"variant": "x"} if index.endswith(".x.json") else {}
    with pytest.raises(ValueError, match=r"names the shard '.*', expected a plain file name"):
        JakiroDraftModel.from_pretrained(sound, **options)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {}}, r"must have `metadata`, an object"),
        ({"metadata": {}, "weight_map": [1]}, r"must have `weight_map`"),
        ({"metadata": {}, "weight_map": {"fc.weight": 3}}, r"must have `weight_map`"),
        ([], r"must hold a JSON object"),
    ],
)
def test_indices(index, message, tmp_path):
    sound = make_folder("saved", tmp_path / "sound")
    (sound / "model.safetensors").unlink()
    (sound / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        JakiroDraftModel.from_pretrained(sound)


def test_absent_and_other_files(tmp_path):
    sound = make_folder("saved", tmp_path / "sound")
    shutil.copytree(sound, tmp_path / "no config")
    (tmp_path / "no config" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        JakiroDraftModel.from_pretrained(tmp_path / "no config")
    config = JakiroDraftConfig.from_pretrained(sound)
    assert JakiroDraftModel.from_pretrained(tmp_path / "no config", config=config).config.hidden_size == 32
    (sound / "model.safetensors").rename(sound / "shard-00000-model-00000-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"holds a distributed checkpoint"):
        JakiroDraftModel.from_pretrained(sound)
    (sound / "shard-00000-model-00000-of-00001.safetensors").unlink()
    os.mkfifo(sound / "model.safetensors")  # reading it would wait for ever
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        JakiroDraftModel.from_pretrained(sound)


@pytest.mark.parametrize("kind", KINDS)
def test_no_pickled_code_is_run(kind, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    sound = make_folder(kind, tmp_path / "sound")
    (sound / "model.safetensors").unlink()
    torch.save({"fc.weight": Attack()}, sound / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError), match=r"Weights only load failed|no file named model.safetensors"):
        KINDS[kind](sound)
    assert not (tmp_path / "attacked").exists()


def test_no_code_of_the_checkpoint_is_run(tmp_path):
    sound = make_folder("saved", tmp_path / "sound")
    code = f"import os\nos.mkdir({str(tmp_path / 'attacked')!r})\n"
    (sound / "evil.py").write_text(code)
    edit_config(
        sound, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, attn_implementation="a/kernel"
    )
    draft = JakiroDraftModel.from_pretrained(sound)
    assert draft.config._attn_implementation == "sdpa"
    original = write_original(tmp_path / "original", *make_original())
    edit_config(sound, model_type="evil")
    with pytest.raises(ValueError, match=r"trust_remote_code"):  # a target's code needs consent, too
        load_original(original, target=sound)
    assert not (tmp_path / "attacked").exists()
