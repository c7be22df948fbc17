# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What is published of a drafter: the folder, its card, and where its figures come from."""

import json
import re
import runpy
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig
from safetensors.torch import load_file

from helpers.targets import make_drafter, make_target, needs_adapter_methods
from helpers.training_run import make_arguments, make_draft, make_rows
from helpers.training_run import make_target as make_training_target
from jakiro_cli import main
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.hub import publishing
from transformers_jakiro.hub.publishing import drafter_card, push_to_hub, save_remote_code, write_repository
from transformers_jakiro.measuring import report
from transformers_jakiro.measuring.bench import BenchOptions, run_bench
from transformers_jakiro.measuring.benchmark import Benchmark
from transformers_jakiro.pair import DRAFT, TARGET
from transformers_jakiro.training.loading import load_target_model
from transformers_jakiro.training.trainer import JakiroTrainer

MODEL_CARDS = Path(__file__).parents[1] / "model_cards"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test may reach the Hub; cards of targets are not to be had unless a test provides one."""

    def absent(repo_id, filename, **kwargs):
        raise LocalEntryNotFoundError(f"{repo_id}/{filename} is not here")

    monkeypatch.setattr(publishing, "hf_hub_download", absent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(monkeypatch):
    """Stands for the Hub: what was called with what, and what the uploaded folder held."""
    hub = types.SimpleNamespace(calls=[], files={})

    class Api:
        def __init__(self, token=None):
            hub.calls.append(("token", token))

        def create_repo(self, repo_id, private, exist_ok):
            hub.calls.append(("create_repo", repo_id, private, exist_ok))
            return types.SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

        def create_branch(self, repo_id, branch, exist_ok):
            hub.calls.append(("create_branch", repo_id, branch, exist_ok))

        def upload_folder(self, repo_id, folder_path, **kwargs):
            hub.calls.append(("upload_folder", repo_id, kwargs))
            folder = Path(folder_path)
            files = (file for file in folder.rglob("*") if file.is_file())
            hub.files = {str(file.relative_to(folder)): file.read_bytes() for file in files}
            return "the commit"

    monkeypatch.setattr(publishing, "HfApi", Api)
    return hub


@pytest.fixture
def target_card(monkeypatch, tmp_path):
    """Function: gives the target `org/target` a card with this metadata."""

    def provide(metadata):
        file = tmp_path / "target_card.md"
        file.write_text(f"---\n{metadata}\n---\n\n# Target\n")

        def download(repo_id, filename, revision=None, token=None):
            assert (repo_id, filename) == ("org/target", "README.md")
            return str(file)

        monkeypatch.setattr(publishing, "hf_hub_download", download)

    return provide


@pytest.fixture
def draft():
    draft = make_drafter(make_target())
    draft.config.target_name_or_path = "org/target"
    return draft


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """`results.json` of a short run of the pair that ships."""
    folder = tmp_path_factory.mktemp("bench")
    prompts = folder / "prompts.jsonl"
    rows = [{"id": str(n), "task": task, "turns": [f"What is {n} + 2?"]} for n, task in enumerate(("sums", "odd"))]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:  # cards need neither plots nor a fair first answer
        patch.setattr(report, "find_spec", lambda name: None)
        patch.setattr(Benchmark, "warm_up", lambda self, batches, temperatures: {})
        options = BenchOptions(
            [str(prompts)],
            str(TARGET),
            str(DRAFT),
            temperature=(0.0, 1.0),
            methods=["jakiro", "adaptive", "prompt_lookup"],
            num_assistant_tokens=[4, 8],
            max_new_tokens=8,
            profile=0,
            dtype="float32",
        )
        run_bench(options, output=str(folder))
    return folder / "results.json"


def card_of(draft, **options) -> ModelCard:
    return drafter_card(draft.config, "me/my-drafter", license="mit", **options)


# -- the folder ------------------------------------------------------------------------------------------------------


def test_folder(draft, tmp_path):
    before = draft.config.to_dict()
    folder = write_repository(draft, tmp_path / "out", "me/my-drafter", target_revision="abc123", license="mit")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["target_name_or_path"], config["target_revision"]) == ("org/target", "abc123")
    assert "auto_map" not in config
    after = draft.config.to_dict()
    assert {name for name in before if before[name] != after[name]} <= {"dtype", "architectures"}
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == draft.state_dict().keys()
    reloaded = JakiroDraftModel.from_pretrained(folder)
    assert all(torch.equal(weight, weights[name]) for name, weight in reloaded.state_dict().items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]
    draft.save_pretrained(tmp_path / "saved")  # without a card, as transformers' models
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_nothing_half_written(draft, tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "save_remote_code", fail)
    with pytest.raises(KeyboardInterrupt):
        write_repository(draft, tmp_path / "out", "me/my-drafter", license="mit", remote_code=True)
    assert list(tmp_path.iterdir()) == []


def test_code_goes_as_it_came(draft, tmp_path):
    """A drafter that was published with its code is saved and published without it unless that is wanted."""
    options = {"repo_id": "me/my-drafter", "license": "mit"}
    folder = write_repository(draft, tmp_path / "with", remote_code=True, **options)
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "remote_code.JakiroDraftConfig", "AutoModel": "remote_code.JakiroDraftModel"}
    assert {"custom_code", "custom_generate"} <= {*ModelCard.load(folder / "README.md").data.tags}
    loaded = JakiroDraftModel.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    folder = write_repository(loaded, tmp_path / "without", **options)
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert not list(folder.glob("*.py"))
    assert not {"custom_code", "custom_generate"} & {*ModelCard.load(folder / "README.md").data.tags}


def test_folders_that_are_refused(draft, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for folder in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(ValueError, match="not an empty folder"):
            write_repository(draft, folder, "me/my-drafter", license="mit")


@needs_adapter_methods
def test_an_adapter_that_is_not_merged_is_refused(draft, tmp_path):
    draft.add_adapter(LoraConfig(target_modules=["fc"]))
    with pytest.raises(ValueError, match=r"adapter that is not merged\. Merge it"):
        write_repository(draft, tmp_path / "out", "me/my-drafter", license="mit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "does not say which target it is for"),
        ("/models/target", "named by a folder of this machine, /models/target"),
        ("./target", "named by a folder of this machine"),
        ("here", "named by a folder of this machine, here"),
    ],
)
def test_targets_must_mean_something_to_others(name, message, draft, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    draft.config.target_name_or_path = name
    with pytest.raises(ValueError, match=message + ".*--target org/name"):
        write_repository(draft, tmp_path / "out", "me/my-drafter", license="mit")
    folder = write_repository(draft, tmp_path / "out", "me/my-drafter", license="mit", target="org/target")
    assert json.loads((folder / "config.json").read_text())["target_name_or_path"] == "org/target"


# -- uploading -------------------------------------------------------------------------------------------------------


def test_push_to_hub(draft, hub):
    commit = draft.push_to_hub(
        "my-drafter", private=True, token="secret", revision="v2", license="mit", remote_code=True, create_pr=True
    )
    assert commit == "the commit"
    assert [call[0] for call in hub.calls] == ["token", "create_repo", "create_branch", "upload_folder"]
    assert hub.calls[:3] == [
        ("token", "secret"),
        ("create_repo", "my-drafter", True, True),
        ("create_branch", "me/my-drafter", "v2", True),
    ]
    _, repo_id, options = hub.calls[3]
    assert (repo_id, options["revision"], options["create_pr"]) == ("me/my-drafter", "v2", True)
    assert options["commit_message"] == "Upload drafter"
    files = {"README.md", "config.json", "model.safetensors", "remote_code.py", "custom_generate/generate.py"}
    assert hub.files.keys() >= files
    assert not any(b"secret" in content for content in hub.files.values())


def test_nothing_is_uploaded_after_an_error(draft, hub):
    draft.config.target_name_or_path = None
    with pytest.raises(ValueError, match="does not say which target"):
        push_to_hub(draft, "me/my-drafter")
    assert [call[0] for call in hub.calls] == ["token"]


# -- the card --------------------------------------------------------------------------------------------------------


def test_metadata(draft):
    card = card_of(draft, tags=["mine"])
    data = card.data.to_dict()
    assert data == {
        "base_model": "org/target",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["jakiro", "speculative-decoding", "draft-model", "moe", "mine"],
    }
    assert "Not measured yet" in card.text
    assert "Not recorded with this checkpoint" in card.text
    assert "Revision of the target | not recorded" in card.text
    dense = make_drafter(make_target(), num_experts=1, head_mode="single", target_name_or_path="tiny")
    data = card_of(dense).data
    assert "moe" not in data.tags
    assert data.base_model is None  # no id of the Hub
    draft.config.target_revision = "abc123"
    text = card_of(draft).text
    assert "Revision of the target | `abc123`" in text
    assert 'from_pretrained("org/target", revision="abc123", ' in text


def test_licence_of_the_target(draft, target_card):
    target_card("license: other\nlicense_name: special\nlicense_link: LICENSE.txt\ntags:\n- a")
    data = drafter_card(draft.config, "me/my-drafter").data
    assert (data.license, data.license_name, data.license_link) == ("other", "special", "LICENSE.txt")
    data = card_of(draft).data
    assert (data.license, data.license_name) == ("mit", None)
    target_card("tags:\n- a")
    card = drafter_card(draft.config, "me/my-drafter")
    assert card.data.license is None
    assert "No licence is stated here" in card.text


def test_no_card_of_the_target(draft):
    with pytest.warns(UserWarning, match=r"org/target could not be read \(LocalEntry.*--license"):
        card = drafter_card(draft.config, "me/my-drafter")
    assert card.data.license is None


@pytest.mark.parametrize("remote_code", [False, True])
def test_the_three_lines_work(remote_code, tmp_path, monkeypatch):
    """The card's own lines, with folders in the places of the Hub's."""
    draft = JakiroDraftModel.from_pretrained(DRAFT)
    monkeypatch.chdir(tmp_path)
    folder = write_repository(
        draft, tmp_path / "me" / "drafter", "me/drafter", target="org/t", license="mit", remote_code=remote_code
    )
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "t").symlink_to(TARGET)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    assert ("trust_remote_code=True" in code) == remote_code
    assert ("import transformers_jakiro" in code) != remote_code
    names = {"inputs": {"input_ids": torch.tensor([[1, 5, 9]])}}
    exec(code.replace("max_new_tokens=256", "max_new_tokens=6"), names)
    assert type(names["draft"]) is JakiroDraftModel
    assert names["output"].shape[1] <= 9


# -- figures ---------------------------------------------------------------------------------------------------------


def test_every_figure_is_that_of_the_bench(bench):
    config = JakiroDraftModel.from_pretrained(DRAFT).config
    payload = json.loads(bench.read_text())
    card = drafter_card(config, "me/drafter", license="mit", results=[payload])
    rows = {(row["task"], row["temperature"], row["method"]): row for row in payload["summary"]}
    assert {result.dataset_name for result in card.data.eval_results} == {"mean of sums, odd"}
    seen = set()
    for result in card.data.eval_results:
        arguments = result.metric_args
        row = rows["mean", arguments["temperature"], arguments["method"]]
        expected = (
            row["tokens_per_forward"] if result.metric_type == "tokens_per_forward" else row["speed_up"]["median"]
        )
        assert result.metric_value == round(expected, 3)
        assert result.metric_name.endswith(f"T = {arguments['temperature']:g}")
        seen.add((arguments["method"], arguments["temperature"], result.metric_type))
    methods = {"jakiro-4", "jakiro-8", "adaptive"}
    assert seen == {(m, t, k) for m in methods for t in (0.0, 1.0) for k in ("tokens_per_forward", "speed_up")}

    section = card.text.split("## Results")[1].split("## Limits")[0]
    assert [int(n) for n in re.findall(r"and (\d+) nodes at most", section)] == [4, 8, 4]
    tables = [block for block in section.split("\n\n") if block.startswith("| task")]
    for method, table in zip(("jakiro-4", "jakiro-8", "adaptive"), tables, strict=True):
        _, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        assert [line[0] for line in lines] == ["sums", "odd", "mean"]
        for task, prompts, *cells in lines:
            assert prompts == ("2" if task == "mean" else "1")
            expected = []
            for temperature in (0.0, 1.0):
                row = rows[task, temperature, method]
                speed = row["speed_up"]
                expected.append(f"{row['tokens_per_forward']:.2f}")
                expected.append(f"{speed['median']:.2f} ({speed['q1']:.2f}–{speed['q3']:.2f})")
            assert cells == expected
    assert payload["provenance"]["processor"] in section
    assert "float32" in section
    assert "8 new tokens at most" in section
    assert "prompt_lookup" not in section
    assert str(TARGET.parent) not in str(card)  # places on this machine
    # what the Hub reads of the card is what was written
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.model_name == "drafter"


def test_what_was_not_measured_is_said(bench, tmp_path):
    config = JakiroDraftModel.from_pretrained(DRAFT).config
    payload = json.loads(bench.read_text())
    payload["summary"] = [row for row in payload["summary"] if row["temperature"] == 0]
    assert "Not measured: T = 1." in drafter_card(config, "me/drafter", license="mit", results=[payload]).text


def test_answers_of_one_token_have_no_forwards(bench):
    config = JakiroDraftModel.from_pretrained(DRAFT).config
    payload = json.loads(bench.read_text())
    for row in payload["summary"]:
        row["tokens_per_forward"] = None
    card = drafter_card(config, "me/drafter", license="mit", results=[payload])
    assert {result.metric_type for result in card.data.eval_results} == {"speed_up"}
    assert "| sums | 1 | – | " in card.text


def test_results_of_another_drafter(bench, draft, tmp_path):
    with pytest.raises(ValueError, match=r"those of another drafter: it has \w+=.*, this one "):
        write_repository(draft, tmp_path / "out", "me/my-drafter", license="mit", results=[bench])
    for text, message in (
        ("{}", "is not a `results.json`.*it has None"),
        ('{"schema_version": 1}', r"lacks \['provenance', 'summary'\]"),
        ("[]", "must hold one JSON object, got list"),
        ("no", "is not valid JSON"),
    ):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            write_repository(
                draft, tmp_path / "out", "me/my-drafter", license="mit", results=[tmp_path / "results.json"]
            )
    assert not (tmp_path / "out").exists()


# -- the command -----------------------------------------------------------------------------------------------------


def test_command(bench, hub, tmp_path, capsys):
    pair = [str(DRAFT), "me/drafter", "--target", "org/target", "--license", "mit", "--results", str(bench)]
    assert main(["push", *pair, "--output", str(tmp_path / "out"), "--tags", "mine"]) == 0
    assert f"Saved {tmp_path / 'out'}. Nothing was uploaded" in capsys.readouterr().out
    assert hub.calls == []
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "org/target"
    assert "mine" in card.data.tags
    assert len(card.data.eval_results) == 2 * 2 * 3
    assert main(["push", *pair, "--private"]) == 0
    assert "Published: the commit" in capsys.readouterr().out
    assert ("create_repo", "me/drafter", True, True) in hub.calls
    assert hub.files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert main(["push", str(DRAFT), "me/drafter", "--output", str(tmp_path / "out")]) == 1
    assert "not an empty folder" in capsys.readouterr().err


# -- the trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer_hub(monkeypatch):
    """Stands for the Hub in transformers' Trainer."""
    uploads = []

    class Api:
        def create_repo(self, repo_id, **kwargs):
            return types.SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **kwargs):
            folder = Path(folder_path)
            uploads.append((repo_id, {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}))

    monkeypatch.setattr("transformers.trainer.hf_api", Api)
    return uploads


