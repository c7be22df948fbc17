# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
import math
import signal
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)

import transformers_jakiro
from helpers import training_run
from helpers.training_run import make_arguments, make_draft, make_rows, make_target, run
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.measuring.acceptance import tokens_per_forward
from transformers_jakiro.pair import TARGET
from transformers_jakiro.training.arguments import JakiroTrainingArguments
from transformers_jakiro.training.features import write_features
from transformers_jakiro.training.initialization import new_drafter
from transformers_jakiro.training.objective import DraftingObjective
from transformers_jakiro.training.trainer import JakiroTrainer

SCRIPT = Path(training_run.__file__)


@pytest.fixture
def target():
    return make_target()


def make_trainer(target, output_dir, num_rows=8, **kwargs):
    arguments = kwargs.pop("arguments", {})
    kwargs.setdefault("model", make_draft(target))
    kwargs.setdefault("train_dataset", make_rows(num_rows))
    return JakiroTrainer(target_model=target, args=make_arguments(output_dir, **arguments), **kwargs)


# -- what is trained -------------------------------------------------------------------------------------------------


@pytest.mark.compat
@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_experts": 3}, {"head_mode": "decoupled"}, {"num_experts": 1, "head_mode": "single"}],
    ids=["jakiro", "three experts", "jakiro star", "dense"],
)
def test_training_moves_the_drafter_and_nothing_else(overrides, target, tmp_path):
    draft = make_draft(target, **overrides)
    before = {name: weight.clone() for name, weight in draft.named_parameters()}
    frozen = {name: weight.clone() for name, weight in target.named_parameters()}
    arguments = {"max_steps": 30, "per_device_train_batch_size": 8, "logging_steps": 10}
    rows = make_rows(16)
    trainer = make_trainer(
        target, tmp_path, model=draft, arguments=arguments, train_dataset=rows, eval_dataset=rows[:4]
    )
    metrics_before = trainer.evaluate()
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.95 * metrics_before["eval_loss"]
    logged = [entry for entry in trainer.state.log_history if "classification" in entry]
    assert len(logged) == 3
    assert ("contrastive_classification" in logged[0]) == (draft.config.head_mode == "contrastive")
    assert [name for name, weight in draft.named_parameters() if torch.equal(weight, before[name])] == []
    assert all(torch.equal(weight, frozen[name]) for name, weight in target.named_parameters())
    assert not any(weight.requires_grad for weight in target.parameters())
    trainer.save_model()
    reloaded = JakiroDraftModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), draft.parameters(), strict=True))
    assert not any("embed" in name or "lm_head" in name for name in reloaded.state_dict())


def test_every_option_of_the_objective_is_an_argument():
    arguments = {field.name: field for field in fields(JakiroTrainingArguments)}
    for option in fields(DraftingObjective):
        argument = arguments[option.name]
        default = argument.default if argument.default is not MISSING else argument.default_factory()
        expected = option.default if option.default is not MISSING else option.default_factory()
        assert default == expected, option.name
        assert argument.metadata["help"]


def test_prompts_may_count_in_training(target, tmp_path):
    rows = make_rows(4)
    assert not all(all(row["loss_mask"]) for row in rows)
    for only_answers in (True, False):
        trainer = make_trainer(
            target,
            tmp_path,
            train_dataset=rows,
            eval_dataset=rows,
            arguments={"assistant_only_loss": only_answers},
        )
        expected = [row["loss_mask"] if only_answers else [1] * len(row["loss_mask"]) for row in rows]
        assert [row["loss_mask"] for row in trainer.train_dataset] == expected
        assert [row["loss_mask"] for row in trainer.eval_dataset] == [row["loss_mask"] for row in rows]


def test_unrolling_starts_late(target, tmp_path):
    arguments = {"max_steps": 5, "unroll_steps": 2, "unroll_start": 0.5, "logging_steps": 1}
    trainer = make_trainer(target, tmp_path, arguments=arguments)
    trainer.train()
    unrolled = ["accuracy_step2" in entry for entry in trainer.state.log_history if "loss" in entry]
    assert unrolled == [False, False, False, True, True]
    with pytest.raises(ValueError, match=r"`unroll_start` is a share of the training, 0 to 1, got 2"):
        make_arguments(tmp_path, unroll_start=2)


