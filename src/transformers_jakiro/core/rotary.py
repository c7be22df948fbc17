# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Rotary embeddings that depend on how long the text is. With dynamic NTK scaling and LongRoPE, all tokens of a forward
are rotated as the *largest* position in it says. A tree that reaches across the border between two such scalings would
change how its own upper nodes are rotated, so no tree may.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch

# kinds of rotary embeddings, and whether each further token beyond the border changes the rotation once more
_KINDS = {"longrope": False, "dynamic": True}


class RotaryBorders:
    """
    Where the rotary embeddings of a target change, as far as a text may come to it. False if nowhere.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        max_length (`int`): tokens of the text at most.

    Attributes:
        borders (`dict[int, bool]`): numbers of tokens, and whether beyond them every token counts.
    """

    def __init__(self, model: torch.nn.Module, max_length: int):
        self.borders: dict[int, bool] = {}
        for module in model.modules():
            kinds = getattr(module, "rope_type", None)
            config: Any = getattr(module, "config", None)
            if kinds is None or config is None:
                continue
            parameters: Any = config.rope_parameters
            for layer_type, kind in kinds.items() if isinstance(kinds, Mapping) else [(None, kinds)]:
                own = parameters if layer_type is None else parameters[layer_type]
                border: Any = own.get("original_max_position_embeddings") or module.original_max_seq_len
                # of the models that scale by themselves, Phi-MoE has a border with every kind
                if max_length >= border and (kind in _KINDS or "short_mscale" in own):
                    self.borders[border] = self.borders.get(border, False) or _KINDS.get(kind, False)

    def __bool__(self) -> bool:
        return bool(self.borders)

    def tokens_left(self, *lengths: int) -> int:
        """
        How many tokens may follow one another from here in one forward.

        Args:
            lengths (`int`): tokens up to here, the one that is next to be read included. Those of a model's positions
                and of its ids may differ, and both must stay on one side.
        """
        limits = [
            max(1, border - length + (0 if every else 1))
            for length in lengths
            for border, every in self.borders.items()
            if every or length <= border
        ]
        return min(limits, default=sys.maxsize)


__all__ = ["RotaryBorders"]
