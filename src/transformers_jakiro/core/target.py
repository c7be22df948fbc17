# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What a drafter borrows from its target: token embeddings, the logits function, and the check that they fit.

Symbols in shape comments: B batch, T positions, H hidden size, V vocabulary, D tokens that can be drafted.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .compat import execution_device, select_hidden_states
from .configuration_jakiro import JakiroDraftConfig

# Tokens by which a target's vocabulary may be larger than its drafter's: those that were added to its tokenizer.
_MOST_ADDED_TOKENS = 1024


class Target:
    """
    A causal language model as its drafter sees it. Holds references only; the model is not changed.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target, or a PEFT model around it.
        feature_layers (`Sequence[int]`, *optional*): hidden states that its drafter reads besides the last ones, see
            [`JakiroDraftConfig`].
        embeddings (`nn.Embedding`, *optional*): the drafter's own, if it does not borrow the target's.
        reads_hidden_states (`bool`): whether its drafter reads hidden states at all.
    """

    def __init__(
        self,
        model: Any,
        feature_layers: Sequence[int] | None = None,
        embeddings: nn.Embedding | None = None,
        reads_hidden_states: bool = True,
    ):
        self.reads_hidden_states = reads_hidden_states
        self.feature_layers = tuple(feature_layers or ())
        self.lends_embeddings = embeddings is None
        self.model: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = self.model.config.get_text_config(decoder=True)
        self.embeddings = self.model.get_input_embeddings()
        self.output_layer = self.model.get_output_embeddings()
        if self.embeddings is None or self.output_layer is None:
            raise ValueError(
                f"{type(self.model).__name__} has no input embeddings or no language modeling head. A drafter needs "
                "both: load the target with `AutoModelForCausalLM`."
            )
        self.embeddings = self.embeddings if embeddings is None else embeddings
        self.num_logits = _num_logits(self.output_layer, self.config.vocab_size)
        self._draft_head: tuple[torch.Tensor, DraftHead] | None = None  # the last one asked for
        # wrappers of a text model need not apply what its config says: see `check_head`
        self._logit_scale = _logit_scale(self.config)
        self._logit_softcap: float | None = getattr(self.config, "final_logit_softcapping", None)

    @classmethod
    def of(cls, model: PreTrainedModel, draft_model: PreTrainedModel) -> "Target":
        """The target as this drafter sees it."""
        drafter: Any = draft_model
        return cls(model, drafter.config.feature_layers, drafter.embed_tokens)

    def check_fits(self, draft_config: JakiroDraftConfig) -> None:
        """Raises `ValueError` if a drafter with this config cannot draft for this target."""
        num_layers = self.config.num_hidden_layers
        if draft_config.feature_layers and max(draft_config.feature_layers) >= num_layers:
            raise ValueError(
                f"The drafter reads the hidden states {draft_config.feature_layers} (`feature_layers`), but "
                f"{type(self.model).__name__} has {num_layers} layers: 0 to {num_layers - 1} are to be had, besides "
                "the last ones. Load a drafter trained for this target."
            )
        # tokens may have been added to the target, and its embeddings padded to a round number
        added = self.config.vocab_size - draft_config.vocab_size
        borrows = not (draft_config.own_head or draft_config.own_embeddings)
        for field, got, fits, remedy in (
            (
                "vocab_size",
                draft_config.vocab_size,
                added == 0 or (borrows and 0 < added <= _MOST_ADDED_TOKENS),
                "The two must share a tokenizer.",
            ),
            (
                "hidden_size",
                draft_config.target_hidden_size or draft_config.hidden_size,
                self.config.hidden_size == (draft_config.target_hidden_size or draft_config.hidden_size),
                "The drafter reads the target's hidden states.",
            ),
        ):
            if not fits:
                trained_for = draft_config.target_name_or_path
                expected = getattr(self.config, field)
                raise ValueError(
                    f"The drafter's `{field}` must be its target's: {type(self.model).__name__} has {expected}, the "
                    f"drafter {got}. {remedy} Load a drafter trained for this target"
                    + (f" (this one was trained for {trained_for})." if trained_for else ".")
                )

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `E(x)` of the target's embedding layer, or the drafter's own: `[...]` → `[..., H]`."""
        return self.embeddings(token_ids.to(execution_device(self.embeddings)))

    @torch.no_grad()
    def features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        What a drafter reads: the hidden states of its `feature_layers` and, last, those after the final norm (the
        *features*), in one forward without a cache.

        Args:
            input_ids (`[B, T]`), attention_mask (`[B, T]`, *optional*): as for the target itself.
            position_ids (`[B, T]`, *optional*): positions that restart at 0 for each sample of a packed row; then
                `attention_mask` must be None, and no sample sees another.

        Returns:
            `[B, T, F]` in the target's dtype, F = H times the number of layers, and one.
        """
        positions = {} if position_ids is None else {"position_ids": position_ids}  # not every model takes them
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=self.output_hidden_states,
            use_cache=False,
            logits_to_keep=1,
            **positions,
        )
        return self.read(outputs.hidden_states)

    @property
    def output_hidden_states(self) -> bool | list[int]:
        """The argument of the target's forward for what its drafter reads."""
        return self.reads_hidden_states and select_hidden_states([*self.feature_layers, -1], self.config)

    def read(self, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """What a drafter reads of a forward's `hidden_states`: each `[B, T, H]` → `[B, T, F]`."""
        last = hidden_states[-1]
        if last is None:
            raise NotImplementedError(
                f"{type(self.model).__name__} does not return its last hidden states, which a drafter reads. Leave "
                "out `assistant_model`."
            )
        if not self.feature_layers:
            return last
        return torch.cat((*(hidden_states[layer].to(last.device) for layer in self.feature_layers), last), dim=-1)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        """The target's logits of features, with its scale and soft cap: `[..., H]` → `[..., V]`."""
        return self._scaled(self._product(features))

    def _product(self, features: torch.Tensor) -> torch.Tensor:
        """What the head itself makes of features, without scale and soft cap."""
        weight = head_weight(self.output_layer)
        features = features.to(execution_device(self.output_layer))
        if weight is not None and weight.is_floating_point():  # quantized heads take what they are given
            features = features.to(weight.dtype)
        return self.output_layer(features)

    def draft_head(self, token_ids: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """
        [`~Target.head`] for a part of the vocabulary: a function `[..., H]` → `[..., D]` that holds a copy of these
        rows of the target's head, so that its logits cost D / V of all. Where the head is more than a product with a
        plain matrix (quantized, sharded, adapted), it computes all logits and picks these.

        Args:
            token_ids (`[D]`, or None for all): the tokens whose logits are wanted.
        """
        if token_ids is None:
            return self.head
        if self._draft_head is None or self._draft_head[0] is not token_ids:
            self._draft_head = (token_ids, DraftHead(self, token_ids))
        return self._draft_head[1]

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        if self._logit_scale is not None:
            logits = logits * self._logit_scale
        if self._logit_softcap is not None:
            logits = torch.tanh(logits / self._logit_softcap) * self._logit_softcap
        return logits

    def check_head(self, features: torch.Tensor, logits: torch.Tensor) -> None:
        """
        Finds out whether the target applies the scale and soft cap of its config, so that [`~Target.head`] turns its
        features into its logits.

        Args:
            features (`[B, H]`), logits (`[B, V]`): of the same position, from one forward of the target.

        Raises:
            NotImplementedError: if it does something else to its logits.
        """
        if logits.shape[-1] != self.num_logits:
            raise NotImplementedError(
                f"{type(self.model).__name__} gives {logits.shape[-1]} logits, but its head {self.num_logits}, so a "
                "drafter cannot use its head. Leave out `assistant_model`."
            )
        theirs = logits.float()
        finite = theirs.isfinite()
        if not features.isfinite().all() or not finite.any():
            return  # plain generation goes on, too
        weight = head_weight(self.output_layer)
        exact = weight is not None and weight.dtype in (torch.float32, torch.float64)
        tolerance = (1e-3 if exact else 5e-2) * theirs[finite].abs().amax() + 1e-6
        raw = self._product(features)
        scale, softcap = self._logit_scale, self._logit_softcap
        for self._logit_scale, self._logit_softcap in ((scale, softcap), (None, softcap), (scale, None), (None, None)):
            ours = self._scaled(raw).float().to(theirs.device)
            if bool(((ours - theirs)[finite].abs() <= tolerance).all()):
                return
        raise NotImplementedError(
            f"{type(self.model).__name__} does something between its last hidden state and its logits that is neither "
            "its head nor a known scale or soft cap, so a drafter cannot use its head. Leave out `assistant_model`, "
            "and please report this architecture."
        )


class DraftHead:
    """See [`~Target.draft_head`]."""

    def __init__(self, target: Target, token_ids: torch.Tensor):
        layer = target.output_layer
        self._target = target
        self._token_ids = token_ids.to(execution_device(layer))
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        # Subclasses of `Linear` or `Parameter` may compute something else, or not hold rows of numbers. An offloaded
        # weight has no rows to copy.
        if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not layer.weight.is_meta:
            self._weight = layer.weight.detach()[self._token_ids]
            self._bias = None if layer.bias is None else layer.bias.detach()[self._token_ids]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        if self._weight is None:
            return self._target.head(features)[..., self._token_ids]
        features = features.to(device=self._weight.device, dtype=self._weight.dtype)
        return self._target._scaled(nn.functional.linear(features, self._weight, self._bias))


def head_weight(layer: Any) -> torch.Tensor | None:
    """The matrix of a head, or of the layer that it wraps; None where it holds no tensor of that name."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, torch.Tensor):
        return weight
    return next((part for part in layer.parameters() if part.ndim == 2), None)


def _num_logits(layer: Any, vocab_size: int) -> int:
    """The logits that a head gives, which may be more or fewer than the vocabulary's tokens."""
    weight = head_weight(layer)
    count = getattr(layer, "out_features", None)
    if count is None and weight is not None and weight.ndim == 2 and weight.is_floating_point():
        count = weight.shape[0]
    return count or vocab_size


def _logit_scale(config: Any) -> float | None:
    """What the architectures that scale their logits multiply them with."""
    if getattr(config, "logits_scaling", None) is not None:  # Granite divides
        return 1.0 / config.logits_scaling
    return getattr(config, "logit_scale", None)  # Cohere multiplies


def check_packing(target: Target, batch_size: int = 2) -> None:
    """
    Run once before training with packed rows.

    Args:
        target: the target.
        batch_size: rows per batch in training: some attention implementations tell samples apart only in batches of
            one.

    Raises:
        NotImplementedError: if the target's features of a sample depend on the samples packed before it.
    """
    length = 8
    generator = torch.Generator().manual_seed(0)
    vocab_size, device = target.config.vocab_size, execution_device(target.embeddings)
    input_ids = torch.randint(vocab_size, (batch_size, 2 * length), generator=generator).to(device)
    alone = target.features(input_ids[:, length:]).float()
    name = type(target.model).__name__
    remedy = "Train with `packing=False`."
    positions = torch.arange(length, device=device).repeat(batch_size, 2)
    parameters = inspect.signature(target.model.forward).parameters
    if "position_ids" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise NotImplementedError(f"{name} takes no `position_ids`, so samples cannot be packed into a row. {remedy}")
    packed = target.features(input_ids, position_ids=positions)[:, length:].float()
    error = ((packed - alone).norm(dim=-1) / alone.norm(dim=-1)).mean().item()
    # rounding differs between the two lengths; what leaks is of the order of the features themselves
    tolerance = 1e-3 if target.embeddings.weight.dtype in (torch.float32, torch.float64) else 0.1
    if not error <= tolerance:
        raise NotImplementedError(
            f"{name} with `attn_implementation={target.config._attn_implementation!r}` does not keep the samples of a "
            f"packed row apart: in batches of {batch_size} the features of a sample differ by {error:.0%} from those "
            f"of the same sample alone. {remedy}"
        )
