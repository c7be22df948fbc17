# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Tiny random targets of many architectures, and random drafters for them."""

from dataclasses import fields
from functools import cache
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.integrations.peft import MIN_PEFT_VERSION

from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel

# the key/value cache's name in arguments and outputs, which transformers 5.24 changed
(CACHE,) = {"cache", "past_key_values"} & {field.name for field in fields(GenerateDecoderOnlyOutput)}
needs_adapter_methods = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {transformers.__version__} wants PEFT {MIN_PEFT_VERSION} for this, got {peft.__version__}",
)
VOCAB, HIDDEN, CONTEXT = 96, 32, 320
# pad, bos and eos exist, so that `generate` has no reason to warn, but no random target ends by itself
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}

# config class, then what is special about each; `window` stands where a window goes
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": "window"}),
    "mixtral": ("MixtralConfig", {"sliding_window": "window", **MOE}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": "window", "max_window_layers": 1}),
    "qwen3": (
        "Qwen3Config",
        {"use_sliding_window": True, "sliding_window": "window", "max_window_layers": 1, "head_dim": 8},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "use_sliding_window": True,
            "sliding_window": "window",
            "max_window_layers": 0,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "gemma2": (
        "Gemma2Config",
        {"sliding_window": "window", "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "sliding_window": "window",
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "sliding_window": "window",
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
        },
    ),
    "phi3": ("Phi3Config", {"sliding_window": "window"}),
    "gpt_neox": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "gpt2": ("GPT2Config", {"num_key_value_heads": None}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"logits_scaling": 0.5, "embedding_multiplier": 3.0, "residual_multiplier": 0.7}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": "window"}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "sliding_window": "window",
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            **MOE,
        },
    ),
}
SLIDING = [name for name, (_, values) in ARCHITECTURES.items() if "window" in values.values()]
EAGER_ONLY = ["gemma2", "gpt_oss"]  # soft caps and attention sinks have no sdpa kernel
# architecture, attention implementation
CASES = [
    (architecture, attention)
    for architecture in ARCHITECTURES
    for attention in (("eager",) if architecture in EAGER_ONLY else ("sdpa", "eager"))
]


@cache
def make_target(
    architecture: str = "llama",
    window: int | None = None,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    vocab_size: int = VOCAB,
    num_layers: int = 2,
) -> PreTrainedModel:
    """
    A random target that babbles: its weights are large enough that each token depends on those before, and that a
    choice hardly ever hangs on rounding. Shared between tests, which must not change it.
    """
    if attention != "sdpa" and dtype == torch.float32:  # the same weights as with sdpa
        source = make_target(architecture, window, "sdpa", dtype, vocab_size, num_layers)
        if architecture in EAGER_ONLY:
            return source
        target = AutoModelForCausalLM.from_config(source.config, attn_implementation=attention, dtype=dtype).eval()
        target.load_state_dict(source.state_dict())
        target.generation_config = source.generation_config
        return target
    class_name, special = ARCHITECTURES[architecture]
    values: dict[str, Any] = {**LLAMA_LIKE, "vocab_size": vocab_size, "num_hidden_layers": num_layers}
    values |= {key: (window if value == "window" else value) for key, value in special.items()}
    values = {key: value for key, value in values.items() if value is not None or key == "sliding_window"}
    if window is None and "use_sliding_window" in values:
        values["use_sliding_window"] = False
        del values["sliding_window"]
    if window is None and "sliding_window" in values and architecture in ("gemma2", "gemma3", "gemma4", "gpt_oss"):
        values["sliding_window"] = 4 * CONTEXT  # these always have one
    config = getattr(transformers, class_name)(**values, **SPECIAL)
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager" if architecture in EAGER_ONLY else attention, dtype=dtype
        ).eval()
    enlarge(target)
    target.generation_config.eos_token_id = None
    target.generation_config.pad_token_id = 0
    return target


def enlarge(model: PreTrainedModel, std: float = 0.35) -> None:
    """Gives all matrices of a fresh model larger weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0.0, 1.0 if "embed" in name or "wte" in name else std, generator=generator)
            elif "bias" in name or "sinks" in name:
                weight.normal_(0.0, 0.1, generator=generator)


def make_drafter(target: PreTrainedModel, seed: int = 1, **overrides: Any) -> JakiroDraftModel:
    """A random drafter for a target, with trees small enough for quick tests."""
    values = {"tree_depth": 5, "tree_top_k": 3, "num_draft_tokens": 14, **overrides}
    config = JakiroDraftConfig.from_target(target.config, **values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        draft = JakiroDraftModel(config)
    draft.to(target.dtype)  # type: ignore[arg-type]  # transformers wraps it without its types
    return draft.eval()
