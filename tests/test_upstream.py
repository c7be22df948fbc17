# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What `compat` takes from the insides of transformers. If one of these fails, that file is the one to look at."""

import inspect

import pytest
import torch
from transformers import (
    Cache,
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    MambaForCausalLM,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, QuantizedLayer, StaticLayer
from transformers.generation import CandidateGenerator
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GENERATION_MODES_MAPPING
from transformers.integrations.peft import maybe_load_adapters

from helpers.prompts import make_prompt
from helpers.targets import CACHE, make_target
from transformers_jakiro.core import compat, hook
from transformers_jakiro.core.target_cache import TargetCache, check_cache

pytestmark = pytest.mark.compat


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (
            "_assisted_decoding",
            ["self", "input_ids", "logits_processor", "stopping_criteria", "generation_config"],
        ),
        ("_validate_generation_mode", ["self", "generation_mode", "generation_config", "generation_mode_kwargs"]),
        ("_prepare_generation_config", ["self", "generation_config"]),
        ("_prefill", ["self", "input_ids", "generation_config", "model_kwargs"]),
        ("_has_unfinished_sequences", ["self", "this_peer_finished", "synced_gpus", "device"]),
        ("prepare_inputs_for_generation", ["self", "input_ids"]),
    ],
)
def test_leading_parameters(name, parameters):
    method = inspect.unwrap(getattr(GenerationMixin, name))
    assert list(inspect.signature(method).parameters)[: len(parameters)] == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_assisted_decoding", {"synced_gpus", "streamer", "assistant_model", "model_kwargs"}),
        ("_prepare_generation_config", {"kwargs"}),
        ("prepare_inputs_for_generation", {"is_first_iteration", "attention_mask", CACHE, "kwargs"}),
    ],
)
def test_further_parameters(name, parameters):
    method = inspect.unwrap(getattr(GenerationMixin, name))
    assert parameters <= set(inspect.signature(method).parameters)


def test_signature_check_agrees():
    hook.check_signatures()


