# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.data import JakiroDataCollator, tokenize_conversation
from transformers_jakiro.losses import contrastive_parallel_loss
from transformers_jakiro.trainer import JakiroTrainer, JakiroTrainingArguments

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} end{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}"
)


@pytest.fixture
def tokenizer():
    words = ["pad", "user", "assistant", "end", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="pad", chat_template=TEMPLATE)


@pytest.fixture
def target():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return LlamaForCausalLM(config).eval()


CONVERSATION = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]


def test_tokenize_conversation_masks_the_assistant(tokenizer):
    row = tokenize_conversation(tokenizer, CONVERSATION)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["user", "a", "b", "assistant", "c", "d", "end"]
    assert row["loss_mask"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenize_conversation(tokenizer, CONVERSATION, max_length=5)["loss_mask"] == [0, 0, 0, 0, 1]


def test_template_without_generation_marks(tokenizer):
    tokenizer.chat_template = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(ValueError, match=r"marks no assistant tokens.*\{% generation %\}"):
        tokenize_conversation(tokenizer, CONVERSATION)


def test_collator_pads_on_the_right():
    batch = JakiroDataCollator(pad_token_id=9)(
        [{"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}, {"input_ids": [8, 9], "loss_mask": [0, 1]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_empty_mask_is_an_error():
    features = torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match=r"selects no position"):
        contrastive_parallel_loss(features, None, features, torch.tensor([[0, 0, 0, 1]]), lambda x: x)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_experts": 3}, {"head_mode": "decoupled"}, {"num_experts": 1, "head_mode": "single"}],
    ids=["jakiro", "three experts", "jakiro star", "dense"],
)
def test_training_moves_the_drafter_and_nothing_else(overrides, target, tmp_path):
    draft = JakiroDraftModel(JakiroDraftConfig.from_target(target.config, **overrides))
    before = {name: weight.clone() for name, weight in draft.named_parameters()}
    frozen = {name: weight.clone() for name, weight in target.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(4, 12, (length,), generator=generator).tolist(),
            "loss_mask": [0] + [1] * (length - 1),
        }
        for length in (12, 15, 9, 20) * 4
    ]
    trainer = JakiroTrainer(
        model=draft,
        target_model=target,
        args=JakiroTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=30,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows[:4],
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
    trainer.save_model()
    reloaded = JakiroDraftModel.from_pretrained(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(reloaded.parameters(), draft.parameters(), strict=True))
    assert not any("embed" in name or "lm_head" in name for name in reloaded.state_dict())


def test_drafter_of_another_target(target, tmp_path):
    other = JakiroDraftModel(JakiroDraftConfig.from_target(target.config, vocab_size=13))
    with pytest.raises(ValueError, match=r"`vocab_size` must be its target's"):
        JakiroTrainer(model=other, target_model=target)
    with pytest.raises(ValueError, match=r"needs the `target_model`"):
        JakiroTrainer(model=other)
