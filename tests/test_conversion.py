# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import transformers_jakiro
from helpers.original_checkpoints import HIDDEN, INNER, VOCAB, make_original, write_original
from transformers_jakiro import JakiroDraftConfig
from transformers_jakiro.core.modeling_jakiro import JakiroDraftModel
from transformers_jakiro.hub import conversion
from transformers_jakiro.hub.conversion import convert_original, export_original, load_original
from transformers_jakiro.hub.key_map import jakiro_state_dict_to_original, original_state_dict_to_jakiro
from transformers_jakiro.hub.reading import WEIGHTS_FILES

# the largest difference of float32 sums taken in another order; features are of order 1
TOLERANCE = {"atol": 1e-5, "rtol": 0}
VARIANTS = [
    {"variant": "jakiro"},
    {"variant": "jakiro", "num_experts": 4, "fc_bias": False},
    {"variant": "jakiro", "num_layers": 2, "qkv_bias": True},
    {"variant": "star", "num_experts": 3, "qkv_bias": True},
    {"variant": "eagle"},
    {"variant": "eagle", "num_layers": 2, "fc_bias": False},
]
LAYER = "layers.0."
STAR = {"head_mode": "decoupled", "gated_experts": False, "hidden_act": "gelu"}


def fused(tensors, *names, dim=0):
    return torch.cat([tensors[LAYER + name + ".weight"] for name in names], dim=dim)


# --- parity with the published implementation ---


@pytest.mark.parametrize("name", ["jakiro_a", "jakiro_b"])
def test_golden_features(golden, golden_original, name):
    draft = load_original(golden_original(name))
    step = load_file(golden / name / "train_step.safetensors")
    embeddings = load_file(golden / name / "target.safetensors")["model.embed_tokens.weight"]
    # index t takes x_{t+1} and f_t; after the last token the published code puts token 0, whose embedding is zero here
    assert not embeddings[0].any()
    next_ids = torch.nn.functional.pad(step["ids"][:, 1:], (0, 1), value=0)
    with torch.no_grad():
        output = draft(embeddings[next_ids], step["hidden_states"], output_contrastive_hidden_state=True)
    torch.testing.assert_close(output.last_hidden_state, step["pred_autoregressive"], **TOLERANCE)
    torch.testing.assert_close(output.contrastive_hidden_state, step["pred_contrastive"], **TOLERANCE)


def test_golden_star_features(golden, golden_original):
    draft = load_original(golden_original("jakiro_star_a"))
    embeddings = load_file(golden / "jakiro_star_a" / "draft_original.safetensors")["embed_tokens.weight"]
    expected = load_file(golden / "jakiro_star_a" / "features.safetensors")
    with torch.no_grad():
        output = draft(embeddings[expected["input_ids"]], expected["hidden_states"], output_expert_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, expected["trained_feature"], **TOLERANCE)
    torch.testing.assert_close(output.expert_hidden_states, expected["expert_features"], **TOLERANCE)


@pytest.mark.parametrize("name", ["jakiro_a", "jakiro_b", "jakiro_star_a"])
def test_golden_round_trip(golden, golden_original, name):
    draft = load_original(golden_original(name))
    original = load_file(golden / name / "draft_original.safetensors")
    original.pop("embed_tokens.weight", None)
    back = jakiro_state_dict_to_original(draft.state_dict(), draft.config)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


# --- what is inferred ---


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_architecture_is_inferred(tmp_path, kwargs):
    tensors, config = make_original(**kwargs)
    draft = load_original(write_original(tmp_path, tensors, config))
    variant = kwargs["variant"]
    expected = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": kwargs.get("num_layers", 1),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "gelu" if variant == "star" else "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "max_position_embeddings": 256,
        "attention_bias": kwargs.get("qkv_bias", False),
        "fusion_bias": kwargs.get("fc_bias", True),
        "num_experts": 1 if variant == "eagle" else kwargs.get("num_experts", 2),
        "num_experts_per_tok": 1 if variant == "eagle" else 2,
        "expert_intermediate_size": INNER,
        "gated_experts": variant != "star",
        "head_mode": {"jakiro": "contrastive", "star": "decoupled", "eagle": "single"}[variant],
        "target_name_or_path": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "static_tree": None,
    }
    assert {name: getattr(draft.config, name) for name in expected} == expected
    assert not draft.training
    assert draft.dtype == torch.float32


