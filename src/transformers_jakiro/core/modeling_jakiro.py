# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The Jakiro drafter: a fusion layer and one decoder layer with a mixture of experts, reading the target's last hidden
states (arXiv 2502.06282, section 3).

Symbols in shape comments: B batch, T positions, H hidden size, N experts, I inner width of one expert, M mixtures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, eager_attention_forward
from transformers.utils import ModelOutput

from . import compat
from .attention import pack_heads, unpack_heads
from .configuration_jakiro import JakiroDraftConfig
from .loading import StrictModel

if TYPE_CHECKING:
    from .target import Target


@dataclass
class JakiroDraftOutput(ModelOutput):
    """
    Output of [`JakiroDraftModel`]. All features live in the space of the target's last hidden states after its final
    norm: the target's own head turns them into next-token logits. (EAGLE-3's do not: see
    [`~JakiroDraftModel.draft_head`].)

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, T, H)`):
            Autoregressive features: index t predicts the target's feature at t + 1.
        contrastive_hidden_state (`torch.Tensor` of shape `(B, T, H)`, if asked for):
            Contrastive features: index t predicts the target's feature at t + 2.
        expert_hidden_states (`torch.Tensor` of shape `(2, B, T, H)`, if asked for):
            Features of the two chosen experts, each a head of its own; the larger gate logit first.
        cache (`Cache`, if one was given):
            The drafter's key/value cache, extended by T positions.
        router_logits (`torch.Tensor` of shape `(B, T, N)`, if asked for):
            Routing logits of the last layer.
    """

    last_hidden_state: torch.Tensor
    contrastive_hidden_state: torch.Tensor | None = None
    expert_hidden_states: torch.Tensor | None = None
    cache: Cache | None = None
    router_logits: torch.Tensor | None = None


def _required(size: int | None) -> int:
    """A size that the config has filled in."""
    if size is None:
        raise ValueError(
            "A size of the drafter's config is None. Make it with `JakiroDraftConfig(...)`, which fills it in."
        )
    return size


