# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""LoRA on the drafter, and drafters for targets that carry a LoRA adapter."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from helpers.comparing import compare
from helpers.prompts import make_prompt
from helpers.targets import VOCAB, make_drafter, make_target, needs_adapter_methods
from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.core import growing
from transformers_jakiro.core.target import Target
from transformers_jakiro.training.objective import DraftingObjective
from transformers_jakiro.training.trainer import JakiroTrainer, JakiroTrainingArguments

pytestmark = pytest.mark.compat

MODULES = ["fc", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def lora(target_modules: list[str] | str = MODULES, **kwargs) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": target_modules, **kwargs})


def make_rows(count: int = 8, length: int = 20) -> list[dict[str, list[int]]]:
    """A tiny domain: few of the target's tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 20, (count, length), generator=generator)
    return [{"input_ids": row.tolist(), "loss_mask": [0, 0] + [1] * (length - 2)} for row in ids]


def train(draft: torch.nn.Module, target: PreTrainedModel, steps: int = 25) -> list[float]:
    """Losses of a few steps of training whatever is trainable."""
    objective, rows = DraftingObjective(feature_noise=0.0), make_rows()
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    optimizer = torch.optim.AdamW([weight for weight in draft.parameters() if weight.requires_grad], lr=1e-2)
    draft.train()
    losses = []
    for _ in range(steps):
        loss, _ = objective(draft, Target(target), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    draft.eval()
    return losses


@contextmanager
def recorded_scores() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Within it, lists the candidates of each drafted tree: tokens and scores."""
    recorded = []

    def select(tokens, scores, *args, **kwargs):
        recorded.append((tokens.clone(), scores.clone()))
        return original(tokens, scores, *args, **kwargs)

    original = growing.select_tree
    with mock.patch.object(growing, "select_tree", select):
        yield recorded


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drafter")
    make_drafter(make_target()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_folder(base_folder, tmp_path_factory) -> Path:
    """An adapter trained and saved with PEFT."""
    draft = get_peft_model(JakiroDraftModel.from_pretrained(base_folder), lora())
    train(draft, make_target())
    folder = tmp_path_factory.mktemp("adapter")
    draft.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", ["get_peft_model", pytest.param("add_adapter", marks=needs_adapter_methods)])
@pytest.mark.parametrize("modules", [MODULES, "all-linear"], ids=["named", "all"])
def test_training_an_adapter(way, modules, base_folder, tmp_path):
    draft = JakiroDraftModel.from_pretrained(base_folder)
    before = {name: weight.clone() for name, weight in draft.named_parameters()}
    if way == "get_peft_model":
        draft = get_peft_model(draft, lora(modules))
    else:
        draft.add_adapter(lora(modules))
    state = {name: weight.clone() for name, weight in draft.named_parameters() if "lora" in name}
    assert len(state) == 2 * (len(MODULES) + (modules == "all-linear"))  # all linear layers: the gate, too
    losses = train(draft, make_target())
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in draft.named_parameters():
        if "lora" in name:
            assert not torch.equal(weight, state[name]), name
        else:
            base_name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before.pop(base_name)), name
    assert not before
    draft.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*"))
    # what was saved is the adapter, and the folder alone gives the adapted drafter
    loaded = JakiroDraftModel.from_pretrained(tmp_path)
    ours = {name.removeprefix("base_model.model."): weight for name, weight in draft.state_dict().items()}
    assert ours.keys() == loaded.state_dict().keys()
    assert all(torch.equal(weight, ours[name]) for name, weight in loaded.state_dict().items())


def load_by_peft(base: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(JakiroDraftModel.from_pretrained(base), adapter)


def load_by_transformers(base: Path, adapter: Path) -> JakiroDraftModel:
    draft = JakiroDraftModel.from_pretrained(base)
    draft.load_adapter(adapter)
    return draft


LOADERS = {
    "peft": load_by_peft,
    "load_adapter": load_by_transformers,
    "from_pretrained": lambda base, adapter: JakiroDraftModel.from_pretrained(adapter),
    "auto": lambda base, adapter: AutoModel.from_pretrained(str(adapter)),
    "merged": lambda base, adapter: load_by_peft(base, adapter).merge_and_unload(),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_all_ways_of_loading_draft_alike(loader, base_folder, adapter_folder):
    target, prompt = make_target(), {"input_ids": make_prompt(12)}
    runs = []
    base = JakiroDraftModel.from_pretrained(base_folder)
    for draft in (base, load_by_peft(base_folder, adapter_folder), LOADERS[loader](base_folder, adapter_folder)):
        with recorded_scores() as scores:
            output = compare(target, draft.eval(), prompt, knows=False, max_new_tokens=24)
        runs.append((output, scores))
    (_, plain_scores), (expected, expected_scores), (got, got_scores) = runs
    assert got.accept_lengths == expected.accept_lengths
    for (tokens, scores), (expected_tokens, expected_score) in zip(got_scores, expected_scores, strict=True):
        assert torch.equal(tokens, expected_tokens)
        torch.testing.assert_close(scores, expected_score, atol=1e-5, rtol=1e-5)
    first, adapted = plain_scores[0][1], expected_scores[0][1]
    assert (first - adapted).abs().max() > 1e-3  # the adapter does something


def test_a_merged_drafter_is_a_drafter(base_folder, adapter_folder, tmp_path):
    merged = load_by_peft(base_folder, adapter_folder).merge_and_unload()
    assert type(merged) is JakiroDraftModel
    merged.save_pretrained(tmp_path)
    loaded = JakiroDraftModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), loaded.parameters(), strict=True))


