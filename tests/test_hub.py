# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Drafters over HTTP, to a Hub and back, in processes that know no other Hub."""

import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load

import transformers_jakiro
from helpers.hub_server import HubServer
from helpers.processes import TRANSFORMERS, WarmPython
from transformers_jakiro.pair import DRAFT, TARGET

SRC = Path(transformers_jakiro.__file__).parents[1]
EXAMPLES = Path(__file__).parents[1] / "examples"
DRAFTER_FILES = {"README.md", "config.json", "model.safetensors"}
BEGIN = """
import json, sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

found = {}

def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return [isinstance(error, OSError), str(error)]

def load_drafter():
    from transformers_jakiro import JakiroDraftModel
    from transformers_jakiro.pair import DRAFT, TARGET
    return JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32)

def drafted(draft, **kwargs):
    inputs = AutoTokenizer.from_pretrained("org/target")("Natalia sold 48 clips. How many", return_tensors="pt")
    target = AutoModelForCausalLM.from_pretrained("org/target", dtype=torch.float32)
    options = {**inputs, "max_new_tokens": 16, "do_sample": False}
    output = target.generate(**options, assistant_model=draft, return_dict_in_generate=True, **kwargs)
    assert torch.equal(output.sequences, target.generate(**options))
    return output.num_drafted_tokens
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer({"hf_alice": "alice", "hf_bob": "bob"}) as hub:
        for name, private in (("org/target", False), ("alice/target", True)):
            hub.publish(name, TARGET, private)
            hub.repositories[name].main.files["README.md"] = b"---\nlicense: mit\n---\n\n# Target\n"
        yield hub


@pytest.fixture(scope="module")
def pythons(hub, bare_python, tmp_path_factory):
    """Function: an interpreter with the package or without it, whose Hub is this one. And the folders of downloads."""
    homes: list[Path] = []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    with ExitStack() as stack:

        @cache
        def python(with_package, disable_xet="1"):
            home = tmp_path_factory.mktemp("hf")
            homes.append(home)
            variables = {
                **kept,
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_XET": disable_xet,
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "OMP_NUM_THREADS": "1",
                **({"PYTHONPATH": str(SRC)} if with_package else {}),
            }
            executable = sys.executable if with_package else bare_python
            return stack.enter_context(WarmPython(TRANSFORMERS, executable, variables))

        yield python, homes


@pytest.fixture
def start(pythons, tmp_path):
    """Function: starts code in a process of its own. Nothing has been downloaded before."""
    python, homes = pythons
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)

    def start(code, with_package=True, token="hf_alice", **options):
        environment = {"HF_TOKEN": token} if token else {}
        code = BEGIN + code + "\nprint(json.dumps(found))"
        return python(with_package, **options).start(code, folder=tmp_path, environment=environment)

    return start


@pytest.fixture
def run(start):
    """Function: runs code in a process of its own, and returns what it put into `found`."""

    def run(code, **options):
        process = start(code, **options)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])

    return run


def test_push_and_load(hub, run):
    """Pushed in each way, and loaded by name: by users of the package, and by users without it."""
    first, second = run(
        """
import transformers_jakiro
draft = load_drafter()
found = [draft.push_to_hub("alice/drafter", target="org/target", remote_code=True).oid]
draft.config.num_draft_tokens = 5
found.append(draft.push_to_hub("alice/drafter", target="org/target", remote_code=True).oid)
draft.push_to_hub("small", target="org/target", revision="v2")  # a branch, in one's own namespace
draft.save_pretrained("saved", push_to_hub=True, repo_id="alice/saved", target="org/target", private=True)
from peft import LoraConfig, get_peft_model
adapter = LoraConfig(target_modules=["fc"], init_lora_weights=False)
get_peft_model(AutoModel.from_pretrained("alice/drafter"), adapter).push_to_hub("alice/adapter")
"""
    )
    repository = hub.repositories["alice/drafter"]
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", *2 * ["Upload drafter"]]
    assert repository.branches == {"main": second}
    files = repository.main.files
    assert files.keys() >= DRAFTER_FILES | {"remote_code.py", "compat.py", "custom_generate/generate.py"}
    assert repository.main.lfs == {"model.safetensors"}
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("org/target", "mit")  # as the target's card says
    assert 'from_pretrained("alice/drafter", trust_remote_code=True' in card.text
    config = json.loads(files["config.json"])
    assert (config["target_name_or_path"], config["num_draft_tokens"]) == ("org/target", 5)
    assert load(files["model.safetensors"]).keys() >= {"fc.weight"}
    branch = hub.repositories["alice/small"]
    assert branch.commits[branch.branches["v2"]].files.keys() >= DRAFTER_FILES
    assert branch.main.files.keys() == {".gitattributes"}
    saved = hub.repositories["alice/saved"]
    assert saved.private
    assert saved.main.files.keys() == {".gitattributes", *DRAFTER_FILES}
    assert ModelCard(saved.main.files["README.md"].decode()).data.base_model == "org/target"

    found = run(
        f"""
