# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The hook in `generate`: what it leaves alone, and what is refused with a drafter."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    cache_utils,
)
from transformers.cache_utils import DynamicLayer, QuantizedLayer

from helpers.comparing import compare
from helpers.prompts import make_prompt
from helpers.targets import CACHE, LLAMA_LIKE, SPECIAL, VOCAB, enlarge, make_drafter, make_target
from transformers_jakiro import (
    IncompatibleTransformersError,
    JakiroCandidateGenerator,
    JakiroDraftConfig,
    JakiroDraftModel,
    install_generation_hook,
    jakiro_generate,
    remove_generation_hook,
)
from transformers_jakiro.core.target import Target

pytestmark = pytest.mark.compat

HOOKED = ("_assisted_decoding", "_validate_generation_mode", "_prepare_generation_config")


@pytest.fixture
def no_hook():
    """Within it the hook is not installed."""
    remove_generation_hook()
    yield
    remove_generation_hook()
    install_generation_hook()


@pytest.fixture
def pair():
    target = make_target()
    return target, make_drafter(target)


def methods() -> list:
    return [getattr(GenerationMixin, name) for name in HOOKED]


# -- installing ------------------------------------------------------------------------------------------------------


def test_removing_gives_back_the_originals(no_hook):
    originals = methods()
    assert all(method.__module__ == "transformers.generation.utils" for method in originals)
    install_generation_hook()
    hooked = methods()
    assert all(method is not original for method, original in zip(hooked, originals, strict=True))
    assert [method.__name__ for method in hooked] == list(HOOKED)
    remove_generation_hook()
    assert methods() == originals
    remove_generation_hook()
    assert methods() == originals


def test_installing_twice_is_installing_once(no_hook):
    originals = methods()
    install_generation_hook()
    hooked = methods()
    install_generation_hook()
    assert methods() == hooked
    remove_generation_hook()
    assert methods() == originals


def test_without_the_hook_only_the_callable_works(no_hook, pair):
    target, draft = pair
    ids = make_prompt(5)
    plain = target.generate(ids, max_new_tokens=8, do_sample=False)
    ours = target.generate(ids, max_new_tokens=8, do_sample=False, custom_generate=jakiro_generate(draft))
    assert torch.equal(ours, plain)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        target.generate(ids, max_new_tokens=8, do_sample=False, assistant_model=draft)


@pytest.mark.parametrize("name", [*HOOKED, "_prefill"])
def test_changed_signatures_are_named(no_hook, monkeypatch, name):
    monkeypatch.setattr(GenerationMixin, name, lambda self, something_else: None)
    before = methods()
    with pytest.raises(
        IncompatibleTransformersError,
        match=rf"GenerationMixin\.{name}` of .* lacks .*may have replaced it",
    ):
        install_generation_hook()
    assert methods() == before


@pytest.mark.parametrize("name", [*HOOKED, "_prefill"])
def test_missing_methods_are_named(no_hook, monkeypatch, name):
    monkeypatch.delattr(GenerationMixin, name)
    with pytest.raises(
        IncompatibleTransformersError,
        match=rf"GenerationMixin\.{name}` of .* lacks .*may have replaced it",
    ):
        install_generation_hook()


