# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What else `generate` takes and gives – processors, criteria, streamers, records, wrappers – as without a drafter."""

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    BloomConfig,
    Cache,
    FalconConfig,
    GenerationMixin,
    GPTNeoConfig,
    Lfm2Config,
    Llama4TextConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    MptConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from helpers.comparing import Fresh, compare
from helpers.knowing import knowing_drafter
from helpers.prompts import make_prompt
from helpers.targets import CACHE, LLAMA_LIKE, SLIDING, SPECIAL, VOCAB, enlarge, make_drafter, make_target
from helpers.trees import leaf_paths
from transformers_jakiro import JakiroCandidateGenerator, JakiroGenerateOutput, jakiro_generate


def plain_tokens(target, ids, **kwargs) -> list[int]:
    output = target.generate(ids, **{"do_sample": False, **kwargs})
    return output[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character."""
    letters = [" ", *(chr(code) for code in range(33, 127))]
    vocab = {"<pad>": 0} | {letter.replace(" ", "Ġ"): index for index, letter in enumerate(letters, start=1)}
    assert len(vocab) == VOCAB
    model = Tokenizer(BPE(vocab=vocab, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", clean_up_tokenization_spaces=False)


# -- logits processors -----------------------------------------------------------------------------------------------


class Recorder(LogitsProcessor):
    """Depends on everything it was ever called with, and in which order."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids[0].tolist())
        favourite = (7 * len(self.calls) + sum(self.calls[-1])) % scores.shape[-1]
        scores = scores.clone()
        scores[:, favourite] += 3.0
        return scores


PROCESSORS = {
    "repetition penalty": {"repetition_penalty": 1.8},
    "no repeated n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[11], [12, 13], [5, 6], [20]]},
    "suppressed": {"suppress_tokens": list(range(3, 40))},
    "prefix constraint": {
        "prefix_allowed_tokens_fn": lambda batch, ids: [(7 * len(ids) + int(ids[-1])) % VOCAB, len(ids) % VOCAB]
    },
    "guidance": {"guidance_scale": 1.7},
    "guidance against a prompt": {"guidance_scale": 2.0, "negative_prompt_ids": make_prompt(4, seed=2)},
    "forced end": {"forced_eos_token_id": 9},
    "sequence bias": {"sequence_bias": [[[14], 4.0], [[21, 22], 9.0]]},
    "decaying length": {"exponential_decay_length_penalty": (4, 1.3), "eos_token_id": 9},
    "recorder": {"logits_processor": Fresh(lambda: LogitsProcessorList([Recorder()]))},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_processors(name, do_sample):
    target = make_target()
    ids = make_prompt(7)
    kwargs = PROCESSORS[name]
    output = compare(
        target,
        make_drafter(target),
        {"input_ids": ids},
        seed=3 if do_sample else None,
        do_sample=do_sample,
        max_new_tokens=16,
        **kwargs,
    )
    if not do_sample:  # it had a say
        assert output.sequences[0, 7:].tolist() != plain_tokens(target, ids, max_new_tokens=16)


@pytest.mark.parametrize("limit", [{"min_new_tokens": 9}, {"min_length": 15}])
def test_least_length(limit):
    target = make_target()
    ids = make_prompt(7)
    tokens = plain_tokens(target, ids, max_new_tokens=16)
    end = {"eos_token_id": [tokens[2], tokens[5]], "max_new_tokens": 16}
    assert len(plain_tokens(target, ids, **end)) < 8
    output = compare(target, make_drafter(target), {"input_ids": ids}, **end, **limit)
    assert output.sequences.shape[1] >= 7 + 8


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("knows", [False, True])
def test_processors_are_called_as_by_plain_generate(do_sample, knows):
    """Once per emitted token, with that token's own prefix, in order."""
    target = make_target()
    ids = make_prompt(7)
    kwargs = {"max_new_tokens": 16, "do_sample": do_sample}
    plain, ours = Recorder(), Recorder()
    torch.manual_seed(0)
    sequences = target.generate(ids, logits_processor=LogitsProcessorList([plain]), **kwargs)
    with knowing_drafter(sequences[0, 7:].tolist() if knows else []):
        torch.manual_seed(0)
        output = target.generate(
            ids,
            assistant_model=make_drafter(target),
            logits_processor=LogitsProcessorList([ours]),
            return_dict_in_generate=True,
            **kwargs,
        )
    assert torch.equal(output.sequences, sequences)
    assert ours.calls == plain.calls
    assert len(plain.calls) == 16
    assert (output.num_accepted_tokens > 4) == knows


# -- stopping criteria -----------------------------------------------------------------------------------------------


class RecordingCriterion(StoppingCriteria):
    """Stops after some calls, and records them."""

    def __init__(self, stop_after: int):
        self.stop_after, self.calls = stop_after, []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls.append((input_ids[0].tolist(), None if scores is None else len(scores)))
        return torch.full((1,), len(self.calls) >= self.stop_after, dtype=torch.bool)


@pytest.mark.parametrize("output_scores", [False, True])
@pytest.mark.parametrize("stop_after", [1, 2, 5, 11, 100])
def test_criteria_are_called_as_by_plain_generate(stop_after, output_scores):
    target = make_target()
    ids = make_prompt(7)
    truth = plain_tokens(target, ids, max_new_tokens=16)
    kwargs = {"max_new_tokens": 16, "do_sample": False, "output_scores": output_scores}
    kwargs["return_dict_in_generate"] = True
    plain, ours = RecordingCriterion(stop_after), RecordingCriterion(stop_after)
    expected = target.generate(ids, stopping_criteria=StoppingCriteriaList([plain]), **kwargs)
    with knowing_drafter(truth, depth=9):
        output = target.generate(
            ids, assistant_model=make_drafter(target), stopping_criteria=StoppingCriteriaList([ours]), **kwargs
        )
    assert torch.equal(output.sequences, expected.sequences)
    assert output.sequences.shape[1] == 7 + min(stop_after, 16)
    assert ours.calls == plain.calls
    assert len(output.accept_lengths[0]) <= min(stop_after, 16) // 2 + 1


@pytest.mark.parametrize("start", [0, 3, 8, 13])
def test_stop_strings(tokenizer, start):
    target = make_target()
    ids = make_prompt(7)
    text = tokenizer.decode(plain_tokens(target, ids, max_new_tokens=20))
    assert len(text) == 20
    stop_string = text[start : start + 3]
    output = compare(
        target,
        make_drafter(target),
        {"input_ids": ids},
        max_new_tokens=20,
        stop_strings=["not there", stop_string],
        tokenizer=tokenizer,
    )
    assert tokenizer.decode(output.sequences[0, 7:]) == text[: text.index(stop_string) + 3]


def test_time_limits():
    """No time at all still gives the first token, as in plain `generate`."""
    target = make_target()
    output = compare(target, make_drafter(target), {"input_ids": make_prompt(7)}, max_new_tokens=9, max_time=0.0)
    assert output.sequences.shape[1] == 8
    output = compare(
        target,
        make_drafter(target),
        {"input_ids": make_prompt(7)},
        max_new_tokens=9,
        stopping_criteria=Fresh(lambda: StoppingCriteriaList([MaxTimeCriteria(3600.0)])),
    )
    assert output.sequences.shape[1] == 16


def test_max_length():
    target = make_target()
    assert compare(target, make_drafter(target), {"input_ids": make_prompt(7)}, max_length=19).sequences.shape[1] == 19


# -- streamers -------------------------------------------------------------------------------------------------------


class RecordingStreamer(BaseStreamer):
    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append((tuple(value.shape), value.device.type, value.tolist()))

    def end(self):
        self.calls.append("end")


class RecordingStepStreamer(RecordingStreamer):
    def __init__(self):
        super().__init__()
        self.steps = []

    def put_step(self, tokens, tree, visited):
        self.steps.append((tokens, tree, visited))


@pytest.mark.compat
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("inputs_embeds", [False, True])
def test_streamers_are_called_as_by_plain_generate(end, inputs_embeds):
    target = make_target()
    ids = make_prompt(7)
    truth = plain_tokens(target, ids, max_new_tokens=16)
    inputs = {"inputs_embeds": target.get_input_embeddings()(ids).detach()} if inputs_embeds else {"input_ids": ids}
    kwargs = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": truth[9] if end else None}
    plain, ours, callable_streamer = RecordingStreamer(), RecordingStreamer(), RecordingStreamer()
    target.generate(**inputs, streamer=plain, **kwargs)
    draft = make_drafter(target)
    with knowing_drafter(truth):
        target.generate(**inputs, streamer=ours, assistant_model=draft, **kwargs)
        target.generate(**inputs, custom_generate=jakiro_generate(draft, streamer=callable_streamer), **kwargs)
    assert ours.calls == plain.calls
    assert plain.calls[-1] == "end"
    assert callable_streamer.calls == plain.calls


def test_text_streamers(tokenizer, capsys):
    target = make_target()
    ids = make_prompt(7)
    kwargs = {"max_new_tokens": 16, "do_sample": False}
    truth = plain_tokens(target, ids, max_new_tokens=16)
    draft = make_drafter(target)
    target.generate(ids, streamer=TextStreamer(tokenizer, skip_prompt=True), **kwargs)
    plain = capsys.readouterr().out
    with knowing_drafter(truth):
        target.generate(ids, streamer=TextStreamer(tokenizer, skip_prompt=True), assistant_model=draft, **kwargs)
    assert capsys.readouterr().out == plain == tokenizer.decode(truth) + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    arguments = {"streamer": streamer, "assistant_model": draft, **kwargs}
    with knowing_drafter(truth):
        thread = threading.Thread(target=target.generate, args=(ids,), kwargs=arguments)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == tokenizer.decode(truth)


def test_step_streamer():
    target = make_target()
    ids = make_prompt(7)
    truth = plain_tokens(target, ids, max_new_tokens=16)
    streamer = RecordingStepStreamer()
    kwargs = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True}
    with knowing_drafter(truth):
        output = target.generate(ids, streamer=streamer, assistant_model=make_drafter(target), **kwargs)
    assert [call if call == "end" else call[0] for call in streamer.calls] == [(1, 7), "end"]
    assert torch.cat([tokens for tokens, _, _ in streamer.steps]).tolist() == truth
    (first, tree, visited), *steps = streamer.steps
    assert (len(first), tree, visited) == (1, None, [])
    assert [len(tokens) - 1 for tokens, _, _ in steps] == output.accept_lengths[0]
    for tokens, tree, visited in steps:
        path = tree.tokens[0, visited].tolist()
        assert path[1:] == tokens.tolist()[: len(path) - 1]
        assert len(tokens) - len(path) in (0, -1) or len(path) == len(tokens)


# -- return_dict_in_generate -----------------------------------------------------------------------------------------


def assert_same(ours, plain, where: str) -> None:
    """Tuples of tuples of tensors, element by element."""
    if isinstance(plain, torch.Tensor):
        assert ours.shape == plain.shape, where
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4, msg=lambda text: f"{where}: {text}")
    elif plain is None:
        assert ours is None, where
    else:
        assert len(ours) == len(plain), where
        for index, (one, other) in enumerate(zip(ours, plain, strict=True)):
            assert_same(one, other, f"{where}[{index}]")


EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}


@pytest.mark.compat
@pytest.mark.parametrize(
    ("architecture", "window"), [("llama", None), ("gpt2", None), ("gemma3", 9), ("mistral", 9), ("gemma2", 40)]
)
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_records(architecture, window, do_sample, padding):
    target = make_target(architecture, window=window, attention="eager")
    ids = make_prompt(12)
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    kwargs = {**EVERYTHING, "attention_mask": mask, "max_new_tokens": 14, "do_sample": do_sample, "top_k": 40}
    kwargs["repetition_penalty"] = 1.1
    torch.manual_seed(0)
    plain = target.generate(ids, **kwargs)
    with knowing_drafter(plain.sequences[0, 12:].tolist()):
        torch.manual_seed(0)
        ours = target.generate(ids, assistant_model=make_drafter(target), **kwargs)
    assert isinstance(ours, JakiroGenerateOutput)
    assert torch.equal(ours.sequences, plain.sequences)
    assert ours.num_accepted_tokens > 4
    for name in ("scores", "logits", "hidden_states", "attentions"):
        assert len(getattr(plain, name)) == 14
        assert_same(getattr(ours, name), getattr(plain, name), name)
    assert ours[CACHE].get_seq_length() == plain[CACHE].get_seq_length() == 12 + 13
    for index, (layer, expected) in enumerate(zip(ours[CACHE].layers, plain[CACHE].layers, strict=True)):
        assert_same((layer.keys, layer.values), (expected.keys, expected.values), f"cache[{index}]")