import transformers_jakiro
draft = AutoModel.from_pretrained("alice/drafter")
found["module"] = type(draft).__module__
found["drafted"] = drafted(draft)
found["nodes"] = [
    AutoModel.from_pretrained("alice/drafter", revision=revision).config.num_draft_tokens
    for revision in ("main", "{first}", "{second}")
]
found["private"] = AutoModel.from_pretrained("alice/saved").config.num_draft_tokens
found["recipe"] = drafted(draft, custom_generate="alice/drafter", trust_remote_code=True)
adapted = AutoModel.from_pretrained("alice/adapter")
found["adapter"] = [name for name, weight in adapted.named_parameters() if "lora" in name and weight.any()]
found["adapted"] = drafted(adapted)
found["unknown"] = error_of(AutoModel.from_pretrained, "alice/drafter", revision="v3")
"""
    )
    assert found["module"] == "transformers_jakiro.drafter"  # never the repository's
    assert found["nodes"] == [5, 20, 5]
    assert found["private"] == 5
    assert found["recipe"] == found["drafted"] > 0
    assert found["adapter"] == ["fc.lora_A.default.weight", "fc.lora_B.default.weight"]
    assert found["adapted"] > 0
    assert found["unknown"][0]
    assert "v3 is not a valid git identifier" in found["unknown"][1]

    code = f"""
found["refused"] = error_of(AutoModel.from_pretrained, "alice/drafter", trust_remote_code=False)
for revision in ("{first}", "main"):
    draft = AutoModel.from_pretrained("alice/drafter", revision=revision, trust_remote_code=True)
    found[revision] = [type(draft).__module__, draft.config.num_draft_tokens, drafted(draft)]
found["recipe"] = drafted(draft, custom_generate="alice/drafter", trust_remote_code=True)
found["recipe_refused"] = error_of(drafted, draft, custom_generate="alice/drafter", trust_remote_code=False)
"""
    bare = run(code, with_package=False, token=None)
    assert "contains custom code which must be executed" in bare["refused"][1]
    assert "contains custom generation code" in bare["recipe_refused"][1]
    for revision, commit, nodes in ((first, first, 20), ("main", second, 5)):
        assert bare[revision][0].startswith("transformers_modules.alice.drafter.")
        assert commit in bare[revision][0]
        assert bare[revision][1] == nodes
    assert bare["main"][2] == bare["recipe"] == found["drafted"] < bare[first][2]


def test_command_and_errors(hub, run):
    """`jakiro push`, with the client's newer way to upload, and what users see when they may not."""
    hub.publish("bob/secret", DRAFT, private=True)
    hub.lfs_suffixes = ()  # large files would go to a storage of another protocol
    before = len(hub.log)
    found = run(
        """
import io
from contextlib import redirect_stderr, redirect_stdout
from jakiro_cli import main
from transformers_jakiro.pair import DRAFT, TARGET

def push(*arguments):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["push", str(DRAFT), *arguments, "--target", "org/target"])
    return [code, out.getvalue(), err.getvalue()]

found["pushed"] = push("alice/command", "--private", "--license", "apache-2.0")
found["loaded"] = AutoModel.from_pretrained("alice/command").config.target_name_or_path
found["namespace"] = push("bob/drafter")
draft = load_drafter()
found["token"] = error_of(draft.push_to_hub, "alice/other", target="org/target", token="wrong")
found["private"] = error_of(AutoModel.from_pretrained, "bob/secret")
found["wrong"] = error_of(AutoModel.from_pretrained, "bob/secret", token="wrong")
found["own"] = AutoModel.from_pretrained("bob/secret", token="hf_bob").config.model_type
draft.config.target_name_or_path = "/models/target"
found["target"] = error_of(draft.push_to_hub, "alice/other")
""",
        disable_xet="0",
    )
    hub.lfs_suffixes = (".safetensors", ".bin")
    code, out, err = found["pushed"]
    assert code == 0, err
    assert f"Published: {hub.endpoint}/alice/command/commit/" in out
    command = hub.repositories["alice/command"]
    assert command.private
    assert command.main.files.keys() == {".gitattributes", *DRAFTER_FILES}
    assert ModelCard(command.main.files["README.md"].decode()).data.license == "apache-2.0"
    assert found["loaded"] == "org/target"
    code, out, err = found["namespace"]
    assert (code, out) == (1, "")
    assert "jakiro: error: " in err
    assert 'rights to create a model under the namespace "bob"' in err
    assert "Make sure your token has the correct permissions" in err
    for name, message in (
        ("token", "Invalid credentials in Authorization header"),
        ("private", "If this is a private repository, make sure to pass a token"),
        ("wrong", "Invalid credentials in Authorization header"),
    ):
        is_os_error, text = found[name]
        assert is_os_error, name
        assert message in text
    assert found["own"] == "jakiro_draft"
    assert "named by a folder of this machine" in found["target"][1]
    assert hub.repositories.keys().isdisjoint({"alice/other", "bob/drafter"})
    assert not any(path.startswith("/api/models/alice/other/preupload") for _, path, _ in hub.log[before:])


