# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import gzip
import json
import random
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
)

import transformers_jakiro
from helpers.targets import HIDDEN, VOCAB, enlarge, make_drafter, make_target
from transformers_jakiro.conversations import read_conversations
from transformers_jakiro.core.target import Target, check_packing
from transformers_jakiro.training.data import JakiroDataCollator, prepare_dataset
from transformers_jakiro.training.losses import contrastive_parallel_loss
from transformers_jakiro.training.objective import DraftingObjective
from transformers_jakiro.training.packing import PackedDataset, best_fit_decreasing, pack_rows
from transformers_jakiro.training.tokenization import check_tokenizer, tokenize_conversation

MARKED = (
    "bos {% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} end{% endgeneration %}{% else %}{{ m['content'] }} end{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# thoughts of earlier answers are taken out, as reasoning models do
REWRITING = PLAIN.replace(
    "{{ m['content'] }} end{% else %}", "{% if loop.last %}think {% endif %}{{ m['content'] }} end{% else %}"
)
WORDS = ["pad", "bos", "eos", "end", "user", "assistant", "system", "think", *"abcdefgh"]


@pytest.fixture
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="pad"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="pad", bos_token="bos", eos_token="eos", chat_template=MARKED
    )


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": content} for i, content in enumerate(contents)]


def counting(tokenizer, row) -> str:
    """The tokens of a row, those that count in capitals."""
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    return " ".join(word.upper() if count else word for word, count in zip(words, row["loss_mask"], strict=True))


MULTI_TURN = "bos user a b end assistant C D END user e end assistant F END"


# -- one conversation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["markers", "prefixes"])
def test_every_turn_of_the_assistant_counts(tokenizer, template):
    tokenizer.chat_template = template
    conversation = turns("a b", "c d", "e", "f")
    assert counting(tokenizer, tokenize_conversation(tokenizer, conversation)) == MULTI_TURN
    system = [{"role": "system", "content": "h", "tool_calls": None}, *conversation]
    expected = MULTI_TURN.replace("bos", "bos system h end")
    assert counting(tokenizer, tokenize_conversation(tokenizer, system)) == expected
    cut = tokenize_conversation(tokenizer, conversation, max_length=7)
    assert counting(tokenizer, cut) == "bos user a b end assistant C"
    answers = tokenize_conversation(tokenizer, conversation, num_prompt_messages=3)
    assert counting(tokenizer, answers) == "bos user a b end assistant c d end user e end assistant F END"


def test_template_without_generation_prompt(tokenizer):
    """Then the assistant's header counts, too: nothing tells it from the answer."""
    tokenizer.chat_template = PLAIN.partition("{% if add_generation_prompt")[0]
    row = tokenize_conversation(tokenizer, turns("a", "b", "c", "d"))
    assert counting(tokenizer, row) == "bos user a end ASSISTANT B END user c end ASSISTANT D END"


def test_token_that_straddles_the_border():
    """A generation prompt whose end merges with the first letter of the answer."""
    vocabulary = {token: i for i, token in enumerate([*"uc:xyz\n", ":x", "\n\n"])}
    backend = Tokenizer(models.BPE(vocabulary, [(":", "x"), ("\n", "\n")]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template="{% for m in messages %}{{ m['role'][0].replace('a', 'c') + ':' + m['content'] }}"
        "{{ '\\n\\n' if m['role'] == 'user' else '\\n' }}{% endfor %}{% if add_generation_prompt %}c:{% endif %}",
    )
    row = tokenize_conversation(tokenizer, turns("y", "x", "y", "z"))
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens == ["u", ":", "y", "\n\n", "c", ":x", "\n", "u", ":", "y", "\n\n", "c", ":", "z", "\n"]
    assert row["loss_mask"] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]


