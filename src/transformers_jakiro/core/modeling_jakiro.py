# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The Jakiro drafter: a fusion layer and one decoder layer with a mixture of experts, reading the target's last hidden
states (arXiv 2502.06282, section 3).

Symbols in shape comments: B batch, T positions, H hidden size, N experts, I inner width of one expert, M mixtures.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, eager_attention_forward
from transformers.utils import ModelOutput

from . import compat
from .checkpoint import check_folder
from .configuration_jakiro import JakiroDraftConfig

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

    last_hidden_state: torch.Tensor | None = None
    contrastive_hidden_state: torch.Tensor | None = None
    expert_hidden_states: torch.Tensor | None = None
    cache: Cache | None = None
    router_logits: torch.Tensor | None = None


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
        self.head_dim = config.head_dim
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
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
        groups = self.num_key_value_groups
        implementation, dense_mask = self.config._attn_implementation, isinstance(attention_mask, torch.Tensor)
        # the mask has a row for each query head of a group: they become rows of one head, as otherwise keys and values
        # would be copied once per query head
        packed = dense_mask and groups > 1 and attention_mask.shape[-2] == groups * length
        if packed:
            query = query.reshape(batch_size, self.num_key_value_heads, groups * length, self.head_dim)
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
        if packed:  # [B, groups * T, key/value heads, head_dim]
            output = output.view(batch_size, groups, length, self.num_key_value_heads, self.head_dim)
            output = output.permute(0, 2, 3, 1, 4)
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
        inner_size = config.num_experts * config.expert_intermediate_size
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
        num_layers = len(config.feature_layers)
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


