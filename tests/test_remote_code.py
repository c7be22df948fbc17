# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Drafters that bring their code, in environments without the package and with it."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.dynamic_module_utils import get_relative_import_files

import transformers_jakiro
from helpers.processes import TRANSFORMERS, WarmPython
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.hub.publishing import write_repository
from transformers_jakiro.pair import DRAFT, TARGET

pytestmark = pytest.mark.compat

SRC = Path(transformers_jakiro.__file__).parents[1]
COMMIT = 40 * "a"
# run elsewhere: `repository` and `target` are folders or Hub ids
LOAD = """
import json, sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationMixin

def answers(target, draft, **kwargs):
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    inputs = tokenizer("Natalia sold 48 clips. How many", return_tensors="pt")
    plain = target.generate(**inputs, max_new_tokens=24, do_sample=False)
    output = target.generate(
        **inputs, max_new_tokens=24, do_sample=False, assistant_model=draft, return_dict_in_generate=True, **kwargs
    )
    assert torch.equal(output.sequences, plain)
    assert output.num_accepted_tokens > 0
    return output

REPOSITORY, TARGET = sys.argv[1:3]
target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    draft = JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("published") / "gsm8k-jakiro"
    return write_repository(draft, folder, "org/gsm8k-jakiro", license="mit", remote_code=True)


@pytest.fixture
def pythons(tmp_path):
    """Function: an interpreter with a fresh cache of remote code."""
    with ExitStack() as stack:

        @cache
        def warm(python, **environment):
            variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            variables |= {
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                **environment,
            }
            return stack.enter_context(WarmPython(TRANSFORMERS, python, variables))

        yield warm


@pytest.fixture
def run(pythons, tmp_path):
    """Function: runs code in an interpreter, and returns what it printed, as JSON."""

    def run(python, code, *arguments, **environment):
        result = pythons(python, **environment).run(LOAD + code, *arguments, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


def as_hub_cache(folder: Path, repo_id: str, home: Path) -> None:
    """Puts a folder where a download of this repository would lie."""
    cache = home / "hub" / ("models--" + repo_id.replace("/", "--"))
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, cache / "snapshots" / COMMIT)


def test_the_core_is_there_and_nothing_else(repository):
    core = Path(transformers_jakiro.__file__).parent / "core"
    expected = {file.name: file.read_text() for file in core.glob("*.py") if file.name != "__init__.py"}
    assert {file.name: file.read_text() for file in repository.glob("*.py")} == expected
    # what transformers downloads for `remote_code.py`
    found = map(Path, get_relative_import_files(repository / "remote_code.py"))
    assert {"remote_code.py", *(file.name for file in found)} == expected.keys()
    assert sorted(file.name for file in (repository / "custom_generate").iterdir()) == [
        "README.md",
        "generate.py",
        "requirements.txt",
    ]


WRITE = """
import sys, torch
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.hub.publishing import write_repository
draft = JakiroDraftModel.from_pretrained(sys.argv[1], dtype=torch.float32)
write_repository(draft, sys.argv[2], "org/gsm8k-jakiro", license="mit", remote_code=True)
"""


def test_written_with_another_version(request, bare_python, run, tmp_path):
    """A drafter that brings its code, written where another transformers is, loads here; with the package, too."""
    other = request.config.getoption("--other-python")
    if other is None:
        pytest.skip("needs `--other-python`; `make test-matrix` gives it")
    folder = tmp_path / "drafter"
    subprocess.run([other, "-c", WRITE, DRAFT, folder], check=True, cwd=tmp_path)
    code = """