@pytest.mark.compat(False)
def test_import_has_no_side_effects(warm_python):
    result = warm_python.run(
        """
import logging, random, sys, warnings
import numpy, torch, transformers
from transformers import AutoModel, GenerationMixin
AutoModel, GenerationMixin.generate  # import what is imported lazily

def state():
    loggers = {
        name: (logger.level, logger.propagate, tuple(map(type, logger.handlers)), logger.disabled)
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    return {
        "root logger": (logging.root.level, tuple(logging.root.handlers), logging.root.manager.disable),
        "verbosity": transformers.utils.logging.get_verbosity(),
        "transformers logger": loggers["transformers"],
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch rng": torch.get_rng_state().tolist(),
        "python rng": random.getstate(),
        "numpy rng": numpy.random.get_state()[1].tolist(),
        "excepthook": sys.excepthook,
    }

before = state()
import transformers_jakiro
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, changed
assert not [name for name in logging.root.manager.loggerDict if "jakiro" in name and logging.getLogger(name).handlers]
print("as it was")
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "as it was\n"
    assert "Warning" not in result.stderr


@pytest.mark.compat(False)
def test_import_with_an_incompatible_transformers_warns_and_works(warm_python):
    result = warm_python.run(
        """
import warnings
from transformers import GenerationMixin
original = GenerationMixin._assisted_decoding = lambda self, other: None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformers_jakiro
assert GenerationMixin._assisted_decoding is original
(message,) = [str(warning.message) for warning in caught if "jakiro" in str(warning.message)]
assert "lacks the parameters" in message and "custom_generate=jakiro_generate(draft)" in message, message
transformers_jakiro.JakiroDraftModel
print("usable")
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "usable\n"


# -- what is not ours ------------------------------------------------------------------------------------------------


def small_llama(seed: int = 5) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, **SPECIAL, "num_hidden_layers": 1})).eval()
    enlarge(model)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