def test_interrupted_uploads(hub, start, run):
    """A push that ends while the weights are on their way leaves the repository as it was."""
    push = """
import transformers_jakiro
draft = load_drafter()
for _ in range(2):
    draft.fc.weight.data += 1
    draft.push_to_hub("alice/interrupted", target="org/target")
"""
    for commits, files in ((1, {".gitattributes"}), (2, {".gitattributes", *DRAFTER_FILES})):
        process = start(push)
        hub.on_upload = process.kill  # the second process finds the first one's upload, and goes on to its second
        _, errors = process.communicate()
        hub.on_upload = lambda: None
        assert process.returncode == -signal.SIGKILL, errors
        repository = hub.repositories["alice/interrupted"]
        assert len(repository.commits) == commits
        assert repository.main.files.keys() == files
    found = run(
        """
import transformers_jakiro
found["pushed"] = AutoModel.from_pretrained("alice/interrupted", dtype=torch.float32).fc.weight.tolist()
found["own"] = (load_drafter().fc.weight + 1).tolist()
"""
    )
    assert found["pushed"] == found["own"]


def test_trainer(hub, run):
    """`JakiroTrainer(push_to_hub=True)`, for a private target; no file that is published tells the token."""
    found = run(
        """
from transformers_jakiro.training.trainer import JakiroTrainer, JakiroTrainingArguments
rows = [{"input_ids": ids, "loss_mask": [0] * 4 + [1] * 20} for ids in torch.randint(5, 2000, (8, 24)).tolist()]
args = JakiroTrainingArguments(
    output_dir="trained",
    push_to_hub=True,
    hub_model_id="alice/trained",
    hub_token="hf_alice",
    hub_remote_code=True,
    target_model_init_kwargs={"token": "hf_alice", "dtype": "float32"},
    max_steps=2,
    save_steps=1,
    per_device_train_batch_size=4,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = JakiroTrainer(target_model="alice/target", args=args, train_dataset=rows)
trainer.training_data = {"name": "alice/rows"}
trainer.train()
trainer.push_to_hub()
found = torch.load("trained/training_args.bin", weights_only=False).max_steps
""",
        token=None,
    )
    assert found == 2
    repository = hub.repositories["alice/trained"]
    assert [commit.title for commit in repository.commits.values()][-1] == "End of training"
    assert repository.main.files.keys() >= DRAFTER_FILES | {"training.json", "training_args.bin", "compat.py"}
    card = ModelCard(repository.main.files["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.datasets) == ("alice/target", "mit", ["alice/rows"])
    assert hub.repositories["alice/target"].branches["main"] in card.text  # the commit that it was trained for
    for commit in repository.commits.values():
        for path, content in commit.files.items():
            assert b"hf_alice" not in content, path
    code = """
draft = AutoModel.from_pretrained("alice/trained", trust_remote_code=True)
found = [type(draft).__module__, drafted(draft)]
"""
    module, num_drafted = run(code, with_package=False, token=None)
    assert module.startswith("transformers_modules.alice.trained.")
    assert num_drafted > 0


def test_example(hub, run):
    """`examples/convert_and_publish.py` with a repository."""
    run(
        f"""
import runpy
sys.path.insert(0, {str(EXAMPLES)!r})
sys.argv = ["convert_and_publish.py", "--repo-id", "alice/converted", "--license", "mit"]
runpy.run_path({str(EXAMPLES / "convert_and_publish.py")!r}, run_name="__main__")
found["drafted"] = drafted(AutoModel.from_pretrained("alice/converted"))
"""
    )
    files = hub.repositories["alice/converted"].main.files
    assert files.keys() >= DRAFTER_FILES | {"remote_code.py"}
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