draft = AutoModel.from_pretrained(REPOSITORY, trust_remote_code=True)
assert type(draft).__module__.startswith("transformers_modules.")
answers(target, draft)
recipe = answers(target, draft, custom_generate=REPOSITORY, trust_remote_code=True)
print(json.dumps(recipe.accept_lengths))
"""
    accept_lengths = run(bare_python, code, folder, TARGET)
    code = "draft = AutoModel.from_pretrained(REPOSITORY); print(json.dumps(answers(target, draft).accept_lengths))"
    assert run(sys.executable, "import transformers_jakiro; " + code, folder, TARGET) == accept_lengths


def test_without_the_package(repository, bare_python, pythons, run, tmp_path):
    """From a folder and from the Hub's cache; with the hook, with the recipe, and saved again."""
    as_hub_cache(repository, "org/gsm8k-jakiro", tmp_path / "hf")
    code = """
import importlib.util
assert importlib.util.find_spec("transformers_jakiro") is None
found = []
for name in (REPOSITORY, "org/gsm8k-jakiro"):
    original = GenerationMixin._assisted_decoding
    draft = AutoModel.from_pretrained(name, trust_remote_code=True)
    assert draft.config.__class__.__module__ == type(draft).__module__
    output = answers(target, draft)
    found.append([type(draft).__module__, output.num_drafted_tokens])
    recipe = dict(custom_generate=name, trust_remote_code=True)
    assert answers(target, draft, **recipe).accept_lengths == output.accept_lengths
    found[-1].append(answers(target, draft, num_assistant_tokens=3, **recipe).num_drafted_tokens)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    answers(target, draft, tokenizer=tokenizer, stop_strings=["zzz"], **recipe)
    try:
        target.generate(torch.tensor([[5]]), **recipe)
    except ValueError as error:
        assert "needs `assistant_model`, a Jakiro drafter" in str(error)
    else:
        raise AssertionError
draft.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True)
assert json.load(open("again/config.json"))["auto_map"]["AutoConfig"] == "remote_code.JakiroDraftConfig"
assert answers(target, again).num_drafted_tokens == output.num_drafted_tokens
assert type(draft).push_to_hub.__module__.startswith("transformers.")
print(json.dumps(found))
"""
    (local, drafted, drafted_3), (hub, *same) = run(bare_python, code, repository, TARGET)
    assert same == [drafted, drafted_3]
    assert drafted_3 < drafted
    assert local.startswith("transformers_modules.gsm8k")
    assert hub.startswith("transformers_modules.org.gsm8k")
    assert COMMIT in hub
    refused = LOAD + "AutoModel.from_pretrained(REPOSITORY, trust_remote_code=False)"
    result = pythons(bare_python).run(refused, repository, TARGET)
    assert "contains custom code which must be executed" in result.stderr


@pytest.mark.compat(False)
def test_beside_the_package(repository, run):
    """Each drafter gets the loop of its own code, whichever came first; the hook stays until all are gone."""
    code = """
original = GenerationMixin._assisted_decoding
remote = AutoModel.from_pretrained(REPOSITORY, trust_remote_code=True)  # the package is there, but not imported
import transformers_jakiro
own = AutoModel.from_pretrained(REPOSITORY, trust_remote_code=True)
found = [type(draft).__module__ for draft in (remote, own)]
for draft in (remote, own):
    answers(target, draft)
    answers(target, draft, custom_generate=REPOSITORY, trust_remote_code=True)
assert not isinstance(remote, transformers_jakiro.JakiroDraftModel)
transformers_jakiro.install_generation_hook()
transformers_jakiro.remove_generation_hook()
answers(target, remote)
sys.modules[type(remote).__module__].install_generation_hook()
import importlib
remote_loop = importlib.import_module(".generation", type(remote).__module__.rpartition(".")[0])
remote_loop.remove_generation_hook()
assert GenerationMixin._assisted_decoding is original
transformers_jakiro.install_generation_hook()
answers(target, own)
print(json.dumps(found))
"""
    remote, own = run(sys.executable, code, repository, TARGET, PYTHONPATH=str(SRC))
    assert remote.startswith("transformers_modules.")
    assert own == "transformers_jakiro.drafter"


def test_the_package_needs_no_consent(repository):
    """With the package its own code runs, never the checkpoint's."""
    draft = transformers.AutoModel.from_pretrained(repository)
    assert type(draft) is JakiroDraftModel
    draft = transformers.AutoModel.from_pretrained(repository, trust_remote_code=True)
    assert type(draft) is JakiroDraftModel
    assert type(draft).__module__ == "transformers_jakiro.drafter"


@pytest.mark.compat(False)
def test_recipe_streams(repository):
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    draft = JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    inputs = tokenizer("How many", return_tensors="pt")

    class Streamer(transformers.generation.streamers.BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], 0

        def put(self, value):
            self.tokens.extend(value.flatten().tolist())

        def end(self):
            self.ended += 1

    streamer = Streamer()
    recipe = {"custom_generate": str(repository), "trust_remote_code": True}
    ids = target.generate(**inputs, assistant_model=draft, max_new_tokens=8, streamer=streamer, **recipe)
    assert streamer.tokens == ids[0].tolist()
    assert streamer.ended == 1
    with pytest.raises(ValueError, match="contains custom generation code"):
        target.generate(**inputs, custom_generate=str(repository), trust_remote_code=False)
