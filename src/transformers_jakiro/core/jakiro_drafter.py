# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The Jakiro drafter at work: grows a tree of candidates with a [`JakiroDraftModel`] (arXiv 2502.06282, section 3.2).

Symbols in shape comments: R rows, T tokens, H hidden size, D tokens that can be drafted, K children per node, L
levels, W nodes of a level.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel

from .configuration_jakiro import JakiroDraftConfig
from .device import send
from .draft_forward import MAX_QUERIES, DraftForward, Pairs
from .drafting import Budget, Drafter, DraftingContext, Observation
from .growing import DynamicGrowth, FixedGrowth
from .modeling_jakiro import JakiroDraftOutput
from .target import Target
from .tree import DraftTree, TreeShape, gather_nodes


class JakiroDrafter(Drafter):
    """
    Drafts with a [`JakiroDraftModel`], which reads the target's hidden states.

    Args:
        assistant ([`JakiroDraftModel`]): the drafter, or a PEFT model around one. Not changed.
        context ([`DraftingContext`]): the generation.
        shape ([`TreeShape`], *optional*): of the trees. Default: that of the drafter's config for the number of rows.

    Raises:
        ValueError: if the two models do not fit, or it is not known which tokens to draft.
    """

    @classmethod
    def view(cls, assistant: Any, model: PreTrainedModel) -> Target:
        target = Target.of(model, assistant)
        target.check_fits(assistant.config)
        return target

    def __init__(self, assistant: Any, context: DraftingContext, shape: TreeShape | None = None):
        assistant.check_draft_vocabulary()
        self.config: JakiroDraftConfig = assistant.config
        self.rows = context.rows
        self._context = context
        self._target = context.target
        self._given_shape = shape
        self.shape = self._shape_for(len(context.rows.active))
        whole = self._shape_for(1)
        self.depth = whole.depth
        self.levels_without_forward = int(whole.two_levels)
        self.num_draft_tokens = self.shape.num_draft_tokens
        self._draft_token_ids: torch.Tensor | None = assistant.draft_token_ids
        self._head = assistant.draft_head(context.target)
        self.coupling = context.coupling if self.config.couple_sampling else None
        self._forward = DraftForward(assistant)
        self._pairs: Pairs | None = None  # observed, not yet read
        self._checked = False
        self._target_is_finite = True  # else there is nothing to draft from

    def _shape_for(self, num_rows: int) -> TreeShape:
        if self._given_shape is not None:
            return self._given_shape
        coupled = self._context.coupling is not None and self.config.couple_sampling
        return TreeShape.from_config(
            self.config,
            self._context.num_assistant_tokens,
            0.0 if coupled else self._context.temperature,
            num_rows,
        )

    @property
    def is_static(self) -> bool:
        """Whether all forwards of a kind have one shape."""
        return self._forward.is_static

    def make_static(self, capacity: int, compile_config: CompileConfig | None) -> None:
        """Whole trees are drafted to the end then, so that all forwards of a kind have one shape."""
        num_nodes = (self.shape.depth - 1) * self.shape.width
        self._forward.make_static(capacity, num_nodes, self.shape.depth, compile_config)

    # -- reading the target ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, observation: Observation) -> None:
        """See [`Drafter`]. Pairs of a feature and the next token's embedding wait until the next tree is wanted."""
        embeddings = observation.embeddings
        if embeddings is not None and not self._target.lends_embeddings:
            raise NotImplementedError(
                "This drafter has token embeddings of its own, so it cannot read a prompt given as `inputs_embeds`. "
                "Give `input_ids`."
            )
        if embeddings is None:
            assert observation.tokens is not None
            embeddings = self._target.embed(observation.tokens)
        assert observation.features is not None, "the view of this drafter reads hidden states"
        embeddings = self._on_device(embeddings)
        pairs = Pairs(self._on_device(observation.features), embeddings, observation.num_tokens)
        if self._pairs is not None:
            self._pairs.set_next(embeddings[:, :1])  # the first token follows the last one observed before
            if self._can_wait(self._pairs, pairs, observation):
                self._pairs.append(pairs)
                return
            self._forward.read(self._pairs)
        if observation.attention_mask is not None:
            self._forward.add_padding(observation.attention_mask)
        self._pairs = pairs

    def _can_wait(self, waiting: Pairs, pairs: Pairs, observation: Observation) -> bool:
        """Whether further pairs can be read together with those that wait, when the next tree is wanted."""
        after_prompt = observation.attention_mask is None and len(self._forward.cache.lengths) > 0
        return after_prompt and max(waiting.counts) + pairs.features.shape[1] <= MAX_QUERIES

    def _on_device(self, states: torch.Tensor) -> torch.Tensor:
        return states.to(self._forward.device, self._forward.dtype)

    def select(self, kept: Sequence[int]) -> None:
        """See [`Drafter`]. Fewer rows get larger trees."""
        rows = send(kept, self._forward.device)
        if self._pairs is not None:
            self._pairs.select(kept, rows)
        self._forward.select(kept, rows)
        self.shape = self._shape_for(len(kept))
        self.num_draft_tokens = self.shape.num_draft_tokens

    # -- drafting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def propose(self, last_tokens: torch.Tensor, budget: Budget) -> DraftTree:
        """
        See [`Drafter`].

        Raises:
            ValueError: if the drafter's features are not finite.
        """
        shape = self._shape_within(budget)
        if shape.depth < 1 or not self._target_is_finite:
            return DraftTree.root_only(last_tokens)
        pairs, self._pairs = self._pairs, None
        assert pairs is not None, "a tree follows what was observed"
        pairs.set_next(self._embed(last_tokens[:, None]))
        output = _last(self._forward.read(pairs, **self._outputs(shape, level=0)), pairs.counts)
        if not self._checked:
            if not torch.isfinite(pairs.features).all():
                self._target_is_finite = False
                return DraftTree.root_only(last_tokens)
            self._check_finite(output.last_hidden_state)
            self._checked = True
        self._forward.begin_tree(shape.depth)
        tree = self._grow(last_tokens.to(self._forward.device), output, shape)
        self._forward.end_tree()
        return tree

    def _shape_within(self, budget: Budget) -> TreeShape:
        """The shape of the next tree."""
        shape = self.shape
        if budget.depth is not None and not self.is_static:
            shape = shape.with_depth(budget.depth)
        if budget.chain:
            shape = shape.as_chain()
        if budget.max_depth < 1 or not self.is_static:
            shape = shape.limited(budget.max_depth)
        return shape

    def _grow(self, root: torch.Tensor, output: JakiroDraftOutput, shape: TreeShape) -> DraftTree:
        """A tree below `root` (`[R]`), one forward of the drafter per level but the first."""
        growth = DynamicGrowth(root, shape) if shape.static_tree is None else FixedGrowth(root, shape.static_tree)
        gumbel = self._gumbel(shape.depth)
        logits, contrastive_logits = self._logits(output)
        parents = torch.empty(0)  # of the frontier, in the one before
        for level in range(1, shape.depth + 1):
            noise = None if gumbel is None else gumbel[:, level - 1 : level]
            if level == shape.depth and shape.two_levels:
                assert contrastive_logits is not None
                # this level has no forward of its own: a node's children are its parent's contrastive candidates
                log_probs, tokens = self._best_children(contrastive_logits, noise, shape)
                growth.add(gather_nodes(log_probs, parents), gather_nodes(tokens, parents))
            else:
                growth.add(*self._best_children(logits, noise, shape))
            if level == shape.depth:
                break
            tokens, parents = growth.frontier()
            if level == shape.depth - shape.two_levels:
                continue
            features = gather_nodes(output.last_hidden_state, parents)
            output = self._forward.expand(level, self._embed(tokens), features, parents, **self._outputs(shape, level))
            logits, contrastive_logits = self._logits(output)
        return growth.tree()

    def _outputs(self, shape: TreeShape, level: int) -> dict[str, bool]:
        """What the drafter's forward over a level is asked for; level 0 is the root."""
        return {
            "output_contrastive_hidden_state": shape.two_levels and level == shape.depth - 2,
            "output_expert_hidden_states": self.config.head_mode == "decoupled",
        }

    def _gumbel(self, num_levels: int) -> torch.Tensor | None:
        """The noise that the target will choose each level's token with, `[R, L, D]`, if it is known."""
        if self.coupling is None:
            return None
        gumbel = self.coupling.noise.gumbel(self.rows.active, num_levels)
        return gumbel if self._draft_token_ids is None else gumbel[..., self._draft_token_ids.to(gumbel.device)]

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[R, W]` → `[R, W, H]`"""
        return self._on_device(self._target.embed(tokens))

    def _logits(self, output: JakiroDraftOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Logits (float32) of the nodes' next tokens `[R, W, D]`, of decoupled experts one each `[2, R, W, D]`; and those
        of the tokens after them `[R, W, D]`, if the drafter was asked for contrastive features. In one head call.
        """
        if output.expert_hidden_states is not None:
            return self._head(output.expert_hidden_states).float(), None
        if output.contrastive_hidden_state is None:
            return self._head(output.last_hidden_state).float(), None
        features = torch.stack((output.last_hidden_state, output.contrastive_hidden_state))
        logits, contrastive_logits = self._head(features).float().unbind()
        return logits, contrastive_logits

    def _best_children(
        self, logits: torch.Tensor, gumbel: torch.Tensor | None, shape: TreeShape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The best next tokens of each node, best first: log-probabilities (float32) and tokens, both `[R, W, K]`.
        Probabilities are those among the tokens that can be drafted, at the tree's temperature; given the noise of the
        level's draw (`[R, 1, D]`), if it is known.

        Decoupled experts (Jakiro\\*) are heads of their own: a token's probability is the larger of the two, so the
        best tokens are the deduplicated union of both experts' best.
        """
        decoupled = logits.ndim == 4
        if gumbel is None:
            logits = logits / shape.temperature
        if gumbel is None or decoupled:
            logits = logits.log_softmax(dim=-1)
        if decoupled:
            logits = logits.amax(dim=0)
        if gumbel is None:
            best, tokens = logits.topk(shape.top_k, dim=-1)
        else:
            assert self.coupling is not None
            best, tokens = self.coupling.best(logits, gumbel.to(logits.device), shape.temperature, shape.top_k)
        tokens = tokens.to(self._forward.device)
        if self._draft_token_ids is not None:
            tokens = self._draft_token_ids[tokens]
        return best.to(self._forward.device), tokens

    def _check_finite(self, features: torch.Tensor) -> None:
        if not torch.isfinite(features).all():
            raise ValueError(
                "The drafter's features are not finite (NaN or infinity): its weights are damaged, its dtype "
                f"({self._forward.dtype}) is too narrow for this target, or the target's own hidden states are not "
                "finite. `draft.check_finite()` tells which weights are to blame."
            )


def _last(output: JakiroDraftOutput, counts: Sequence[int]) -> JakiroDraftOutput:
    """The features at the last of the first `counts` pairs of each row: `[..., R, T, H]` → `[..., R, 1, H]`."""

    def last(values: torch.Tensor) -> torch.Tensor:
        if min(counts) == values.shape[-2]:
            return values[..., -1:, :]
        index = send(counts, values.device).clamp(min=1) - 1
        return values.gather(-2, index[:, None, None].expand(*values.shape[:-2], 1, values.shape[-1]))

    features: dict[str, Any] = {name: last(value) for name, value in output.items() if isinstance(value, torch.Tensor)}
    return JakiroDraftOutput(**features)


__all__ = ["JakiroDrafter"]