OTHERS = {
    "plain": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
    "assistant": {"assistant_model": "small"},
    "assistant, sampling": {"assistant_model": "small", "do_sample": True},
    "assistant, tokens": {"assistant_model": "small", "num_assistant_tokens": 3},
    "itself": {"assistant_model": "itself"},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "early exit": {"assistant_early_exit": 1},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_generate_are_as_before(no_hook, name):
    """Same tokens, same number of forwards of both models, same errors, same schedule of the assistant afterwards."""
    records = []
    for hooked in (False, True):
        if hooked:
            install_generation_hook()
        target, assistant = copy.deepcopy(make_target()), small_llama()
        kwargs = {"do_sample": False, **OTHERS[name]}
        if "assistant_model" in kwargs:
            kwargs["assistant_model"] = assistant if kwargs["assistant_model"] == "small" else copy.deepcopy(target)
        forwards = Counter()
        for key, model in (("target", target), ("assistant", kwargs.get("assistant_model", assistant))):
            model.register_forward_hook(lambda *_, key=key, forwards=forwards: forwards.update([key]))
        ids = make_prompt(4).repeat(1, 3)
        torch.manual_seed(0)
        output = target.generate(ids, max_new_tokens=14, return_dict_in_generate=True, output_logits=True, **kwargs)
        records.append(
            (
                type(output),
                output.sequences.tolist(),
                [logits.tolist() for logits in output.logits],
                forwards,
                torch.get_rng_state().tolist(),
                assistant.generation_config.to_dict(),
                target.generation_config.to_dict(),
            )
        )
    assert records[0] == records[1]
    if "assistant_model" in OTHERS[name]:
        assert records[0][3]["assistant"] > 0


def test_configs_of_the_caller_are_left_alone(pair):
    target, draft = pair
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    before = [copy.deepcopy(vars(each)) for each in (config, target.generation_config, draft.config, target.config)]
    for kwargs in ({}, {"assistant_model": draft}, {"assistant_model": draft, "num_assistant_tokens": 3}):
        target.generate(make_prompt(5), generation_config=config, **kwargs)
    after = [vars(each) for each in (config, target.generation_config, draft.config, target.config)]
    assert before == after


def test_models_are_left_alone(pair):
    target, draft = pair
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in pair]
    attributes = [set(vars(model)) for model in pair]
    target.generate(make_prompt(5), assistant_model=draft, max_new_tokens=10)
    assert attributes == [set(vars(model)) for model in pair]
    for model, state in zip(pair, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_no_gradients(pair):
    target, draft = pair
    output = target.generate(
        make_prompt(5),
        assistant_model=draft,
        max_new_tokens=10,
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
    )
    assert not any(logits.requires_grad for logits in output.logits)
    assert not any(states.requires_grad for step in output.hidden_states for states in step)


# -- what is refused -------------------------------------------------------------------------------------------------


def generate(target, draft, ids=None, **kwargs):
    ids = make_prompt(5) if ids is None else ids
    return target.generate(ids, assistant_model=draft, **{"max_new_tokens": 8, "do_sample": False, **kwargs})


def generate_with_callable(target, draft, ids=None, **kwargs):
    ids = make_prompt(5) if ids is None else ids
    way = {"custom_generate": jakiro_generate(draft)}
    return target.generate(ids, **{"max_new_tokens": 8, "do_sample": False, **way, **kwargs})


BOTH_WAYS = pytest.mark.parametrize("way", [generate, generate_with_callable])


@BOTH_WAYS
def test_other_vocabulary(way, pair):
    target, _ = pair
    draft = make_drafter(target, vocab_size=VOCAB + 1, target_name_or_path="someone/else")
    with pytest.raises(
        ValueError, match=rf"`vocab_size` must be .* has {VOCAB}, the drafter {VOCAB + 1}.*someone/else"
    ):
        way(target, draft)


@BOTH_WAYS
@pytest.mark.parametrize("asked", [[0], [-1], -1])
def test_some_hidden_states(way, pair, asked):
    with pytest.raises(
        NotImplementedError, match=r"`output_hidden_states` gives those of all layers or none, got .*1|0"
    ):
        way(*pair, output_hidden_states=asked, return_dict_in_generate=True)


@BOTH_WAYS
def test_other_hidden_size(way, pair):
    target, _ = pair
    with pytest.raises(ValueError, match=r"`hidden_size` must be .* has 32, the drafter 64.*trained for this target"):
        way(target, make_drafter(target, hidden_size=64))


def test_misfits_in_the_candidate_generator(pair):
    target, _ = pair
    with pytest.raises(ValueError, match=r"`hidden_size` must be"):
        JakiroCandidateGenerator(make_drafter(target, hidden_size=64), target)


@BOTH_WAYS
def test_stateful_targets(way):
    values = {key: LLAMA_LIKE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
    target = MambaForCausalLM(MambaConfig(**values, state_size=4, pad_token_id=0, eos_token_id=2)).eval()
    config = JakiroDraftConfig(vocab_size=VOCAB, hidden_size=32, num_attention_heads=4)
    with pytest.raises(NotImplementedError, match=r"MambaForCausalLM carries a recurrent state .*`assistant_model`"):
        way(target, JakiroDraftModel(config).eval())


@BOTH_WAYS
def test_encoder_decoder_targets(way):
    config = T5Config(vocab_size=VOCAB, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=4)
    config.decoder_start_token_id = 0
    target = T5ForConditionalGeneration(config).eval()
    draft = JakiroDraftModel(JakiroDraftConfig(vocab_size=VOCAB, hidden_size=32, num_attention_heads=4)).eval()
    with pytest.raises(
        NotImplementedError, match=r"decoder-only target, and T5ForConditionalGeneration is an encoder-dec"
    ):
        way(target, draft)


def test_beams(pair):
    """transformers would drop the drafter without a word."""
    with pytest.raises(ValueError, match=r"`num_beams=1`, got 3: .* without the drafter"):
        generate(*pair, num_beams=3)
    with pytest.raises(ValueError, match=r"`num_beams=1`, got 3"):
        generate(*pair, generation_config=GenerationConfig(num_beams=3, pad_token_id=0))


@BOTH_WAYS
def test_batches(way, pair):
    assert way(*pair, ids=make_prompt(5).repeat(3, 1)).shape[0] == 3
    assert way(*pair, num_return_sequences=2, do_sample=True).shape[0] == 2


@BOTH_WAYS
def test_no_cache(way, pair):
    with pytest.raises(ValueError, match=r"key/value cache, got `use_cache=False`"):
        way(*pair, use_cache=False)


def test_targets_without_a_cache():
    config = OpenAIGPTConfig(vocab_size=32, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    target = OpenAIGPTLMHeadModel(config).eval()
    draft = JakiroDraftModel(
        JakiroDraftConfig(vocab_size=32, hidden_size=16, num_attention_heads=2, pad_token_id=0)
    ).eval()
    with pytest.raises(NotImplementedError, match=r"OpenAIGPTLMHeadModel does not fill a key/value cache"):
        generate(target, draft, ids=torch.tensor([[3, 4, 5]]))


@BOTH_WAYS
def test_empty_prompts(way, pair):
    with pytest.raises(ValueError, match=r"The prompt is empty.*at least one token"):
        way(*pair, ids=torch.zeros((1, 0), dtype=torch.long))


class RoundingLayer(QuantizedLayer):
    """A quantized cache layer that needs no other package."""

    def _quantize(self, tensor, axis):
        return tensor.half()

    def _dequantize(self, tensor):
        return tensor.float()


# of another backend's layers, which have had this base since transformers 5.21
BaseQuantizedLayer = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)


class OtherRoundingLayer(BaseQuantizedLayer):
    """One that has nothing in common with [`RoundingLayer`] but the base of both."""

    def __init__(self):
        DynamicLayer.__init__(self)

    _quantize, _dequantize = RoundingLayer._quantize, RoundingLayer._dequantize


class UncroppableCache(DynamicCache):
    """One whose layers could be cropped, but not what it keeps beside them, as MiniMax' own."""

    is_croppable = False


class UnknownLayer(DynamicLayer):
    """One that says it cannot be cropped."""

    is_croppable = False


class RecurrentLayer(DynamicLayer):
    """One that cannot tell before it is filled, and then says no."""

    conv_states = None
    is_croppable = False


CACHES = {
    "quantized": (lambda: Cache(layers=[RoundingLayer() for _ in range(2)]), r"Quantized caches cannot drop"),
    "otherwise quantized": (
        lambda: Cache(layers=[OtherRoundingLayer() for _ in range(2)]),
        r"Quantized caches cannot drop",
    ),
    "uncroppable": (UncroppableCache, r"A UncroppableCache cannot drop"),
    "unknown": (lambda: Cache(layers=[UnknownLayer() for _ in range(2)]), r"kinds \['UnknownLayer'\] cannot drop"),
    "encoder-decoder": (
        lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
        r"decoder's key/value cache, got EncoderDecoderCache",
    ),
    "offloaded": (lambda: DynamicCache(offloading=True), r"Offloaded caches are not supported"),
}


@BOTH_WAYS
@pytest.mark.parametrize("name", CACHES)
def test_kinds_of_caches(way, pair, name):
    make, message = CACHES[name]
    if name == "offloaded" and torch.version.cuda is not None and not torch.cuda.is_available():
        pytest.skip("a CUDA build of PyTorch makes no offloaded cache without a driver")
    with pytest.raises(NotImplementedError, match=message + r".*default dynamic cache"):
        way(*pair, **{CACHE: make()})


@BOTH_WAYS
def test_a_recurrent_state_that_shows_in_the_cache(way, pair):
    cache = Cache(layers=[RecurrentLayer() for _ in range(2)])
    with (
        pytest.warns(UserWarning, match="chains instead of trees"),
        pytest.raises(
            NotImplementedError, match=r"recurrent state in its cache \(layers of kind RecurrentLayer\).*Leave out"
        ),
    ):
        way(*pair, **{CACHE: cache})


@pytest.mark.skipif(CACHE == "past_key_values", reason="caches have one name before transformers 5.24")
def test_a_cache_under_its_former_name(pair):
    """Only who uses the former name is warned of it."""
    target, draft = pair
    kwargs = {"max_new_tokens": 6, "do_sample": False, "assistant_model": draft, "return_dict_in_generate": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        expected = target.generate(make_prompt(5), cache=DynamicCache(config=target.config), **kwargs)
    with pytest.warns(FutureWarning, match="past_key_values.* deprecated") as caught:
        output = target.generate(make_prompt(5), past_key_values=DynamicCache(config=target.config), **kwargs)
    assert {warning.filename for warning in caught if warning.category is FutureWarning} == {__file__}
    assert torch.equal(output.sequences, expected.sequences)
    assert output.cache.get_seq_length() == expected.cache.get_seq_length()


@BOTH_WAYS
def test_static_caches(way, pair):
    assert way(*pair, cache_implementation="static").tolist() == way(*pair).tolist()


@BOTH_WAYS
def test_weights_that_are_not_finite(way, pair):
    target, draft = pair
    with torch.no_grad():
        draft.layers[0].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"features are not finite .*check_finite"):
        way(target, draft)
    with pytest.raises(ValueError, match=r"\['layers\.0\.self_attn\.o_proj\.weight'\]"):
        draft.check_finite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tree_depth": 0}, r"`tree_depth` must be at least 1, got 0"),
        ({"tree_top_k": 0}, r"`tree_top_k` must be at least 1, got 0"),
        ({"tree_top_k": VOCAB + 1}, rf"tree_top_k={VOCAB + 1}, vocab_size={VOCAB}"),
        ({"num_draft_tokens": 0}, r"`num_draft_tokens` must be at least 1, got 0"),
        ({"static_tree": [[0], [1, 0]]}, r"the path \[1, 0\] is there, its parent \[1\] is not"),
        ({"static_tree": []}, r"must hold at least one path"),
        ({"static_tree": [[0], [0]]}, r"lists a path twice"),
        ({"static_tree": [[VOCAB]]}, r"ranks must lie in"),
    ],
    ids=str,
)
def test_tree_values_that_contradict_each_other(pair, change, message):
    target, draft = pair
    for name, value in change.items():
        setattr(draft.config, name, value)
    with pytest.raises(ValueError, match=message):
        generate(target, draft)