@pytest.mark.compat
def test_models_by_name(target, tmp_path):
    target.save_pretrained(tmp_path / "target")
    trainer = JakiroTrainer(
        target_model=tmp_path / "target",
        args=make_arguments(
            tmp_path, target_model_init_kwargs='{"dtype": "bfloat16", "attn_implementation": "eager"}'
        ),
        train_dataset=make_rows(4),
    )
    assert trainer.target.model.dtype == torch.bfloat16
    assert trainer.target.config._attn_implementation == "eager"
    assert trainer.model.dtype == torch.float32
    expected = new_drafter(trainer.target, target_name_or_path=str(tmp_path / "target")).config
    assert trainer.model.config.to_diff_dict() == expected.to_diff_dict()
    trainer.train()
    trainer.save_model(tmp_path / "draft")
    again = JakiroTrainer(model=str(tmp_path / "draft"), target_model=target, args=make_arguments(tmp_path))
    for (name, weight), other in zip(again.model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    make_draft(target).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert JakiroTrainer(tmp_path / "half", target, make_arguments(tmp_path)).model.dtype == torch.float32


def test_new_drafters_follow_the_seed(target, tmp_path):
    first, again, other = (
        JakiroTrainer(target_model=target, args=make_arguments(tmp_path, seed=seed)).model.fc.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_special_tokens_stay_the_targets(target, tmp_path):
    """Trainer itself would take them from the tokenizer."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(12)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t3", pad_token="t5")
    trainer = make_trainer(target, tmp_path, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    config = JakiroDraftConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2, 3], 0)
    assert (tmp_path / "tokenizer.json").is_file()
    tokenizer.eos_token = "t7"
    tokenizer.bos_token = "t8"
    with pytest.raises(ValueError, match=r"not the target's tokenizer"):
        make_trainer(target, tmp_path, processing_class=tokenizer)


def test_bf16(target, tmp_path):
    trainer = make_trainer(
        target.to(torch.bfloat16),
        tmp_path,
        arguments={"bf16": True, "max_steps": 3, "eval_generate_prompts": 1, "eval_generate_tokens": 8},
        eval_dataset=make_rows(2),
    )
    before = trainer.model.fc.weight.clone()
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert not torch.equal(trainer.model.fc.weight, before)
    assert 1 <= trainer.evaluate()["eval_acceptance_length"] <= 8


@pytest.mark.compat
def test_peft(target, tmp_path):
    draft = make_draft(target)
    before = {name: weight.clone() for name, weight in draft.state_dict().items()}
    config = LoraConfig(r=2, target_modules=["qkv_proj", "gate_up_proj"])
    trainer = make_trainer(
        target,
        tmp_path,
        model=draft,
        peft_config=config,
        arguments={"eval_generate_prompts": 1, "eval_generate_tokens": 4},
        eval_dataset=make_rows(2),
    )
    trainer.train()
    assert trainer.evaluate()["eval_acceptance_length"] >= 1
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    fresh = make_draft(target)
    assert all(torch.equal(weight, before[name]) for name, weight in fresh.state_dict().items())
    adapted = PeftModel.from_pretrained(fresh, tmp_path)
    for (name, weight), trained in zip(adapted.state_dict().items(), trainer.model.state_dict().values(), strict=True):
        assert torch.equal(weight, trained), name
    with pytest.raises(ValueError, match=r"has an adapter already"):
        make_trainer(target, tmp_path, model=adapted, peft_config=config)


# -- optimizer steps -------------------------------------------------------------------------------------------------


def weights_after(tmp_path, num_rows=8, **arguments):
    trainer, _ = run(tmp_path, {"feature_noise": 0.0, **arguments}, num_rows)
    return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach(), trainer.state.log_history


def test_accumulation_equals_one_batch(tmp_path):
    """The answers are of different lengths: a mean of the batches' means would not."""
    whole, log = weights_after(tmp_path, per_device_train_batch_size=4)
    parts, log_of_parts = weights_after(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    for entry, expected in zip(log_of_parts[:-1], log[:-1], strict=True):
        for name in ("loss", "classification", "contrastive_regression", "accuracy", "grad_norm"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize("accumulation", [1, 2])
def test_clipping_by_value(tmp_path, accumulation):
    class Watch(TrainerCallback):
        largest = 0.0

        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.largest = max(weight.grad.abs().max().item() for weight in model.parameters())

    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, "max_grad_norm": 0}
    largest = {}
    for value in (0.0, 1e-3):
        watch = Watch()
        target = make_target()
        make_trainer(target, tmp_path, arguments={**arguments, "max_grad_value": value}, callbacks=[watch]).train()
        largest[value] = watch.largest
    assert largest[0.0] > 2e-3
    assert largest[1e-3] == pytest.approx(1e-3)


def test_early_stopping(target, tmp_path):
    trainer = make_trainer(
        target,
        tmp_path,
        arguments={
            "max_steps": 20,
            "learning_rate": 0.0,  # no evaluation is better than the first
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "best",
            "metric_for_best_model": "accuracy",
            "greater_is_better": True,
        },
        eval_dataset=make_rows(2),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.state.best_global_step == 2


@pytest.mark.compat
def test_resuming_a_killed_run_is_bit_equal(tmp_path, warm_python):
    """Feature noise, order of the data, optimizer, metrics: all as if nothing had happened."""
    arguments = {
        "max_steps": 12,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 4,
    }
    values = {"arguments": arguments, "num_rows": 14}  # 7 steps per epoch
    killed = {**values, "output_dir": str(tmp_path / "killed"), "kill_at": 10}
    (tmp_path / "values.json").write_text(json.dumps(killed))
    process = warm_python.run(SCRIPT.read_text(), tmp_path / "values.json")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (tmp_path / "killed" / "checkpoint-8").is_dir()
    resumed, _ = run(tmp_path / "killed", **values, resume=True)
    whole, _ = run(tmp_path / "whole", **values)
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)]
    assert [entry["step"] for entry in logs[0]] == list(range(1, 13))
    assert logs[0] == logs[1]


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_means_over_positions(target, tmp_path):
    """However the rows are batched, on logging and on evaluation."""
    rows = make_rows(5)
    means = {}
    for batch_size in (1, 2, 5):
        trainer = make_trainer(
            target,
            tmp_path,
            arguments={
                "per_device_train_batch_size": batch_size,
                "per_device_eval_batch_size": batch_size,
                "max_steps": math.ceil(5 / batch_size),
                "logging_steps": math.ceil(5 / batch_size),
                "learning_rate": 0.0,
                "feature_noise": 0.0,
            },
            train_dataset=rows,
            eval_dataset=rows,
        )
        trainer.train()
        metrics, logged = trainer.evaluate(), trainer.state.log_history[0]
        for name in ("regression", "classification", "accuracy", "contrastive_classification"):
            assert logged[name] == pytest.approx(metrics[f"eval_{name}"], rel=1e-5)
        assert trainer.predict(rows, metric_key_prefix="test").metrics["test_loss"] == metrics["eval_loss"]
        means[batch_size] = metrics
    for name in ("loss", "regression", "accuracy", "contrastive_accuracy"):
        assert means[1][f"eval_{name}"] == pytest.approx(means[5][f"eval_{name}"], rel=1e-5)
        assert means[2][f"eval_{name}"] == pytest.approx(means[5][f"eval_{name}"], rel=1e-5)
    weights = [sum(row["loss_mask"][:-1]) for row in rows]
    alone = [trainer.evaluate([row])["eval_loss"] for row in rows]
    expected = sum(weight * loss for weight, loss in zip(weights, alone, strict=True)) / sum(weights)
    assert means[5]["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(sum(alone) / 5, rel=1e-3)


def test_several_evaluation_sets(target, tmp_path):
    trainer = make_trainer(target, tmp_path, eval_dataset={"a": make_rows(2), "b": make_rows(3, seed=1)})
    metrics = trainer.evaluate()
    assert metrics["eval_a_accuracy"] == trainer.evaluate(make_rows(2))["eval_accuracy"]
    assert metrics["eval_b_loss"] == trainer.evaluate(make_rows(3, seed=1))["eval_loss"]


def test_acceptance_length_is_what_generate_reports(target, tmp_path):
    rows = make_rows(4)
    no_prompt = {"input_ids": [5, 6, 7, 8], "loss_mask": [1, 1, 1, 1]}
    trainer = make_trainer(
        target,
        tmp_path,
        arguments={
            "eval_generate_prompts": 2,
            "eval_generate_tokens": 12,
            "eval_generate_temperature": [0.0, 1.0],
        },
        eval_dataset=[no_prompt, *rows],
    )
    trainer.model.train()
    state = torch.get_rng_state()
    metrics = trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    accepted = {0.0: [], 1.0: []}
    for temperature, lengths in accepted.items():
        torch.manual_seed(trainer.args.seed)
        for row in rows[:2]:
            prompt = torch.tensor([row["input_ids"][: row["loss_mask"].index(1)]])
            sampling = {"do_sample": True, "top_k": 0} if temperature else {"do_sample": False}
            output = target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                assistant_model=trainer.model.eval(),
                max_new_tokens=12,
                return_dict_in_generate=True,
                **sampling,
            )
            lengths += output.accept_lengths[0]
    assert metrics["eval_acceptance_length"] == tokens_per_forward(accepted[0.0])
    assert metrics["eval_acceptance_length_t1"] == tokens_per_forward(accepted[1.0])
    with pytest.raises(ValueError, match=r"no row of the evaluation set has a prompt"):
        trainer.evaluate([no_prompt])


def test_evaluation_does_not_change_the_training(tmp_path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "eval_generate_prompts": 1, "eval_generate_tokens": 4}
    plain, _ = run(tmp_path, {"max_steps": 3}, 4)
    other, _ = run(tmp_path, {"max_steps": 3, "eval_generate_temperature": [1.0], **evaluated}, 4, num_eval_rows=2)
    for weight, expected in zip(other.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(weight, expected)


# -- data ------------------------------------------------------------------------------------------------------------


def test_stored_features_give_the_same_training(target, tmp_path):
    store = write_features(target, make_rows(6), tmp_path / "features", progress=False)
    with_store = make_trainer(target, tmp_path, train_dataset=store, eval_dataset=store)
    calls = []
    handle = target.register_forward_hook(lambda *_: calls.append(1))
    with_store.train()
    assert calls == []  # the check of the store was before
    handle.remove()
    online = make_trainer(target, tmp_path, train_dataset=make_rows(6), eval_dataset=make_rows(6))
    online.train()
    for weight, expected in zip(with_store.model.parameters(), online.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)
    torch.manual_seed(5)
    other = type(target)(target.config)
    with pytest.raises(ValueError, match=r"are not this target's"):
        make_trainer(other, tmp_path, train_dataset=make_rows(2), eval_dataset={"a": store})
    with pytest.raises(ValueError, match=r"are not this target's"):
        make_trainer(other, tmp_path, train_dataset=torch.utils.data.Subset(store, range(2)))


def test_packing(target, tmp_path):
    rows = make_rows(6)
    packed = make_trainer(
        target, tmp_path, arguments={"packing": True, "max_length": 48}, train_dataset=rows, eval_dataset=rows
    )
    apart = make_trainer(target, tmp_path, eval_dataset=rows)
    assert len(packed.train_dataset) < 6
    assert packed.evaluate()["eval_accuracy"] == apart.evaluate()["eval_accuracy"]
    assert packed.evaluate()["eval_regression"] == pytest.approx(apart.evaluate()["eval_regression"], rel=1e-5)
    packed.train()
    assert packed.state.global_step == 2


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_targets(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="quantizes the target")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    target = AutoModelForCausalLM.from_pretrained(
        TARGET, quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    arguments = {"bf16": True, "max_steps": 20, "eval_generate_prompts": 1, "eval_generate_tokens": 4}
    rows = make_rows(8)
    trainer = make_trainer(
        target, tmp_path, model=new_drafter(target), arguments=arguments, train_dataset=rows, eval_dataset=rows
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < before
    assert "eval_acceptance_length" in metrics  # it generated


# -- placement and sharing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["hf_device_map", "is_quantized"])
def test_placed_targets_stay_where_they_are(attribute, target, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("`.to` is not supported for this model")

    monkeypatch.setattr(type(target), "to", refuse)
    with pytest.raises(ValueError, match="is not supported"):
        make_trainer(target, tmp_path)
    setattr(target, attribute, {"": "cpu"})
    make_trainer(target, tmp_path).train()


def test_model_card(target, tmp_path):
    target.config._name_or_path = "org/target"
    trainer = make_trainer(target, tmp_path)
    trainer.train()
    trainer.create_model_card(license="apache-2.0", tags="mine")
    card = (tmp_path / "README.md").read_text()
    assert "base_model: org/target" in card
    assert all(f"- {tag}\n" in card for tag in ("mine", "jakiro", "speculative-decoding"))


def test_public_names():
    """Those that are imported on first access are where the package looks for them."""
    assert transformers_jakiro.JakiroTrainer is JakiroTrainer
    assert transformers_jakiro.JakiroTrainingArguments is JakiroTrainingArguments
    assert all(hasattr(transformers_jakiro, name) for name in transformers_jakiro.__all__)


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors(target, tmp_path):
    other = JakiroDraftModel(JakiroDraftConfig.from_target(target.config, vocab_size=13))
    with pytest.raises(ValueError, match=r"`vocab_size` must be its target's"):
        JakiroTrainer(model=other, target_model=target)
    with pytest.raises(ValueError, match=r"needs the `target_model`"):
        JakiroTrainer(model=other)
    with pytest.raises(TypeError, match=r"must be `JakiroTrainingArguments`, got `TrainingArguments`"):
        JakiroTrainer(target_model=target, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match=r"this one is loaded"):
        JakiroTrainer(target_model=target, args=make_arguments(tmp_path, target_model_init_kwargs={"dtype": "auto"}))
    for name, value in (("max_grad_value", -1.0), ("eval_generate_prompts", -1), ("eval_generate_tokens", 0)):
        with pytest.raises(ValueError, match=rf"`{name}` must be at least"):
            make_arguments(tmp_path, **{name: value})


def test_arguments_that_a_distribution_does_not_allow(target, tmp_path):
    trainer = make_trainer(target, tmp_path, arguments={"eval_generate_prompts": 1})
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"FSDP shards it"):
        trainer._check_distribution()
    trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = False, True
    with pytest.raises(ValueError, match=r"set `max_grad_value=0`"):
        trainer._check_distribution()