@pytest.mark.parametrize("flag", ["output_scores", "output_logits", "output_hidden_states"])
def test_records_come_alone(flag):
    target = make_target()
    kwargs = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True, flag: True}
    plain = target.generate(make_prompt(5), **kwargs)
    ours = target.generate(make_prompt(5), assistant_model=make_drafter(target), **kwargs)
    for name in ("scores", "logits", "hidden_states", "attentions"):
        assert_same(getattr(ours, name), getattr(plain, name), name)
        assert (getattr(ours, name) is not None) == (flag == f"output_{name}")


def test_logits_are_recorded_unprocessed():
    """Also if a processor writes into what it is given. (Plain `generate` then records what was written.)"""

    def forbid(input_ids, scores):
        scores[:, ::2] = -torch.inf
        return scores

    target, ids = make_target(), make_prompt(5)
    output = target.generate(
        ids,
        assistant_model=make_drafter(target),
        logits_processor=LogitsProcessorList([forbid]),
        max_new_tokens=9,
        do_sample=False,
        **{**EVERYTHING, "output_attentions": False},
    )
    with torch.no_grad():
        logits = target(output.sequences).logits[0, 4:-1]
    assert_same(torch.cat(output.logits), logits, "logits")
    assert torch.cat(output.scores)[:, ::2].isinf().all()
    assert (output.sequences[0, 5:] % 2 == 1).all()


