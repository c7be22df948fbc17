# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
EAGLE-3 drafters (arXiv 2503.01840) of tiny checkpoints in the layouts that are published, against the formulas written
out with loops over positions, under the original names.
"""

import json
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers.generation.utils import GenerateDecoderOnlyOutput

from helpers.comparing import check_output
from helpers.drafting import LoneDrafter
from helpers.eagle3_checkpoints import (
    DEFAULT_LAYERS,
    EPS,
    HEADS,
    INNER,
    NUM_LAYERS,
    THETA,
    feature_layers,
    make_eagle3,
)
from helpers.original_checkpoints import write_original
from helpers.prompts import make_prompt
from helpers.reference import attention, expert, rms_norm
from helpers.targets import HIDDEN, SPECIAL, VOCAB, make_target
from helpers.trees import token_paths
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.core.draft_cache import DraftCache
from transformers_jakiro.core.target import Target
from transformers_jakiro.hub.conversion import convert_original, load_original
from transformers_jakiro.hub.key_map import jakiro_state_dict_to_original
from transformers_jakiro.training.arguments import JakiroTrainingArguments
from transformers_jakiro.training.initialization import new_drafter, upcycle
from transformers_jakiro.training.trainer import JakiroTrainer

TREE = {"tree_depth": 3, "tree_top_k": 3, "tree_width": 2, "num_draft_tokens": 9, "tree_temperature": 1.0}

CHECKPOINTS = {
    "safeailab": {},
    "safeailab, all tokens": {"num_drafted": VOCAB},
    "safeailab, pickled": {"weights": "pytorch_model.bin"},
    "safeailab, narrower than its target": {"hidden": 24},
    "specforge": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 6], "use_aux_hidden_state": True}},
    "specforge, eagle 3.1": {"fc_norm": True, "norm_output": True},
    "no head": {"head": False},
    "prefixed": {"prefix": "model."},
    "speculators": {"speculators": True},
    "speculators, residual normed": {"speculators": True, "norm_before_residual": True},
    "speculators, one norm before fc": {"speculators": True, "norm_before_fc": True, "layers": [1, 3, 4, 6]},
    "speculators, two layers": {"speculators": True, "num_layers": 2, "attention_bias": True, "layers": [0, 2, 7]},
}


def load(folder, target, **options):
    tensors, config = make_eagle3(**options)
    path = write_original(folder / "original", tensors, config, options.get("weights", "model.safetensors"))
    draft = load_original(path, target=target)
    for name, value in TREE.items():
        setattr(draft.config, name, value)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}, draft


class Reference:
    """A checkpoint's formulas, for a text and what the target gave for all but its last token."""

    def __init__(self, tensors: dict, target, ids: torch.LongTensor, options: dict):
        self.weights, self.target, self.ids, self.options = tensors, target, ids[0].tolist(), options
        with torch.no_grad():
            states = target(ids, output_hidden_states=True).hidden_states
        self.states = [torch.cat([states[i][0, t] for i in feature_layers(options)]) for t in range(ids.shape[1] - 1)]

    def norm(self, vector: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(vector, self.weights[name + ".weight"], EPS)

    def fuse(self, state: torch.Tensor) -> torch.Tensor:
        """Low, middle and high hidden states to one feature."""
        if self.options.get("norm_before_fc"):
            state = self.norm(state, "input_norm")
        if self.options.get("fc_norm"):
            parts = state.chunk(len(feature_layers(self.options)))
            state = torch.cat([self.norm(part, f"fc_norm.{i}") for i, part in enumerate(parts)])
        return self.weights["fc.weight"] @ state

    def embed(self, token: int) -> torch.Tensor:
        if "embed_tokens.weight" in self.weights:
            return self.weights["embed_tokens.weight"][token]
        return self.target.get_input_embeddings().weight[token].detach()

    def hidden_states(self, tokens: list[int], features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of pairs of a token and the feature before it."""
        prefix = "layers.0." if self.options.get("speculators") else "midlayer."
        normed = [self.norm(feature, prefix + "hidden_norm") for feature in features]
        inputs = [
            torch.cat((self.norm(self.embed(token), prefix + "input_layernorm"), feature))
            for token, feature in zip(tokens, normed, strict=True)
        ]
        residuals = normed if self.options.get("norm_before_residual") else features
        for index in range(self.options.get("num_layers", 1)):
            prefix = prefix if index == 0 else f"layers.{index}."
            if index > 0:
                inputs = [self.norm(state, prefix + "input_layernorm") for state in residuals]
            attended = attention(self.weights, prefix + "self_attn.", inputs, HEADS, THETA)
            residuals = [residual + output for residual, output in zip(residuals, attended, strict=True)]
            residuals = [
                r + expert(self.weights, prefix + "mlp.", self.norm(r, prefix + "post_attention_layernorm"))
                for r in residuals
            ]
        return residuals

    def logits(self, path: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features of the text's pairs and the path's, one forward per token, and the logits after the last."""
        features = [self.fuse(state) for state in self.states]
        for length in range(len(path) + 1):
            tokens = [*self.ids[1:], *path[:length]]
            outputs = self.hidden_states(tokens, features)
            hidden = outputs[-1]
            normed = self.norm(hidden, "norm")
            features = [*features, normed if self.options.get("norm_output") else hidden]
        if "lm_head.weight" in self.weights:
            return features, self.weights["lm_head.weight"] @ normed
        logits = self.target.get_output_embeddings().weight.detach() @ normed
        return features, logits[self.token_ids]

    @property
    def token_ids(self) -> list[int]:
        if "t2d" not in self.weights:
            return list(range(VOCAB))
        return [token for token in range(VOCAB) if self.weights["t2d"][token]]

    def tree(self) -> set[tuple[int, ...]]:
        candidates, frontier = [], [(0.0, ())]
        for _ in range(TREE["tree_depth"]):
            grown = []
            for score, path in frontier:
                best = self.logits(path)[1].log_softmax(dim=-1).topk(TREE["tree_top_k"])
                for value, index in zip(*best, strict=True):
                    grown.append((score + value.item(), (*path, self.token_ids[index])))
            candidates += grown
            frontier = sorted(grown, key=lambda node: -node[0])[: TREE["tree_width"]]
        return {path for _, path in sorted(candidates, key=lambda node: -node[0])[: TREE["num_draft_tokens"]]}


# -- the drafter is that of the checkpoint ---------------------------------------------------------------------------


@pytest.mark.compat
@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_features_and_trees(name, tmp_path):
    """The text's features, those of a path that the drafter goes by itself, the logits, and whole trees."""
    options, target, ids = CHECKPOINTS[name], make_target(num_layers=NUM_LAYERS), make_prompt(9)
    tensors, draft = load(tmp_path, target, **options)
    reference = Reference(tensors, target, ids, options)
    seen = Target.of(target, draft)
    seen.check_fits(draft.config)
    path = (reference.token_ids[3], reference.token_ids[11], reference.token_ids[7])
    expected, expected_logits = reference.logits(path)

    read = seen.features(ids)[:, :-1]
    cache = DraftCache(draft.config.num_hidden_layers)
    features = [draft(seen.embed(ids[:, 1:]), read, cache=cache).last_hidden_state[:, -1:]]
    for token in path:  # reads what the drafter itself said
        embedding = seen.embed(torch.tensor([[token]]))
        features.append(draft(embedding, features[-1], cache=cache).last_hidden_state)
    got = torch.cat(features, dim=1)[0]
    tolerance = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(got, torch.stack(expected[len(reference.states) :]), **tolerance)
    torch.testing.assert_close(draft.draft_head(seen)(got[-1]), expected_logits, **tolerance)

    drafter = LoneDrafter(draft, target)
    drafter.observe(read, ids[:, :-1])
    assert token_paths(drafter.propose(ids[:, -1])) == reference.tree()


def answer(do_sample: bool, draft: JakiroDraftModel | None = None) -> GenerateDecoderOnlyOutput:
    prompt = make_prompt(11)
    options = {"do_sample": True, "temperature": 0.9} if do_sample else {"do_sample": False}
    torch.manual_seed(0)
    return make_target(num_layers=NUM_LAYERS).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        return_dict_in_generate=True,
        assistant_model=draft,
        **options,
    )


plain_answer = cache(answer)


@pytest.mark.compat
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_generation_is_lossless(name, tmp_path):
    target = make_target(num_layers=NUM_LAYERS)
    _, draft = load(tmp_path, target, **CHECKPOINTS[name])
    for do_sample in (False, True):
        plain, ours = plain_answer(do_sample), answer(do_sample, draft)
        check_output(plain, ours, plain.sequences[:, 11:].tolist())
        assert ours.num_drafted_tokens > 0


@pytest.mark.compat
@pytest.mark.parametrize("name", ["safeailab", "speculators"])
def test_batches(name, tmp_path):
    """Rows of different lengths, padded on the left."""
    target = make_target(num_layers=NUM_LAYERS)
    _, draft = load(tmp_path, target, **CHECKPOINTS[name])
    prompts = make_prompt(11).repeat(2, 1)
    mask = torch.ones_like(prompts)
    mask[1, :4] = prompts[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False}
    plain = target.generate(prompts, **options)
    assert torch.equal(target.generate(prompts, assistant_model=draft, **options), plain)


def test_what_it_learned_is_accepted(tmp_path):
    """A drafter that learned one answer by heart, from the target's own features, drafts it."""
    target, prompt = make_target(num_layers=NUM_LAYERS), make_prompt(11)
    options = {"do_sample": False, "max_new_tokens": 24, "attention_mask": torch.ones_like(prompt)}
    text = target.generate(prompt, **options)
    _, draft = load(tmp_path, target, num_drafted=VOCAB)
    seen = Target.of(target, draft)
    features, embeddings = seen.features(text)[:, :-2], seen.embed(text[:, 1:-1]).detach()
    optimizer = torch.optim.Adam(draft.parameters(), lr=1e-2)
    for _ in range(30):
        logits = draft.draft_head(seen)(draft(embeddings, features).last_hidden_state)
        loss = F.cross_entropy(logits[0], text[0, 2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = target.generate(prompt, **options, assistant_model=draft, return_dict_in_generate=True)
    assert torch.equal(output.sequences, text)
    assert output.num_accepted_tokens >= 8


# -- what is read off a checkpoint -----------------------------------------------------------------------------------


def test_config(tmp_path):
    target = make_target(num_layers=NUM_LAYERS)
    _, draft = load(tmp_path, target, **CHECKPOINTS["speculators, residual normed"])
    expected = {
        "fusion": "eagle3",
        "fusion_norm": None,
        "residual_norm": True,
        "final_norm": False,
        "feature_layers": DEFAULT_LAYERS,
        "target_hidden_size": None,
        "own_head": True,
        "own_embeddings": True,
        "vocab_size": VOCAB,
        "draft_vocab_size": 40,
        "hidden_size": HIDDEN,
        "num_experts": 1,
        "head_mode": "single",
        "expert_intermediate_size": INNER,
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        **{name: SPECIAL[name] for name in ("bos_token_id", "pad_token_id")},
    }
    assert {name: getattr(draft.config, name) for name in expected} == expected


def test_target_of_speculators(tmp_path):
    tensors, config = make_eagle3(**CHECKPOINTS["speculators, two layers"])
    draft = load_original(write_original(tmp_path, tensors, config))
    assert draft.config.target_name_or_path == "org/target"


@pytest.mark.parametrize("kind", ["model", "folder"])
def test_embeddings_of_the_target_are_not_kept(kind, tmp_path):
    target = make_target(num_layers=NUM_LAYERS)
    tensors, config = make_eagle3(speculators=True)
    tensors["embed_tokens.weight"] = target.get_input_embeddings().weight.detach().to(torch.bfloat16)
    tensors = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in tensors.items()}
    path = write_original(tmp_path / "draft", tensors, config)
    if kind == "folder":
        target.save_pretrained(tmp_path / "target")
        target = tmp_path / "target"
    draft = load_original(path, target=target)
    assert not draft.config.own_embeddings
    assert draft.embed_tokens is None
    other = load_original(path, target=make_target(num_layers=NUM_LAYERS).config)  # nothing to compare with
    assert other.config.own_embeddings


@pytest.mark.compat
@pytest.mark.parametrize("name", ["safeailab", "safeailab, narrower than its target", "speculators", "no head"])
def test_converted_folder(name, tmp_path):
    target = make_target(num_layers=NUM_LAYERS)
    _, draft = load(tmp_path, target, **CHECKPOINTS[name])
    path = convert_original(tmp_path / "original", tmp_path / "converted", target=target)
    again = JakiroDraftModel.from_pretrained(path)
    assert again.config.fusion == "eagle3"
    state = again.state_dict()
    assert state.keys() == draft.state_dict().keys() == load_file(path / "model.safetensors").keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in draft.state_dict().items())


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"draft_vocab_size": 41}, r"`draft_vocab_size=41`, but its `lm_head.weight` has 40 rows"),
        ({}, {"d2t": None}, r"`d2t` must tell which 40 of the target's 96 tokens it drafts.*it is missing"),
        ({}, {"d2t": torch.zeros(40)}, r"it is torch.float32 of shape \(40,\)"),
        ({}, {"d2t": torch.zeros(40, dtype=torch.long)}, r"`d2t` and `t2d` contradict each other"),
        ({}, {"d2t": torch.full((40,), 70)}, r"increasing tokens below 96, got 70 to 109"),
        ({}, {"t2d": torch.ones(95, dtype=torch.bool)}, r"`d2t` and `t2d` contradict each other"),
        (
            {"num_drafted": VOCAB},
            {"d2t": torch.ones(VOCAB, dtype=torch.long)},
            r"all tokens of the target, but its `d2t`",
        ),
        ({}, {"midlayer.hidden_norm.weight": None}, r"`layers.0.hidden_norm.weight` \(32,\) is missing"),
        ({}, {"layers.0.hidden_norm.weight": torch.ones(32)}, r"both under `midlayer` and `layers.0`"),
        ({}, {"midlayer.self_attn.q_norm.weight": torch.ones(8)}, r"q_norm.weight` \(8,\) is unexpected"),
        ({}, {"mask_hidden": torch.ones(1, 96)}, r"`mask_hidden` \(1, 96\) is unexpected"),
        ({}, {"fc.weight": torch.ones(32, 64)}, r"reads 3 of the target's layers .*fuses 2 hidden states"),
        ({}, {"fc.weight": torch.ones(32, 97)}, r"\(32, 97\), expected a multiple of the target's hidden size, 32"),
        ({}, {"fc_norm": True}, r"`fc_norm.0.weight` is missing, but its config.json says `fc_norm=true`"),
        ({}, {"norm_before_fc": 1}, r"`norm_before_fc=1`, expected true or false"),
        ({}, {"norm_output": "yes"}, r"`norm_output='yes'`, expected true or false"),
        ({}, {"target_hidden_size": 64}, r"\(32, 96\), expected a multiple of the target's hidden size, 64"),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5]}},
            {"target_hidden_size": 16, "eagle_aux_hidden_state_layer_ids": [1, 2, 3, 4]},
            r"`hidden_size=16`, the target 32|needs `own_head`",
        ),
        ({}, {"eagle_config": 3}, r"`eagle_config=3`, expected an object"),
        ({}, {"eagle_config": {"use_aux_hidden_state": False}}, r"Such EAGLE-3 drafters are not supported"),
        ({}, {"eagle_aux_hidden_state_layer_ids": [1, "2", 3]}, r"expected a list of integers"),
        ({}, {"eagle_aux_hidden_state_layer_ids": [3, 2, 1]}, r"`feature_layers` must be increasing"),
        ({}, {"partial_rotary_factor": 0.5}, r"`partial_rotary_factor`"),
        ({"hidden": 24}, {"embed_tokens.weight": None}, r"needs `own_head` and `own_embeddings`"),
        ({"speculators": True}, {"speculators_model_type": "peagle"}, r"`speculators_model_type='peagle'`, expected"),
        ({"speculators": True}, {"layer_types": ["sliding_attention"]}, r"expected a list of 'full_attention' alone"),
        ({"speculators": True}, {"transformer_layer_config": []}, r"`transformer_layer_config=\[\]`, expected an obj"),
    ],
)
def test_wrong_checkpoints(options, change, message, tmp_path):
    tensors, config = make_eagle3(**options)
    for name, value in change.items():
        where = tensors if name in tensors or isinstance(value, torch.Tensor) else config
        if value is None:
            del where[name]
        else:
            where[name] = value
    path = write_original(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=message):
        load_original(path, target=make_target(num_layers=NUM_LAYERS).config)


