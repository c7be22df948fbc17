# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Configuration of a Jakiro drafter: its shape, its target, and the trees it drafts."""

import math
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .compat import commit_of

# keys of transformers that do not belong in a drafter's config.json: labels, which would be made for any `num_labels`,
# and keys that make `from_pretrained` load other weights, or kernels from the Hub
_IGNORED_KEYS = (
    "num_labels",
    "id2label",
    "label2id",
    "sub_configs",
    "transformers_weights",
    "fusion_config",
    "distributed_config",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
# no drafter is larger; one that its config.json says is larger is not built
_LARGEST = {
    256: ("num_hidden_layers",),
    2**20: ("hidden_size", "target_hidden_size", "num_attention_heads", "num_key_value_heads", "num_experts"),
    2**24: ("vocab_size", "draft_vocab_size", "head_dim", "expert_intermediate_size", "num_draft_tokens"),
}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "target_hidden_size",
    "num_experts",
    "expert_intermediate_size",
    "tree_depth",
    "tree_top_k",
    "tree_width",
    "num_draft_tokens",
)
_TREE_FIELDS = ("tree_depth", "tree_width", "tree_top_k", "num_draft_tokens")


@strict
class JakiroDraftConfig(PreTrainedConfig):
    r"""
    Configuration of a [`JakiroDraftModel`] (Jakiro, arXiv 2502.06282).

    A drafter reads the target's last hidden states and its token embeddings, so `hidden_size` and `vocab_size` are the
    target's. Build one for a given target with [`JakiroDraftConfig.from_target`].

    Args:
        vocab_size (`int`, defaults to 32000):
            Vocabulary size of the target, whose embeddings and head the drafter borrows.
        draft_vocab_size (`int`, *optional*):
            Number of tokens that can be drafted. The drafter uses only their rows of the target's head; with a large
            vocabulary, the whole head costs more than the drafter itself. The drafter's buffer `draft_token_ids` lists
            the tokens; [`~transformers_jakiro.training.data.frequent_tokens`] chooses them. Default: all.
        hidden_size (`int`, defaults to 4096):
            Width of the drafter's layer and of the features it predicts: the target's hidden size.
        num_hidden_layers (`int`, defaults to 1):
            Decoder layers. The first has no input norm, further layers have one (paper section 3.1).
        num_attention_heads (`int`, defaults to 32), num_key_value_heads, head_dim (`int`, *optional*):
            Attention shape. Key/value heads default to the attention heads, `head_dim` to `hidden_size / heads`.
        hidden_act (`str`, defaults to `"silu"`):
            Activation of the experts. Jakiro\* uses `"gelu"`.
        rms_norm_eps (`float`, defaults to 1e-6), rope_parameters (`dict`, *optional*),
        max_position_embeddings (`int`, defaults to 4096), attention_bias (`bool`, defaults to `False`):
            As in [`~transformers.LlamaConfig`].
        fusion_bias (`bool`, defaults to `True`):
            Whether the fusion layer `fc: 2 * hidden_size -> hidden_size` has a bias.
        embedding_multiplier (`float`, defaults to 1.0), feature_multiplier (`float`, defaults to 1.0):
            Factors on the embeddings and features before the fusion layer. The drafter's output is divided by
            `feature_multiplier`. Published drafters have none (1.0). A target's embeddings are often twenty times
            smaller than its features, and a drafter that reads both at the same scale learns faster at first:
            [`~transformers_jakiro.training.initialization.new_drafter`] measures and sets the factors.
        final_norm (`bool`, defaults to `False`):
            RMSNorm on the drafter's output, as on the target's, so that features keep their scale when they are fed
            back for the next level. Published drafters have none, new ones do (as in EAGLE-3, arXiv 2503.01840).
        feature_layers (`list[int]`, *optional*):
            Further hidden states of the target that are fused into its features, as indices of `output_hidden_states`
            (i: what layer i reads), for example `[2, 16, 29]` of 32 layers (EAGLE-3, arXiv 2503.01840).
        fusion (`str`, defaults to `"linear"`):
            How the drafter reads a token's embedding and the target's features. `"linear"`: the fusion layer `fc`
            maps both to one vector; `feature_layers` add to the last hidden states. `"eagle3"`: the attention of the
            first layer reads both, each with its own norm, and the residual stream carries only the feature;
            `feature_layers` replace the last hidden states. Logits are computed from a normed feature.
        fusion_norm (`str`, *optional*):
            With `fusion="eagle3"`, RMSNorms on the target's hidden states before the fusion: `"each"` has its own,
            `"all"` share one over their concatenation, or None. Linear fusion norms each.
        residual_norm (`bool`, defaults to `False`):
            With `fusion="eagle3"`, whether the residual stream carries the normed feature.
        target_hidden_size (`int`, *optional*):
            The target's hidden size, if a drafter with `fusion="eagle3"` has a different one.
        own_head (`bool`, defaults to `False`), own_embeddings (`bool`, defaults to `False`):
            With `fusion="eagle3"`, whether the drafter has its own head (`lm_head`) and token embeddings
            (`embed_tokens`) instead of the target's.
        num_experts (`int`, defaults to 2):
            Experts per layer. 1 is the dense layer of EAGLE-1/2.
        num_experts_per_tok (`int`, *optional*):
            Experts that are mixed for a token: 2, or 1 if there is only one expert.
        expert_intermediate_size (`int`, *optional*):
            Inner width of one expert. Defaults to `hidden_size`, as published for Jakiro.
        gated_experts (`bool`, defaults to `True`):
            `True`: gated experts (gate, up, down projections). `False`: two-layer experts (Jakiro\*).
        head_mode (`str`, defaults to `"contrastive"`):
            What the last layer offers besides its mixture of experts: `"contrastive"` (Jakiro: a second branch that
            predicts the token after the next), `"decoupled"` (Jakiro\*: each of the two chosen experts is also a
            separate head) or `"single"` (EAGLE: nothing).
        target_name_or_path (`str`, *optional*):
            The target this drafter was trained for. Informative.
        target_revision (`str`, *optional*):
            The commit of the target's repository on the Hub. Informative.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*; `eos_token_id` may be a list):
            The target's special tokens.
        tree_depth (`int`, defaults to 7):
            Levels of a draft tree: the longest path that can be drafted.
        tree_top_k (`int`, defaults to 10):
            Children per node. 1 drafts a chain.
        tree_width (`int`, *optional*):
            Nodes of a level that are expanded, in one drafter forward. Default: `tree_top_k`, as published. When the
            target samples, a `tree_top_k` above the width (32, for example) raises acceptance at almost no cost.
        num_draft_tokens (`int`, defaults to 59):
            Nodes of a tree that are sent to the target, the root not counted. A tree never has more than
            `tree_top_k * (1 + (tree_depth - 1) * tree_width)` candidates; a larger number means all of them.
            `generate(num_assistant_tokens=k)` overrides it for one call.
        tree_temperature (`float`, *optional*):
            Temperature of the drafter's probabilities when the nodes of a tree are chosen. It changes which tokens are
            drafted, never the text. Default: 0.65 if the target decodes greedily or `couple_sampling` is on, as the
            target then follows the drafter's first choices more often than their probabilities say, and deeper,
            narrower trees do better. Otherwise the target's own temperature, at least 0.65. Published drafters use
            1.0.
        couple_sampling (`bool`, defaults to `True`):
            When the target samples, draft with the random numbers that it is about to use
            ([`~transformers_jakiro.core.noise.SamplingCoupling`]). It changes which tokens are drafted, never the
            text. Published drafters draft without them.
        static_tree (`list[list[int]]`, *optional*):
            A fixed tree instead of a dynamic one. Each node is given as the path of child ranks that leads to it, for
            example `[[0], [1], [0, 0]]`. Overrides the other tree fields.
        batch_trees (`dict[str, dict[str, int]]`, *optional*):
            Trees for batches, in which each node costs more: `tree_depth`, `tree_width`, `tree_top_k` and
            `num_draft_tokens` by batch size, for example `{"4": {...}, "16": {...}}`. A batch size between two of
            them, or between 1 and the smallest, gets a tree in between. `jakiro tune --batch-size 1 4 16` finds them.
            Default: all rows together get as many nodes as the other fields give one row, on fewer levels.

    Raises:
        ValueError: if fields contradict each other; the message names the rule and both values.

    Example:

    ```python
    >>> from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel

    >>> config = JakiroDraftConfig.from_target(target.config, tree_depth=6)
    >>> draft = JakiroDraftModel(config)
    ```
    """

    model_type = "jakiro_draft"
    keys_to_ignore_at_inference = ["cache"]

    vocab_size: int = 32000
    draft_vocab_size: int | None = None
    hidden_size: int = 4096
    num_hidden_layers: int = 1
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    max_position_embeddings: int = 4096
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    fusion_bias: bool = True
    embedding_multiplier: int | float = 1.0
    feature_multiplier: int | float = 1.0
    final_norm: bool = False
    feature_layers: list[int] | None = None
    fusion: Literal["linear", "eagle3"] = "linear"
    fusion_norm: Literal["each", "all"] | None = None
    residual_norm: bool = False
    target_hidden_size: int | None = None
    own_head: bool = False
    own_embeddings: bool = False

    num_experts: int = 2
    num_experts_per_tok: int | None = None
    expert_intermediate_size: int | None = None
    gated_experts: bool = True
    head_mode: Literal["contrastive", "decoupled", "single"] = "contrastive"

    target_name_or_path: str | None = None
    target_revision: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    tree_depth: int = 7
    tree_top_k: int = 10
    tree_width: int | None = None
    num_draft_tokens: int = 59
    tree_temperature: int | float | None = None
    couple_sampling: bool = True
    static_tree: list[list[int]] | None = None
    batch_trees: dict[str, dict[str, int]] | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(1, self.num_attention_heads)
        if self.num_experts_per_tok is None:
            self.num_experts_per_tok = min(2, self.num_experts)
        if self.expert_intermediate_size is None:
            self.expert_intermediate_size = self.hidden_size
        super().__post_init__(**kwargs)
        self.check_consistency()

    def check_consistency(self) -> None:
        """
        Checks rules across fields. Called at construction and before each generation, since values may change later.

        Raises:
            ValueError: naming the rule and the values that break it.
        """
        self._check_ranges()
        self._check_features()
        self._check_fusion()
        self._check_attention()
        self._check_experts()
        self._check_trees()

    def _check_ranges(self) -> None:
        for name in _SIZES:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for limit, sizes in _LARGEST.items():
            for name in sizes:
                if (getattr(self, name) or 0) > limit:
                    raise ValueError(f"`{name}` must be at most {limit}, got {getattr(self, name)}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be an activation of Transformers, got {self.hidden_act!r}.")
        for name in ("embedding_multiplier", "feature_multiplier", "tree_temperature", "rms_norm_eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a positive number, got {value}.")

    def _check_features(self) -> None:
        layers = self.feature_layers
        if layers is not None and (not layers or min(layers) < 0 or sorted({*layers}) != layers):
            raise ValueError(
                "`feature_layers` must be increasing indices of the target's hidden states, 0 or more, or None for "
                f"the last ones alone; got {layers}."
            )

    def _check_attention(self) -> None:
        if self.num_key_value_heads is not None and self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                "`num_attention_heads` must be a multiple of `num_key_value_heads`, "
                f"got {self.num_attention_heads} and {self.num_key_value_heads}."
            )
        if self.head_dim is not None and self.head_dim % 2 != 0:
            raise ValueError(f"`head_dim` must be even (rotary embeddings turn pairs), got {self.head_dim}.")

    def _check_experts(self) -> None:
        expected_experts_per_tok = min(2, self.num_experts)
        if self.num_experts_per_tok != expected_experts_per_tok:
            raise ValueError(
                "Jakiro mixes the two best experts (one, if there is only one): with "
                f"`num_experts={self.num_experts}`, `num_experts_per_tok` must be {expected_experts_per_tok}, "
                f"got {self.num_experts_per_tok}."
            )
        if self.num_experts == 1 and self.head_mode != "single":
            raise ValueError(
                f"`head_mode='{self.head_mode}'` needs two experts to tell apart, got `num_experts=1`. "
                "Use `head_mode='single'` for the dense layer of EAGLE, or `num_experts=2`."
            )

    def _check_trees(self) -> None:
        vocabulary = "vocab_size" if self.draft_vocab_size is None else "draft_vocab_size"
        num_tokens = getattr(self, vocabulary)  # tokens that can be drafted
        if num_tokens > self.vocab_size:
            raise ValueError(
                "`draft_vocab_size` cannot exceed the target's vocabulary: got "
                f"draft_vocab_size={num_tokens}, vocab_size={self.vocab_size}."
            )
        if self.tree_top_k > num_tokens:
            raise ValueError(
                "`tree_top_k` cannot exceed the vocabulary: got "
                f"tree_top_k={self.tree_top_k}, {vocabulary}={num_tokens}."
            )
        if self.static_tree is not None:
            self._check_static_tree(vocabulary, num_tokens)
        for size, tree in (self.batch_trees or {}).items():
            self._check_batch_tree(size, tree, vocabulary, num_tokens)

    def tree_fields(self, batch_size: int = 1) -> dict[str, int]:
        """
        `tree_depth`, `tree_width`, `tree_top_k` and `num_draft_tokens` of the dynamic trees for a batch size. Between
        two sizes of `batch_trees`, they change by the same factor with each doubling of the batch. Without
        `batch_trees`, all rows together get the nodes of one row, and the number of levels shrinks with the logarithm
        of the nodes.
        """
        if self.batch_trees:
            own = {field: getattr(self, field) for field in _TREE_FIELDS}
            own["tree_width"] = self.tree_width or self.tree_top_k
            trees = {1: own, **{int(size): tree for size, tree in self.batch_trees.items()}}
            below = max(size for size in trees if size <= batch_size)
            above = min((size for size in trees if size > batch_size), default=below)
            share = 0.0 if above == below else math.log(batch_size / below) / math.log(above / below)
            return {
                field: round(value * (trees[above][field] / value) ** share) for field, value in trees[below].items()
            }
        num_draft_tokens = max(1, self.num_draft_tokens // batch_size)
        share = math.log(num_draft_tokens + 1) / math.log(self.num_draft_tokens + 1)
        return {
            "tree_depth": max(1, round(self.tree_depth * share)),
            "tree_width": max(1, (self.tree_width or self.tree_top_k) // batch_size),
            "tree_top_k": self.tree_top_k,
            "num_draft_tokens": num_draft_tokens,
        }

    def _check_batch_tree(self, size: str, tree: dict[str, int], vocabulary: str, num_tokens: int):
        if not size.isdecimal() or str(int(size)) != size or int(size) < 2:
            raise ValueError(
                "The keys of `batch_trees` must be batch sizes of at least 2 (for one sequence the config has its "
                f"own fields), as text: '4', for example; got {size!r}."
            )
        if sorted(tree) != sorted(_TREE_FIELDS):
            raise ValueError(f"`batch_trees['{size}']` must hold {', '.join(_TREE_FIELDS)}; got {', '.join(tree)}.")
        for name, value in tree.items():
            if value < 1:
                raise ValueError(f"`{name}` of `batch_trees['{size}']` must be at least 1, got {value}.")
        if tree["tree_top_k"] > num_tokens:
            raise ValueError(
                f"`tree_top_k` of `batch_trees['{size}']` cannot exceed the vocabulary: got "
                f"tree_top_k={tree['tree_top_k']}, {vocabulary}={num_tokens}."
            )

    def _check_fusion(self):
        if self.fusion == "eagle3":
            if self.feature_layers is None:
                raise ValueError('`fusion="eagle3"` fuses hidden states of `feature_layers`, got None.')
            if (self.embedding_multiplier, self.feature_multiplier) != (1, 1):
                raise ValueError(
                    '`fusion="eagle3"` norms embeddings and features and takes no multipliers, got '
                    f"embedding_multiplier={self.embedding_multiplier}, feature_multiplier={self.feature_multiplier}."
                )
            if self.target_hidden_size not in (None, self.hidden_size) and not (self.own_head and self.own_embeddings):
                raise ValueError(
                    "A drafter can borrow the target's head and embeddings only if it is as wide: with `hidden_size="
                    f"{self.hidden_size}` and `target_hidden_size={self.target_hidden_size}` it needs `own_head` and "
                    "`own_embeddings`."
                )
            return
        for name in ("fusion_norm", "residual_norm", "target_hidden_size", "own_head", "own_embeddings"):
            if getattr(self, name):
                raise ValueError(f'`{name}={getattr(self, name)!r}` needs `fusion="eagle3"`, got "{self.fusion}".')

    def check_trainable(self):
        """Raises `ValueError` for drafters that can be loaded and used, but not trained."""
        if self.fusion == "eagle3":
            raise ValueError(
                'EAGLE-3 drafters (`fusion="eagle3"`) can be used, not trained: the losses compare a drafter\'s '
                "features with the target's, and theirs are not in that space. Train one with the library it comes "
                'from, or train a drafter with `fusion="linear"` (and `feature_layers`, to read further layers).'
            )

    def _check_static_tree(self, vocabulary: str, num_tokens: int):
        paths = [tuple(path) for path in self.static_tree or ()]
        if not paths or min(map(len, paths)) == 0:
            raise ValueError(
                "`static_tree` must hold at least one path and no empty one (the root is implied); drop the field "
                "to draft dynamic trees."
            )
        nodes = set(paths)
        if len(nodes) != len(paths):
            raise ValueError("`static_tree` lists a path twice; list each node once.")
        for path in paths:
            if min(path) < 0 or max(path) >= num_tokens:
                raise ValueError(f"`static_tree` ranks must lie in [0, {vocabulary}), got the path {list(path)}.")
            if len(path) > 1 and path[:-1] not in nodes:
                raise ValueError(
                    f"`static_tree` must be a tree: the path {list(path)} is there, "
                    f"its parent {list(path[:-1])} is not."
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """
        As [`~transformers.PreTrainedConfig.from_dict`], for the contents of any `config.json`.

        Raises:
            ValueError: naming the field with an impossible value.
        """
        known = {name: value for name, value in config_dict.items() if name not in _IGNORED_KEYS}
        for name, kinds, words in (
            ("quantization_config", dict, "an object"),
            ("dtype", str | torch.dtype, "the name of a dtype"),
            ("torch_dtype", str | torch.dtype, "the name of a dtype"),
        ):
            if not isinstance(known.get(name), kinds | None):
                raise ValueError(f"`{name}` must be {words} or null, got {known[name]!r}. Correct config.json.")
        try:
            return super().from_dict(known, **kwargs)
        except (AttributeError, LookupError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"This is not the configuration of a Jakiro drafter: {error}") from error

    @classmethod
    def from_target(cls, target_config: PreTrainedConfig, **overrides: Any) -> "JakiroDraftConfig":
        """
        The configuration of a drafter for a target. Vocabulary, hidden size, attention shape, rotary base and special
        tokens are the target's; everything else has the published defaults.

        Args:
            target_config ([`~transformers.PreTrainedConfig`]): config of a causal language model (composite configs
                give their text config).
            overrides: any field of [`JakiroDraftConfig`].
        """
        text_config = target_config.get_text_config(decoder=True)
        layer_config = text_config
        if getattr(text_config, "is_heterogeneous", False):  # layers differ in shape: take that of the first
            layer_config = text_config.per_layer_config[0]
        hidden_size = text_config.hidden_size
        num_attention_heads = layer_config.num_attention_heads
        head_dim = getattr(layer_config, "head_dim", None) or hidden_size // num_attention_heads
        num_key_value_heads = getattr(layer_config, "num_key_value_heads", None) or num_attention_heads
        if num_attention_heads * head_dim > 2 * hidden_size or getattr(text_config, "kv_lora_rank", None) is not None:
            # latent attention: its head counts describe another kind of attention than the drafter's
            head_dim = 64 if hidden_size % 64 == 0 else hidden_size // num_attention_heads
            num_attention_heads = num_key_value_heads = hidden_size // head_dim
        rope_parameters = getattr(text_config, "rope_parameters", None) or {}
        if "rope_theta" not in rope_parameters:  # one set per layer type: take the full-attention one
            rope_parameters = rope_parameters.get("full_attention") or {}
        values = {
            "vocab_size": text_config.vocab_size,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "rms_norm_eps": getattr(text_config, "rms_norm_eps", None) or 1e-6,
            "max_position_embeddings": getattr(text_config, "max_position_embeddings", 4096),
            # a drafter counts positions from 0 like its target, but rotates whole heads: only the base is the target's
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": float(rope_parameters.get("rope_theta", 10000.0)),
            },
            "target_name_or_path": getattr(target_config, "_name_or_path", None) or None,
            "target_revision": commit_of(target_config),
            "bos_token_id": getattr(text_config, "bos_token_id", None),
            "eos_token_id": getattr(text_config, "eos_token_id", None),
            "pad_token_id": getattr(text_config, "pad_token_id", None),
        }
        return cls(**{**values, **overrides})


__all__ = ["JakiroDraftConfig"]