def test_only_num_attention_heads_eps_and_vocabulary_are_needed(tmp_path, target_config):
    tensors, _ = make_original("eagle")
    folder = write_original(tmp_path, tensors, {"num_attention_heads": 4, "rms_norm_eps": 1e-6})
    draft = load_original(folder, target=target_config)
    assert draft.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert draft.config.max_position_embeddings == 2048
    assert draft.config.num_key_value_heads == 2
    with pytest.raises(ValueError, match=r"lacks `vocab_size`: give `target`"):
        load_original(folder)


def test_rope_scaling_and_static_tree(tmp_path):
    tensors, config = make_original()
    config |= {"rope_scaling": {"type": "linear", "factor": 4.0}, "static_tree": [[0], [1], [0, 0]]}
    draft = load_original(write_original(tmp_path, tensors, config))
    assert draft.config.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    assert draft.config.static_tree == [[0], [1], [0, 0]]
    plain = load_original(write_original(tmp_path / "plain", *make_original()))
    torch.testing.assert_close(draft.rotary_emb.inv_freq * 4, plain.rotary_emb.inv_freq)


@pytest.mark.parametrize("kind", ["model", "config", "path"])
def test_target_gives_vocabulary_tokens_and_name(tmp_path, target_config, kind):
    folder = tmp_path / "a-target"
    target_config.save_pretrained(folder)
    target = folder
    if kind != "path":
        LlamaForCausalLM(target_config).save_pretrained(folder)
        target = LlamaForCausalLM.from_pretrained(folder)
        target = target.config if kind == "config" else target
    tensors, config = make_original()
    del config["vocab_size"]
    draft = load_original(write_original(tmp_path / "draft", tensors, config), target=target)
    assert draft.config.vocab_size == VOCAB
    assert (draft.config.bos_token_id, draft.config.eos_token_id, draft.config.pad_token_id) == (5, [6, 7], 8)
    assert draft.config.target_name_or_path == str(folder)


# --- the key map ---


def test_fused_layout():
    tensors, _ = make_original(num_experts=3)
    config = JakiroDraftConfig(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=3,
        expert_intermediate_size=INNER,
        vocab_size=VOCAB,
    )
    ours = original_state_dict_to_jakiro(tensors, config)
    assert ours.keys() == JakiroDraftModel(config).state_dict().keys()
    experts = [f"mlp_moe.experts.{expert}" for expert in range(3)]
    expected = {
        "self_attn.qkv_proj": fused(tensors, *(f"self_attn.{x}_proj" for x in "qkv")),
        "mlp.gate": tensors[LAYER + "mlp_moe.gate.weight"],
        "mlp.experts.gate_up_proj": fused(tensors, *(f"{e}.{p}_proj" for p in ("gate", "up") for e in experts)),
        "mlp.experts.down_proj": fused(tensors, *(f"{e}.down_proj" for e in experts), dim=1),
    }
    for name, tensor in expected.items():
        assert torch.equal(ours[f"{LAYER}{name}.weight"], tensor), name
    ours["fc.weight"].zero_()
    assert tensors["fc.weight"].any()  # no shared memory


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_round_trip_is_bit_equal(tmp_path, kwargs):
    tensors, config = make_original(**kwargs)
    draft = load_original(write_original(tmp_path, tensors, config))
    back = jakiro_state_dict_to_original(draft.state_dict(), draft.config)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].is_contiguous()
    again = original_state_dict_to_jakiro(back, draft.config)
    assert all(torch.equal(again[name], tensor) for name, tensor in draft.state_dict().items())


