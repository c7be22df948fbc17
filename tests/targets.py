# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Tiny random targets of many architectures, drafters for them, and drafters that agree: those that know what the target
is about to say, so that long paths of a tree are accepted whatever the weights are.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar
from unittest import mock

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.integrations.peft import MIN_PEFT_VERSION

from transformers_jakiro import (
    JakiroCandidateGenerator,
    JakiroDraftConfig,
    JakiroDraftModel,
    install_generation_hook,
    jakiro_generate,
    remove_generation_hook,
)
from transformers_jakiro.core import generation
from transformers_jakiro.core.tree import DraftTree

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
    values = {**LLAMA_LIKE, "vocab_size": vocab_size, "num_hidden_layers": num_layers}
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
        return JakiroDraftModel(config).to(target.dtype).eval()


def make_prompt(length: int, seed: int = 0, vocab_size: int = VOCAB) -> torch.LongTensor:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(min(3, vocab_size - 2), vocab_size, (1, length), generator=generator)


def knowing_tree(
    root: int, truth: Sequence[int], depth: int, vocab_size: int, chance: random.Random, drafted: DraftTree | None
) -> DraftTree:
    """
    A tree that holds a true continuation of random length up to `depth`, among what a drafter proposed and traps:
    wrong siblings of each true node, and the true tokens again below wrong parents. Parents stand before their
    children and are otherwise in random order, so that true paths lie at indices with gaps.
    """
    children: list[dict[int, int]] = [{}]
    tokens, parents, depths = [root], [-1], [0]

    def add(parent: int, token: int) -> int:
        if token not in children[parent]:
            children[parent][token] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            children.append({})
        return children[parent][token]

    if drafted is not None:
        copies = [0]
        for token, parent in zip(drafted.tokens[0, 1:].tolist(), drafted.parents[0, 1:].tolist(), strict=True):
            copies.append(add(copies[parent], token))
    node = 0
    for true_token in truth[: chance.randint(min(2, depth), depth)]:
        for _ in range(chance.randint(0, 2)):
            trap = add(node, chance.randrange(vocab_size))
            if depths[trap] < depth:
                add(trap, true_token)
        node = add(node, true_token)
    # a random order in which parents precede their children
    order, ready = [], [0]
    while ready:
        node = ready.pop(chance.randrange(len(ready)))
        order.append(node)
        ready.extend(children[node].values())
    position = {node: index for index, node in enumerate(order)}
    return DraftTree(
        torch.tensor([[tokens[node] for node in order]]),
        torch.tensor([[position.get(parents[node], 0) for node in order]]),
        max_depth=max(depths),
    )


def knowing_generator(
    continuation: Sequence[int], seed: int = 0, depth: int = 6, keep_drafted: bool = True
) -> type[JakiroCandidateGenerator]:
    """
    A candidate generator that knows which tokens the target is going to generate. The drafter itself still runs, and
    what it proposes is part of the trees unless `keep_drafted` is False. `trees` of the class lists what was proposed.
    """
    continuation, chance = list(continuation), random.Random(seed)

    class KnowingGenerator(JakiroCandidateGenerator):
        trees: ClassVar[list[DraftTree]] = []
        observed, prompt_length = 0, None

        def observe(self, features, *args, **kwargs):
            self.observed += features.shape[1]
            super().observe(features, *args, **kwargs)

        def propose(self, root, max_depth=None, chain=False, **kwargs):
            if self.prompt_length is None:
                self.prompt_length = self.observed
            drafted = super().propose(root, max_depth, chain, **kwargs)
            limit = depth if max_depth is None else min(depth, max_depth)
            truth = continuation[self.observed - self.prompt_length + 1 :][: max(0, limit)]
            if limit < 1 or (chain and not truth):
                tree = drafted
            elif chain:
                tokens = torch.tensor([[int(root), *truth]])
                tree = DraftTree(tokens, (torch.arange(tokens.shape[1])[None] - 1).clamp(min=0), tokens.shape[1] - 1)
            else:
                vocab_size = self.config.vocab_size
                tree = knowing_tree(int(root), truth, limit, vocab_size, chance, drafted if keep_drafted else None)
            self.trees.append(tree)
            return tree

    return KnowingGenerator


