# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
import os
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.training_run import make_rows, make_target
from jakiro_cli import main
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.training.arguments import JakiroTrainingArguments
from transformers_jakiro.training.command import ScriptArguments, parse
from transformers_jakiro.training.features import write_features

EXAMPLES = Path(__file__).parents[1] / "examples"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} end {% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)
OPTIONS = [
    *("--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--report_to", "none"),
    *("--save_strategy", "no", "--disable_tqdm", "true", "--logging_steps", "1"),
]


@pytest.fixture
def folder(tmp_path):
    """A target with its tokenizer, and six conversations."""
    words = ["pad", "bos", "end", "user", "assistant", *"abcdefg"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="pad", bos_token="bos", eos_token="end", chat_template=TEMPLATE
    ).save_pretrained(tmp_path / "target")
    make_target().save_pretrained(tmp_path / "target")
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "c d " + answer}]}
        for question, answer in zip(
            ("a", "b", "a b", "c", "g", "d e"), ("e", "f g", "a", "e e e", "b", "c"), strict=True
        )
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.compat
def test_command(folder, capsys):
    values = {
        "target": str(folder / "target"),
        "data": str(folder / "data.jsonl"),
        "num_eval_rows": 2,
        "num_experts": 1,
        "learning_rate": 1.0,
        "target_model_init_kwargs": {"attn_implementation": "eager"},
        "eval_generate_temperature": [0.0, 1.0],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values).replace("1.0\n", "1e-3\n", 1))
    output_dir = folder / "draft"
    options = ["--output_dir", str(output_dir), "--num_experts", "3", "--target_name", "org/target", *OPTIONS]
    assert main(["train", str(folder / "config.yaml"), *options]) == 0
    draft = JakiroDraftModel.from_pretrained(output_dir)
    assert (draft.config.num_experts, draft.config.head_mode) == (3, "contrastive")
    assert draft.config.target_name_or_path == "org/target"
    assert "eval_accuracy" in json.loads((output_dir / "eval_results.json").read_text())
    # trained further, from stored features, by the script
    target = make_target()
    write_features(target, make_rows(6), folder / "features", progress=False)
    argv = ["--target", str(folder / "target"), "--data", str(folder / "features"), "--draft", str(output_dir)]
    argv += ["--num_eval_rows", "2", "--output_dir", str(folder / "further"), *OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *argv])
        runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    further = JakiroDraftModel.from_pretrained(folder / "further")
    assert further.config.num_experts == 3
    assert not torch.equal(further.fc.weight, draft.fc.weight)


def test_draft_vocabulary(folder):
    """What ends an answer (2 and 3), and the most frequent tokens of the answers that are not held out."""
    options = ["--target", str(folder / "target"), "--draft_vocab_size", "5", "--tree_top_k", "2", *OPTIONS]
    options += ["--num_eval_rows", "1"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "target")
    for name, more in (("rows", []), ("packed", ["--packing", "true", "--max_length", "32"])):
        argv = ["--data", str(folder / "data.jsonl"), "--output_dir", str(folder / name), *more]
        assert main(["train", *options, *argv]) == 0
        draft = JakiroDraftModel.from_pretrained(folder / name)
        assert draft.config.draft_vocab_size == 5
        assert tokenizer.convert_ids_to_tokens(draft.draft_token_ids.tolist()) == ["end", "user", "c", "d", "e"]
    rows = make_rows(6)
    for row, answer in zip(rows, (10, 9, 9, 9, 9, 11), strict=True):  # the first is held out, the last left out
        row["input_ids"] = [answer if counts else 5 for counts in row["loss_mask"]]
    store = write_features(make_target(), rows, folder / "features", progress=False)
    assert store.tokens(5) == rows[5]
    argv = ["--data", str(folder / "features"), "--num_rows", "5", "--output_dir", str(folder / "stored")]
    assert main(["train", *options, *argv]) == 0
    draft = JakiroDraftModel.from_pretrained(folder / "stored")
    assert draft.draft_token_ids.tolist() == [0, 1, 2, 3, 9]


def test_file_and_options(tmp_path):
    values = {"target": "T", "data": "D", "learning_rate": 9e-5, "bf16": False, "head_mode": None}
    for name, text in (("c.yaml", yaml.safe_dump(values)), ("c.json", json.dumps(values))):
        (tmp_path / name).write_text(text.replace("9.0e-05", "9e-5"))
        script_args, args = parse([str(tmp_path / name), "--data", "E", "--max_steps", "7"])
        assert (script_args.target, script_args.data, script_args.head_mode) == ("T", "E", None)
        assert (args.learning_rate, args.max_steps, args.bf16) == (9e-5, 7, False)
    (tmp_path / "typo.yaml").write_text("target: T\ndata: D\nlearning_rat: 1")
    with pytest.raises(ValueError, match=r"--learning_rat\b"):
        parse([str(tmp_path / "typo.yaml")])
    (tmp_path / "list.yaml").write_text("- target")
    with pytest.raises(ValueError, match=r"one mapping of arguments"):
        parse([str(tmp_path / "list.yaml")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no.yaml"], "no.yaml"),
        (["--target", "T", "--data", "D", "--eval_data", "E", "--num_eval_rows", "1"], "choose one"),
        (["--target", "T", "--data", "D", "--draft", "R", "--num_experts", "3"], "leave out ['num_experts']"),
        (
            ["--target", "T", "--data", "D", "--draft", "R", "--draft_vocab_size", "9"],
            "leave out ['draft_vocab_size']",
        ),
        (["--target", "T", "--data", "no.jsonl", "--output_dir", "unused", "--use_cpu"], "no.jsonl does not exist"),
    ],
)
def test_wrong_arguments_are_one_message(options, message, capsys):
    assert main(["train", *options]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_too_many_rows_held_out(folder, capsys):
    argv = ["--target", str(folder / "target"), "--data", str(folder / "data.jsonl"), "--num_eval_rows", "6", *OPTIONS]
    assert main(["train", *argv]) == 1
    assert "leaves none of the data's 6 rows" in capsys.readouterr().err


def test_help_lists_every_argument_of_ours(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    own = [field for field in fields(JakiroTrainingArguments) if field.name in JakiroTrainingArguments.__annotations__]
    for field in (*fields(ScriptArguments), *own):
        assert f"--{field.name} " in text
        assert " ".join(field.metadata["help"].split()) in text


@pytest.mark.integration
def test_help_is_instant():
    code = (
        "import sys\n"
        "from jakiro_cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        "sys.exit(', '.join(sys.modules.keys() & {'torch', 'transformers', 'huggingface_hub'}) or 0)"
    )
    before = os.times()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 0.3  # of the processor, whatever else it has to do


@pytest.mark.compat
def test_help_all_lists_transformers_arguments(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--lr_scheduler_type" in text
    assert "--eval_generate_prompts" in text


@pytest.mark.parametrize("name", ["laptop", "tiny_chat", "vicuna_7b"])
def test_shipped_configs(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    script_args, args = parse([str(EXAMPLES / "configs" / f"{name}.yaml"), "--data", "D", "--use_cpu", "true"])
    assert isinstance(args, JakiroTrainingArguments)
    if name == "laptop":
        assert (EXAMPLES.parent / script_args.target / "config.json").is_file()


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp", "deepspeed_zero2"])
def test_shipped_accelerate_configs(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(EXAMPLES / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    assert config.distributed_type.value == {"multi_gpu": "MULTI_GPU", "fsdp": "FSDP"}.get(name, "DEEPSPEED")