def test_key_map_refuses(tmp_path):
    tensors, config = make_original()
    draft = load_original(write_original(tmp_path, tensors, config))
    ours = dict(draft.state_dict())
    ours["layers.0.self_attn.qkv_proj.weight"] = torch.zeros(63, HIDDEN)
    ours["extra"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"qkv_proj.weight` has shape \(63, 32\), expected \(64, 32\)\n.*`extra` \(3,\) is"
    ):
        jakiro_state_dict_to_original(ours, draft.config)
    del tensors["fc.bias"]
    with pytest.raises(
        ValueError, match=r"its 13 tensors are not the 14 of an original.*\n  `fc.bias` \(32,\) is missing"
    ):
        original_state_dict_to_jakiro(tensors, draft.config)
    no_layout = JakiroDraftConfig(hidden_size=HIDDEN, num_attention_heads=4, gated_experts=False)
    with pytest.raises(ValueError, match=r"got gated_experts=False, num_experts=2, head_mode='contrastive'"):
        jakiro_state_dict_to_original({}, no_layout)


# --- files ---


@pytest.mark.parametrize("weights", WEIGHTS_FILES)
@pytest.mark.parametrize("prefix", ["", "model.", "ea_layer."])
def test_file_formats_and_prefixes(tmp_path, weights, prefix):
    tensors, config = make_original("star")
    extra = {
        "embed_tokens.weight": torch.full((VOCAB, HIDDEN), torch.nan),  # not ours, so never looked at
        "lm_head.weight": torch.zeros(VOCAB, HIDDEN),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    written = {prefix + name: tensor for name, tensor in (tensors | extra).items()}
    draft = load_original(write_original(tmp_path, written, config, weights))
    back = jakiro_state_dict_to_original(draft.state_dict(), draft.config)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_pickle_of_old_torch(tmp_path):
    tensors, config = make_original()
    write_original(tmp_path, tensors, config).joinpath("model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(load_original(tmp_path).fc.weight, tensors["fc.weight"])


def test_pickle_runs_no_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    tensors, config = make_original()
    write_original(tmp_path, tensors | {"x": Attack()}, config, "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read, .*Weights only load failed") as error:
        load_original(tmp_path)
    assert isinstance(error.value.__cause__, pickle.UnpicklingError)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 5, 2000, -1])
def test_truncated_weights(tmp_path, weights, kept):
    path = write_original(tmp_path, *make_original(), weights) / weights
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{weights} cannot be read, it is damaged.*Download it again") as error:
        load_original(tmp_path)
    assert error.value.__cause__ is not None


def test_lfs_pointer(tmp_path):
    path = write_original(tmp_path, *make_original()) / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"Git LFS pointer: run `git lfs pull`"):
        load_original(tmp_path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"fc.weight": 3}, {"fc.weight": torch.eye(3).to_sparse()}])
def test_pickle_of_something_else(tmp_path, content):
    write_original(tmp_path, content, make_original()[1], "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"must hold (a dictionary of tensors|tensors only|dense tensors)"):
        load_original(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "x.bin", ""])
def test_shard_names_stay_inside_the_folder(tmp_path, shard):
    folder = tmp_path / "inside"
    tensors, config = make_original()
    write_original(tmp_path, tensors, None)  # what `..` would reach
    write_original(folder, tensors, config, "model.safetensors.index.json")
    index = {"weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the shard '.*', expected a plain file name ending in .safetensors"):
        load_original(folder)