@pytest.mark.compat
def test_trainer_pushes(trainer_hub, tmp_path):
    target = make_training_target()
    target.config._name_or_path = "org/target"
    args = make_arguments(
        tmp_path / "drafter", push_to_hub=True, hub_remote_code=True, hub_token="secret", contrastive_weight=0.25
    )
    trainer = JakiroTrainer(make_draft(target), target, args, train_dataset=make_rows(6))
    trainer.training_data = {"name": "org/data", "split": "train"}
    trainer.train()
    with pytest.warns(UserWarning, match="could not be read"):
        trainer.push_to_hub(tags="mine")
    repo_id, files = trainer_hub[-1]
    assert repo_id == "me/drafter"
    assert files.keys() >= {"README.md", "config.json", "model.safetensors", "training.json", "remote_code.py"}
    assert not any(b"secret" in content for name, content in files.items() if name != "training_args.bin")
    assert json.loads(files["config.json"])["auto_map"]["AutoModel"] == "remote_code.JakiroDraftModel"
    record = json.loads(files["training.json"])
    assert record["data"] == {"name": "org/data", "split": "train", "rows": 6}
    assert (record["steps"], record["rows_per_step"]) == (2, 2)
    assert record["changed_arguments"]["contrastive_weight"] == 0.25
    assert record["arguments"]["unroll_steps"] == 1
    assert record["changed_arguments"].keys() - {"dataloader_pin_memory"} == {
        "max_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "learning_rate",
        "lr_scheduler_type",
        "logging_steps",
        "save_strategy",
        "use_cpu",
        "contrastive_weight",
    }
    assert not {name for name in record["arguments"] if name.startswith(("hub_", "output_dir", "push_to"))}
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["org/data"]
    assert card.data.base_model == "org/target"
    assert {"mine", "jakiro", "custom_code"} <= {*card.data.tags}
    assert "`contrastive_weight=0.25`" in card.text
    assert "name org/data, split train, rows 6" in card.text
    (arguments,) = re.findall(r"```json\n(.*?)```", card.text, flags=re.S)
    assert json.loads(arguments) == record["arguments"]
    # the same card from what lies beside the drafter
    (tmp_path / "training.json").write_bytes(files["training.json"])
    folder = write_repository(
        JakiroDraftModel.from_pretrained(tmp_path / "drafter"),
        tmp_path / "out",
        "me/drafter",
        training=tmp_path / "training.json",
        license="mit",
        remote_code=True,
    )
    training = [text.split("## Training")[1] for text in (card.text, ModelCard.load(folder / "README.md").text)]
    assert training[0].split("## Results")[0] == training[1].split("## Results")[0]