def test_what_it_reads_must_be_known(tmp_path):
    path = write_original(tmp_path, *make_eagle3())
    with pytest.raises(ValueError, match=r"depends on the target's number of layers\. Give `target`"):
        load_original(path)
    with pytest.raises(ValueError, match=r"`feature_layers` must be increasing"):  # 2, 1, -1
        load_original(path, target=make_target().config)
    layers = {"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}
    _, config = make_eagle3()
    (path / "config.json").write_text(json.dumps(config | layers))
    target, prompt = make_target(num_layers=NUM_LAYERS), make_prompt(5)
    with pytest.raises(ValueError, match=r"has 8 layers: 0 to 7 are to be had"):
        target.generate(prompt, assistant_model=load_original(path, target=target), max_new_tokens=4)


def test_neither_trained_nor_written_back(tmp_path):
    target = make_target(num_layers=NUM_LAYERS)
    _, draft = load(tmp_path, target)
    with pytest.raises(ValueError, match=r"An EAGLE-3 drafter is not written back. It is not trained here"):
        jakiro_state_dict_to_original(draft.state_dict(), draft.config)
    for train in (
        lambda: new_drafter(target, fusion="eagle3", feature_layers=[1]),
        lambda: upcycle(draft, draft.config),
        lambda: JakiroTrainer(draft, target, JakiroTrainingArguments(output_dir=tmp_path, report_to="none")),
    ):
        with pytest.raises(ValueError, match=r"EAGLE-3 drafters .* can be used, not trained"):
            train()


def test_prompts_as_embeddings(tmp_path):
    """A drafter with its own embeddings cannot read those of the target."""
    target, prompt = make_target(num_layers=NUM_LAYERS), make_prompt(5)
    _, draft = load(tmp_path, target, speculators=True)
    inputs = {"inputs_embeds": target.get_input_embeddings()(prompt).detach()}
    with pytest.raises(NotImplementedError, match=r"cannot read a prompt given as `inputs_embeds`"):
        target.generate(**inputs, assistant_model=draft, max_new_tokens=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fusion": "eagle3"}, r"fuses hidden states of `feature_layers`, got None"),
        ({"fusion": "eagle3", "feature_layers": [1], "feature_multiplier": 2.0}, r"takes no multipliers"),
        ({"fusion": "eagle3", "feature_layers": [1], "target_hidden_size": 64}, r"only if it is as wide"),
        ({"own_head": True}, r'`own_head=True` needs `fusion="eagle3"`, got "linear"'),
        ({"fusion_norm": "all"}, r"`fusion_norm='all'` needs"),
    ],
)
def test_contradicting_fields(values, message):
    with pytest.raises(ValueError, match=message):
        JakiroDraftConfig(**values)