@pytest.mark.compat
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("assisted", [False, True])
def test_the_returned_cache_continues(architecture, assisted):
    """Two calls with the cache handed on give what one call gives."""
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    draft, ids = make_drafter(target), make_prompt(12)
    truth = plain_tokens(target, ids, max_new_tokens=24)
    with knowing_drafter(truth):
        output = target.generate(
            ids, assistant_model=draft, max_new_tokens=11, do_sample=False, return_dict_in_generate=True
        )
    assistant = {"assistant_model": draft} if assisted else {}
    with knowing_drafter(truth[11:]):
        continued = target.generate(
            output.sequences, **{CACHE: output[CACHE]}, max_new_tokens=13, do_sample=False, **assistant
        )
    assert continued[0, 12:].tolist() == truth


@pytest.mark.compat
@pytest.mark.skipif(not hasattr(Cache, "is_croppable"), reason="caches say what can be cropped since 5.17")
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "seed": 3}])
def test_convolutions_are_rolled_back(sampling):
    """LFM2 remembers its last few tokens in a window that transformers can roll back: chains, also after a reply."""
    target = make_convolutional()
    draft, ids = make_drafter(target), make_prompt(7)
    with pytest.warns(UserWarning, match="LinearAttentionLayer"):
        output = compare(target, draft, {"input_ids": ids}, max_new_tokens=24, **sampling)
    assert max(output.accept_lengths[0]) > 1
    recorded = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    target.set_attn_implementation("eager")
    plain, ours = (
        target.generate(ids, max_new_tokens=8, do_sample=False, **recorded, **assistant)
        for assistant in ({}, {"assistant_model": draft})
    )
    for ours_of_token, plain_of_token in zip(ours.attentions, plain.attentions, strict=True):
        torch.testing.assert_close(ours_of_token, plain_of_token, atol=1e-4, rtol=1e-4)
    more = {"max_new_tokens": 9, "do_sample": False}
    expected = target.generate(output.sequences, **more)
    assert torch.equal(target.generate(output.sequences, **{CACHE: output[CACHE]}, **more), expected)


