# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What the target's forwards are called with, and what else must be as in plain generation."""

import copy
import threading
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    Phi3Config,
    Phi3ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from helpers.comparing import Fresh, compare, compare_batch
from helpers.prompts import make_batch, make_prompt
from helpers.targets import CACHE, LLAMA_LIKE, SPECIAL, enlarge, make_drafter, make_target
from transformers_jakiro.core.compat import TRANSFORMERS
from transformers_jakiro.core.inputs import PerToken, TargetInputs
from transformers_jakiro.core.rotary import RotaryBorders
from transformers_jakiro.core.rows import Rows


def fields_of(config_class):
    return {field.name for field in fields(config_class)}


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
ROTATIONS = {
    "longrope": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24, **FACTORS},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
}


def rotated_target(kind, model="llama"):
    """A target whose rotary embeddings change after 24 tokens."""
    values = {**LLAMA_LIKE, **SPECIAL, "rope_parameters": ROTATIONS[kind]}
    if kind == "dynamic":
        values["max_position_embeddings"] = 24
    torch.manual_seed(0)
    if model == "phi3":
        target = Phi3ForCausalLM(Phi3Config(**values, original_max_position_embeddings=24)).eval()
    else:
        target = LlamaForCausalLM(LlamaConfig(**values)).eval()
    enlarge(target)
    return target


@pytest.mark.compat
@pytest.mark.parametrize(("kind", "model"), [("longrope", "llama"), ("longrope", "phi3"), ("dynamic", "llama")])
@pytest.mark.parametrize("length", [9, 23, 24, 25, 30])
def test_rotary_embeddings_that_depend_on_the_length(kind, model, length):
    if kind == "dynamic" and length > 9:
        pytest.skip("plain generation of such a text depends on what was generated before")
    target = rotated_target(kind, model)
    if model == "phi3" and TRANSFORMERS < (5, 20) and length <= 24:
        with pytest.raises(NotImplementedError, match="drops the cache without reading the text again"):
            target.generate(make_prompt(length), max_new_tokens=24, assistant_model=make_drafter(target))
        return
    compare(target, make_drafter(target), {"input_ids": make_prompt(length)}, max_new_tokens=24)


@pytest.mark.parametrize(("kind", "model"), [("longrope", "llama"), ("longrope", "phi3"), ("dynamic", "llama")])
def test_rotary_embeddings_in_a_batch(kind, model):
    if model == "phi3" and TRANSFORMERS < (5, 20):
        pytest.skip("plain generation drops the text there")
    compare_batch(rotated_target(kind, model), make_batch((12, 20, 17)), max_new_tokens=16)


def test_rotary_borders():
    borders = RotaryBorders(rotated_target("longrope"), 40)
    assert borders.borders == {24: False}
    assert [borders.tokens_left(length) for length in (20, 23, 24)] == [5, 2, 1]
    assert borders.tokens_left(25) > 100
    assert borders.tokens_left(22, 24) == 1
    borders = RotaryBorders(rotated_target("dynamic"), 40)
    assert [borders.tokens_left(length) for length in (20, 23, 24, 25, 40)] == [4, 1, 1, 1, 1]
    assert not RotaryBorders(rotated_target("longrope"), 23)
    target = rotated_target("longrope")
    with pytest.raises(NotImplementedError, match=r"rotary embeddings of .* change at a length of \[24\] tokens"):
        target.generate(
            make_prompt(5), max_new_tokens=30, cache_implementation="static", assistant_model=make_drafter(target)
        )


@pytest.mark.compat
@pytest.mark.parametrize("lengths", [(9,), (6, 9)])
def test_token_types(lengths):
    inputs = make_batch(lengths)
    types = torch.randint(3, 9, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    compare_batch(make_target("gpt2"), {**inputs, "token_type_ids": types})


def test_positions_that_the_model_shifts(monkeypatch):
    """As PaliGemma does."""
    target = copy.deepcopy(make_target("gpt2"))
    prepare = type(target).prepare_inputs_for_generation

    def shifted(*args, **kwargs):
        inputs = prepare(target, *args, **kwargs)
        return {**inputs, "position_ids": inputs["position_ids"] + 1}

    monkeypatch.setattr(target, "prepare_inputs_for_generation", shifted)
    compare_batch(target, make_batch((4, 9)))


@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
def test_positions_that_the_model_drops(monkeypatch):
    """As EXAONE 4.5 does: siblings in a tree could not get their own."""
    target = copy.deepcopy(make_target())
    prepare = type(target).prepare_inputs_for_generation

    def without(*args, **kwargs):
        return {**prepare(target, *args, **kwargs), "position_ids": None}

    monkeypatch.setattr(target, "prepare_inputs_for_generation", without)
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=16)
    compare_batch(target, make_batch((9, 9)))
    with pytest.warns(UserWarning, match=r"chains instead of trees .* is given no `position_ids`"):
        target.generate(make_prompt(4), max_new_tokens=3, assistant_model=make_drafter(target))


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
def test_decoders_without_positions():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    target = BartForCausalLM(BartConfig(vocab_size=96, max_position_embeddings=200, **sizes)).eval()
    enlarge(target)
    target.generation_config.forced_eos_token_id = target.generation_config.eos_token_id = None
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=20)


