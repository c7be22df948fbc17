# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, GPTNeoXConfig, LlamaConfig

from helpers.original_checkpoints import HEADS, HIDDEN, VOCAB, make_original, write_original
from helpers.reference import drafter
from helpers.targets import make_drafter, make_target
from transformers_jakiro.core.configuration_jakiro import JakiroDraftConfig
from transformers_jakiro.core.modeling_jakiro import JakiroDraftModel
from transformers_jakiro.hub.conversion import load_original
from transformers_jakiro.hub.key_map import jakiro_state_dict_to_original

# float32 sums in another order; features and gradients here are of order 1 to 10
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
REFERENCE_VARIANTS = [
    {"variant": "jakiro"},
    {"variant": "jakiro", "num_experts": 4, "fc_bias": False},
    {"variant": "jakiro", "num_experts": 3, "num_layers": 2, "qkv_bias": True},
    {"variant": "star", "num_experts": 2},
    {"variant": "star", "num_experts": 5, "qkv_bias": True},
    {"variant": "eagle", "num_layers": 2},
]


def inputs(batch: int = 2, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, length, HIDDEN, generator=generator) for _ in range(2))


def outputs_to_ask_for(config: JakiroDraftConfig) -> dict[str, bool]:
    return {
        "output_contrastive_hidden_state": config.head_mode == "contrastive",
        "output_expert_hidden_states": config.num_experts > 1,
        "output_router_logits": True,
    }


def features(output) -> dict[str, torch.Tensor]:
    names = ("last_hidden_state", "contrastive_hidden_state", "expert_hidden_states")
    return {name: output[name] for name in names if output.get(name) is not None}


def make_draft(tmp_path, dtype: str = "float32", **kwargs) -> JakiroDraftModel:
    return load_original(write_original(tmp_path / "original", *make_original(**kwargs)), dtype=dtype)


# --- values and gradients ---


