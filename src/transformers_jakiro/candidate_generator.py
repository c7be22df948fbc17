# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
A drafter for transformers' own assisted loop, which knows chains only. Our loop does not need it.

Symbols in shape comments: T tokens.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation import CandidateGenerator

from .core.drafting import Budget, Drafter, DraftingContext, Observation, require_drafter_class
from .core.rows import Rows


class JakiroCandidateGenerator(CandidateGenerator):
    """
    Adapts a [`~transformers_jakiro.core.drafting.Drafter`] that reads hidden states to transformers' protocol for
    candidates.

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter.
        target ([`~transformers.PreTrainedModel`]): the model that it drafts for.
        max_length (`int`, *optional*): the generation's length limit; chains never reach beyond it.
    """

    requires_model_outputs = True

    def __init__(self, draft_model: PreTrainedModel, target: PreTrainedModel, max_length: int | None = None):
        self._drafter_class = require_drafter_class(draft_model)
        self._draft_model = draft_model
        self._target = self._drafter_class.view(draft_model, target)
        if not self._target.reads_hidden_states:
            raise TypeError(
                "The adapter takes drafters that read the target's hidden states, got "
                f"{self._drafter_class.__name__}, which does not. Pass its assistant to `generate` instead."
            )
        self._max_length = max_length
        self._rows: Rows | None = None
        self._drafter: Drafter | None = None
        self.model_kwargs_overrides = {"output_hidden_states": self._target.output_hidden_states}

    def _begin(self, prompt: torch.Tensor) -> tuple[Rows, Drafter]:
        """A drafter for a text that begins with the prompt `[1, T]`."""
        rows = Rows.of_texts(prompt)
        return rows, self._drafter_class(self._draft_model, DraftingContext(self._target, rows))

    def get_candidates(  # type: ignore[override]  # None for the logits, as the loop allows
        self,
        input_ids: torch.Tensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = True,
        n_last_matches: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """
        A chain, before each forward of the target.

        Returns:
            `input_ids` with the drafted tokens appended, `[1, T + k]`, and None in place of logits: the loop then
            keeps the tokens that the target would have chosen itself.
        """
        if is_first_iteration:  # nothing to read yet: let the target process the prompt
            return input_ids, None
        features = self._target.read(model_outputs.hidden_states)
        if self._rows is None or self._drafter is None:
            self._rows, self._drafter = self._begin(input_ids[:, : features.shape[1]])
        else:  # candidates that were not accepted are no part of the text
            features = features[:, : int(n_last_matches) + 1]
        for token in input_ids[0, self._rows.active[0].length :].tolist():
            self._rows.emit(0, token)
        tokens = input_ids[:, -features.shape[1] - 1 : -1]
        self._drafter.observe(Observation([tokens.shape[1]], tokens, features=features))
        max_depth = self._drafter.depth
        if self._max_length is not None:
            max_depth = min(max_depth, self._max_length - input_ids.shape[1] - 1)
        tree = self._drafter.propose(input_ids[:, -1], Budget(max_depth, chain=True))
        return torch.cat((input_ids, tree.tokens[:, 1:].to(input_ids.device)), dim=1), None

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """Nothing to update: chains have the length that the drafter was made for."""


__all__ = ["JakiroCandidateGenerator"]