def test_arguments_that_cannot_be_asked_for_twice():
    target = make_target()
    rows = Rows(make_prompt(5), target.generation_config, StoppingCriteriaList())
    with pytest.raises(NotImplementedError, match="`sounds` is an iterator, which LlamaForCausalLM reads on"):
        TargetInputs(target, rows, None, {"sounds": iter([1])})


def prepare_with(monkeypatch, change):
    """A target whose arguments are changed by a function of them."""
    target = copy.deepcopy(make_target())
    prepare = type(target).prepare_inputs_for_generation

    def changed(*args, **kwargs):
        return prepare(target, *args, **kwargs) | change(prepare(target, *args, **kwargs), kwargs)

    monkeypatch.setattr(target, "prepare_inputs_for_generation", changed)
    return target


def written_into(inputs, kwargs):
    if not kwargs.get("is_first_iteration"):
        kwargs["sounds"].add_(1)
    return {"sounds": None}


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (written_into, {"sounds": torch.ones(1)}, "writes into its argument `sounds` at each token"),
        (
            lambda inputs, _: {"second": inputs.get(CACHE)},
            {},
            "given a second cache, `second`, which cannot be rolled",
        ),
        (
            lambda inputs, kwargs: (
                {} if kwargs.get("is_first_iteration") else {"input_ids": inputs["input_ids"][..., None]}
            ),
            {},
            r"reads ids of the shape \(1, 1, 1\), so it cannot verify them: \(1, 1\) was expected",
        ),
    ],
)
def test_what_cannot_be_asked_for_twice(monkeypatch, change, kwargs, message):
    target = prepare_with(monkeypatch, change)
    forward = target.forward
    monkeypatch.setattr(
        target, "forward", lambda *args, second=None, sounds=None, position_ids=None, **rest: forward(*args, **rest)
    )
    with pytest.raises(NotImplementedError, match=message):
        target.generate(make_prompt(5), max_new_tokens=4, assistant_model=make_drafter(make_target()), **kwargs)


@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
def test_arguments_without_a_rule(monkeypatch):
    """One that changes from token to token by no rule is asked for step by step."""
    target = prepare_with(monkeypatch, lambda inputs, _: {"position_ids": inputs["position_ids"] ** 2 % 50})
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=16)
    with pytest.warns(UserWarning, match="its argument `position_ids` changes from token to token"):
        target.generate(make_prompt(9), max_new_tokens=3, assistant_model=make_drafter(target))


def test_values_per_token():
    rule = PerToken(torch.tensor([[4], [7]]), torch.tensor([[1], [1]]), dim=1)
    assert rule.at(torch.tensor([[0, 1, 1], [2, 3, 4]])).tolist() == [[4, 5, 5], [9, 10, 11]]
    assert rule.select(torch.tensor([1])).at(torch.tensor([[2]])).tolist() == [[9]]
    assert PerToken(torch.ones(2, 1, 3), None, dim=1).at(torch.zeros(2, 4)).shape == (2, 4, 3)


# -- processors and criteria that see the whole batch ----------------------------------------------------------------