@contextmanager
def knowing_drafter(continuation: Sequence[int], **kwargs: Any) -> Iterator[list[DraftTree]]:
    """Within it, `generate` drafts with a [`knowing_generator`]. Yields the list of the proposed trees."""
    generator = knowing_generator(continuation, **kwargs)
    with mock.patch.object(generation, "JakiroCandidateGenerator", generator):
        yield generator.trees


def compare(
    target: PreTrainedModel,
    draft: Any,
    inputs: dict[str, Any],
    knows: bool = True,
    seed: int | None = None,
    logits: bool = False,
    **kwargs: Any,
) -> Any:
    """
    Asserts that `generate` with a drafter gives exactly the tokens of plain `generate`, first with the drafter as it
    is, then, if `knows`, with one that knows the continuation.

    Args:
        inputs, kwargs: arguments of `generate`; a [`Fresh`] one is made anew for each run.
        seed: of the random numbers; needed for sampling.
        logits: whether the logits of accepted paths are compared, too.

    Returns:
        The output of the last run with the drafter.
    """

    def run(**extra):
        if seed is not None:
            torch.manual_seed(seed)
        values = {"do_sample": False, **inputs, **kwargs}
        # what a run uses up is given as a function that makes it
        values = {name: value() if isinstance(value, Fresh) else value for name, value in values.items()}
        return target.generate(**values, **{"return_dict_in_generate": True, **extra})

    plain = run(output_scores=True, output_logits=True)
    prompt_length = plain.sequences.shape[1] - len(plain.scores)
    continuation = plain.sequences[0, prompt_length:].tolist()
    if seed is None:
        best = torch.cat(plain.scores).topk(2).values
        least = 1e-5 if target.dtype == torch.float32 else 1e-7  # scores are recorded in float32 in either case
        assert (best[:, 0] - best[:, 1]).min() > least, "rounding decides: choose another prompt"
    ours = run(assistant_model=draft)
    check_output(plain, ours, continuation)
    if knows:
        with knowing_drafter(continuation, seed=seed or 0) as trees:
            ours = run(assistant_model=draft)
        check_output(plain, ours, continuation)
        if len(continuation) >= 8:
            assert ours.num_accepted_tokens >= len(continuation) // 3, "hardly anything was accepted"
        assert ours.num_drafted_tokens == sum(tree.num_nodes - 1 for tree in trees)
    if logits:
        with knowing_drafter(continuation, seed=1, keep_drafted=False):
            ours = run(assistant_model=draft, output_logits=True)
        check_output(plain, ours, continuation)
        assert len(ours.logits) == len(plain.logits)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(plain.logits), atol=1e-3, rtol=1e-3)
    return ours


@contextmanager
def assistance(draft: PreTrainedModel, hooked: bool) -> Iterator[dict[str, Any]]:
    """The arguments of `generate` that let it draft: by the hook, or by the callable while there is no hook."""
    if hooked:
        yield {"assistant_model": draft}
        return
    remove_generation_hook()
    try:
        yield {"custom_generate": jakiro_generate(draft)}
    finally:
        install_generation_hook()


class Fresh:
    """An argument of `generate` that is made anew for each run."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make

    def __call__(self) -> Any:
        return self._make()


def check_output(plain: Any, ours: Any, continuation: Sequence[int]) -> None:
    """Same tokens, and accept lengths that account for each of them."""
    assert ours.sequences.tolist() == plain.sequences.tolist()
    (accept_lengths,) = ours.accept_lengths
    # the prompt's forward gives one token, each later one one more than it accepts
    assert 1 + sum(length + 1 for length in accept_lengths) == len(continuation)
    assert ours.num_accepted_tokens == sum(accept_lengths) <= ours.num_drafted_tokens


def scored_tree() -> DraftTree:
    """
    7 ── 4 ── 2      scores of the paths: 4: -1, 9: -0.5, 2: -1.2, 3 (below 9): -4
     └── 9 ── 3
    """
    return DraftTree(
        tokens=torch.tensor([[7, 4, 9, 2, 3]]),
        parents=torch.tensor([[0, 0, 0, 1, 2]]),
        max_depth=2,
        scores=torch.tensor([[0.0, -1.0, -0.5, -1.2, -4.0]]),
    )