@pytest.mark.parametrize("kwargs", REFERENCE_VARIANTS, ids=str)
def test_values_and_gradients_against_the_reference(tmp_path, kwargs):
    tensors, original_config = make_original(**kwargs)
    draft = load_original(write_original(tmp_path, tensors, original_config))
    embeddings, states = inputs(batch=1)
    embeddings.requires_grad_()
    states.requires_grad_()
    output = draft(embeddings, states, **outputs_to_ask_for(draft.config))
    ours = features(output)

    weights = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    their_inputs = [tensor[0].detach().clone().requires_grad_() for tensor in (embeddings, states)]
    expected = drafter(
        weights,
        *their_inputs,
        num_layers=kwargs.get("num_layers", 1),
        num_heads=HEADS,
        num_experts=draft.config.num_experts,
        eps=1e-5,
        theta=5000.0,
    )
    expected = dict(
        zip(("last_hidden_state", "contrastive_hidden_state", "expert_hidden_states"), expected, strict=True)
    )
    expected = {name: value for name, value in expected.items() if value is not None}
    assert ours.keys() == expected.keys()
    generator = torch.Generator().manual_seed(2)
    our_loss = their_loss = 0.0
    for name, value in expected.items():
        torch.testing.assert_close(ours[name].squeeze(-3), value, **TOLERANCE)
        direction = torch.randn(value.shape, generator=generator)
        our_loss = our_loss + (ours[name].squeeze(-3) * direction).sum()
        their_loss = their_loss + (value * direction).sum()
    our_loss.backward()
    their_loss.backward()
    gradients = jakiro_state_dict_to_original({n: p.grad for n, p in draft.named_parameters()}, draft.config)
    pairs = {name: (gradients[name], weight.grad) for name, weight in weights.items()}
    pairs |= {
        "embeddings": (embeddings.grad[0], their_inputs[0].grad),
        "states": (states.grad[0], their_inputs[1].grad),
    }
    for name, (ours, theirs) in pairs.items():
        scale = theirs.abs().max().item()
        assert scale > 1e-3, name
        # rounding errors go with the largest terms of a sum, not with the sum
        torch.testing.assert_close(
            ours, theirs, atol=2e-5 * scale, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_reference_routes_to_different_experts(tmp_path):
    """What makes the comparison above one of routing: every expert is chosen somewhere, as first and as second."""
    draft = make_draft(tmp_path, variant="jakiro", num_experts=4, fc_bias=False)
    logits = draft(*inputs(8), output_router_logits=True).router_logits
    assert logits.shape == (8, 6, 4)
    chosen = logits.topk(2, dim=-1).indices
    assert chosen[..., 0].unique().tolist() == chosen[..., 1].unique().tolist() == [0, 1, 2, 3]


def test_contrast_takes_both_signs(tmp_path):
    draft = make_draft(tmp_path)
    seen = []
    draft.layers[0].mlp.gate.register_forward_hook(lambda module, args, output: seen.append(output[..., 2:]))
    draft(*inputs())
    assert set((seen[0][..., 0] > seen[0][..., 1]).flatten().tolist()) == {True, False}


def test_only_what_is_asked_for_is_computed(tmp_path):
    draft = make_draft(tmp_path)
    plain = draft(*inputs())
    assert list(plain.keys()) == ["last_hidden_state"]
    everything = draft(*inputs(), **outputs_to_ask_for(draft.config))
    torch.testing.assert_close(plain.last_hidden_state, everything.last_hidden_state, **TOLERANCE)
    assert everything.expert_hidden_states.shape == (2, 2, 6, HIDDEN)


# --- attention: implementations, cache, masks, positions ---


@pytest.mark.parametrize("kwargs", REFERENCE_VARIANTS[2:5:2], ids=str)
def test_eager_equals_sdpa(tmp_path, kwargs):
    draft = make_draft(tmp_path, **kwargs)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    results = {}
    for implementation in ("eager", "sdpa"):
        draft.set_attn_implementation(implementation)
        assert draft.config._attn_implementation == implementation
        output = draft(*inputs(), attention_mask=mask, **outputs_to_ask_for(draft.config))
        results[implementation] = features(output)
    for name, value in results["eager"].items():
        kept = mask.bool().expand(value.shape[:-1])  # padding positions see nothing: their values mean nothing
        torch.testing.assert_close(value[kept], results["sdpa"][name][kept], **TOLERANCE)


@pytest.mark.compat
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kwargs", REFERENCE_VARIANTS[2:], ids=str)
def test_decoding_with_a_cache_equals_one_forward(tmp_path, implementation, kwargs):
    draft = make_draft(tmp_path, **kwargs)
    draft = draft.double()  # kernels differ with the number of queries
    draft.set_attn_implementation(implementation)
    embeddings, states = (tensor.double() for tensor in inputs(length=9))
    asked = outputs_to_ask_for(draft.config)
    expected = features(draft(embeddings, states, **asked))
    cache = DynamicCache(config=draft.config)
    parts = []
    for start, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
        output = draft(embeddings[:, start:end], states[:, start:end], cache=cache, **asked)
        assert output.cache is cache
        assert cache.get_seq_length() == end
        parts.append(features(output))
    for name, value in expected.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts], dim=-2), value, **TOLERANCE)


def test_left_padding_changes_nothing(tmp_path):
    draft = make_draft(tmp_path)
    embeddings, states = inputs(batch=1)
    expected = draft(embeddings, states).last_hidden_state
    padded = [torch.cat((torch.randn(1, 3, HIDDEN), tensor), dim=1) for tensor in (embeddings, states)]
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = draft(*padded, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(output.last_hidden_state[:, 3:], expected, **TOLERANCE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_tree_mask_equals_each_path_on_its_own(tmp_path, implementation):
    """Prefix of 3 pairs, then nodes a, b (both after the prefix) and c (after b)."""
    draft = make_draft(tmp_path)
    draft.set_attn_implementation(implementation)
    embeddings, states = inputs(batch=1)
    allowed = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],  # a
            [1, 1, 1, 0, 1, 0],  # b
            [1, 1, 1, 0, 1, 1],  # c
        ]
    ).bool()
    mask = torch.zeros(6, 6).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = torch.tensor([[0, 1, 2, 3, 3, 4]])
    tree = draft(embeddings, states, attention_mask=mask[None, None], position_ids=positions).last_hidden_state[0]
    for path in ([0, 1, 2, 3], [0, 1, 2, 4, 5]):
        alone = draft(embeddings[:, path], states[:, path]).last_hidden_state[0]
        torch.testing.assert_close(tree[path], alone, **TOLERANCE)


# --- saving and loading ---