def test_dtype_of_a_loaded_adapter(base_folder, adapter_folder):
    for draft in (
        JakiroDraftModel.from_pretrained(adapter_folder, dtype=torch.bfloat16),
        AutoModel.from_pretrained(adapter_folder, dtype=torch.bfloat16),
        load_by_transformers(base_folder, adapter_folder).to(torch.bfloat16),
    ):
        assert {weight.dtype for weight in draft.parameters()} == {torch.bfloat16}
        assert not any(weight.requires_grad for name, weight in draft.named_parameters() if "lora" in name)
    draft, info = JakiroDraftModel.from_pretrained(adapter_folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert list(draft.peft_config) == ["default"]


@needs_adapter_methods
def test_switching_adapters_off_and_between(base_folder, adapter_folder):
    draft = JakiroDraftModel.from_pretrained(adapter_folder, adapter_name="domain")
    assert draft.active_adapters() == ["domain"]
    generator = torch.Generator().manual_seed(0)
    inputs = dict(zip(("inputs_embeds", "hidden_states"), torch.randn(2, 1, 9, 32, generator=generator), strict=True))
    adapted = draft(**inputs).last_hidden_state
    draft.disable_adapters()
    plain = JakiroDraftModel.from_pretrained(base_folder)(**inputs).last_hidden_state
    torch.testing.assert_close(draft(**inputs).last_hidden_state, plain)
    assert (adapted - plain).abs().max() > 1e-3


def damaged(folder: Path, copy_to: Path, change) -> Path:
    shutil.copytree(folder, copy_to)
    (file,) = copy_to.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return copy_to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("base_model.model.fc.lora_A.weight"), r"missing \['fc.lora_A"),
        (
            lambda tensors: tensors.update({"base_model.model.x.lora_A.weight": torch.zeros(1)}),
            r"unexpected \['x.lora",
        ),
        (
            lambda tensors: tensors["base_model.model.fc.lora_B.weight"].fill_(torch.nan),
            r"NaN or infinite .*fc.lora_B",
        ),
    ],
    ids=["missing", "unexpected", "nan"],
)
def test_damaged_adapters(change, message, base_folder, adapter_folder, tmp_path):
    folder = damaged(adapter_folder, tmp_path / "adapter", change)
    with pytest.raises(ValueError, match=message):
        JakiroDraftModel.from_pretrained(folder)
    draft = JakiroDraftModel.from_pretrained(base_folder)
    with pytest.raises(ValueError, match=message):
        draft.load_adapter(folder)
    draft.load_adapter(adapter_folder)  # nothing of the other one stayed
    expected = JakiroDraftModel.from_pretrained(adapter_folder).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in draft.state_dict().items())