def test_conversations_that_cannot_be_masked(tokenizer):
    with pytest.raises(ValueError, match=r"without a turn of the assistant.*\['user'\]"):
        tokenize_conversation(tokenizer, turns("a"))
    with pytest.raises(ValueError, match=r"without a turn of the assistant.*first 2 are the prompt"):
        tokenize_conversation(tokenizer, turns("a", "b"), num_prompt_messages=2)
    tokenizer.chat_template = REWRITING
    assert tokenize_conversation(tokenizer, turns("a", "b"))["loss_mask"][-3:] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"renders the beginning of a conversation differently.*\{% generation %\}"):
        tokenize_conversation(tokenizer, turns("a", "b", "c", "d"))
    tokenizer.chat_template = PLAIN
    with pytest.raises(ValueError, match=r"begins with the assistant"):
        tokenize_conversation(tokenizer, turns("a", "b")[1:])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template"):
        tokenize_conversation(tokenizer, turns("a", "b"))


def test_prefixes_find_what_markers_mark():
    folder = Path(transformers_jakiro.__file__).parent / "pair" / "target"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversation = turns("How much is 2 + 3?", "2 + 3 = <<2+3=5>>5.\n#### 5", "And 1 + 1?", "#### 2")
    marked = tokenize_conversation(tokenizer, conversation)
    assert 10 < sum(marked["loss_mask"]) < len(marked["loss_mask"]) - 10
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert tokenize_conversation(tokenizer, conversation) == marked


# -- formats ---------------------------------------------------------------------------------------------------------

SHAREGPT = [
    {"from": "gpt", "value": "g"},
    {"from": "human", "value": "a b"},
    {"from": "gpt", "value": "c d"},
    {"from": "human", "value": "e"},
    {"from": "gpt", "value": "f"},
]
FORMATS = {
    "messages": ({"messages": turns("a b", "c d", "e", "f"), "source": "x"}, MULTI_TURN),
    "sharegpt": ({"conversations": SHAREGPT, "id": 7}, MULTI_TURN),
    "prompt and completion messages": (
        {"prompt": turns("a b"), "completion": turns("a b", "c d", "e", "f")[1:]},
        MULTI_TURN,
    ),
    "prompt and completion": ({"prompt": "a b", "completion": " c d"}, "a b C D EOS"),
    "text": ({"text": "a b c"}, "A B C EOS"),
    "ended text": ({"text": "a b eos"}, "A B EOS"),
    "loss_mask": ({"input_ids": [8, 9, 10], "loss_mask": [0, 1, 1]}, "a B C"),
    "assistant_masks": ({"input_ids": [8, 9, 10], "assistant_masks": [0, 1, 1]}, "a B C"),
    "two masks": (
        {"input_ids": [8, 9, 10, 11], "assistant_masks": [1, 1, 1, 0], "completion_mask": [0, 1, 1, 1]},
        "a B C d",
    ),
    "labels": ({"input_ids": [8, 9, 10], "labels": [-100, 9, 10]}, "a B C"),
    "padded": ({"input_ids": [0, 8, 9, 10], "labels": [-100, -100, 9, 10], "attention_mask": [0, 1, 1, 1]}, "a B C"),
}


@pytest.mark.parametrize("kind", ["list", "torch", "dataset", "stream"])
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, kind, tokenizer):
    row, expected = FORMATS[name]
    dataset = [row, row]
    if kind == "torch":
        dataset = TorchDataset(dataset)
    elif kind != "list":
        dataset = pytest.importorskip("datasets").Dataset.from_list(dataset)
    if kind == "stream":
        dataset = dataset.to_iterable_dataset()
    prepared = prepare_dataset(dataset, tokenizer, max_length=32)
    assert type(prepared) is type(dataset) or (kind == "torch" and type(prepared) is list)
    rows = list(prepared)
    if kind == "torch" and name == "loss_mask":
        assert prepared is dataset
    else:
        assert all(row.keys() == {"input_ids", "loss_mask"} for row in rows)
    assert [counting(tokenizer, row) for row in rows] == [expected, expected]