@pytest.mark.compat
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kwargs", REFERENCE_VARIANTS[1::2], ids=str)
def test_save_and_load(tmp_path, dtype, kwargs):
    draft = make_draft(tmp_path, dtype, **kwargs)
    draft.config.tree_depth, draft.config.static_tree = 3, [[0], [0, 1]]
    draft.save_pretrained(tmp_path / "saved")
    loaded, info = JakiroDraftModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.dtype == getattr(torch, dtype)
    assert loaded.config.to_diff_dict() == draft.config.to_diff_dict() | {"architectures": ["JakiroDraftModel"]}
    state = draft.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded.rotary_emb.inv_freq, draft.rotary_emb.inv_freq)
    embeddings, states = (tensor.to(loaded.dtype) for tensor in inputs())
    output = loaded(embeddings, states).last_hidden_state
    assert output.dtype == loaded.dtype
    assert torch.equal(output, draft(embeddings, states).last_hidden_state)
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {loaded.dtype}


def test_new_drafters_are_finite_and_complete():
    config = JakiroDraftConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, attention_bias=True)
    draft = JakiroDraftModel(config)
    draft.check_finite()
    assert not draft.fc.bias.any()
    assert not draft.layers[0].self_attn.qkv_proj.bias.any()
    assert (draft.layers[0].post_attention_layernorm.weight == 1).all()
    assert 0.5 * config.initializer_range < draft.fc.weight.std() < 2 * config.initializer_range
    with pytest.raises(NotImplementedError, match=r"uses those of its target"):
        draft.get_input_embeddings()
    with pytest.raises(NotImplementedError, match=r"uses those of its target"):
        draft.set_input_embeddings(torch.nn.Embedding(2, 2))


def rewrite(folder, change: dict) -> None:
    tensors = load_file(folder / "model.safetensors") | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["fc.weight", "layers.0.mlp.gate.weight", "layers.0.self_attn.qkv_proj.weight"])
def test_damaged_weights_are_refused(tmp_path, name):
    draft = make_draft(tmp_path)
    folder = tmp_path / "saved"
    weight = draft.state_dict()[name]
    draft.save_pretrained(folder)
    rewrite(folder, {name: None})
    with pytest.raises(ValueError, match=rf"missing \['{name}'\], unexpected none.*jakiro convert"):
        JakiroDraftModel.from_pretrained(folder)
    rewrite(folder, {"more.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=rf"missing \['{name}'\], unexpected \['more.weight'\]"):
        JakiroDraftModel.from_pretrained(folder)
    for value in (torch.nan, torch.inf):
        damaged = weight.clone()
        damaged[0, 0] = value
        rewrite(folder, {name: damaged, "more.weight": None})
        with pytest.raises(ValueError, match=rf"NaN or infinite values in \['{name}'\]"):
            JakiroDraftModel.from_pretrained(folder)
    rewrite(folder, {name: torch.zeros(3, 3)})
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)mismatch"):
        JakiroDraftModel.from_pretrained(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Exception, match=r"(?i)incomplete|safetensor|buffer"):
        JakiroDraftModel.from_pretrained(folder)


def test_original_checkpoint_is_not_loaded_silently(tmp_path):
    tensors, config = make_original()
    folder = write_original(tmp_path, tensors, config | {"model_type": "jakiro_draft"})
    with pytest.raises(ValueError, match="jakiro convert"):
        JakiroDraftModel.from_pretrained(folder)


# --- inputs and config rules ---


def test_the_cache_has_one_name():
    draft = make_drafter(make_target())
    inputs = torch.zeros(1, 3, draft.config.hidden_size)
    with pytest.raises(TypeError, match=r"called `cache`, got `past_key_values`\. Pass `cache=...`"):
        draft(inputs, inputs, past_key_values=DynamicCache())


def test_wrong_inputs(tmp_path):
    draft = make_draft(tmp_path, variant="eagle")
    embeddings, states = inputs()
    with pytest.raises(ValueError, match=r"hidden_size=32, got \(2, 6, 32\) and \(2, 5, 32\)"):
        draft(embeddings, states[:, 1:])
    with pytest.raises(ValueError, match=r"hidden_size=32, got \(2, 6, 3\) and \(2, 6, 3\)"):
        draft(embeddings[..., :3], states[..., :3])
    with pytest.raises(ValueError, match=r"need `head_mode='contrastive'`, this drafter has `head_mode='single'`"):
        draft(embeddings, states, output_contrastive_hidden_state=True)
    with pytest.raises(ValueError, match=r"`output_expert_hidden_states` needs at least two experts"):
        draft(embeddings, states, output_expert_hidden_states=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            ({name: 0}, rf"`{name}` must be at least 1, got 0")
            for name in (
                *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
                *("head_dim", "num_experts", "expert_intermediate_size", "tree_depth", "tree_top_k"),
                "num_draft_tokens",
            )
        ],
        ({"num_key_value_heads": 3}, r"multiple of `num_key_value_heads`, got 4 and 3"),
        ({"head_dim": 7}, r"`head_dim` must be even .* got 7"),
        (
            {"num_experts": 3, "num_experts_per_tok": 3},
            r"with `num_experts=3`, `num_experts_per_tok` must be 2, got 3",
        ),
        ({"num_experts_per_tok": 1}, r"`num_experts_per_tok` must be 2, got 1"),
        ({"num_experts": 1}, r"`head_mode='contrastive'` needs two experts .* got `num_experts=1`"),
        ({"num_experts": 1, "head_mode": "decoupled"}, r"`head_mode='decoupled'` needs two experts"),
        ({"tree_top_k": 49}, r"tree_top_k=49, vocab_size=48"),
        ({"static_tree": []}, r"at least one path and no empty one"),
        ({"static_tree": [[0], []]}, r"at least one path and no empty one"),
        ({"static_tree": [[0], [0]]}, r"lists a path twice"),
        ({"static_tree": [[0], [-1]]}, r"ranks must lie in \[0, vocab_size\), got the path \[-1\]"),
        ({"static_tree": [[48]]}, r"ranks must lie in \[0, vocab_size\), got the path \[48\]"),
        ({"static_tree": [[0], [1, 0]]}, r"the path \[1, 0\] is there, its parent \[1\] is not"),
    ],
    ids=str,
)
def test_config_rules(change, message):
    values = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_attention_heads": HEADS}
    with pytest.raises(ValueError, match=message):
        JakiroDraftConfig(**(values | change))