def test_finding_adapters(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    parameters = inspect.signature(maybe_load_adapters).parameters
    assert list(parameters) == ["pretrained_model_name_or_path", "download_kwargs", "adapter_kwargs"]
    adapter_kwargs = {"_adapter_model_path": "adapter", "revision": "a"}  # as the Auto classes give it
    options = {"adapter_kwargs": adapter_kwargs, "cache_dir": "cache", "token": None, "dtype": "auto"}
    found = compat.find_adapter("base", options)
    assert found == ("base", "adapter", {"cache_dir": "cache", "revision": "a"})
    assert "_adapter_model_path" in adapter_kwargs


def test_what_ends_loading():
    method = PreTrainedModel._finalize_model_loading
    assert list(inspect.signature(method).parameters) == ["model", "load_config", "loading_info"]


def test_assisted_generation_is_looked_up_by_name():
    assert GENERATION_MODES_MAPPING[GenerationMode.ASSISTED_GENERATION] == "_assisted_decoding"


def test_num_assistant_tokens_has_no_value_unless_set():
    assert GenerationConfig().num_assistant_tokens is None
    assert GenerationConfig(num_assistant_tokens=20).num_assistant_tokens == 20


def test_arguments_of_a_decoding_loop():
    seen = {}

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        seen.update(kwargs, criteria=stopping_criteria, config=generation_config)
        return input_ids

    mask = torch.ones(1, 4, dtype=torch.long)
    mask[:, 0] = 0
    make_target().generate(
        make_prompt(4), attention_mask=mask, max_new_tokens=3, eos_token_id=[5, 6], custom_generate=loop
    )
    assert isinstance(seen[CACHE], DynamicCache)
    assert seen["attention_mask"].tolist() == [[0, 1, 1, 1]]
    assert seen["position_ids"].shape == (1, 4)
    assert seen["position_ids"][0, 1:].tolist() == [0, 1, 2]
    assert seen["config"].max_length == 7
    max_length, end_tokens, others = compat.host_criteria(seen["criteria"])
    assert (max_length, end_tokens, len(others)) == (7, {5, 6}, 0)


def test_criteria_attributes():
    assert MaxLengthCriteria(max_length=9).max_length == 9
    assert EosTokenCriteria([3, 4]).eos_token_id.tolist() == [3, 4]
    assert EosTokenCriteria(3).eos_token_id.flatten().tolist() == [3]


def test_stateful_models_say_so():
    assert MambaForCausalLM._is_stateful
    assert not compat.is_stateful(make_target())


def test_candidate_generator_protocol():
    assert {"input_ids"} <= set(inspect.signature(CandidateGenerator.get_candidates).parameters)
    assert CandidateGenerator.requires_model_outputs is False
    loop = inspect.getsource(inspect.unwrap(GenerationMixin._assisted_decoding))
    assert "candidate_generator.model_kwargs_overrides" in loop
    assert "n_last_matches=" in loop


def states(length: int, first: int = 0) -> torch.Tensor:
    """`[1, 1, length, 1]`: each token's state is its index."""
    return torch.arange(first, first + length, dtype=torch.float32).view(1, 1, -1, 1)


@pytest.mark.parametrize("prefix", [0, 1, 4, 5, 6, 20])
@pytest.mark.parametrize("kept", [[0], [0, 1, 2], [0, 2], [0, 1, 4, 6], list(range(7))])
def test_keeping_nodes(prefix, kept):
    """The states of the accepted path stay, in order, in both kinds of layers, as if they alone had been added."""
    cache = Cache(layers=[DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=6)])
    plain = Cache(layers=[DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=6)])
    for layer in (0, 1):
        if prefix:
            for each in (cache, plain):
                each.update(states(prefix), -states(prefix), layer)
    cache.activate_past_recording()
    for _ in range(2):
        start = cache.layers[1].get_seq_length()
        for layer in (0, 1):
            new = states(7, 100 * start)
            keys, values = cache.update(new, -new, layer)
            assert torch.equal(keys[..., -7:, :], new)
            assert torch.equal(values[..., -7:, :], -new)
            for node in kept:
                plain.update(new[..., node : node + 1, :], -new[..., node : node + 1, :], layer)
        TargetCache(cache, 1).keep(torch.tensor([kept]), [kept], [start], 7)
        for ours, expected in zip(cache.layers, plain.layers, strict=True):
            assert ours.get_seq_length() == expected.get_seq_length() == start + len(kept)
            assert torch.equal(ours.keys, expected.keys)
            assert torch.equal(ours.values, expected.values)
            assert ours.get_mask_sizes(3) == expected.get_mask_sizes(3)


def test_prefixes_are_not_copied():
    cache = Cache(layers=[DynamicLayer()])
    cache.update(states(50), states(50), 0)
    cache.update(states(7), states(7), 0)
    memory = cache.layers[0].keys.data_ptr()
    TargetCache(cache, 1).keep(torch.tensor([[0, 3, 5]]), [[0, 3, 5]], [50], 7)
    assert cache.layers[0].keys.data_ptr() == memory
    assert cache.layers[0].keys[0, 0, -3:, 0].tolist() == [0, 3, 5]


def test_crop_takes_negative_numbers():
    cache = Cache(layers=[DynamicLayer()])
    cache.update(states(9), states(9), 0)
    cache.crop(-4)
    assert cache.get_seq_length() == 5
    cache.crop(0)
    assert cache.get_seq_length() == 5


def test_kinds_of_cache_layers():
    assert issubclass(QuantizedLayer, DynamicLayer)
    assert not issubclass(StaticLayer, DynamicLayer)
    assert check_cache(DynamicCache(), GenerationConfig()) is None
    windowed = DynamicCache(config=make_target("gemma3", window=9).config)
    assert check_cache(windowed, GenerationConfig()) is None


def test_compiling_on_all_devices():
    assert CompileConfig()._compile_all_devices is None
    assert compat.compile_everywhere().to_dict() == CompileConfig().to_dict()  # what `torch.compile` gets
    criteria = inspect.getsource(GenerationMixin._valid_auto_compile_criteria)
    assert "compile_config._compile_all_devices" in criteria