def test_index_and_shards_must_agree(tmp_path):
    name = "model.safetensors.index.json"
    write_original(tmp_path, *make_original(), name)
    index = json.loads((tmp_path / name).read_text())
    shard = index["weight_map"].pop("fc.bias")
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"does not hold the tensors .* missing none, unexpected \['fc.bias'\]"):
        load_original(tmp_path)
    index["weight_map"] |= {"fc.bias": shard, "more": shard}
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"missing \['more'\], unexpected none"):
        load_original(tmp_path)
    (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard} is missing in .*, but listed in {name}"):
        load_original(tmp_path)
    (tmp_path / name).write_text('{"weight_map": [1]}')
    with pytest.raises(ValueError, match=r"must have `weight_map`"):
        load_original(tmp_path)


def test_absent_files(tmp_path, monkeypatch):
    tensors, config = make_original()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing in"):
        load_original(write_original(tmp_path / "a", tensors, None))
    folder = write_original(tmp_path / "b", tensors, config)
    with pytest.raises(NotADirectoryError, match=r"is a file: give the folder"):
        load_original(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No weights in .*: expected one of model.safetensors, model.safet"):
        load_original(folder)
    with pytest.raises(FileNotFoundError, match=r"not a local folder and could not be fetched"):
        load_original(tmp_path / "c")  # no valid Hub id
    with pytest.raises(FileNotFoundError, match=r"not a local folder and could not be fetched"):
        load_original("nobody/nothing", cache_dir=tmp_path / "cache", local_files_only=True)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub_download_is_restricted(tmp_path, monkeypatch, weights):
    tensors, config = make_original()
    calls = []

    def snapshot_download(repo_id, **kwargs):
        calls.append((repo_id, kwargs))
        if weights in kwargs["allow_patterns"]:
            write_original(tmp_path, tensors, config, weights)
        return str(tmp_path)

    monkeypatch.setattr(conversion, "snapshot_download", snapshot_download)
    draft = load_original("someone/drafter", revision="v1", token="t", cache_dir="c")
    assert torch.equal(draft.fc.weight, tensors["fc.weight"])
    assert draft.name_or_path == "someone/drafter"
    assert len(calls) == (1 if weights == "model.safetensors" else 2)  # pickles only if there is nothing else
    for repo_id, kwargs in calls:
        assert repo_id == "someone/drafter"
        assert (kwargs["revision"], kwargs["token"], kwargs["cache_dir"]) == ("v1", "t", "c")
        assert "config.json" in kwargs["allow_patterns"]


# --- contents that are refused ---


def variants_with_names():
    return [
        pytest.param(kwargs, name, id=f"{kwargs}-{name}")
        for kwargs in VARIANTS[:5]
        for name in make_original(**kwargs)[0]
    ]


@pytest.mark.parametrize(("kwargs", "name"), variants_with_names())
def test_each_tensor_is_needed_with_its_shape(tmp_path, kwargs, name):
    tensors, config = make_original(**kwargs)
    # a whole kind of bias can be missing on purpose, which only the config can tell
    message = r"fc.bias` is missing, but" if name == "fc.bias" else re_name(name)
    incomplete = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(ValueError, match=message):
        load_original(write_original(tmp_path / "missing", incomplete, config))
    longer = tensors | {name: torch.cat((tensors[name], tensors[name][:1]))}
    with pytest.raises(ValueError, match=r"expected|says|does not divide"):
        load_original(write_original(tmp_path / "longer", longer, config))
    nan = tensors[name].clone()
    nan.view(-1)[-1] = torch.nan
    with pytest.raises(ValueError, match=re_name(name) + r"` \(.*\) holds NaN or infinite values"):
        load_original(write_original(tmp_path / "nan", tensors | {name: nan}, config))


def re_name(name: str) -> str:
    return name.replace(".", r"\.")


def test_wrong_contents_are_listed(tmp_path):
    tensors, config = make_original()
    tensors["layers.0.mlp_moe.experts.1.up_proj.weight"] = torch.zeros(INNER, HIDDEN + 1)
    tensors["layers.0.self_attn.o_proj.bias"] = torch.zeros(HIDDEN)
    del tensors["layers.0.post_attention_layernorm.weight"]
    with pytest.raises(ValueError, match=r"^Cannot convert ") as error:
        load_original(write_original(tmp_path, tensors, config))
    text = str(error.value)
    assert "`layers.0.mlp_moe.experts.1.up_proj.weight` has shape (24, 33), expected (24, 32)" in text
    assert "`layers.0.self_attn.o_proj.bias` (32,) is unexpected" in text
    assert "`layers.0.post_attention_layernorm.weight` (32,) is missing" in text
    assert "Download the checkpoint again" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": torch.zeros(HIDDEN, 3 * HIDDEN)}, r"shape \(32, 96\), expected \(32, 64\)"),
        ({"fc.weight": torch.zeros(HIDDEN)}, r"`fc.weight` has shape \(32,\), expected a matrix"),
        ({"fc.bias": torch.zeros(HIDDEN, dtype=torch.int8)}, r"is of dtype torch.int8, expected one of float32"),
        ({"fc.bias": torch.full((HIDDEN,), torch.inf)}, r"`fc.bias` \(32,\) holds NaN or infinite"),
        ({"fc.bias": torch.zeros(HIDDEN, dtype=torch.float16)}, r"`fc.bias` is torch.float16: choose one"),
        ({"norm.weight": torch.ones(HIDDEN)}, r"`norm.weight` \(32,\) is unexpected"),
        ({"model.fc.weight": torch.ones(HIDDEN)}, r"`model.fc.weight` \(32,\) is unexpected"),
        ({"layers.0.mlp_moe.gate.weight": torch.ones(2, HIDDEN)}, r"gate.weight` has 2 rows, expected 4 for 2 gated"),
        ({"layers.0.mlp_moe.gate.weight": torch.ones(5, HIDDEN)}, r"gate.weight` has 5 rows, expected 4 for 2 gated"),
        ({"layers.7.self_attn.q_proj.weight": torch.ones(2, 2)}, r"layers.1.mlp_moe.gate.weight` is missing"),
        ({"layers.0.mlp_moe.experts.9.up_proj.weight": torch.ones(2, 2)}, r"has 4 rows, expected 5 for 3 gated"),
        ({"d2t": torch.zeros(3, dtype=torch.int64)}, r"does not say which of the target's layers it reads"),
        ({"midlayer.hidden_norm.weight": torch.zeros(3)}, r"does not say which of the target's layers"),
        ({"embed_tokens.weight": torch.zeros(49, HIDDEN)}, r"shape \(49, 32\), expected \(48, 32\) by `vocab_size`"),
    ],
)  # fmt: skip
def test_changed_tensors_are_refused(tmp_path, change, message):
    tensors, config = make_original()
    with pytest.raises(ValueError, match=message):
        load_original(write_original(tmp_path, tensors | change, config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": None}, r"lacks `num_attention_heads`"),
        ({"num_attention_heads": "4"}, r"`num_attention_heads='4'`, expected a positive integer"),
        ({"num_attention_heads": 0}, r"`num_attention_heads=0`, expected a positive integer"),
        ({"num_attention_heads": True}, r"`num_attention_heads=True`, expected a positive integer"),
        ({"num_attention_heads": 5}, r"`num_attention_heads=5` .* does not divide .* 32 rows, k_proj 16"),
        ({"num_attention_heads": 64}, r"`num_attention_heads=64` .* does not divide"),
        ({"num_attention_heads": 32, "num_key_value_heads": 16}, r"`head_dim` must be even"),
        ({"num_attention_heads": 8}, r"`num_key_value_heads=2`, its tensors say 4"),
        ({"head_dim": 16}, r"`head_dim=16`, its tensors say 8"),
        ({"hidden_size": 64}, r"`hidden_size=64`, its tensors say 32"),
        ({"num_hidden_layers": 2}, r"`num_hidden_layers=2`, its tensors say 1"),
        ({"num_local_experts": 4}, r"`num_local_experts=4`, its tensors say 2"),
        ({"num_experts_per_tok": 1}, r"`num_experts_per_tok=1`, its tensors say 2"),
        ({"vocab_size": None}, r"lacks `vocab_size`"),
        ({"vocab_size": 3.5}, r"`vocab_size=3.5`, expected a positive integer"),
        ({"rms_norm_eps": None}, r"must have `rms_norm_eps`.*got None"),
        ({"rms_norm_eps": "1e-5"}, r"must have `rms_norm_eps`.*got '1e-5'"),
        ({"rope_theta": -1}, r"`rope_theta=-1`, expected a positive number"),
        ({"rope_scaling": [1]}, r"`rope_scaling=\[1\]`, expected null or an object"),
        ({"rope_scaling": {"type": "spiral"}}, r"rotary type is 'spiral', expected one of"),
        ({"rope_scaling": {"type": "linear"}}, r"results in an invalid config: .*factor"),
        ({"hidden_act": "sinus"}, r"`hidden_act='sinus'`, which is not an activation"),
        ({"bias": False}, r"`fc.bias` is there, but its config.json says `bias=false`"),
        ({"bias": "yes"}, r"`bias='yes'`, expected true or false"),
        ({"qkv_bias": True}, r"q,k,v}_proj.bias` is missing, but its config.json says `qkv_bias=true`"),
        ({"eos_token_id": "</s>"}, r"results in an invalid config: .*eos_token_id"),
        ({"static_tree": [[0, 0]]}, r"`static_tree` must be a tree"),
        ({"model_type": "jakiro_draft"}, r"JakiroDraftModel.from_pretrained"),
    ],
)
def test_wrong_configs_are_refused(tmp_path, change, message):
    tensors, config = make_original()
    config = {name: value for name, value in (config | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_original(write_original(tmp_path, tensors, config))


def test_config_contradicting_other_variants(tmp_path):
    for variant in ("star", "eagle"):
        tensors, config = make_original(variant)
        with pytest.raises(ValueError, match=r"`intermediate_size=25`, its tensors say 24"):
            load_original(write_original(tmp_path / variant, tensors, config | {"intermediate_size": 25}))
    with pytest.raises(ValueError, match=r"`num_local_experts=2`, its tensors say 1"):
        load_original(write_original(tmp_path / "dense", tensors, config | {"num_local_experts": 2}))
    tensors, config = make_original(qkv_bias=True)
    with pytest.raises(ValueError, match=r"q,k,v}_proj.bias` is there, but its config.json says `qkv_bias=false`"):
        load_original(write_original(tmp_path / "bias", tensors, config | {"qkv_bias": False}))
    tensors, config = make_original("star", num_experts=2)
    tensors[LAYER + "mlp_moe.gate.weight"] = torch.zeros(4, HIDDEN)
    with pytest.raises(ValueError, match=r"has 4 rows, expected 2 for 2 two-layer experts"):
        load_original(write_original(tmp_path / "gate", tensors, config))


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_broken_config(tmp_path, text):
    write_original(tmp_path, *make_original())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"config.json (is not valid JSON|must hold a JSON object).*Download it again"
    ):
        load_original(tmp_path)


def test_foreign_checkpoints(tmp_path, target_config):
    LlamaForCausalLM(target_config).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"looks like a full language model of 2 layers: `fc.weight` is missing"):
        load_original(tmp_path / "llama")
    config = make_original()[1] | {"speculators_model_type": "dflash"}
    with pytest.raises(ValueError, match=r"speculators_model_type='dflash'`, expected 'eagle3'. Supported are orig"):
        load_original(write_original(tmp_path / "dflash", make_original()[0], config))
    with pytest.raises(ValueError, match=r"it is not a drafter: `fc.weight` is missing"):
        load_original(write_original(tmp_path / "other", {"x": torch.zeros(2)}, make_original()[1]))
    with pytest.raises(ValueError, match=r"it is not a drafter: .*found 0 tensors"):
        load_original(write_original(tmp_path / "empty", {}, make_original()[1]))
    convert_original(write_original(tmp_path / "src", *make_original()), tmp_path / "converted")
    with pytest.raises(ValueError, match=r"JakiroDraftModel.from_pretrained"):
        load_original(tmp_path / "converted")