class TorchDataset(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index >= len(self.rows):
            raise IndexError(index)
        return self.rows[index]


def test_rows_of_a_feature_store_pass_untouched():
    rows = [{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "hidden_states": torch.rand(3, 4)}]
    assert prepare_dataset(rows, None, max_length=2) is rows


def test_datasets_that_are_none(tokenizer):
    def prepare(dataset, tokenizer=tokenizer, **kwargs):
        return prepare_dataset(dataset, tokenizer, **{"max_length": 8, **kwargs})

    class Stream(IterableDataset):
        def __iter__(self):
            yield {"text": "a b c"}

    with pytest.raises(ValueError, match=r"no known format: \['answer', 'question'\]. Expected `messages` or"):
        prepare([{"question": "a", "answer": "b"}])
    with pytest.raises(ValueError, match=r"no known format: \['input_ids'\]"):
        prepare([{"input_ids": [1, 2, 3]}])
    with pytest.raises(ValueError, match=r"is empty"):
        prepare([])
    with pytest.raises(ValueError, match=r"needs the target's tokenizer"):
        prepare([{"text": "a b c"}], None)
    with pytest.raises(ValueError, match=r"both be strings or both be lists of turns, got list and str"):
        prepare([{"prompt": turns("a"), "completion": "b"}])
    with pytest.raises(ValueError, match=r"is from 'robot', expected one of"):
        prepare([{"conversations": [{"from": "robot", "value": "a"}]}])
    with pytest.raises(ValueError, match=r"of one length, got .*'loss_mask': 2"):
        prepare([{"input_ids": [1, 2, 3], "loss_mask": [0, 1]}])
    with pytest.raises(ValueError, match=r"needs a `max_length`"):
        prepare([{"text": "a b c"}], max_length=None, packing=True)
    with pytest.raises(TypeError, match=r"several by name: \['test', 'train'\]"):
        prepare({"train": [], "test": []})
    with pytest.raises(TypeError, match=r"got generator"):
        prepare(row for row in ())
    with pytest.raises(TypeError, match=r"type Stream must hold rows"):
        prepare(Stream())


def test_foreign_token_ids(tokenizer):
    row = {"input_ids": [1, 2, len(WORDS)], "loss_mask": [0, 1, 1]}
    with pytest.raises(ValueError, match=rf"token ids 1 to {len(WORDS)}, the vocabulary has {len(WORDS)} "):
        prepare_dataset([row], tokenizer, max_length=8)
    assert prepare_dataset([row], None, max_length=8) == [row]
    assert prepare_dataset([row], tokenizer, max_length=8, vocab_size=len(WORDS) + 1) == [row]
    with pytest.raises(ValueError, match=r"token ids -1 to 2, the vocabulary"):
        prepare_dataset([{**row, "input_ids": [1, 2, -1]}], tokenizer, max_length=8)


@pytest.mark.parametrize("kind", ["list", "dataset"])
@pytest.mark.parametrize("packing", [False, True])
def test_prompts_may_count(kind, packing, tokenizer):
    dataset = [{"input_ids": [8, 9, 10, 11], "loss_mask": [0, 0, 1, 1]}]
    wrap = pytest.importorskip("datasets").Dataset.from_list if kind == "dataset" else list
    (row,) = prepare_dataset(wrap(dataset), tokenizer, max_length=4, packing=packing, assistant_only_loss=False)
    assert (row["input_ids"], row["loss_mask"]) == ([8, 9, 10, 11], [1, 1, 1, 1])
    chat = [{"prompt": "a b", "completion": "c"}]
    (row,) = prepare_dataset(wrap(chat), tokenizer, max_length=9, assistant_only_loss=False)
    assert row["loss_mask"] == [1] * len(row["input_ids"])


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_rows_that_cannot_count_are_dropped(kind, tokenizer):
    masks = [[0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    dataset = [{"input_ids": [8, 9, 10, 11, 12], "loss_mask": mask} for mask in masks]
    wrap = pytest.importorskip("datasets").Dataset.from_list if kind == "dataset" else list
    with pytest.warns(UserWarning, match=r"Dropped 3 of 5 rows: they have no token .*`max_length=4`") as caught:
        rows = prepare_dataset(wrap(dataset), tokenizer, max_length=4)
    assert len(caught) == 1
    assert [row["loss_mask"] for row in rows] == [[0, 0, 1, 1], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"None of 3 rows can be trained on"):
        prepare_dataset(wrap(dataset[1:4]), tokenizer, max_length=4)
    # in a packed row each sample has a first and a last token
    packed = {"input_ids": [8, 9, 10, 11], "position_ids": [0, 1, 0, 1], "loss_mask": [1, 1, 1, 1]}
    with pytest.raises(ValueError, match=r"None of 1 rows"):
        prepare_dataset(wrap([packed]), tokenizer, max_length=4)


# -- streaming -------------------------------------------------------------------------------------------------------


def test_streams_are_read_lazily(tokenizer):
    datasets = pytest.importorskip("datasets")
    read = []

    def generate():
        for i in range(100):
            read.append(i)
            yield {"text": "a b c" if i else "a", "other": i}

    stream = prepare_dataset(datasets.IterableDataset.from_generator(generate), tokenizer, max_length=8)
    assert len(read) <= 1
    rows = iter(stream)
    with pytest.warns(UserWarning, match=r"Dropped 1 of 2 rows"):
        first = next(rows)
    assert counting(tokenizer, first) == "A B C EOS"
    assert len(read) < 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(rows)) == 98
    batch = next(iter(DataLoader(stream, batch_size=4, collate_fn=JakiroDataCollator(pad_token_id=0))))
    assert batch["input_ids"].shape == (4, 4)


def test_stream_of_nothing_is_an_error(tokenizer):
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(lambda: ({"text": "a"} for _ in range(100_000)))
    with pytest.raises(ValueError, match=r"None of 1000 rows can be trained on"):
        next(iter(prepare_dataset(stream, tokenizer, max_length=8)))


def test_streams_are_packed_over_a_buffer(tokenizer):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": " ".join("abcdefg"[: 2 + i % 5])} for i in range(10)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    packed = list(prepare_dataset(stream, tokenizer, max_length=10, packing=True, packing_buffer_size=5))
    # 3, 4, 5, 6 and 7 tokens, twice
    assert [len(row["input_ids"]) for row in packed] == [10, 10, 5] * 2
    assert packed[0]["position_ids"] == [*range(3), *range(7)]
    assert packed[:3] == packed[3:]


# -- packing ---------------------------------------------------------------------------------------------------------


def test_best_fit_decreasing():
    assert best_fit_decreasing([3, 9, 5, 1, 2], 10) == [[0, 2, 4], [1, 3]]
    assert best_fit_decreasing([4], 4) == [[0]]
    with pytest.raises(ValueError, match=r"sample of 5 tokens cannot be packed into rows of `max_length=4`"):
        best_fit_decreasing([2, 5], 4)
    lengths = [random.Random(0).randint(1, 64) for _ in range(500)]
    groups = best_fit_decreasing(lengths, 64)
    assert sorted(index for group in groups for index in group) == list(range(500))
    assert all(sum(lengths[i] for i in group) <= 64 for group in groups)

    def slow(lengths, max_length):
        groups = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            spaces = [(max_length - sum(lengths[i] for i in group), n) for n, group in enumerate(groups)]
            fitting = [entry for entry in spaces if entry[0] >= lengths[index]]
            (groups[min(fitting)[1]] if fitting else groups).append(index if fitting else [index])
        return sorted(map(sorted, groups))

    assert groups == slow(lengths, 64)


@pytest.mark.parametrize("kind", ["list", "dataset", "torch"])
def test_packing_joins_whole_samples(kind, tokenizer):
    rows = [{"input_ids": list(range(8, 8 + n)), "loss_mask": [0] + [1] * (n - 1)} for n in (3, 7, 4, 8, 5)]
    dataset = TorchDataset(rows) if kind == "torch" else rows
    if kind == "dataset":
        dataset = pytest.importorskip("datasets").Dataset.from_list(rows)
    packed = prepare_dataset(dataset, tokenizer, max_length=10, packing=True)
    assert isinstance(packed, PackedDataset)
    assert packed.groups == [[0, 1], [2, 4], [3]]
    assert list(packed) == [pack_rows([rows[0], rows[1]]), pack_rows([rows[2], rows[4]]), pack_rows([rows[3]])]
    assert packed[0]["position_ids"] == [*range(3), *range(7)]
    assert packed[0]["loss_mask"] == [0, 1, 1, 0, *[1] * 6]


def test_stored_features_are_packed_with_their_samples():
    rows = [
        {"input_ids": [5] * n, "loss_mask": [1] * n, "hidden_states": torch.full((n, 4), float(n))} for n in (2, 3)
    ]
    (packed,) = prepare_dataset(rows, None, max_length=6, packing=True)
    assert packed["hidden_states"][:, 0].tolist() == [2.0, 2.0, 3.0, 3.0, 3.0]


def test_datasets_that_know_their_lengths_are_not_read():
    class Sized(TorchDataset):
        lengths = [2, 3, 3]

    assert PackedDataset(Sized([None] * 3), max_length=6).groups == [[0], [1, 2]]


@pytest.fixture(params=["eager", "sdpa"])
def samples_and_models(request):
    """Samples as one batch each of padded and of packed rows, and where in the latter the tokens of the former are."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in (7, 2, 11, 5, 9, 4):
        input_ids = torch.randint(VOCAB, (length,), generator=generator).tolist()
        # the first and the last token count, too: across a border they must not
        samples.append({"input_ids": input_ids, "loss_mask": [1] * length})
    collator = JakiroDataCollator(pad_token_id=0)
    packed_rows = PackedDataset(samples, max_length=20)
    assert sorted(len(group) for group in packed_rows.groups) == [2, 4]
    index = torch.zeros(len(samples), 11, 2, dtype=torch.long)
    for row, group in enumerate(packed_rows.groups):
        start = 0
        for sample in group:
            length = len(samples[sample]["input_ids"])
            index[sample, :length, 0] = row
            index[sample, :length, 1] = torch.arange(start, start + length)
            start += length
    separate, packed = collator(samples), collator(list(packed_rows))
    assert torch.equal(packed["input_ids"][index.unbind(-1)] * separate["attention_mask"], separate["input_ids"])
    model = make_target("llama", attention=request.param)
    drafter = make_drafter(model)
    drafter.set_attn_implementation(request.param)
    return separate, packed, index, Target(model), drafter


@torch.no_grad()
def test_packed_features_are_those_of_separate_samples(samples_and_models):
    separate, packed, index, target, drafter = samples_and_models
    alone = target.features(separate["input_ids"], attention_mask=separate["attention_mask"])
    joined = target.features(packed["input_ids"], position_ids=packed["position_ids"])
    is_token = separate["attention_mask"].bool()
    torch.testing.assert_close(joined[index.unbind(-1)][is_token], alone[is_token], atol=1e-5, rtol=1e-5)

    def draft(batch, features, **kwargs):
        embeddings = target.embed(batch["input_ids"])[:, 1:]
        outputs = drafter(embeddings, features[:, :-1], output_contrastive_hidden_state=True, **kwargs)
        return torch.cat((outputs.last_hidden_state, outputs.contrastive_hidden_state), dim=-1)

    alone = draft(separate, alone, attention_mask=separate["attention_mask"][:, 1:])
    joined = draft(packed, joined, position_ids=packed["position_ids"][:, :-1])
    is_pair = is_token[:, 1:]  # the pair at t takes the token at t + 1
    rows, columns = index[:, :-1][is_pair].unbind(-1)
    assert joined.shape[-1] == 2 * HIDDEN
    torch.testing.assert_close(joined[rows, columns], alone[is_pair], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_losses_are_those_of_separate_samples(samples_and_models):
    separate, packed, index, target, drafter = samples_and_models
    objective = DraftingObjective()

    def check(chosen):  # bool, like the masks of the separate samples
        packed_mask = torch.zeros_like(packed["loss_mask"])
        packed_mask[index[chosen].unbind(-1)] = 1
        loss, metrics = objective(drafter, target, {**separate, "loss_mask": chosen.long()})
        packed_loss, packed_metrics = objective(drafter, target, {**packed, "loss_mask": packed_mask})
        torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=1e-5)
        assert packed_metrics.keys() == metrics.keys()
        for name, (total, count) in metrics.items():
            packed_total, packed_count = packed_metrics[name]
            assert packed_count == count, name
            torch.testing.assert_close(packed_total / count, total / count, atol=1e-5, rtol=1e-5)
        return packed_mask

    counted = separate["loss_mask"].bool()
    assert counted.sum() == 38 - 6
    assert torch.equal(check(counted), packed["loss_mask"])
    # one token after the other; the first ones have no contrastive prediction, the sum above counts them
    counted[:, 0] = False
    for sample, position in counted.nonzero().tolist():
        one = torch.zeros_like(counted)
        one[sample, position] = True
        check(one)


def tiny(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    enlarge(model)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "starcoder2", "gemma3", "deepseek_v3"])
def test_targets_that_keep_samples_apart(architecture):
    check_packing(Target(make_target(architecture)))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), "takes no `position_ids`|does not keep"),
        (MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4), "takes no|does not keep"),
    ],
    ids=["bloom", "mamba"],
)
def test_targets_that_leak(config, problem):
    with pytest.raises(
        NotImplementedError, match=rf"{type(config).__name__[:-6]}ForCausalLM.*({problem}).*packing=False"
    ):
        check_packing(Target(tiny(config)))


# -- the tokenizer ---------------------------------------------------------------------------------------------------


def config(**overrides):
    return LlamaConfig(**{"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2, **overrides})


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"vocab_size": len(WORDS) + 48},  # padded
        {"eos_token_id": [3, 2]},
        {"bos_token_id": None, "eos_token_id": None},
    ],
    ids=["equal", "padded", "two end tokens", "none known"],
)
def test_tokenizer_of_the_target(overrides, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokenizer(tokenizer, config(**overrides))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"vocab_size": len(WORDS) - 1}, rf"has {len(WORDS)} tokens, the target's vocabulary {len(WORDS) - 1}"),
        ({"bos_token_id": 3, "eos_token_id": [4]}, r"`bos_token_id` is 1, the target's 3, `eos_token_id` is 2"),
        ({"bos_token_id": None, "eos_token_id": 3}, r"not the target's tokenizer: its `eos_token_id` is 2"),
    ],
)
def test_tokenizer_of_another_target(overrides, problem, tokenizer):
    with pytest.raises(ValueError, match=problem):
        check_tokenizer(tokenizer, config(**overrides))


def test_tokenizer_with_added_tokens(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_tokenizer(tokenizer, config())  # text cannot hold it
    tokenizer.pad_token = "<image>"
    with pytest.raises(ValueError, match=rf"`pad_token_id` is {len(WORDS)}, outside"):
        check_tokenizer(tokenizer, config())
    tokenizer.pad_token = "pad"
    tokenizer.add_tokens(["i"])
    with pytest.raises(ValueError, match=r"tokens, the target's vocabulary"):
        check_tokenizer(tokenizer, config())


def test_chat_version_with_another_end_token(tokenizer):
    with pytest.warns(UserWarning, match=r"Its `eos_token_id` is 2, the target's 3"):
        check_tokenizer(tokenizer, config(eos_token_id=3))


# -- the collator ----------------------------------------------------------------------------------------------------


def test_collator_pads_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}, {"input_ids": [8, 9], "loss_mask": [1, 1]}]
    batch = JakiroDataCollator(pad_token_id=9)(rows)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "loss_mask": [[0, 1, 0], [1, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
    }
    assert all(values.dtype == torch.long for values in batch.values())
    batch = JakiroDataCollator(pad_token_id=0, pad_to_multiple_of=4)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    tensors = [{name: torch.tensor(values) for name, values in row.items()} for row in rows]
    assert torch.equal(JakiroDataCollator(pad_token_id=9)(tensors)["input_ids"], torch.tensor([[5, 6, 7], [8, 9, 9]]))


def test_collator_makes_padding_of_packed_rows_a_sample_of_its_own():
    batch = JakiroDataCollator(pad_token_id=9, pad_to_multiple_of=4)(
        [
            {"input_ids": [5, 6, 7, 8, 8], "loss_mask": [0, 1, 1, 1, 1], "position_ids": [0, 1, 2, 0, 1]},
            {"input_ids": [5, 6], "loss_mask": [1, 1], "position_ids": [0, 1]},
        ]
    )
    assert batch.keys() == {"input_ids", "loss_mask", "position_ids"}
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch["loss_mask"].tolist() == [[0, 1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def test_collator_pads_features_with_zeros():
    rows = [
        {"input_ids": [5] * n, "loss_mask": [1] * n, "hidden_states": torch.ones(n, 4, dtype=torch.bfloat16)}
        for n in (3, 2)
    ]
    features = JakiroDataCollator(pad_token_id=0)(rows)["hidden_states"]
    assert features.dtype == torch.bfloat16
    assert features[..., 0].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    "rows",
    [
        [{"input_ids": [5], "labels": [5]}],
        [{"input_ids": [5], "loss_mask": [1], "position_ids": [0]}, {"input_ids": [5], "loss_mask": [1]}],
        [{"input_ids": [5], "loss_mask": [1]}, {"input_ids": [5], "loss_mask": [1], "position_ids": [0]}],
    ],
    ids=["no mask", "first packed", "second packed"],
)
def test_collator_refuses_other_rows(rows):
    with pytest.raises(
        ValueError, match=r"must hold `input_ids` and `loss_mask`, and either all or none of them `position_ids`"
    ):
        JakiroDataCollator(pad_token_id=0)(rows)


def test_empty_mask_is_an_error():
    batch = JakiroDataCollator(pad_token_id=0)([{"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 0, 1]}])
    features = torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match=r"selects no position"):
        contrastive_parallel_loss([features], [None], features, batch["loss_mask"], lambda x: x)


def test_read_conversations(tmp_path):
    rows = [{"prompt": f"ä {n}"} for n in range(4)]
    text = "\n\n".join(json.dumps(row) for row in rows) + "\n"
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert read_conversations(tmp_path / name) == rows
        assert read_conversations(str(tmp_path / name), limit=2) == rows[:2]


def test_read_conversations_with_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{n}"} for n in range(4)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert list(read_conversations(tmp_path / "a.parquet")) == rows
    assert list(read_conversations(tmp_path / "a.parquet", limit=3)) == rows[:3]
    assert list(read_conversations(tmp_path, limit=9)) == rows


def test_read_conversations_errors(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: .*must be one JSON object"):
        read_conversations(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: got list"):
        read_conversations(tmp_path / "a.jsonl")
    for missing in ("none.jsonl", "none.jsonl.gz", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match=r"none.* does not exist"):
            read_conversations(missing)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OSError, match=r"org/data needs the `datasets` package"):
        read_conversations("org/data")
