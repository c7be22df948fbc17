# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The trees that a drafter's config asks for, and how to change them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from ..core.configuration_jakiro import JakiroDraftConfig
from .methods import METHODS, Method

TOP_K = 32


@dataclass(frozen=True)
class TreeFields:
    """
    The fields of [`JakiroDraftConfig`] that tuning chooses, under the same names.

    They are what the config asks for. A generation limits them to what its trees can hold, and adds what it knows of
    the drafter and of sampling: see [`~transformers_jakiro.core.tree.TreeShape`].
    """

    tree_depth: int
    tree_width: int
    num_draft_tokens: int
    tree_top_k: int = TOP_K

    def __str__(self) -> str:
        return (
            f"{self.tree_depth} levels, {self.tree_width} nodes wide, {self.num_draft_tokens} nodes, "
            f"{self.tree_top_k} children per node"
        )

    @classmethod
    def of(cls, config: JakiroDraftConfig, batch_size: int = 1) -> "TreeFields":
        """The fields in a drafter's config for a batch size."""
        return cls(**config.tree_fields(batch_size))

    def method(
        self, draft: PreTrainedModel, batch_size: int = 1, found: Mapping[int, "TreeFields"] | None = None
    ) -> Method:
        """
        Generation with such trees.

        Args:
            draft: the drafter.
            batch_size: sequences generated at a time.
            found: trees found so far, by batch size. Those for fewer sequences serve what is left of a batch when
                some rows have ended.
        """
        options: dict[str, Any] = {"assistant_model": draft}
        if batch_size == 1:
            options["num_assistant_tokens"] = self.num_draft_tokens  # else the target's config could say how many
            tree = {**asdict(self), "batch_trees": None}
        else:
            tree = with_trees({"batch_trees": draft.config.batch_trees}, found or {})
            sizes = {size: fields for size, fields in (tree["batch_trees"] or {}).items() if int(size) < batch_size}
            tree["batch_trees"] = {**sizes, str(batch_size): asdict(self)}
        return Method(str(self), METHODS["jakiro"].description, options, draft, tree)


def with_trees(config: Mapping[str, Any], found: Mapping[int, TreeFields]) -> dict[str, Any]:
    """
    A drafter's config.json with new trees, given by batch size. The trees for other batch sizes stay.
    """
    changed = dict(config)
    batch_trees = dict(config.get("batch_trees") or {})
    for batch_size, tree in found.items():
        if batch_size == 1:
            changed.update(asdict(tree))
        else:
            batch_trees[str(batch_size)] = asdict(tree)
    if batch_trees:
        changed["batch_trees"] = dict(sorted(batch_trees.items(), key=lambda item: int(item[0])))
    return changed


__all__ = ["TOP_K", "TreeFields", "with_trees"]