@pytest.mark.compat
@pytest.mark.skipif(hasattr(Cache, "is_croppable"), reason="caches say what can be cropped since 5.17")
def test_convolutions_are_refused():
    target = make_convolutional()
    with pytest.raises(NotImplementedError, match=r"LinearAttentionLayer.*cannot drop .*Leave out `assistant_model`"):
        target.generate(make_prompt(7), assistant_model=make_drafter(target), max_new_tokens=4)


def make_convolutional() -> PreTrainedModel:
    torch.manual_seed(0)
    layers = ["conv", "full_attention", "conv", "full_attention"]
    config = Lfm2Config(**{**LLAMA_LIKE, "num_hidden_layers": 4}, **SPECIAL, layer_types=layers)
    target = AutoModelForCausalLM.from_config(config).eval()
    for parameter in target.parameters():  # else its logits hardly depend on the text
        parameter.data.mul_(3)
    return target


@pytest.mark.compat
def test_experts_are_optimized_for_decoding_after_the_prefill():
    """As in plain `generate`: the prompt's forward outside of that context, all others inside."""
    target, inside, forwards = make_target("mixtral"), [False], []
    original, forward = target._optimize_model_for_decode, target.forward

    @contextmanager
    def optimize():
        with original():
            inside[0] = True
            try:
                yield
            finally:
                inside[0] = False

    def record(*args, **kwargs):
        forwards.append(inside[0])
        return forward(*args, **kwargs)

    for assistant in ({}, {"assistant_model": make_drafter(target)}):
        forwards.clear()
        with (
            mock.patch.object(target, "_optimize_model_for_decode", optimize),
            mock.patch.object(target, "forward", record),
        ):
            target.generate(make_prompt(5), max_new_tokens=6, do_sample=False, **assistant)
        assert forwards == [False] + [True] * (len(forwards) - 1)
        assert len(forwards) > 1


def test_ids_alone_without_return_dict():
    target = make_target()
    output = target.generate(make_prompt(5), assistant_model=make_drafter(target), max_new_tokens=6, do_sample=False)
    assert isinstance(output, torch.Tensor)
    assert output.tolist() == target.generate(make_prompt(5), max_new_tokens=6, do_sample=False).tolist()


# -- how many tokens are drafted -------------------------------------------------------------------------------------


def drafted_per_step(target, draft, **kwargs) -> set[int]:
    """Sizes of the trees that the length limit does not cut."""
    with knowing_drafter([]) as trees:
        output = target.generate(
            make_prompt(5),
            assistant_model=draft,
            do_sample=False,
            return_dict_in_generate=True,
            **{"max_new_tokens": 12, **kwargs},
        )
    sizes = [tree.num_nodes - 1 for tree in trees]
    assert output.num_drafted_tokens == sum(sizes)
    return set(sizes[: -draft.config.tree_depth - 1])


@pytest.mark.parametrize("number", [1, 3, 20, 37])
def test_num_assistant_tokens(number):
    target = make_target()
    draft = make_drafter(target, num_draft_tokens=14)
    assert drafted_per_step(target, draft) == {14}
    assert drafted_per_step(target, draft, num_assistant_tokens=number) == {number}
    config = copy.deepcopy(target.generation_config)
    config.num_assistant_tokens = number
    assert drafted_per_step(target, draft, generation_config=config) == {number}
    assert drafted_per_step(target, draft) == {14}


