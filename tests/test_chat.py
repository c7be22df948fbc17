# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`jakiro chat` as users see it: lines in, text out."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jakiro_cli import main
from transformers_jakiro.pair import DRAFT, TARGET, prompts

QUESTION = prompts()[1]
FIGURES = re.compile(r"(\d+) tokens in [\d.]+s \([\d.]+ tok/s\)(?:, ([\d.]+) tokens per target forward)?(?:, (.+))?")


@pytest.fixture
def chat(monkeypatch, capsys):
    """Function: the output of `jakiro chat` for lines and arguments, as the text without figures, and the figures."""

    def run(lines, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", *arguments]) == 0
        out = capsys.readouterr().out
        figures = [FIGURES.fullmatch(line) for line in out.splitlines() if FIGURES.fullmatch(line)]
        return FIGURES.sub("", out), figures

    return run


def plain_answers(questions, system=(), **settings):
    """The answers of plain `generate` in a conversation."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    messages, answers = list(system), []
    for question in questions:
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = target.generate(**inputs, **{"do_sample": False, "max_new_tokens": 40, **settings})
        text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": text})
        answers.append(text)
    return answers


@pytest.mark.compat
def test_the_text_is_that_of_generate(chat):
    """In two turns, of which the second sees the first. A pipe gets only the text and its figures."""
    questions = [QUESTION, "And how many more does the boy have?"]
    text, figures = chat(["", *questions], "--max-new-tokens", "40")
    assert text == "".join(answer + "\n\n" for answer in plain_answers(questions))
    assert [float(found[2]) > 1 for found in figures] == [True, True]
    assert "\x1b" not in text


def test_without_the_drafter_and_with_a_system_prompt(chat):
    system = [{"role": "system", "content": "Be brief."}]
    text, figures = chat([QUESTION], "--max-new-tokens", "40", "--system-prompt", "Be brief.", "--no-draft")
    assert text == plain_answers([QUESTION], system)[0] + "\n\n"
    assert figures[0][2] is None


def test_commands(chat, tmp_path):
    file = tmp_path / "saved" / "chat.json"
    lines = ["!help", "!compare", "one", "!clear", "!set max_new_tokens=8", QUESTION, f"!save {file}", "!compare"]
    text, figures = chat([*lines, "!exit", "not asked any more"], "--max-new-tokens", "4")
    (answer,) = plain_answers([QUESTION], max_new_tokens=8)
    assert text.startswith("!help                  shows this help\n")
    assert "There is no answer yet to compare" in text
    assert [found[1] for found in figures] == ["4", "8", "8"]
    assert [found[3] for found in figures] == ["stopped at the token limit"] * 3
    assert text.count(answer) == 2
    assert "Plain `generate` gives the same tokens. The answer with the drafter had" in text
    saved = json.loads(file.read_text())
    assert saved["settings"]["config"]["max_new_tokens"] == 8
    assert saved["chat_history"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": answer},
    ]


def test_settings(chat):
    """The same seed gives the same sample. `!set` takes the arguments of `generate`; wrong ones change nothing."""
    sampled = chat([QUESTION], "--temperature", "0.9", "--seed", "3", "--max-new-tokens", "20")[0]
    text = chat(["!set temperature=0.9 top_k=50", QUESTION], "--seed", "3", "--max-new-tokens", "20")[0]
    assert text == f"the toy target that ships with its drafter; max_new_tokens=20 temperature=0.9 top_k=50\n{sampled}"
    wrong = ["!set top_k", "!set temprature=1", "!sett", "!set num_beams=2 do_sample=false", QUESTION, "!status"]
    text, figures = chat(wrong, "--max-new-tokens", "8")
    assert figures == []
    for message in (
        "Settings have the form NAME=VALUE and are separated by spaces, got top_k.",
        "temprature is not an argument of `generate` that can be set.",
        "!sett is not a command. The commands are:",
        "Drafting needs `num_beams=1`, got 2",
        "its drafter; max_new_tokens=8 num_beams=2 do_sample=False\n",
    ):
        assert message in text


def test_without_a_chat_template(chat, tmp_path):
    for path in (TARGET).iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    text, figures = chat(["Tom has 3"], "--target", str(tmp_path), "--draft", str(DRAFT), "--max-new-tokens", "8")
    assert text.startswith("The tokenizer has no chat template: ")
    assert len(figures) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.integration
def test_in_a_terminal():
    """Colours, headings, Ctrl-C, the end of the input."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jakiro_cli", "chat", "--max-new-tokens", "900", "--temperature", "1"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        # which those that run in the background inherit as ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = b""

    def wait_for(text, since=0):
        nonlocal seen
        deadline = time.monotonic() + 120
        while text not in seen[since:]:
            assert time.monotonic() < deadline, seen.decode(errors="replace")[-2000:]
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536)
        return seen.index(text, since) + len(text)

    try:
        start = wait_for(b"<you>:")
        assert b"A toy target of a few million parameters" in seen
        os.write(ours, b"!set min_new_tokens=800\n")
        before = wait_for(b"<you>:", start)
        assert b"min_new_tokens=800\x1b" in seen
        os.write(ours, QUESTION.encode() + b"\n")
        wait_for(b"\x1b[1;32m", before)  # an accepted run
        process.send_signal(signal.SIGINT)
        stopped = wait_for(b", stopped", before)
        wait_for(b"<you>:", stopped)
        os.write(ours, b"!set min_new_tokens=0 max_new_tokens=4\nAnd now?\n")
        wait_for(b"<you>:", wait_for(b"stopped at the token limit", stopped))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            os.write(ours, b"\x04")  # Ctrl-D, which counts once the line is being read
            time.sleep(0.2)
        assert process.poll() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"Traceback" not in seen