def test_wrong_target(tmp_path, target_config):
    folder = write_original(tmp_path / "draft", *make_original())
    target_config.vocab_size = VOCAB + 16
    with pytest.raises(ValueError, match=r"`vocab_size=48`, the target 64. A drafter only fits"):
        load_original(folder, target=target_config)
    target_config.vocab_size, target_config.hidden_size = VOCAB, 64
    with pytest.raises(ValueError, match=r"`hidden_size=32`, the target 64. A drafter only fits"):
        load_original(folder, target=target_config)
    with pytest.raises(TypeError, match=r"`target` must be a model, a config, a path or a Hub id, got int"):
        load_original(folder, target=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'tree_depth'"):
        load_original(folder, tree_depth=3)


# --- precision ---


def test_dtype(tmp_path):
    folder = write_original(tmp_path / "half", *make_original(dtype=torch.float16))
    assert load_original(folder).dtype == load_original(folder, dtype="auto").dtype == torch.float16
    for dtype in (torch.bfloat16, "bfloat16", "torch.bfloat16"):
        draft = load_original(folder, dtype=dtype)
        assert {parameter.dtype for parameter in draft.parameters()} == {torch.bfloat16}
        assert draft.config.dtype == torch.bfloat16
        assert draft.rotary_emb.inv_freq.dtype == torch.float32
    for dtype in ("int8", torch.int8, "fp16", 3):
        with pytest.raises(ValueError, match=r"`dtype` must be 'auto' or one of float32, float16, bfloat16"):
            load_original(folder, dtype=dtype)


def test_mixed_and_overflowing_precision(tmp_path):
    tensors, config = make_original()
    mixed = tensors | {"fc.bias": tensors["fc.bias"].half()}
    draft = load_original(write_original(tmp_path / "mixed", mixed, config), dtype="float32")
    assert torch.equal(draft.fc.bias, mixed["fc.bias"].float())
    tensors["fc.bias"][3] = 1e5
    folder = write_original(tmp_path / "large", tensors, config)
    with pytest.raises(ValueError, match=r"`fc.bias` \(32,\) overflows in torch.float16"):
        load_original(folder, dtype="float16")
    assert load_original(folder, dtype="bfloat16").fc.bias.isfinite().all()


# --- convert_original ---


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_convert(tmp_path, kwargs):
    tensors, config = make_original(**kwargs)
    src = write_original(tmp_path / "src", tensors, config)
    dst = convert_original(src, tmp_path / "new" / "dst", dtype="bfloat16")
    assert dst == (tmp_path / "new" / "dst").resolve()
    assert {path.name for path in dst.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in dst.parent.iterdir()] == ["dst"]
    assert dst.stat().st_mode == src.stat().st_mode
    draft, expected = JakiroDraftModel.from_pretrained(dst), load_original(src, dtype="bfloat16")
    assert draft.config.to_diff_dict() == expected.config.to_diff_dict() | {"architectures": ["JakiroDraftModel"]}
    ours = draft.state_dict()
    assert ours.keys() == expected.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.state_dict().items())
    ours = transformers_jakiro.JakiroDraftModel.from_original(src, dtype="bfloat16")
    assert type(ours) is transformers_jakiro.JakiroDraftModel
    assert ours.config.head_mode == draft.config.head_mode