def test_num_assistant_tokens_of_the_targets_generation_config():
    target = copy.deepcopy(make_target())
    draft = make_drafter(target, num_draft_tokens=14)
    target.generation_config.num_assistant_tokens = 20
    assert drafted_per_step(target, draft) == {20}
    assert drafted_per_step(target, draft, num_assistant_tokens=6) == {6}


def test_num_assistant_tokens_of_the_callable():
    target = make_target()
    draft = make_drafter(target, num_draft_tokens=14)
    for number, expected in ((None, {14}), (20, {20})):
        with knowing_drafter([]) as trees:
            target.generate(
                make_prompt(5),
                custom_generate=jakiro_generate(draft, num_assistant_tokens=number),
                do_sample=False,
                max_new_tokens=12,
            )
        assert {tree.num_nodes - 1 for tree in trees[:-6]} == expected


def test_config_values_can_be_changed_on_the_drafter():
    target = make_target()
    draft = make_drafter(target, num_draft_tokens=14)
    draft.config.num_draft_tokens, draft.config.tree_top_k = 9, 2
    assert drafted_per_step(target, draft) == {9}
    draft.config.tree_depth, draft.config.num_draft_tokens = 2, 1000
    assert drafted_per_step(target, draft) == {2 + 4}
    compare(target, draft, {"input_ids": make_prompt(5)}, max_new_tokens=12)


def test_a_drafter_that_nobody_believes_costs_no_tokens():
    target = make_target()
    truth = plain_tokens(target, make_prompt(5), max_new_tokens=10)
    wrong = [(token + 1) % VOCAB for token in truth]
    with knowing_drafter(wrong, keep_drafted=False):
        output = target.generate(
            make_prompt(5),
            assistant_model=make_drafter(target),
            max_new_tokens=10,
            do_sample=False,
            return_dict_in_generate=True,
        )
    assert output.sequences[0, 5:].tolist() == truth


# -- other ways in ---------------------------------------------------------------------------------------------------


@pytest.mark.compat
@pytest.mark.parametrize("do_sample", [False, True])
def test_custom_generate(do_sample):
    target = make_target()
    draft = make_drafter(target)
    kwargs = {**EVERYTHING, "max_new_tokens": 14, "do_sample": do_sample, "output_attentions": False}
    outputs = []
    truth = []
    for way in ({}, {"assistant_model": draft}, {"custom_generate": jakiro_generate(draft)}):
        torch.manual_seed(0)
        with knowing_drafter(truth):
            outputs.append(target.generate(make_prompt(9), **way, **kwargs))
        truth = outputs[0].sequences[0, 9:].tolist()
    plain, hook, way = outputs
    assert torch.equal(plain.sequences, way.sequences)
    assert way.accept_lengths == hook.accept_lengths
    assert way.num_accepted_tokens > 4
    assert_same(way.scores, plain.scores, "scores")
    assert_same(way.hidden_states, plain.hidden_states, "hidden_states")


def test_two_threads():
    """State is per call: two generations at once with the same models give what each gives alone."""
    target = make_target()
    drafters = make_drafter(target)
    prompts = [make_prompt(length, seed) for length, seed in ((5, 1), (40, 2), (9, 3), (64, 4), (17, 5), (2, 6))]

    def run(ids):
        return target.generate(
            ids, assistant_model=drafters, max_new_tokens=24, do_sample=False, return_dict_in_generate=True
        )

    alone = [run(ids) for ids in prompts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, prompts))
    for ids, one, other in zip(prompts, alone, together, strict=True):
        assert torch.equal(one.sequences, other.sequences)
        assert one.accept_lengths == other.accept_lengths
        assert other.sequences[0, ids.shape[1] :].tolist() == plain_tokens(target, ids, max_new_tokens=24)