class Turns(LogitsProcessor):
    """Row r may only say tokens of the class (calls so far + r) mod 3."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.tolist())
        classes = torch.arange(scores.shape[1])[None] + len(self.calls) + torch.arange(len(scores))[:, None]
        return scores.masked_fill(classes % 3 != 0, -torch.inf)


class Counted(StoppingCriteria):
    """A row is done when it has said an even token five times."""

    def __init__(self):
        self.counts = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.counts = self.counts + (input_ids[:, -1] % 2 == 0).int()
        return self.counts >= 5


@pytest.mark.compat
@pytest.mark.parametrize("lengths", [(9,), (4, 9, 6)])
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "seed": 1, "top_p": 0.9}])
def test_a_state_for_each_row(lengths, sampling):
    ends = {"eos_token_id": [7, 8, 9, 10, 11, 12]}
    for kwargs in (
        {"logits_processor": Fresh(lambda: LogitsProcessorList([Turns()]))},
        {"stopping_criteria": Fresh(lambda: StoppingCriteriaList([Counted()]))},
    ):
        for more in ({}, ends):
            compare_batch(make_target(), make_batch(lengths), **kwargs, **more, **sampling)


def test_each_call_is_that_of_plain_generation():
    target, calls = make_target(), []
    for assistant in ({}, {"assistant_model": make_drafter(target)}):
        turns = Turns()
        target.generate(
            **make_batch((4, 9, 6)),
            logits_processor=LogitsProcessorList([turns]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=[7, 8, 9, 10, 11, 12],
            **assistant,
        )
        calls.append(turns.calls)
    assert calls[0] == calls[1]


# -- random numbers --------------------------------------------------------------------------------------------------


def test_threads_get_samples_of_their_own():
    target, answers, start = make_target(), [], threading.Barrier(4)
    draft = make_drafter(target)

    def work():
        start.wait()
        answers.append(
            str(
                target.generate(
                    **make_batch((4, 9)), do_sample=True, max_new_tokens=12, assistant_model=draft
                ).tolist()
            )
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 4


# -- heads, vocabularies and modes -----------------------------------------------------------------------------------


class InFloat64(nn.Sequential):
    def forward(self, features):
        return super().forward(features).double()


def test_a_wrapped_head():
    target = copy.deepcopy(make_target())
    target.lm_head = InFloat64(target.lm_head)
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=16)


def test_a_scale_that_the_wrapper_does_not_apply():
    """As that of Aya Vision's text model."""
    target = copy.deepcopy(make_target())
    target.config.logit_scale = 0.25
    compare(target, make_drafter(make_target()), {"input_ids": make_prompt(9)}, max_new_tokens=16)


def test_tokens_added_to_the_target():
    target = copy.deepcopy(make_target())
    draft = copy.deepcopy(make_drafter(target))
    target.resize_token_embeddings(97, pad_to_multiple_of=64)
    assert target.config.vocab_size == 128
    draft.resize_token_embeddings(97, pad_to_multiple_of=64)
    assert draft.config.vocab_size == 128
    compare(target, draft, {"input_ids": make_prompt(9)}, max_new_tokens=16, knows=False)


def test_logits_that_are_not_numbers():
    target = copy.deepcopy(make_target())
    target.model.norm.weight.data.fill_(torch.nan)
    draft, ids = make_drafter(make_target()), make_prompt(5)
    args = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(target.generate(ids, **args), target.generate(ids, assistant_model=draft, **args))
    for inputs in ({"input_ids": ids}, make_batch((5, 3))):
        with pytest.raises(RuntimeError, match="probability tensor contains"):
            target.generate(**inputs, max_new_tokens=6, do_sample=True, assistant_model=draft)


@pytest.mark.parametrize("role", ["target", "drafter"])
def test_train_mode(role):
    target = copy.deepcopy(make_target())
    draft = copy.deepcopy(make_drafter(target))
    module = SimpleNamespace(target=target, drafter=draft)
    getattr(module, role).train()
    args = {"max_new_tokens": 4, "do_sample": False, "assistant_model": draft}
    target.generate(make_prompt(5), **args)  # nothing in it depends on the mode
    dropout = nn.Dropout(0.1).train()
    getattr(module, role).add_module("dropout", dropout)
    with pytest.raises(ValueError, match=rf"The {role} is in train mode, with dropout.*\.eval\(\)"):
        target.generate(make_prompt(5), **args)
    dropout.p, dropout.gradient_checkpointing = 0.0, True
    with pytest.raises(ValueError, match=rf"The {role} is in train mode with gradient checkpointing"):
        target.generate(make_prompt(5), **args)


def test_attentions_that_the_implementation_does_not_give():
    target, inputs = make_target("llama", attention="sdpa"), make_batch((5, 7))
    args = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_attentions": True}
    plain = target.generate(**inputs, **args)
    ours = target.generate(**inputs, **args, assistant_model=make_drafter(target))
    assert [list(step) for step in ours.attentions] == [list(step) for step in plain.attentions]


@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
def test_inference_mode():
    target, inputs = make_target(), make_batch((5, 9))
    args = {**inputs, "max_new_tokens": 12, "do_sample": False}
    plain = target.generate(**args)
    with torch.inference_mode():
        assert torch.equal(target.generate(**args, assistant_model=make_drafter(target)), plain)
        made_here = {name: value.clone() for name, value in inputs.items()}
        assert torch.equal(target.generate(**{**args, **made_here}, assistant_model=make_drafter(target)), plain)


@pytest.mark.skipif("alora_invocation_tokens" not in fields_of(LoraConfig), reason="PEFT activates LoRA since 0.18")
def test_activated_adapters_are_refused():
    target = get_peft_model(
        copy.deepcopy(make_target()),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[7, 8]),
    ).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]]), "max_new_tokens": 4}
    with pytest.raises(NotImplementedError, match=r"an activated LoRA .* other nodes"):
        target.generate(**inputs, assistant_model=make_drafter(make_target()))
