# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Drafting: grows a tree of candidates with the drafter (arXiv 2502.06282, section 3.2).

Symbols in shape comments: B batch, H hidden size, D tokens that can be drafted, K children per node, L levels,
W nodes of a level.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel
from transformers.generation import CandidateGenerator

from .compat import compiled_call
from .configuration_jakiro import JakiroDraftConfig
from .device import send
from .draft_cache import DraftCache
from .modeling_jakiro import JakiroDraftOutput
from .noise import SamplingCoupling
from .target import Target
from .tree import DraftTree, TreeShape, select_tree


class JakiroCandidateGenerator(CandidateGenerator):
    """
    Drafting state of *one* generation: the drafter's cache and what it has yet to read. It hands trees to our loop
    ([`~JakiroCandidateGenerator.propose`]) and chains to transformers' own assisted loop
    ([`~JakiroCandidateGenerator.get_candidates`]).

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter, or a PEFT model around one. Not changed.
        target ([`~transformers.PreTrainedModel`]): the target whose embeddings and head it borrows.
        shape ([`TreeShape`], *optional*): of the trees; default: the one in the drafter's config.
        max_length (`int`, *optional*): the generation's length limit; chains never reach beyond it.
        coupling ([`SamplingCoupling`], *optional*): the target's next random numbers, where it samples. None drafts
            what is likeliest without knowing them.
        capacity (`int`, *optional*): tokens that are generated at most, with those of the prompt. All forwards of a
            kind then have one shape, and whole trees are drafted to the end. None: shapes as they come.
        compile_config ([`~transformers.CompileConfig`], *optional*): compiles the drafter's forwards; needs
            `capacity`.

    Raises:
        ValueError: if the two models do not fit, or it is not known which tokens to draft.
    """

    requires_model_outputs = True

    def __init__(
        self,
        draft_model: PreTrainedModel,
        target: PreTrainedModel | Target,
        shape: TreeShape | None = None,
        max_length: int | None = None,
        coupling: SamplingCoupling | None = None,
        capacity: int | None = None,
        compile_config: CompileConfig | None = None,
    ):
        self.draft_model = draft_model
        self.config: JakiroDraftConfig = draft_model.config
        self.target = target if isinstance(target, Target) else Target.of(target, draft_model)
        self.model_kwargs_overrides = {"output_hidden_states": self.target.output_hidden_states}
        self.target.check_fits(self.config)
        draft_model.check_draft_vocabulary()
        self._draft_token_ids: torch.LongTensor | None = draft_model.draft_token_ids
        self._head = draft_model.draft_head(self.target)
        self.shape = shape or TreeShape.from_config(self.config)
        self.max_length = max_length
        self.coupling = coupling
        self._rotary_factors = draft_model.rotary_factors
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None  # of the levels of that tree
        self._noise: torch.Tensor | None = None  # [L, D] or [B, L, D] of the tree that is being grown
        parameter = next(draft_model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._is_static = capacity is not None
        self._forward = draft_model
        if self._is_static:
            # behind the text, what a feed is filled up with, then the nodes of a tree
            capacity += self._feed_length + (self.shape.depth - 1) * self.shape.width
            capacity = -(-capacity // 64) * 64
        if compile_config is not None:
            self._forward = compiled_call(draft_model, compile_config)
        self._cache = DraftCache(self.config.num_hidden_layers, capacity)
        self._lengths: list[int] = []  # pairs in the cache, of each row
        self._num_pads: torch.Tensor | None = None  # [B, 1] of these that are padding, if there is any
        self._features: torch.Tensor | None = None  # [B, T, F] that were read, not yet fed
        self._next_embeddings: torch.Tensor | None = None  # [B, T, H] of the tokens after them; the last is not known
        self._pending: list[int] = []  # how many of the T each row has, the first ones
        self._padding: torch.Tensor | None = None  # [B, pairs] bool, False where the prompt is padded
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        self._mask = MaskBuffer(self.dtype, self.device, groups, capacity)
        if self.shape.static_tree is not None:
            self._static_parents = torch.tensor(self.shape.static_tree.parents, device=self.device)
            self._static_levels = self.shape.static_tree.as_tensors(self.device)
        self._checked = False

    # -- reading the target ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(
        self,
        features: torch.Tensor,
        embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_tokens: Sequence[int] | None = None,
    ) -> None:
        """
        Takes in tokens that the target has processed.

        Args:
            features (`[B, T, F]`): what the drafter reads of the target for T tokens: its last hidden states (F = H),
                or those of several layers ([`~transformers_jakiro.core.target.Target.read`]).
            embeddings (`[B, T, H]`): embeddings of these tokens.
            attention_mask (`[B, T]`, *optional*): 0 where a token is padding.
            num_tokens (`Sequence[int]`, *optional*): how many of the T each row of the batch has, the first ones; at
                least one has all. Default: all of them.
        """
        features = features.to(self.device, self.dtype)
        embeddings = embeddings.to(self.device, self.dtype)
        counts = [features.shape[1]] * features.shape[0] if num_tokens is None else list(num_tokens)
        next_embeddings = embeddings.roll(-1, dims=1)
        if self._features is not None:
            self._set_last(embeddings[:, :1])  # the first of these tokens follows the last one observed before
            behind_prompt = attention_mask is None and len(self._lengths) > 0
            if behind_prompt and max(self._pending) + features.shape[1] <= MaskBuffer.MAX_ROWS:  # until one is wanted
                self._features = _append(self._features, features, self._pending)
                self._next_embeddings = _append(self._next_embeddings, next_embeddings, self._pending)
                self._pending = [old + new for old, new in zip(self._pending, counts, strict=True)]
                return
            self._feed()
        if attention_mask is not None:
            self._append_padding(attention_mask.to(self.device, torch.bool))
        self._features, self._next_embeddings, self._pending = features, next_embeddings, counts

    def _set_last(self, embedding: torch.Tensor) -> None:
        """The embedding `[B, 1, H]` of the token after the last one observed."""
        if len(set(self._pending)) == 1:
            self._next_embeddings[:, self._pending[0] - 1] = embedding[:, 0]
        else:  # a row without tokens is finished, and what it drafts not looked at
            last = send(self._pending, self.device).clamp(min=1) - 1
            self._next_embeddings.scatter_(1, last[:, None, None].expand_as(embedding), embedding)

    def _append_padding(self, attention_mask: torch.Tensor):
        if self._padding is None and attention_mask.all():
            return
        if self._padding is None:
            self._padding = attention_mask.new_ones((attention_mask.shape[0], max(self._lengths, default=0)))
        self._padding = torch.cat((self._padding, attention_mask), dim=1)

    def _feed(self, **outputs: bool) -> JakiroDraftOutput:
        """Step 0: runs the drafter over the pairs (feature, embedding of the next token) not yet in its cache."""
        features, next_embeddings, counts = self._features, self._next_embeddings, self._pending
        self._features = None
        starts = self._lengths or [0] * len(counts)
        self._lengths = [start + count for start, count in zip(starts, counts, strict=True)]
        forward = self.draft_model
        if self._is_static and min(starts) > 0 and features.shape[1] <= self._feed_length:
            missing = (0, 0, 0, self._feed_length - features.shape[1])
            features, next_embeddings = (
                torch.nn.functional.pad(values, missing) for values in (features, next_embeddings)
            )
            forward = self._forward
        num_new, start = features.shape[1], min(starts)
        attention_mask, position_ids = None, None
        if self._padding is not None and start < self._padding.shape[1]:  # a prompt, of which only the last pair waits
            known = self._padding[:, : start + num_new]
            known = torch.nn.functional.pad(known, (0, start + num_new - known.shape[1]), value=True)
            position_ids = (known.cumsum(dim=-1) - 1).clamp(min=0)[:, start:]
            self._num_pads = (~known).sum(dim=-1, keepdim=True)
            attention_mask = known.long()
        elif start > 0:
            columns = self._first_columns(starts) + torch.arange(num_new, device=self.device)
            position_ids = columns if self._num_pads is None else columns - self._num_pads
            if columns.shape[0] > 1 or self._is_static:
                self._cache.columns = columns
                self._cache.end = None if self._is_static else max(starts) + num_new
            if columns.shape[0] > 1 or self._is_static or num_new <= MaskBuffer.MAX_ROWS:
                attention_mask = self._mask.causal(starts, num_new, self._padding)
        output = forward(
            inputs_embeds=next_embeddings,
            hidden_states=features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=self._cache,
            **outputs,
        )
        self._cache.columns = None
        self._cache.truncate(max(self._lengths))
        return output

    @property
    def _feed_length(self) -> int:
        """Pairs that a step brings at most."""
        return self.shape.depth + 1

    def _first_columns(self, lengths: Sequence[int]) -> torch.LongTensor:
        """The column behind each row's pairs: `[B, 1]`, or `[1, 1]` where it is the same."""
        if min(lengths) == max(lengths):
            return torch.full((1, 1), lengths[0], device=self.device)
        return send(lengths, self.device)[:, None]

    def select(self, kept: Sequence[int]) -> None:
        """Goes on with these rows of the batch."""
        rows = send(kept, self.device)
        self._pending = [self._pending[row] for row in kept]
        longest = max(self._pending)
        self._features = self._features[rows, :longest]
        self._next_embeddings = self._next_embeddings[rows, :longest]
        if self._padding is not None:
            self._padding = self._padding[rows]
        if not self._lengths:  # the prompt is yet to be fed
            return
        self._lengths = [self._lengths[row] for row in kept]
        self._cache.select(rows)
        self._cache.truncate(max(self._lengths))
        self._mask.clear()
        if self._num_pads is not None:
            self._num_pads = self._num_pads[rows]

    # -- drafting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def propose(self, root: torch.LongTensor, max_depth: int | None = None, chain: bool = False) -> DraftTree:
        """
        A tree below the token the target has just chosen.

        Args:
            root (`[B]`): that token. It follows the last one observed.
            max_depth (`int`, *optional*): levels that can still be used; 0 drafts nothing.
            chain (`bool`): one child per node.

        Raises:
            ValueError: if the drafter's features are not finite.
        """
        shape = self.shape.as_chain() if chain else self.shape
        if max_depth is not None and (max_depth < 1 or not self._is_static):
            shape = shape.limited(max_depth)
        if shape.depth < 1:
            return DraftTree.root_only(root)
        counts = self._pending
        self._set_last(self._embed(root[:, None]))
        output = self._feed(**self._outputs(contrastive=shape.two_levels and shape.depth == 2))
        output = JakiroDraftOutput(
            **{name: _last(value, counts) for name, value in output.items() if isinstance(value, torch.Tensor)}
        )
        if not self._checked:
            self._check_finite(output.last_hidden_state)
            self._checked = True
        if shape.depth > 1:  # positions of the levels, the same for all nodes of a level
            first = self._first_columns(self._lengths)
            if self._num_pads is not None:
                first = first - self._num_pads
            self._rotary = self._rotary_factors(first + torch.arange(shape.depth - 1, device=self.device))
        if self.coupling is not None:
            self._noise = self._draw(shape.depth)
        grow = self._grow_dynamic if shape.static_tree is None else self._grow_static
        tree = grow(root.to(self.device), output, shape)
        self._cache.columns = None
        self._cache.truncate(max(self._lengths))
        return tree

    def _draw(self, num_levels: int) -> torch.Tensor:
        """The noise that the target will choose each level's token with: `[L, D]`, or `[B, L, D]`."""
        noise = self.coupling.noise(num_levels)
        return noise if self._draft_token_ids is None else noise[..., self._draft_token_ids.to(noise.device)]

    def _grow_dynamic(self, root: torch.LongTensor, output: JakiroDraftOutput, shape: TreeShape) -> DraftTree:
        """The K best children of the W best nodes of each level, then the best of all (`L - 1` drafter forwards)."""
        batch_size, top_k = root.shape[0], shape.top_k
        tokens, scores, parents = [], [], []  # candidates by level
        # frontier of the level above: its nodes' path scores, and their indices among all candidates (-1: the root)
        frontier_scores = output.last_hidden_state.new_zeros((batch_size, 1), dtype=torch.float32)
        frontier_index = root.new_full((batch_size, 1), -1)
        frontier_parent, block, num_candidates = None, None, 0
        logits, contrastive_logits = self._logits(output)
        for level in range(1, shape.depth + 1):
            if level == shape.depth and shape.two_levels:
                # this level has no forward of its own: a node's children are its parent's contrastive candidates
                child_log_probs, child_tokens = self._best_children(contrastive_logits, level, top_k)
                child_log_probs = _gather_rows(child_log_probs, frontier_parent)
                child_tokens = _gather_rows(child_tokens, frontier_parent)
            else:
                child_log_probs, child_tokens = self._best_children(logits, level, top_k)
            child_scores = (frontier_scores[..., None] + child_log_probs).flatten(1)  # [B, W * K]
            child_tokens = child_tokens.flatten(1)
            tokens.append(child_tokens)
            scores.append(child_scores)
            parents.append(frontier_index.repeat_interleave(top_k, dim=1))
            if level == shape.depth:
                break
            width = min(shape.width, child_scores.shape[1])
            frontier_scores, best = child_scores.topk(width, dim=-1)  # [B, W]
            frontier_parent = best.div(top_k, rounding_mode="floor")
            frontier_index = best + num_candidates
            num_candidates += child_tokens.shape[1]
            if level == shape.depth - 1 and shape.two_levels:
                continue
            features = _gather_rows(output.last_hidden_state, frontier_parent)
            block = self._mask.extend(block, frontier_parent, width)
            output = self._expand(
                child_tokens.gather(1, best), features, level, block, shape.two_levels and level == shape.depth - 2
            )
            logits, contrastive_logits = self._logits(output)
        return select_tree(
            root,
            torch.cat(tokens, dim=1),
            torch.cat(scores, dim=1),
            torch.cat(parents, dim=1),
            shape.num_draft_tokens,
            shape.depth,
        )

    def _grow_static(self, root: torch.LongTensor, output: JakiroDraftOutput, shape: TreeShape) -> DraftTree:
        """The tree of the config: each node is its parent's child of a fixed rank."""
        tokens, block, frontier_parent = [root[:, None]], None, None
        logits, contrastive_logits = self._logits(output)
        for level, (parent, rank, expanded) in enumerate(self._static_levels[: shape.depth], start=1):
            if level == shape.depth and shape.two_levels:
                _, child_tokens = self._best_children(contrastive_logits, level, shape.top_k)
                child_tokens = _gather_rows(child_tokens, frontier_parent)
            else:
                _, child_tokens = self._best_children(logits, level, shape.top_k)
            level_tokens = child_tokens[:, parent, rank]  # [B, W]
            tokens.append(level_tokens)
            if level == shape.depth:
                break
            frontier_parent = parent[expanded].expand(root.shape[0], -1)
            if level == shape.depth - 1 and shape.two_levels:
                continue
            features = _gather_rows(output.last_hidden_state, frontier_parent)
            block = self._mask.extend(block, frontier_parent, len(expanded))
            output = self._expand(
                level_tokens[:, expanded], features, level, block, shape.two_levels and level == shape.depth - 2
            )
            logits, contrastive_logits = self._logits(output)
        all_tokens = torch.cat(tokens, dim=1)
        parents = self._static_parents[: all_tokens.shape[1]].expand(root.shape[0], -1)
        return DraftTree(all_tokens, parents, max_depth=shape.depth)

    def _expand(
        self, tokens: torch.Tensor, features: torch.Tensor, level: int, block: torch.Tensor, contrastive: bool
    ) -> JakiroDraftOutput:
        """One forward over a level's frontier `[B, W]`, each node with its parent's feature `[B, W, H]`."""
        cos, sin = self._rotary
        if self._is_static:
            width = tokens.shape[1]
            first = max(self._lengths) + block.shape[-1] - width
            self._cache.columns = torch.arange(first, first + width, device=self.device)[None]
            self._cache.end = None
        return self._forward(
            inputs_embeds=self._embed(tokens),
            hidden_states=features,
            attention_mask=self._mask.tree(self._lengths, block, self._padding),
            position_embeddings=(cos[:, :, level - 1 : level], sin[:, :, level - 1 : level]),
            cache=self._cache,
            **self._outputs(contrastive),
        )

    def _outputs(self, contrastive: bool) -> dict[str, bool]:
        return {
            "output_contrastive_hidden_state": contrastive,
            "output_expert_hidden_states": self.config.head_mode == "decoupled",
        }

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.target.embed(tokens).to(self.device, self.dtype)

    def _logits(self, output: JakiroDraftOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Logits (float32) of the nodes' next tokens `[B, W, D]`, of decoupled experts one each `[2, B, W, D]`; and those
        of the tokens after them `[B, W, D]`, if the drafter was asked for contrastive features. In one head call.
        """
        if output.expert_hidden_states is not None:
            return self._head(output.expert_hidden_states).float(), None
        if output.contrastive_hidden_state is None:
            return self._head(output.last_hidden_state).float(), None
        features = torch.stack((output.last_hidden_state, output.contrastive_hidden_state))
        return self._head(features).float().unbind()

    def _best_children(self, logits: torch.Tensor, level: int, top_k: int) -> tuple[torch.Tensor, torch.LongTensor]:
        """
        The best next tokens of each node, best first: log-probabilities (float32) and tokens, both `[B, W, K]`.
        Probabilities are those among the tokens that can be drafted, at the tree's temperature; given the noise of
        the level's draw, if it is known.

        Decoupled experts (Jakiro\\*) are heads of their own: a token's probability is the larger of the two, so the
        best tokens are the deduplicated union of both experts' best.
        """
        decoupled = logits.ndim == 4
        if self._noise is None:
            logits = logits / self.shape.temperature
        if self._noise is None or decoupled:
            logits = logits.log_softmax(dim=-1)
        if decoupled:
            logits = logits.amax(dim=0)
        if self._noise is None:
            best, tokens = logits.topk(top_k, dim=-1)
        else:
            noise = self._noise[..., level - 1, :].to(logits.device)
            noise = noise if noise.ndim == 1 else noise[:, None]
            best, tokens = self.coupling.best(logits, noise, self.shape.temperature, top_k)
        tokens = tokens.to(self.device)
        if self._draft_token_ids is not None:
            tokens = self._draft_token_ids[tokens]
        return best.to(self.device), tokens

    def _check_finite(self, features: torch.Tensor):
        if not torch.isfinite(features).all():
            raise ValueError(
                "The drafter's features are not finite (NaN or infinity): its weights are damaged, its dtype "
                f"({self.dtype}) is too narrow for this target, or the target's own hidden states are not finite. "
                "`draft.check_finite()` tells which weights are to blame."
            )

    # -- transformers' own assisted loop -----------------------------------------------------------------------------

    def get_candidates(
        self,
        input_ids: torch.LongTensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = True,
        n_last_matches: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor, None]:
        """
        A chain for transformers' own assisted loop, which calls this before each forward of the target.

        Returns:
            `input_ids` with the drafted tokens appended, `[1, T + k]`, and None in place of logits: the loop then
            keeps the tokens that the target would have chosen itself.
        """
        if is_first_iteration:  # nothing to read yet: let the target process the prompt
            return input_ids, None
        features = self.target.read(model_outputs.hidden_states)
        if self._lengths:  # candidates that were not accepted are no part of the text
            features = features[:, : int(n_last_matches) + 1]
        tokens = input_ids[:, -features.shape[1] - 1 :]  # those of the features, then the new root
        self.observe(features, self._embed(tokens[:, :-1]))
        max_depth = None if self.max_length is None else self.max_length - input_ids.shape[1] - 1
        tree = self.propose(tokens[:, -1], max_depth, chain=True)
        return torch.cat((input_ids, tree.tokens[:, 1:].to(input_ids.device)), dim=1), None

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        """Nothing to update: trees are shaped by their scores."""


class MaskBuffer:
    """
    Additive attention masks of the drafter's small forwards, repeated for each of the G query heads that share a
    key/value head. The columns of the prefix are zeros that were written once; only the columns of the new tokens are
    written per forward, so the cost does not grow with the context.
    """

    MAX_ROWS = 64

    def __init__(self, dtype: torch.dtype, device: torch.device, num_groups: int, capacity: int | None = None):
        self._capacity = capacity  # of a static cache: masks are always as wide, and what is behind the rows hidden
        self._end = 0  # columns that were ever written
        self._minimum = torch.finfo(dtype).min
        self._dtype, self._device, self._num_groups = dtype, device, num_groups
        self._buffer = torch.zeros((1, 1, self.MAX_ROWS, 0), dtype=dtype, device=device)
        self._self_block = torch.zeros((0, 0), dtype=dtype, device=device)  # a level's nodes see themselves
        self._prefix = 0  # columns of the prefix as of the last call; those behind may hold a block

    def clear(self) -> None:
        """Forgets what was written: the batch has changed."""
        self._buffer, self._prefix = self._buffer.new_zeros((1, 1, self.MAX_ROWS, 0)), 0

    def causal(self, past: Sequence[int], rows: int, padding: torch.Tensor | None) -> torch.Tensor:
        """`[B, 1, G * rows, max(past) + rows]`: each row sees its part of the prefix and the rows up to itself."""
        if len(set(past)) == 1:
            block = torch.full((rows, rows), self._minimum, dtype=self._dtype, device=self._device).triu(1)
            return self._write(min(past), block[None, None], padding)
        first = min(past)
        columns = torch.arange(first, max(past) + rows, device=self._device)
        seen = send(past, self._device)[:, None] + torch.arange(rows, device=self._device)
        return self._write(first, self._hide(columns > seen[:, None, :, None]), padding)

    def extend(self, block: torch.Tensor | None, parents: torch.Tensor, width: int) -> torch.Tensor:
        """
        Mask block of the next level: each node sees what its parent saw in the tree, and itself.

        Args:
            block (`[B, 1, W, C]` or None for the first level): block of the level above.
            parents (`[B, width]`): index of each node's parent in the level above.
        """
        if self._self_block.shape[0] != width:
            self._self_block = torch.full_like(self._self_block.new_empty(width, width), self._minimum).fill_diagonal_(
                0
            )
        eye = self._self_block.expand(parents.shape[0], 1, -1, -1)
        if block is None:
            return eye
        rows = block.gather(2, parents[:, None, :, None].expand(-1, 1, -1, block.shape[-1]))
        return torch.cat((rows, eye), dim=-1)

    def tree(self, past: Sequence[int], block: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """`[B, 1, G * W, max(past) + C]`: each row's part of the prefix, and a level's block."""
        first = min(past)
        if max(past) > first:
            columns = torch.arange(first, max(past), device=self._device)
            behind = self._hide(columns >= send(past, self._device)[:, None, None, None])
            block = torch.cat((behind.expand(-1, -1, block.shape[2], -1), block), dim=-1)
        return self._write(first, block, padding)

    def _hide(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, self._minimum)

    def _write(self, past: int, block: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        columns = block.shape[3]
        rows = self._num_groups * block.shape[2]
        size = self._buffer.shape
        batch_size = max(size[0], block.shape[0], 1 if padding is None else padding.shape[0])
        if batch_size != size[0] or rows > size[2] or past + columns > size[3]:
            width = self._capacity or 64 * (
                2 * (past + columns) // 64 + 4
            )  # rows stay aligned for the attention kernels
            self._buffer = self._buffer.new_full((batch_size, 1, max(rows, size[2]), width), self._minimum)
            self._prefix = self._end = 0
        if past != self._prefix:
            new = slice(min(past, self._prefix), past)
            self._buffer[..., new] = 0
            if padding is not None:
                hidden = ~padding[:, None, None, new]
                self._buffer[..., new][..., : hidden.shape[-1]].masked_fill_(hidden, self._minimum)
            self._prefix = past
        mask, end = self._buffer[:, :, :rows], past + columns
        mask[..., past:end].unflatten(2, (self._num_groups, -1)).copy_(block.unsqueeze(2))
        if self._capacity is None:
            return mask[..., :end]
        self._buffer[..., end : self._end] = self._minimum
        self._end = max(self._end, end)
        return mask


def _append(old: torch.Tensor, new: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """`new` (`[B, T', X]`) behind the first `counts` of `old` (`[B, T, X]`) in each row."""
    if min(counts) == old.shape[1]:
        return torch.cat((old, new), dim=1)
    joined = torch.nn.functional.pad(old, (0, 0, 0, new.shape[1]))
    columns = send(counts, new.device)[:, None] + torch.arange(new.shape[1], device=new.device)
    joined.scatter_(1, columns[..., None].expand_as(new), new)
    return joined[:, : max(counts) + new.shape[1]]


def _last(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The last of the first `counts` of each row: `[..., B, T, X]` → `[..., B, 1, X]`."""
    if min(counts) == values.shape[-2]:
        return values[..., -1:, :]
    last = send(counts, values.device).clamp(min=1) - 1
    return values.gather(-2, last[:, None, None].expand(*values.shape[:-2], 1, values.shape[-1]))


def _gather_rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`values[b, index[b, w]]`: `[B, W, X]` and `[B, W']` → `[B, W', X]`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


__all__ = ["JakiroCandidateGenerator"]