def lora(model, **kwargs):
    """A PEFT model with an adapter that changes what the model does."""
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **kwargs))
    return model.eval()


@pytest.mark.compat
@pytest.mark.parametrize("window", [None, 9])
def test_peft_target(window):
    base = make_target("mistral", window=window)
    target = lora(base, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"])
    assert plain_tokens(target, make_prompt(9), max_new_tokens=16) != plain_tokens(
        base, make_prompt(9), max_new_tokens=16
    )
    compare(target, make_drafter(base), {"input_ids": make_prompt(9)}, max_new_tokens=16)


@pytest.mark.compat
def test_peft_drafter():
    target = make_target()
    base = make_drafter(target)
    draft = lora(base, target_modules=["qkv_proj", "o_proj", "fc"])
    compare(target, draft, {"input_ids": make_prompt(9)}, max_new_tokens=16)
    tokens = []
    for assistant in (base, draft):
        with knowing_drafter([]) as trees:
            target.generate(make_prompt(9), assistant_model=assistant, max_new_tokens=8)
        tokens.append([tree.tokens.tolist() for tree in trees])
    assert tokens[0] != tokens[1]  # the adapter was not left out


def test_peft_target_and_drafter_sampling():
    base = make_target()
    target = lora(base, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    draft = lora(make_drafter(base), target_modules=["qkv_proj"])
    compare(target, draft, {"input_ids": make_prompt(9)}, seed=2, do_sample=True, max_new_tokens=16)


# -- chains ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def opaque_attention():
    """An attention implementation that trees are not trusted to; it computes what sdpa does."""
    AttentionInterface.register("opaque", sdpa_attention_forward)
    AttentionMaskInterface.register("opaque", sdpa_mask)
    yield "opaque"
    AttentionInterface._global_mapping.pop("opaque")
    AttentionMaskInterface._global_mapping.pop("opaque")


@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
@pytest.mark.parametrize(("architecture", "window"), [("llama", None), ("mistral", 9), ("gemma3", 9), ("gpt2", None)])
def test_chain_fallback(opaque_attention, architecture, window):
    target = copy.deepcopy(make_target(architecture, window=window))
    target.set_attn_implementation(opaque_attention)
    draft = make_drafter(target)
    ids = make_prompt(12)
    with pytest.warns(UserWarning, match="proposes chains") as warned:
        target.generate(ids, assistant_model=draft, max_new_tokens=2, do_sample=False)
    assert [warning.filename for warning in warned] == [__file__]
    for inputs in ({"input_ids": make_prompt(1)}, {"input_ids": ids}):
        compare(target, draft, inputs, max_new_tokens=16)
        compare(target, draft, inputs, max_new_tokens=16, seed=1, do_sample=True, top_p=0.9)
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    compare(target, draft, {"input_ids": ids, "attention_mask": mask}, max_new_tokens=16)
    with knowing_drafter([]) as trees:
        target.generate(ids, assistant_model=draft, max_new_tokens=16)
    assert all(leaf_paths(tree) == [list(range(tree.num_nodes))] for tree in trees)
    assert max(tree.num_nodes for tree in trees) > 2


def test_chain_fallback_says_why_once(opaque_attention):
    target = copy.deepcopy(make_target())
    target.set_attn_implementation(opaque_attention)
    with pytest.warns(UserWarning, match=r"chains instead of trees for LlamaForCausalLM: .*'opaque'") as caught:
        target.generate(make_prompt(5), assistant_model=make_drafter(target), max_new_tokens=12)
    assert sum("chains instead of trees" in str(warning.message) for warning in caught) == 1


@pytest.mark.compat
def test_no_warning_without_a_reason():
    target = make_target()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.generate(make_prompt(5), assistant_model=make_drafter(target), max_new_tokens=12, do_sample=False)


@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
def test_chunked_attention_gets_chains():
    values = {**LLAMA_LIKE, **SPECIAL, "num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8}
    config = Llama4TextConfig(**values, attention_chunk_size=8, num_experts_per_tok=1)
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(config).eval()
    enlarge(target)
    target.generation_config.eos_token_id = None
    with pytest.warns(UserWarning, match=r"chains .* layers of the kinds \['chunked_attention'\]"):
        compare(target, make_drafter(target), {"input_ids": make_prompt(5)}, max_new_tokens=16)


COUNTING_KEYS = {
    "bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **SPECIAL),
    "falcon": FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, **SPECIAL
    ),
    "mpt": MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, **SPECIAL),
    "gpt neo": GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        **SPECIAL,
    ),
}