class JakiroRMSNorm(nn.RMSNorm):
    """In mixed precision, computed in the precision of its weight."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.to(self.weight.dtype))


class JakiroAttention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads; one product for all projections."""

    def __init__(self, config: JakiroDraftConfig, layer_idx: int, input_size: int | None = None):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = _required(config.head_dim)
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = _required(config.num_key_value_heads)
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        # how the attention interface is to see this module when the query heads are packed
        self._ungrouped = SimpleNamespace(num_key_value_groups=1, is_causal=True, training=False, layer_idx=layer_idx)
        qkv_size = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.qkv_proj = nn.Linear(input_size or config.hidden_size, qkv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    @property
    def dropout(self) -> float:
        """The probability in force: 0 outside of training."""
        return self.config.attention_dropout if self.training else 0.0

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B, T, H]
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        packed_heads: int = 1,
        **kwargs: Any,
    ) -> torch.Tensor:
        batch_size, length = hidden_states.shape[:2]
        qkv = self.qkv_proj(hidden_states).view(batch_size, length, -1, self.head_dim).transpose(1, 2)
        rotated, value = qkv.split((self.num_heads + self.num_key_value_heads, self.num_key_value_heads), dim=1)
        cos, sin = position_embeddings
        rotated = torch.addcmul(rotated * cos, rotated.roll(self.head_dim // 2, dims=-1), sin)
        query, key = rotated.split((self.num_heads, self.num_key_value_heads), dim=1)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation, dense_mask = self.config._attn_implementation, isinstance(attention_mask, torch.Tensor)
        packed = packed_heads > 1
        if packed:
            query = pack_heads(query, self.num_key_value_heads)  # [B, key/value heads, G * T, D]
        if packed and implementation in ("sdpa", "flex_attention"):  # flex takes no dense masks
            output = nn.functional.scaled_dot_product_attention(
                query, key, value, attention_mask, self.dropout, scale=self.scaling
            ).transpose(1, 2)
        else:
            if implementation == "flex_attention" and dense_mask:
                implementation = "sdpa"
            attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
            output, _ = attention(
                self._ungrouped if packed else self,
                query,
                key,
                value,
                attention_mask,
                dropout=self.dropout,
                scaling=self.scaling,
                **kwargs,
            )
        if packed:
            output = unpack_heads(output, packed_heads)  # [B, T, heads, D]
        return self.o_proj(output.reshape(batch_size, length, -1))


class JakiroExperts(nn.Module):
    """
    N experts, computed as one wide MLP whose inner activations are weighted per expert.

    `sum_i w_i E_i(u)` is linear in the experts' outputs, so the weights can be applied to the inner activations and
    one product with the concatenated down projections gives any mixture – the weighted sum (w ≥ 0), the contrast (one
    weight negative) or a single expert (one-hot) – without a routing loop.
    """

    def __init__(self, config: JakiroDraftConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.gated = config.gated_experts
        inner_size = config.num_experts * _required(config.expert_intermediate_size)
        if self.gated:
            # gate projections of all experts, then up projections of all experts
            self.gate_up_proj = nn.Linear(config.hidden_size, 2 * inner_size, bias=False)
        else:
            self.up_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.down_proj = nn.Linear(inner_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, mixtures: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            hidden_states (`[B, T, H]`): normed input `u`.
            mixtures (`[M, B, T, N]`, or None with one expert): weights of the experts' outputs in each mixture.

        Returns:
            `[M, B, T, H]`: the mixtures.
        """
        if self.gated:
            gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
            inner = self.act_fn(gate) * up  # [B, T, N * I]
        else:
            inner = self.act_fn(self.up_proj(hidden_states))
        if mixtures is None:
            return self.down_proj(inner).unsqueeze(0)
        inner = inner.unflatten(-1, (self.num_experts, -1))  # [B, T, N, I]
        inner = (mixtures.unsqueeze(-1) * inner).flatten(-2)  # [M, B, T, N * I]
        return self.down_proj(inner)


class JakiroMixture(nn.Module):
    """Gate and experts. The gate's logits `a_1..a_N` route; a contrastive gate has two more, `b_1, b_2`."""

    def __init__(self, config: JakiroDraftConfig, head_mode: str):
        super().__init__()
        self.num_experts = config.num_experts
        self.head_mode = head_mode
        if config.num_experts > 1:
            gate_size = config.num_experts + (2 if head_mode == "contrastive" else 0)
            self.gate = nn.Linear(config.hidden_size, gate_size, bias=False)
        self.experts = JakiroExperts(config)

    def forward(
        self, hidden_states: torch.Tensor, contrastive: bool, decoupled: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`[B, T, H]`): normed input `u`.
            contrastive (`bool`): append the contrast `v_hi E_hi(u) - v_lo E_lo(u)`.
            decoupled (`bool`): append `E_i(u)` and `E_j(u)` of the two chosen experts, unweighted.

        Returns:
            The mixtures `[1 + contrastive + 2 * decoupled, B, T, H]`, the weighted sum first, and the routing logits
            `[B, T, N]` (None with one expert).
        """
        if self.num_experts == 1:
            return self.experts(hidden_states, None), None
        gate_logits = self.gate(hidden_states)
        router_logits = gate_logits[..., : self.num_experts]
        if self.num_experts == 2:  # i = expert 0 and j = expert 1 always: nothing to select
            mixtures = [router_logits.softmax(dim=-1)]
            chosen = None
        else:
            top_logits, chosen = router_logits.topk(2, dim=-1)
            mixtures = [torch.zeros_like(router_logits).scatter(-1, chosen, top_logits.softmax(dim=-1))]
        if contrastive:
            weights = gate_logits[..., self.num_experts :].softmax(dim=-1)  # v of (b_1, b_2), for experts (i, j)
            # + for the larger of the two, - for the smaller
            sign = torch.where(weights[..., :1] >= weights[..., 1:], 1.0, -1.0).to(weights.dtype)
            contrast = weights * torch.cat((sign, -sign), dim=-1)
            mixtures.append(
                contrast if chosen is None else torch.zeros_like(router_logits).scatter(-1, chosen, contrast)
            )
        if decoupled:
            order = router_logits.topk(2, dim=-1).indices if chosen is None else chosen
            one_hot = nn.functional.one_hot(order, self.num_experts).to(router_logits.dtype)  # [B, T, 2, N]
            mixtures.extend(one_hot.unbind(dim=-2))
        return self.experts(hidden_states, torch.stack(mixtures)), router_logits


class JakiroDecoderLayer(nn.Module):
    """Attention, then experts. Only the last layer of a drafter offers more than the weighted sum of its experts."""

    def __init__(self, config: JakiroDraftConfig, layer_idx: int, input_size: int | None = None):
        super().__init__()
        is_last = layer_idx == config.num_hidden_layers - 1
        # the fused input of the first layer is not normed
        self.input_layernorm = (
            JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps) if layer_idx > 0 else nn.Identity()
        )
        self.self_attn = JakiroAttention(config, layer_idx, input_size)
        self.post_attention_layernorm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = JakiroMixture(config, config.head_mode if is_last else "single")

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B, T, H]
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        contrastive: bool,
        decoupled: bool,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        residual, inputs = self.read(hidden_states)
        hidden_states = residual + self.self_attn(inputs, position_embeddings, attention_mask, cache, **kwargs)
        mixtures, router_logits = self.mlp(self.post_attention_layernorm(hidden_states), contrastive, decoupled)
        return hidden_states + mixtures, router_logits  # [M, B, T, H]

    def read(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is carried on, and what the attention reads."""
        return hidden_states, self.input_layernorm(hidden_states)


class Eagle3InputLayer(JakiroDecoderLayer):
    """First layer with `fusion="eagle3"`: reads `[B, T, 2 * H]`, embeddings and features."""

    def __init__(self, config: JakiroDraftConfig):
        super().__init__(config, layer_idx=0, input_size=2 * config.hidden_size)
        self.input_layernorm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.residual_norm = config.residual_norm

    def read(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings, features = hidden_states.chunk(2, dim=-1)
        normed = self.hidden_norm(features)
        inputs = torch.cat((self.input_layernorm(embeddings), normed), dim=-1)
        return normed if self.residual_norm else features, inputs


class JakiroFeatureFusion(nn.Module):
    """What further layers of the target add to its features, or with `fusion="eagle3"` the features themselves."""

    def __init__(self, config: JakiroDraftConfig):
        super().__init__()
        input_size = config.target_hidden_size or config.hidden_size
        num_layers = len(config.feature_layers or ())
        kind = "each" if config.fusion == "linear" else config.fusion_norm
        num_norms = {"each": num_layers, "all": 1, None: 0}[kind]
        self.norms = nn.ModuleList(
            JakiroRMSNorm(num_layers * input_size // num_norms, eps=config.rms_norm_eps) for _ in range(num_norms)
        )
        self.proj = nn.Linear(num_layers * input_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., layers * target's H]` → `[..., H]`, at the size that the drafter reads features in."""
        if not self.norms:
            return self.proj(hidden_states)
        parts = hidden_states.chunk(len(self.norms), dim=-1)
        return self.proj(torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=-1))


class LinearFusion:
    """
    `fusion="linear"` (paper section 3.1): one product with embedding and feature. Further layers of the target add to
    the feature.
    """

    @staticmethod
    def add_modules(model: Any) -> None:
        """Gives a model what fusing takes."""
        config = model.config
        model.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fusion_bias)

    @staticmethod
    def first_layer(config: JakiroDraftConfig) -> JakiroDecoderLayer:
        return JakiroDecoderLayer(config, 0)

    @staticmethod
    def fuse(
        model: Any, embeddings: torch.Tensor, features: torch.Tensor, further: torch.Tensor | None
    ) -> torch.Tensor:
        """
        What the first layer reads, `[B, T, H]`, of embeddings and features `[B, T, H]` and the hidden states of
        further layers `[B, T, layers * H]`.
        """
        if further is not None:
            features = features + model.feature_fusion(further)  # [B, T, H]
        return model.fc(torch.cat((embeddings, features), dim=-1))  # [B, T, H]


class Eagle3Fusion:
    """`fusion="eagle3"`: further layers of the target are the feature, and the first layer reads both side by side."""

    @staticmethod
    def add_modules(model: Any) -> None:
        """Gives a model what its head needs: its features are not normed."""
        config = model.config
        if not config.final_norm:
            model.head_norm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    @staticmethod
    def first_layer(config: JakiroDraftConfig) -> JakiroDecoderLayer:
        return Eagle3InputLayer(config)

    @staticmethod
    def fuse(
        model: Any, embeddings: torch.Tensor, features: torch.Tensor, further: torch.Tensor | None
    ) -> torch.Tensor:
        """As [`LinearFusion.fuse`], to `[B, T, 2 * H]`."""
        if further is not None:  # else the features are the drafter's own
            features = model.feature_fusion(further)  # [B, T, H]
        return torch.cat((embeddings, features), dim=-1)  # [B, T, 2 * H]


FUSIONS: dict[str, Any] = {"linear": LinearFusion, "eagle3": Eagle3Fusion}


class JakiroDraftPreTrainedModel(StrictModel):
    config: JakiroDraftConfig
    config_class = JakiroDraftConfig
    base_model_prefix = ""
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = False
    _no_split_modules = ["JakiroDecoderLayer"]
    _skip_keys_device_placement = ["cache"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LlamaRotaryEmbedding):
            return
        if (
            isinstance(module, nn.Linear)
            and module.bias is not None
            and not getattr(module.bias, "_is_hf_initialized", False)
        ):
            nn.init.zeros_(module.bias)


class JakiroDraftModel(JakiroDraftPreTrainedModel):
    """
    Drafter for speculative decoding of a causal language model: pass it to `target.generate(assistant_model=draft)`.

    Token embeddings and output head are the target's; they are neither part of this module nor of its checkpoint.
    Only EAGLE-3 drafters may have their own (`config.own_embeddings`, `config.own_head`).

    Args:
        config ([`JakiroDraftConfig`]): shape of the drafter, its target and its trees.

    With `config.draft_vocab_size`, the buffer `draft_token_ids` (`[draft_vocab_size]`, int64, increasing) holds the
    target's tokens that can be drafted, and is saved with the weights. It is invalid (-1) until it is loaded, or set
    by [`~transformers_jakiro.training.initialization.new_drafter`]; without `draft_vocab_size` it is None.

    A LoRA adapter (PEFT) adapts a drafter to a domain. The layers to adapt are `["fc", "qkv_proj", "o_proj",
    "gate_up_proj", "down_proj"]` (`"up_proj"` for experts without gates), or `"all-linear"`, which includes the gate
    that mixes the experts:

    ```python
    >>> draft = get_peft_model(draft, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    >>> draft.save_pretrained("adapter")  # after training, see `JakiroTrainer`
    >>> draft = JakiroDraftModel.from_pretrained("adapter")
    ```
    """

    fc: nn.Linear  # of `fusion="linear"`
    feature_fusion: JakiroFeatureFusion  # with `feature_layers`

    def __init__(self, config: JakiroDraftConfig):
        super().__init__(config)
        self._fusion = FUSIONS[config.fusion]
        self._fusion.add_modules(self)
        if config.feature_layers is not None:
            self.feature_fusion = JakiroFeatureFusion(config)
        self.layers = nn.ModuleList(
            self._fusion.first_layer(config) if i == 0 else JakiroDecoderLayer(config, i)
            for i in range(config.num_hidden_layers)
        )
        self.norm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps) if config.final_norm else nn.Identity()
        num_drafted = config.vocab_size if config.draft_vocab_size is None else config.draft_vocab_size
        self.lm_head = nn.Linear(config.hidden_size, num_drafted, bias=False) if config.own_head else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embeddings else None
        try:
            self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # reads these fields only
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"`rope_parameters={config.rope_parameters}` are not known to Transformers: {error!r}. Those of "
                "`JakiroDraftConfig.from_target(target.config)` fit any drafter."
            ) from error
        size = config.draft_vocab_size
        self.register_buffer("draft_token_ids", None if size is None else torch.full((size,), -1))
        self.post_init()

    def rotary_factors(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Cosine and signed sine of the rotary positions `[B, T]`, each `[B, 1, T, head_dim]`. A rotated vector is
        `x * cos + roll(x, head_dim / 2) * sin`.
        """
        # a weight that stays floating-point whatever the layers are quantized to: for its dtype and device
        first: Any = self.layers[0]
        cos, sin = self.rotary_emb(first.post_attention_layernorm.weight, position_ids)
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def get_input_embeddings(self) -> Any:
        raise NotImplementedError("A Jakiro drafter has no embeddings to get or set: it uses those of its target.")

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise NotImplementedError("A Jakiro drafter has no embeddings to get or set: it uses those of its target.")

    def resize_token_embeddings(  # type: ignore[override]  # there are none to return
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> None:
        """
        Follows a target whose `resize_token_embeddings` was called with the same arguments.

        Raises:
            NotImplementedError: if the drafter has embeddings or a head of its own.
        """
        if self.config.own_embeddings or self.config.own_head:
            raise NotImplementedError(
                "This drafter has token embeddings or a head of its own, which new tokens would need to be trained in."
            )
        num_tokens = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            num_tokens = -(-num_tokens // pad_to_multiple_of) * pad_to_multiple_of
        self.config.vocab_size = num_tokens

    def draft_head(self, target: "Target") -> Callable[[torch.Tensor], torch.Tensor]:
        """
        The function `[..., H]` → `[..., D]` from this drafter's features to logits of the tokens that it can draft.

        Args:
            target ([`~transformers_jakiro.core.target.Target`]): gives its head, unless the drafter has its own.
        """
        head = self.lm_head or target.draft_head(self.draft_token_ids)
        norm: Any = getattr(self, "head_norm", None)
        if norm is None:
            return head
        return lambda features: head(norm(features))

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        output_contrastive_hidden_state: bool = False,
        output_expert_hidden_states: bool = False,
        output_router_logits: bool = False,
        **kwargs: Any,
    ) -> JakiroDraftOutput:
        """
        The same formulas for training and drafting (paper sections 3.1 and 3.2).

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B, T, H)`):
                The target's embeddings `E(x_{t+1})` of the tokens *after* each feature.
            hidden_states (`torch.Tensor` of shape `(B, T, H)`):
                Features `f_t`: the target's last hidden states after its final norm, or the drafter's own features.
                With `feature_layers`, the target's are `(B, T, F)`: those of these layers before the last ones (which
                `fusion="eagle3"` does not read).
            attention_mask (`torch.Tensor`, *optional*):
                None: causal. `(B, past + T)`: causal, positions with 0 are padding. `(B, 1, T, past + T)`: used as it
                is, additive or boolean as the attention implementation wants it. With `packed_heads=G`, the number of
                query heads per key/value head, `(B, 1, G * T, past + T)`: see
                [`~transformers_jakiro.core.attention`].
            position_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Positions in the drafter's own sequence of pairs, from 0. Default: those that follow the cache.
            position_embeddings (pair of `torch.Tensor`, *optional*):
                In place of `position_ids`, what [`~JakiroDraftModel.rotary_factors`] makes of them.
            cache ([`~transformers.Cache`], *optional*):
                Extended in place.
            output_contrastive_hidden_state, output_expert_hidden_states, output_router_logits (`bool`):
                What else to compute.

        Raises:
            ValueError: if the shapes of the two inputs differ, or an output is asked for that `head_mode` lacks.
            TypeError: if the cache is passed as `past_key_values`.
        """
        self._check_inputs(inputs_embeds, hidden_states, kwargs)
        self._check_outputs(output_contrastive_hidden_state, output_expert_hidden_states)
        fused = self._fuse(inputs_embeds, hidden_states)  # [B, T, H], with `fusion="eagle3"` [B, T, 2 * H]
        if position_ids is None and position_embeddings is None:
            past_length = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(fused.shape[1], device=fused.device)[None] + past_length  # [1, T]
        if attention_mask is None or attention_mask.ndim != 4:
            attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=fused,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{compat.CACHE: cache},
            )
        if position_embeddings is None:
            # under autocast, weights and hidden states differ in dtype
            assert position_ids is not None
            cos, sin = self.rotary_factors(position_ids)
            position_embeddings = (cos.to(fused.dtype), sin.to(fused.dtype))
        hidden_states, last = fused, len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            mixtures, router_logits = layer(
                hidden_states,
                position_embeddings,
                attention_mask,
                cache,
                contrastive=output_contrastive_hidden_state and index == last,
                decoupled=output_expert_hidden_states and index == last,
                **kwargs,
            )  # [M, B, T, H], [B, T, N]
            hidden_states = mixtures[0]  # [B, T, H]: the weighted sum of the experts
        features = self.norm(mixtures)  # [M, B, T, H]
        if self.config.feature_multiplier != 1:
            features = features / self.config.feature_multiplier
        return JakiroDraftOutput(
            last_hidden_state=features[0],
            contrastive_hidden_state=features[1] if output_contrastive_hidden_state else None,
            expert_hidden_states=features[-2:] if output_expert_hidden_states else None,
            cache=cache,
            router_logits=router_logits if output_router_logits else None,
        )

    def _fuse(self, inputs_embeds: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the first layer reads, of embeddings `[B, T, H]` and features `[B, T, H]` or `[B, T, F]`."""
        target_size = self.config.target_hidden_size or self.config.hidden_size
        further = None  # hidden states of further layers, [B, T, F - target's H]
        if hidden_states.shape[-1] != self.config.hidden_size:
            further, hidden_states = hidden_states.tensor_split([-target_size], dim=-1)
        if self.config.embedding_multiplier != 1:
            inputs_embeds = inputs_embeds * self.config.embedding_multiplier
        if self.config.feature_multiplier != 1:
            hidden_states = hidden_states * self.config.feature_multiplier
        return self._fusion.fuse(self, inputs_embeds, hidden_states, further)

    def _check_inputs(self, inputs_embeds: torch.Tensor, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """Raises `ValueError` for shapes that do not fit, `TypeError` for the cache under another name."""
        if "past_key_values" in kwargs:  # it would go unnoticed to the attention
            raise TypeError(
                "The drafter's key/value cache is called `cache`, got `past_key_values`. Pass `cache=...`."
            )
        hidden_size, further_layers = self.config.hidden_size, self.config.feature_layers or ()
        widths = {hidden_size, (len(further_layers) + 1) * (self.config.target_hidden_size or hidden_size)}
        if (
            inputs_embeds.shape[:-1] != hidden_states.shape[:-1]
            or inputs_embeds.shape[-1] != hidden_size
            or hidden_states.shape[-1] not in widths
        ):
            raise ValueError(
                "`inputs_embeds` and `hidden_states` must both be (batch, positions, hidden_size) with "
                f"hidden_size={hidden_size}"
                + (f" (or {max(widths)}, with those of `feature_layers` before)" if further_layers else "")
                + f", got {tuple(inputs_embeds.shape)} and {tuple(hidden_states.shape)}."
            )

    def _check_outputs(self, contrastive: bool, experts: bool) -> None:
        """Raises `ValueError` if an output is asked for that this drafter does not have."""
        if contrastive and self.config.head_mode != "contrastive":
            raise ValueError(
                "Contrastive features need `head_mode='contrastive'`, this drafter has "
                f"`head_mode='{self.config.head_mode}'`."
            )
        if experts and self.config.num_experts == 1:
            raise ValueError("`output_expert_hidden_states` needs at least two experts, this drafter has one.")


__all__ = ["JakiroDraftModel", "JakiroDraftOutput", "JakiroDraftPreTrainedModel"]