@pytest.mark.parametrize("number", [0, -3])
def test_num_assistant_tokens_below_one(pair, number):
    target, draft = pair
    with pytest.raises(ValueError, match=rf"`num_assistant_tokens` must be at least 1, got {number}"):
        generate_with_callable(target, draft, custom_generate=jakiro_generate(draft, num_assistant_tokens=number))


class BentLlama(LlamaForCausalLM):
    """Does something of its own between the last hidden state and the logits."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.abs()
        return output


@BOTH_WAYS
def test_heads_of_another_kind(way, pair):
    _, draft = pair
    target = BentLlama(make_target().config).eval()
    enlarge(target)
    with pytest.raises(NotImplementedError, match=r"BentLlama does something between .* report this architecture"):
        way(target, draft)


def test_targets_without_a_head():
    model = make_target().model
    with pytest.raises(ValueError, match=r"LlamaModel has no .* language modeling head.*AutoModelForCausalLM"):
        Target(model)


def test_after_an_error_everything_works(pair):
    """A generation that fails leaves nothing behind that the next one could trip over."""
    target, draft = pair

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    handle = draft.layers[0].mlp.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        generate(target, draft)
    handle.remove()
    compare(target, draft, {"input_ids": make_prompt(9)}, max_new_tokens=12)


def test_half_precision_drafter_of_a_float32_target():
    """The dtypes need not agree: the output is the target's all the same."""
    target = make_target()
    for dtype in (torch.bfloat16, torch.float64):
        compare(target, make_drafter(target).to(dtype), {"input_ids": make_prompt(9)}, max_new_tokens=12)


def test_tied_embeddings():
    config = LlamaConfig(**{**LLAMA_LIKE, **SPECIAL}, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = AutoModelForCausalLM.from_config(config).eval()
    enlarge(target)
    target.generation_config.eos_token_id = None
    assert target.lm_head.weight is target.model.embed_tokens.weight
    compare(target, make_drafter(target), {"input_ids": make_prompt(9)}, max_new_tokens=12)