def point_to(adapter: Path, base: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))


def test_the_drafter_below_an_adapter_is_checked(base_folder, adapter_folder, tmp_path):
    base = damaged(base_folder, tmp_path / "base", lambda tensors: tensors.pop("fc.bias"))
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    point_to(adapter, str(base))
    for load in (JakiroDraftModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=r"missing \['fc.bias'\]"):
            load(adapter)
    point_to(adapter, "")
    with pytest.raises(ValueError, match=r"does not name its drafter .*load_adapter"):
        JakiroDraftModel.from_pretrained(adapter)
    both = shutil.copytree(base_folder, tmp_path / "adapter", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"holds a whole drafter and an adapter"):
        JakiroDraftModel.from_pretrained(both)


def make_arguments(folder: Path, **kwargs) -> JakiroTrainingArguments:
    values = {
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return JakiroTrainingArguments(output_dir=str(folder), **{**values, **kwargs})


@pytest.mark.parametrize("way", ["peft_config", "PeftModel", pytest.param("add_adapter", marks=needs_adapter_methods)])
def test_trainer_saves_the_adapter_alone(way, base_folder, tmp_path):
    target, draft, kwargs = copy.deepcopy(make_target()), JakiroDraftModel.from_pretrained(base_folder), {}
    before = {name: weight.clone() for name, weight in draft.named_parameters()}
    if way == "peft_config":
        kwargs["peft_config"] = lora()
    elif way == "PeftModel":
        draft = get_peft_model(draft, lora())
    else:
        draft.add_adapter(lora())
    trainer = JakiroTrainer(
        model=draft, target_model=target, args=make_arguments(tmp_path), train_dataset=make_rows(), **kwargs
    )
    first = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.train()
    last = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert last < 0.95 * first
    trainer.save_model()
    assert not list(tmp_path.glob("model*"))
    loaded = JakiroDraftModel.from_pretrained(tmp_path)
    frozen = {name.replace(".base_layer", ""): w for name, w in loaded.named_parameters() if "lora" not in name}
    assert frozen.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.items())
    again = JakiroTrainer(
        model=loaded, target_model=target, args=make_arguments(tmp_path / "again"), train_dataset=make_rows()
    )
    assert again.evaluate(again.train_dataset)["eval_loss"] == pytest.approx(last, rel=1e-5)


# -- targets with an adapter -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted_target() -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    return get_peft_model(copy.deepcopy(make_target()), config).eval()


def test_features_are_those_of_the_adapted_target(adapted_target):
    ids = make_prompt(9)
    features = Target(adapted_target).features(ids)
    expected = adapted_target(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(features, expected)
    assert (features - Target(make_target()).features(ids)).abs().max() > 0.1
    with adapted_target.disable_adapter():
        torch.testing.assert_close(Target(adapted_target).features(ids), Target(make_target()).features(ids))


@pytest.mark.parametrize("draft_lora", [False, True], ids=["whole", "adapter"])
def test_training_for_an_adapted_target(draft_lora, adapted_target, base_folder, tmp_path):
    target = copy.deepcopy(adapted_target)
    before = {name: weight.clone() for name, weight in target.named_parameters()}
    trainer = JakiroTrainer(
        model=JakiroDraftModel.from_pretrained(base_folder),
        target_model=target,
        args=make_arguments(tmp_path),
        train_dataset=make_rows(),
        peft_config=lora() if draft_lora else None,
    )
    first = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < 0.95 * first
    assert all(torch.equal(weight, before[name]) for name, weight in target.named_parameters())
    trainer.save_model()
    draft = JakiroDraftModel.from_pretrained(tmp_path).eval()
    for inputs in ({"input_ids": make_prompt(9)}, {"input_ids": torch.tensor([make_rows()[0]["input_ids"]])}):
        compare(target, draft, inputs, max_new_tokens=16)
    compare(target, draft, {"input_ids": make_prompt(7)}, seed=3, do_sample=True, max_new_tokens=12)
    assert draft.config.vocab_size == VOCAB