@pytest.mark.filterwarnings("ignore:The drafter proposes chains")
@pytest.mark.parametrize("name", COUNTING_KEYS)
def test_attention_that_counts_keys_gets_chains(name):
    """Biases and windows by the order of the keys, not by position, would be wrong in a tree."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = AutoModelForCausalLM.from_config(COUNTING_KEYS[name]).eval()
    enlarge(target)
    target.generation_config.eos_token_id = None
    target.generation_config.pad_token_id = 0
    mask = torch.ones(1, 12, dtype=torch.long)
    for padding in (0, 4):
        mask[:, :padding] = 0
        inputs = {"input_ids": make_prompt(12), "attention_mask": mask}
        with pytest.warns(UserWarning, match=r"chains .* follows? the order of the tokens in memory"):
            compare(target, make_drafter(target), inputs, max_new_tokens=14, use_cache=True, logits=True)


@pytest.mark.compat
@pytest.mark.parametrize("max_length", [32, None])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_transformers_own_assisted_loop(architecture, max_length):
    """`get_candidates` speaks the protocol of transformers' candidate generators."""
    target = make_target(architecture, window=9 if architecture in SLIDING else None)
    draft, ids = make_drafter(target), make_prompt(12)
    kwargs = {"max_new_tokens": 20, "do_sample": False}
    truth = plain_tokens(target, ids, **kwargs)
    for known, most_forwards in ((truth, 10), ([], 20)):
        with knowing_drafter(known) as trees:
            generator = JakiroCandidateGenerator(draft, target, max_length=max_length)
        with (
            mock.patch.object(GenerationMixin, "_get_candidate_generator", return_value=generator),
            mock.patch.object(target, "forward", wraps=target.forward) as forward,
        ):
            output = target.generate(ids, prompt_lookup_num_tokens=3, **kwargs)
        assert output[0, 12:].tolist() == truth
        assert len(trees) >= 2
        assert forward.call_count <= most_forwards


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_finished_process_keeps_giving_forwards_to_the_others(monkeypatch, attention):
    """With `synced_gpus` every process runs one forward per iteration until all have finished."""
    target = make_target("llama", attention=attention)
    draft = make_drafter(target)
    ids = make_prompt(6)
    alone = target.generate(
        ids, do_sample=False, max_new_tokens=5, assistant_model=draft, return_dict_in_generate=True
    )
    forwards, iterations_of_others = [], 4

    def others_still_generate(model, finished, synced_gpus, device):
        nonlocal iterations_of_others
        assert synced_gpus
        if finished:
            iterations_of_others -= 1
        return not finished or iterations_of_others >= 0

    monkeypatch.setattr("transformers_jakiro.core.compat.has_unfinished_sequences", others_still_generate)
    handle = target.register_forward_hook(lambda *_: forwards.append(1))
    try:
        together = target.generate(
            ids,
            do_sample=False,
            max_new_tokens=5,
            assistant_model=draft,
            return_dict_in_generate=True,
            synced_gpus=True,
        )
    finally:
        handle.remove()
    assert torch.equal(together.sequences, alone.sequences)
    assert together.accept_lengths == alone.accept_lengths
    assert together[CACHE].get_seq_length() == alone[CACHE].get_seq_length()
    assert len(forwards) == 1 + len(alone.accept_lengths[0]) + 4