def test_trainer_refuses_a_nameless_target_at_once(trainer_hub, tmp_path):
    target = make_training_target()
    target.config._name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="named by a folder of this machine"):
        JakiroTrainer(make_draft(target), target, make_arguments(tmp_path, push_to_hub=True))


def test_card_of_an_adapter(tmp_path):
    target = make_training_target()
    target.config._name_or_path = "org/target"
    with pytest.raises(ValueError, match="`hub_remote_code` is for whole drafters"):
        JakiroTrainer(
            make_draft(target),
            target,
            make_arguments(tmp_path, hub_remote_code=True),
            peft_config=LoraConfig(target_modules=["fc"]),
        )
    trainer = JakiroTrainer(
        make_draft(target),
        target,
        make_arguments(tmp_path),
        train_dataset=make_rows(4),
        peft_config=LoraConfig(target_modules=["fc"]),
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(tags=["mine"])
    card = ModelCard.load(tmp_path / "README.md")
    assert {"mine", "jakiro", "draft-model"} <= {*card.data.tags}
    assert (tmp_path / "training.json").is_file()


def test_the_commit_of_a_target_is_remembered(tmp_path, monkeypatch):
    commit = 40 * "b"
    cache = tmp_path / "models--org--target"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    make_training_target().save_pretrained(cache / "snapshots" / commit)
    target = load_target_model("org/target", cache_dir=tmp_path, local_files_only=True)
    draft = make_draft(target)
    assert (draft.config.target_name_or_path, draft.config.target_revision) == ("org/target", commit)
    target.save_pretrained(tmp_path / "folder")
    target = load_target_model(tmp_path / "folder")
    assert make_draft(target).config.target_revision is None


def test_remote_code_needs_a_saved_drafter(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        save_remote_code(tmp_path)


# -- finished cards --------------------------------------------------------------------------------------------------


def finished_cards() -> dict[str, str]:
    module = runpy.run_path(str(MODEL_CARDS / "make_cards.py"))
    return {name: str(card) for name, card in module["finished_cards"]()}


def test_finished_cards_are_up_to_date():
    cards = finished_cards()
    files = {file.stem: ModelCard.load(file) for file in MODEL_CARDS.glob("*.md")}
    assert files.keys() == cards.keys()
    for name, card in files.items():
        assert str(card) == str(ModelCard(cards[name])), f"run `python model_cards/make_cards.py`: {name}"
        assert {"jakiro", "speculative-decoding"} <= {*card.data.tags}
        assert card.data.pipeline_tag == "text-generation"
        measured = (MODEL_CARDS / "results" / f"{name}.json").is_file()
        assert ("Not measured yet" in card.text) != measured
        assert (card.data.eval_results is not None) == measured
    assert (MODEL_CARDS / "drafter.md.jinja").read_text() == publishing.TEMPLATE.read_text()