@pytest.mark.parametrize("change", [{"head_mode": "both"}, {"tree_depth": "7"}, {"static_tree": "mc_sim_7b_63"}])
def test_config_types(change):
    with pytest.raises(Exception, match=rf"(?s){next(iter(change))}") as error:
        JakiroDraftConfig(**change)
    assert type(error.value).__name__ == "StrictDataclassFieldValidationError"


def test_config_defaults_and_changed_values():
    config = JakiroDraftConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS)
    assert (config.num_key_value_heads, config.head_dim, config.expert_intermediate_size) == (HEADS, 8, HIDDEN)
    assert config.num_experts_per_tok == 2
    assert JakiroDraftConfig(num_experts=1, head_mode="single").num_experts_per_tok == 1
    config.tree_top_k = VOCAB + 1
    with pytest.raises(ValueError, match=r"tree_top_k=49, vocab_size=48"):
        config.check_consistency()
    config.tree_top_k, config.static_tree = 1, [[0], [0, 0, 0]]
    with pytest.raises(ValueError, match=r"its parent \[0, 0\] is not"):
        config.check_consistency()


@pytest.mark.compat
def test_config_round_trip(tmp_path):
    config = JakiroDraftConfig(static_tree=[[0], [0, 3]], eos_token_id=[1, 2], rope_parameters=None, num_experts=3)
    config.save_pretrained(tmp_path)
    assert JakiroDraftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "jakiro_draft"


def test_config_from_target(target_config):
    config = JakiroDraftConfig.from_target(target_config, tree_depth=4)
    expected = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "expert_intermediate_size": HIDDEN,
        "rms_norm_eps": target_config.rms_norm_eps,
        "bos_token_id": 5,
        "eos_token_id": [6, 7],
        "pad_token_id": 8,
        "target_name_or_path": None,
        "tree_depth": 4,
        "num_experts": 2,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.rope_parameters["rope_theta"] == target_config.rope_parameters["rope_theta"]
    scaled = LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0})
    assert JakiroDraftConfig.from_target(scaled).rope_parameters == {"rope_type": "default", "rope_theta": 7.0}


def test_config_from_a_target_of_another_family():
    target = GPTNeoXConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, max_position_embeddings=77)
    config = JakiroDraftConfig.from_target(target)
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (HEADS, 8, 77)


def test_autocast_gives_attention_one_dtype():
    """Queries, keys and values of mixed-precision training."""
    draft = make_drafter(make_target()).train()
    seen = []

    def attention(query, key, value, *args, **kwargs):
        seen.append((query.dtype, key.dtype, value.dtype))
        return original(query, key, value, *args, **kwargs)

    original = torch.nn.functional.scaled_dot_product_attention
    states = torch.randn(1, 4, draft.config.hidden_size)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention),
    ):
        draft(inputs_embeds=states, hidden_states=states)
    assert seen == [(torch.bfloat16,) * 3]