def test_convert_into_an_empty_folder_only(tmp_path):
    src = write_original(tmp_path / "src", *make_original())
    (tmp_path / "dst").mkdir()
    convert_original(src, tmp_path / "dst")
    before = (tmp_path / "dst" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"exists and is not an empty folder: choose another"):
        convert_original(src, tmp_path / "dst")
    with pytest.raises(FileExistsError, match=r"exists and is not an empty folder: choose another"):
        convert_original(src, src / "config.json")
    assert (tmp_path / "dst" / "model.safetensors").stat().st_mtime_ns == before


def test_convert_leaves_nothing_half_written(tmp_path, monkeypatch):
    tensors, config = make_original()
    src = write_original(tmp_path / "src", tensors, config)
    save_pretrained = JakiroDraftModel.save_pretrained

    def fail(self, folder):
        save_pretrained(self, folder)
        raise OSError("No space left on device")

    monkeypatch.setattr(JakiroDraftModel, "save_pretrained", fail)
    with pytest.raises(OSError, match=r"No space left"):
        convert_original(src, tmp_path / "dst")
    del tensors["fc.weight"]
    write_original(tmp_path / "src", tensors, config)
    with pytest.raises(ValueError, match=r"`fc.weight` is missing"):
        convert_original(src, tmp_path / "new" / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_convert_keeps_what_appeared_meanwhile(tmp_path, monkeypatch):
    src = write_original(tmp_path / "src", *make_original())
    (tmp_path / "dst").mkdir()
    save_pretrained = JakiroDraftModel.save_pretrained

    def save_slowly(self, folder):
        save_pretrained(self, folder)
        (tmp_path / "dst" / "mine").touch()

    monkeypatch.setattr(JakiroDraftModel, "save_pretrained", save_slowly)
    with pytest.raises(OSError, match=r"not empty"):
        convert_original(src, tmp_path / "dst")
    assert {path.name for path in tmp_path.iterdir()} == {"src", "dst"}
    assert [path.name for path in (tmp_path / "dst").iterdir()] == ["mine"]


# --- export_original ---


@pytest.mark.parametrize("variant", ["jakiro", "star", "eagle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export(variant, dtype, tmp_path, golden_original):
    """There and back: the same bits, the same config."""
    if variant == "eagle":
        tensors, config = make_original("eagle", num_layers=2, qkv_bias=True)
        src = write_original(tmp_path / "src", tensors, config | {"static_tree": [[0], [0, 0]]})
    else:
        src = golden_original({"jakiro": "jakiro_b", "star": "jakiro_star_a"}[variant])
    draft = load_original(src, dtype=dtype)
    dst = export_original(draft, tmp_path / "new" / "dst")
    assert {path.name for path in dst.iterdir()} == {"config.json", "model.safetensors"}
    again = load_original(dst)
    assert again.config.to_diff_dict() == draft.config.to_diff_dict()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in draft.state_dict().items())
    names = load_file(src / "model.safetensors").keys() - {"embed_tokens.weight"}
    assert load_file(dst / "model.safetensors").keys() == names
    with pytest.raises(FileExistsError, match=r"exists and is not an empty folder"):
        export_original(draft, dst)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_experts": 3}, r"supports only two experts at most, got num_experts=3"),
        ({"expert_intermediate_size": 24}, r"as wide as the hidden size \(32\), got expert_intermediate_size=24"),
        ({"num_hidden_layers": 2}, r"one layer with experts, got num_hidden_layers=2"),
        ({"head_dim": 16}, r"heads that make up the hidden size \(32\), got num_attention_heads=4, head_dim=16"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, r"without scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, **STAR}, r"base of 10000 for Jakiro\*, got"),
        ({"attention_bias": True, **STAR}, r"no bias in the attention of Jakiro\*"),
        ({"final_norm": True}, r"has no norm after the experts"),
    ],
)
def test_export_refuses_what_the_published_code_does_not_run(overrides, message, tmp_path):
    draft = JakiroDraftModel(JakiroDraftConfig(hidden_size=32, num_attention_heads=4, vocab_size=48, **overrides))
    with pytest.raises(ValueError, match=message):
        export_original(draft, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
