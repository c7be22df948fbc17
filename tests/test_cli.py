# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
import torch
from safetensors.torch import load_file

from helpers.original_checkpoints import make_original, write_original
from jakiro_cli import main
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.pair import TARGET
from transformers_jakiro.training.features import FeatureDataset


def test_convert(tmp_path, capsys, target_config):
    src = write_original(tmp_path / "src", *make_original())
    target_config.save_pretrained(tmp_path / "target")
    code = main(
        ["convert", str(src), str(tmp_path / "dst"), "--target", str(tmp_path / "target"), "--dtype", "float16"]
    )
    assert code == 0
    assert capsys.readouterr().out == f"Saved {tmp_path / 'dst'}\n"
    draft = JakiroDraftModel.from_pretrained(tmp_path / "dst")
    assert draft.dtype == torch.float16
    assert draft.config.target_name_or_path == str(tmp_path / "target")


def test_convert_back(tmp_path, capsys):
    src = write_original(tmp_path / "src", *make_original("eagle"))
    assert main(["convert", str(src), str(tmp_path / "ours")]) == 0
    arguments = ["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "original"]
    assert main([*arguments, "--target", "t"]) == 1
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(f"Saved {tmp_path / 'back'}\n")
    tensors, back = load_file(src / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert tensors.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_regenerate_then_features(tmp_path, capsys):
    data, answers, store = tmp_path / "data.jsonl", tmp_path / "answers.jsonl", tmp_path / "features"
    rows = [{"messages": [{"role": "user", "content": f"How much is {n} + 1?"}], "id": n} for n in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = ["--target", str(TARGET), "--dtype", "float32", "--batch-size", "2"]

    arguments = [*pair, "--data", str(data), "--output", str(answers), "--num-samples", "4", "--max-new-tokens", "12"]
    assert main(["regenerate", *arguments]) == 0
    assert f"Saved 4 conversations with 4 answers of 12 tokens in {answers} (4 end" in capsys.readouterr().out
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(row["id"], len(row["messages"])) for row in written] == [(n, 2) for n in range(4)]

    arguments = [*pair, "--data", str(answers), "--output", str(store), "--max-length", "64"]
    assert main(["features", *arguments, "--output", str(tmp_path / "all"), "--all-tokens"]) == 0
    assert all(all(row["loss_mask"]) for row in FeatureDataset(tmp_path / "all"))
    assert main(["features", *arguments]) == 0
    assert not all(all(row["loss_mask"]) for row in FeatureDataset(store))
    stored = FeatureDataset(store, verify=True)
    assert f"Saved 4 rows, {sum(stored.lengths)} tokens, " in capsys.readouterr().out
    assert stored[0]["hidden_states"].shape == (stored.lengths[0], 192)
    assert main(["features", *arguments, "--packing"]) == 1
    assert "holds features written with other arguments: packed False (now True)" in capsys.readouterr().err


def test_user_errors_are_one_message(tmp_path, capsys):
    tensors, config = make_original()
    del tensors["fc.weight"]
    src = write_original(tmp_path / "src", tensors, config)
    for arguments, message in (
        ([str(src), str(tmp_path / "dst")], "`fc.weight` is missing"),  # ValueError
        ([str(tmp_path / "none"), str(tmp_path / "dst")], "could not be fetched"),  # OSError
        ([str(src), str(src)], "not an empty folder"),
    ):
        assert main(["convert", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("jakiro: error: ")
        assert message in captured.err
        assert "Traceback" not in captured.err


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback(tmp_path, before):
    arguments = ["convert", str(tmp_path), str(tmp_path / "dst")]
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        main(["--debug", *arguments] if before else [*arguments, "--debug"])


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("transformers_jakiro.hub.conversion.convert_original", broken)
    with pytest.raises(RuntimeError, match=r"a bug"):
        main(["convert", "a", "b"])


def test_help_and_version(capsys):
    for arguments, message in (
        (["--help"], "convert a published Jakiro"),
        (["convert", "--help"], "--dtype D"),
        (["features", "--help"], "--shard-size S"),
        (["chat", "--help"], "--system-prompt TEXT"),
        (["ui", "--help"], "--port N"),
        (["bench", "--help"], "--assistant-early-exit N"),
        (["regenerate", "--help"], "--max-new-tokens N"),
        (["push", "--help"], "--remote-code"),
        (["serve", "--help"], "--num-assistant-tokens N"),
        (["--version"], f"jakiro {version('transformers-jakiro')}\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["convert", "a"], "required: DST"),
        (["convert", "a", "b", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["translate"], "invalid choice: 'translate'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.integration
def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "from jakiro_cli import main\n"
        "for arguments in ['--help'], ['bench', '--help'], ['push', '--help']:\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "sys.exit(', '.join(sys.modules.keys() & {'torch', 'transformers', 'huggingface_hub'}) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode == 0


def test_entry_point():
    (script,) = entry_points(group="console_scripts", name="jakiro")
    assert script.load() is main