class JakiroDraftPreTrainedModel(compat.StrictLoading, PreTrainedModel):
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

    def __init__(self, config: JakiroDraftConfig):
        super().__init__(config)
        eagle3 = config.fusion == "eagle3"
        if not eagle3:
            self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fusion_bias)
        if config.feature_layers is not None:
            self.feature_fusion = JakiroFeatureFusion(config)
        self.layers = nn.ModuleList(
            Eagle3InputLayer(config) if eagle3 and i == 0 else JakiroDecoderLayer(config, i)
            for i in range(config.num_hidden_layers)
        )
        self.norm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps) if config.final_norm else nn.Identity()
        if eagle3 and not config.final_norm:
            self.head_norm = JakiroRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        num_drafted = config.vocab_size if config.draft_vocab_size is None else config.draft_vocab_size
        self.lm_head = nn.Linear(config.hidden_size, num_drafted, bias=False) if config.own_head else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embeddings else None
        try:
            self.rotary_emb = LlamaRotaryEmbedding(config)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"`rope_parameters={config.rope_parameters}` are none that Transformers knows: {error!r}. Those of "
                "`JakiroDraftConfig.from_target(target.config)` fit any drafter."
            ) from error
        size = config.draft_vocab_size
        self.register_buffer("draft_token_ids", None if size is None else torch.full((size,), -1))
        self.post_init()

    def rotary_factors(self, position_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Cosine and signed sine of the rotary positions `[B, T]`, each `[B, 1, T, head_dim]`. A rotated vector is
        `x * cos + roll(x, head_dim / 2) * sin`.
        """
        # a weight that stays floating-point whatever the layers are quantized to: for its dtype and device
        cos, sin = self.rotary_emb(self.layers[0].post_attention_layernorm.weight, position_ids)
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def get_input_embeddings(self):
        raise NotImplementedError("A Jakiro drafter has no embeddings to get or set: it uses those of its target.")

    def set_input_embeddings(self, value: nn.Module):
        raise NotImplementedError("A Jakiro drafter has no embeddings to get or set: it uses those of its target.")

    def draft_head(self, target: "Target") -> Callable[[torch.Tensor], torch.Tensor]:
        """
        The function `[..., H]` → `[..., D]` from this drafter's features to logits of the tokens that it can draft.

        Args:
            target ([`~transformers_jakiro.core.target.Target`]): gives its head, unless the drafter has its own.
        """
        head = self.lm_head or target.draft_head(self.draft_token_ids)
        if self.config.fusion == "linear" or self.config.final_norm:
            return head
        return lambda features: head(self.head_norm(features))

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
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
                is, additive or boolean as the attention implementation wants it. `(B, 1, G * T, past + T)`, with G
                query heads per key/value head: the same, repeated for each of them; fast for a few queries.
            position_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Positions in the drafter's own sequence of pairs, from 0. Default: those that follow the cache.
            position_embeddings (pair of `torch.Tensor`, *optional*):
                In place of `position_ids`, what [`~JakiroDraftModel.rotary_factors`] makes of them.
            cache ([`~transformers.Cache`], *optional*):
                Extended in place.
            output_contrastive_hidden_state, output_expert_hidden_states, output_router_logits (`bool`):
                What else to compute; nothing that isn't asked for is.

        Raises:
            ValueError: if the shapes of the two inputs differ, or an output is asked for that `head_mode` lacks.
            TypeError: if the cache is passed as `past_key_values`.
        """
        if "past_key_values" in kwargs:  # it would go unnoticed to the attention
            raise TypeError(
                "The drafter's key/value cache is called `cache`, got `past_key_values`. Pass `cache=...`."
            )
        hidden_size, further_layers = self.config.hidden_size, self.config.feature_layers or ()
        target_size = self.config.target_hidden_size or hidden_size
        widths = {hidden_size, (len(further_layers) + 1) * target_size}
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
        if output_contrastive_hidden_state and self.config.head_mode != "contrastive":
            raise ValueError(
                "Contrastive features need `head_mode='contrastive'`, this drafter has "
                f"`head_mode='{self.config.head_mode}'`."
            )
        if output_expert_hidden_states and self.config.num_experts == 1:
            raise ValueError("`output_expert_hidden_states` needs at least two experts, this drafter has one.")

        further = None  # hidden states of further layers
        if hidden_states.shape[-1] != hidden_size:
            further, hidden_states = hidden_states.tensor_split([-target_size], dim=-1)
        if self.config.embedding_multiplier != 1:
            inputs_embeds = inputs_embeds * self.config.embedding_multiplier
        if self.config.feature_multiplier != 1:
            hidden_states = hidden_states * self.config.feature_multiplier
        eagle3 = self.config.fusion == "eagle3"
        if further is not None:
            fused = self.feature_fusion(further)
            hidden_states = fused if eagle3 else hidden_states + fused
        hidden_states = torch.cat((inputs_embeds, hidden_states), dim=-1)
        if not eagle3:  # else the first layer reads both
            hidden_states = self.fc(hidden_states)
        if position_ids is None and position_embeddings is None:
            past_length = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_length
            position_ids = position_ids.unsqueeze(0)
        if attention_mask is None or attention_mask.ndim != 4:
            attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{compat.CACHE: cache},
            )
        if position_embeddings is None:
            # under autocast, weights and hidden states differ in dtype
            position_embeddings = tuple(x.to(hidden_states.dtype) for x in self.rotary_factors(position_ids))
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            mixtures, router_logits = layer(
                hidden_states,
                position_embeddings,
                attention_mask,
                cache,
                contrastive=output_contrastive_hidden_state and index == last,
                decoupled=output_expert_hidden_states and index == last,
                **kwargs,
            )
            hidden_states = mixtures[0]
        mixtures = self.norm(mixtures)
        if self.config.feature_multiplier != 1:
            mixtures = mixtures / self.config.feature_multiplier
        return JakiroDraftOutput(
            last_hidden_state=mixtures[0],
            contrastive_hidden_state=mixtures[1] if output_contrastive_hidden_state else None,
            expert_hidden_states=mixtures[-2:] if output_expert_hidden_states else None,
            cache=cache,
            router_logits=router_logits if output_router_logits else None,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *model_args: Any, **kwargs: Any):
        """
        As [`~transformers.PreTrainedModel.from_pretrained`], but strict: a checkpoint that lacks a weight, holds one
        that does not belong there, or holds NaN is an error, never a drafter that silently drafts nonsense; so are
        tokens to draft that the target does not have. The folder
        of a PEFT adapter gives the drafter that it was trained on, with the adapter; both must be complete.

        Raises:
            ValueError: naming the missing, unexpected, mismatched or non-finite weights, or what is wrong with
                `draft_token_ids`.
        """
        base, adapter, adapter_options = compat.find_adapter(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            if adapter == base:
                raise ValueError(
                    f"{adapter} holds a whole drafter and an adapter. Move the adapter's two files to a folder of "
                    "their own and load that, or the drafter without them."
                )
            if not base:
                raise ValueError(
                    f"The adapter in {adapter} does not tell its drafter (`base_model_name_or_path` is empty, as it "
                    "was trained on one that had not been saved). Load that drafter, then "
                    "`draft.load_adapter(...)`."
                )
            adapter_name = kwargs.pop("adapter_name", None)
            kwargs.pop("adapter_kwargs", None)
            loaded = cls.from_pretrained(base, *model_args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(adapter, adapter_name, adapter_kwargs=adapter_options)
            return loaded
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # here they are reported with the rest, and never ignored
        kwargs.setdefault("use_safetensors", True)  # what drafters are saved as
        path = pretrained_model_name_or_path
        if path is not None and Path(path).is_dir():
            check_folder(Path(path, kwargs.get("subfolder") or ""), with_config=kwargs.get("config") is None)
        try:
            model, info = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"The weights in {path} are damaged: {error}. Download or save them again.") from error
        # saving copies the code only where it is that of the checkpoint, and then notes it again
        vars(model.config).pop("auto_map", None)
        cls.check_loaded(path, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
        model.check_finite()
        model.check_draft_vocabulary()
        return (model, info) if wants_info else model

    def load_adapter(self, peft_model_id: str | Path | None = None, adapter_name: str | None = None, **kwargs: Any):
        """
        As `load_adapter` of [`~transformers.PreTrainedModel`], but strict as [`~JakiroDraftModel.from_pretrained`] is,
        and by default in the drafter's dtype.

        Raises:
            ValueError: naming the missing, unexpected or non-finite weights. The adapter is not loaded then.
        """
        adapter_name = adapter_name or "default"
        info = super().load_adapter(peft_model_id, adapter_name, **{"dtype": self.dtype, **kwargs})
        missing, unexpected = sorted(info.missing_keys), sorted(info.unexpected_keys)
        try:
            if missing or unexpected:
                raise ValueError(
                    f"{peft_model_id or 'the state dict'} does not hold an adapter of this {type(self).__name__}: "
                    f"missing {missing or 'none'}, unexpected {unexpected or 'none'}. Load the drafter that the "
                    "adapter was trained on first."
                )
            self.check_finite()
        except ValueError:
            compat.discard_adapter(self, adapter_name)
            raise
        return info

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        As [`~transformers.PreTrainedModel.save_pretrained`]. `push_to_hub=True` also publishes the drafter with
        [`~JakiroDraftModel.push_to_hub`], by default under the folder's name.
        """
        saving = signature(PreTrainedModel.save_pretrained).parameters.keys() & kwargs.keys() - {"token"}
        options = {name: kwargs.pop(name) for name in kwargs.keys() - saving}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if push_to_hub and is_main_process:
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    @classmethod
    def check_loaded(
        cls,
        path: str | Path | None,
        missing: Iterable[str],
        unexpected: Iterable[str],
        mismatched: Iterable[tuple[str, torch.Size, torch.Size]],
    ):
        """Raises `ValueError` if a checkpoint lacks weights, or has others; see `output_loading_info`."""
        wrong = [f"`{name}` is {tuple(got)}, expected {tuple(right)}" for name, got, right in sorted(mismatched)]
        missing, unexpected = sorted(missing), sorted(unexpected)
        if missing or unexpected or wrong:
            raise ValueError(
                f"{path} does not hold the weights of a {cls.__name__} with its config: missing {missing or 'none'}, "
                f"unexpected {unexpected or 'none'}, mismatched {', '.join(wrong) or 'none'}. If it is a published "
                "Jakiro or EAGLE checkpoint, load it with `JakiroDraftModel.from_original(...)` or run "
                "`jakiro convert` first."
            )

    def check_finite(self):
        """Raises `ValueError` naming the weights that hold NaN or infinity (those on the meta device are skipped)."""
        bad = [
            name
            for name, weight in self.named_parameters()
            if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(weight).all()
        ]
        if bad:
            raise ValueError(
                f"The drafter's weights hold NaN or infinite values in {bad}: the checkpoint is damaged or its "
                "training diverged. Load another checkpoint."
            )

    def check_draft_vocabulary(self):
        """Raises `ValueError` unless `draft_token_ids` are `draft_vocab_size` tokens of the target, increasing."""
        size, token_ids = self.config.draft_vocab_size, self.draft_token_ids
        if size is None and token_ids is None:
            return
        if size is None or token_ids is None:
            wrong = "one is there without the other"
        elif token_ids.is_meta:
            return
        elif token_ids.dtype != torch.int64 or token_ids.shape != (size,):
            wrong = f"they are {token_ids.dtype} of shape {tuple(token_ids.shape)}"
        elif token_ids[0] < 0 or token_ids[-1] >= self.config.vocab_size:
            wrong = f"they go from {token_ids[0]} to {token_ids[-1]}"
        elif not (token_ids.diff() > 0).all():
            wrong = "they are not sorted, or hold a token twice"
        else:
            return
        raise ValueError(
            f"With `draft_vocab_size={size}` and `vocab_size={self.config.vocab_size}`, the drafter's "
            f"`draft_token_ids` must be that many increasing token ids of the target (int64): {wrong}. A new drafter "
            "gets them from `new_drafter(target, draft_token_ids=frequent_tokens(...))`; a checkpoint with others is "
            "damaged, or its config.json belongs to another."
        )

    @torch.no_grad()
    def fold_multipliers(self) -> None:
        """
        Moves the config's `embedding_multiplier` and `feature_multiplier` into the weights, and sets them to 1: the
        same function, for formats that know no multipliers. Such a drafter is hard to train further.
        """
        scale = self.config.feature_multiplier
        if (self.config.embedding_multiplier, scale) == (1, 1):
            return
        self.fc.weight[:, : self.config.hidden_size] *= self.config.embedding_multiplier / scale
        if self.fc.bias is not None:
            self.fc.bias /= scale
        if self.config.feature_layers is not None:
            self.feature_fusion.proj.weight /= scale
        for layer in self.layers:
            if isinstance(layer.input_layernorm, nn.Identity):
                layer.self_attn.qkv_proj.weight *= scale
            for projection in (layer.self_attn.o_proj, layer.mlp.experts.down_proj):
                projection.weight /= scale
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                if isinstance(norm, JakiroRMSNorm):
                    norm.eps /= scale**2
        if self.config.final_norm:
            self.norm.eps /= scale**2
            self.norm.weight /= scale
        self.config.rms_norm_eps /= scale**2
        self.config.embedding_multiplier = self.config.feature_multiplier = 1.0


__all__ = ["JakiroDraftModel", "JakiroDraftOutput", "JakiroDraftPreTrainedModel"]
