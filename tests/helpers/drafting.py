# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""A drafter without a generation around it."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_jakiro.core.drafting import Budget, DraftingContext, Observation
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.core.noise import SamplingCoupling
from transformers_jakiro.core.rows import Rows
from transformers_jakiro.core.tree import DraftTree, TreeShape


class LoneDrafter:
    """
    A [`JakiroDrafter`] that is told by hand what the target has processed.

    Args:
        num_rows: of the texts.
        temperature: what the target is taken to sample at.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        target: PreTrainedModel,
        shape: TreeShape | None = None,
        coupling: SamplingCoupling | None = None,
        num_rows: int = 1,
        temperature: float = 1.0,
    ):
        view = JakiroDrafter.view(draft, target)
        ids = torch.zeros((num_rows, 0), dtype=torch.long)
        context = DraftingContext(view, Rows.of_texts(ids), temperature=temperature, coupling=coupling)
        self.target, self.drafter = view, JakiroDrafter(draft, context, shape)

    def observe(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_tokens: Sequence[int] | None = None,
    ) -> None:
        counts = num_tokens or [tokens.shape[1]] * tokens.shape[0]
        self.drafter.observe(Observation(counts, tokens, features=features, attention_mask=attention_mask))

    def propose(self, root: torch.Tensor, max_depth: int | None = None, **budget: Any) -> DraftTree:
        depth = self.drafter.depth if max_depth is None else max_depth
        return self.drafter.propose(root, Budget(depth, **budget))


class KnownNoise:
    """Noise that a test has made, `[L, V]`: what the drafter is told of the next draws of a single row."""

    def __init__(self, gumbel: torch.Tensor):
        self._gumbel = gumbel

    def gumbel(self, rows: Sequence[Any], num_draws: int) -> torch.Tensor:
        return self._gumbel[None, :num_draws]
