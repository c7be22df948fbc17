# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The seam for drafters: what a kind of drafter must do to take part in [`~transformers_jakiro.core.generation`]. There
it gets trees, batches, static caches, sampling and all processors without knowing of them.

```python
>>> class NGramDrafter(Drafter): ...  # observe, propose, select: see docs/new_drafter.md
>>> register_drafter(NGramConfig, NGramDrafter)
>>> target.generate(**inputs, assistant_model=assistant)  # whose `config` is an NGramConfig
```

Symbols in shape comments: R rows in the target's batch, T tokens, F width of what a drafter reads.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedConfig, PreTrainedModel

from .device import reads_wait
from .noise import SamplingCoupling
from .rows import Rows
from .target import Target
from .tree import DraftTree


@dataclass(frozen=True)
class DraftingContext:
    """
    The generation that a drafter is made for.

    Args:
        target ([`Target`]): the target, as [`~Drafter.view`] has it.
        rows ([`Rows`]): the rows, with all tokens that are known of them.
        num_assistant_tokens (`int`, *optional*): nodes per tree that the caller asks for.
        temperature (`float`): the target's sampling temperature; 0 if it decodes greedily.
        coupling ([`SamplingCoupling`], *optional*): the random numbers of the target's next draws, if it samples and
            they are known. Its choices then follow from its logits as in greedy decoding.
    """

    target: Target
    rows: Rows
    num_assistant_tokens: int | None = None
    temperature: float = 0.0
    coupling: SamplingCoupling | None = None


@dataclass(frozen=True)
class Observation:
    """
    Tokens that the target has processed: the prompt, or a part of it, then each step's accepted ones.

    Args:
        num_tokens (`R` integers): how many of the T each row has, the first ones.
        tokens (`[R, T]`, *optional*): None where the prompt was given as embeddings.
        embeddings (`[R, T, H]`, *optional*): the prompt as it was given instead.
        features (`[R, T, F]`, *optional*): what the drafter reads of the target at these tokens
            ([`~transformers_jakiro.core.target.Target.read`]), if it reads its hidden states.
        attention_mask (`[R, T]`, *optional*): 0 where a token is padding. None after the prompt.
    """

    num_tokens: Sequence[int]
    tokens: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    features: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Budget:
    """
    What a tree may cost.

    Args:
        max_depth (`int`): levels that can still be used; 0 drafts nothing.
        depth (`int`, *optional*): levels that are worth drafting. Default: as many as the drafter likes.
        chain (`bool`): whether each node may have one child only.
    """

    max_depth: int
    depth: int | None = None
    chain: bool = False


class Drafter(ABC):
    """
    Drafts for one generation, with state of its own for each of its rows.

    Attributes:
        num_draft_tokens (`int`): nodes of its trees at most, the root not counted. With a dynamic cache it may change
            when rows leave the batch.
        depth (`int`): levels of its trees at most.
        levels_without_forward (`int`): of these, how many cost no forward of a model.
    """

    num_draft_tokens: int
    depth: int
    levels_without_forward: int = 0

    @classmethod
    def view(cls, assistant: Any, model: PreTrainedModel) -> Target:
        """
        The target as this kind of drafter sees it. Default: without its hidden states.

        Args:
            assistant: what `generate` was given as `assistant_model`.
            model ([`~transformers.PreTrainedModel`]): the target.

        Raises:
            ValueError: if the assistant cannot draft for it.
        """
        return Target(model, reads_hidden_states=False)

    @abstractmethod
    def __init__(self, assistant: Any, context: DraftingContext):
        """Made when a generation begins, before the target reads the prompt."""

    def make_static(self, capacity: int, compile_config: CompileConfig | None) -> None:  # noqa: B027 - optional
        """
        Called where the target has a static cache. A drafter with a model gives its forwards fixed shapes.

        Args:
            capacity (`int`): tokens of a row at most, those of the prompt included.
            compile_config ([`~transformers.CompileConfig`], *optional*): how to compile the forwards; None: not.
        """

    @abstractmethod
    def observe(self, observation: Observation) -> None:
        """Takes in tokens that the target has processed."""

    @abstractmethod
    def propose(self, last_tokens: torch.Tensor, budget: Budget) -> DraftTree:
        """
        A tree of the same size for each row.

        Args:
            last_tokens (`[R]`): what the target has chosen last: the roots. They are not observed yet.
            budget ([`Budget`]): what the trees may cost.

        Returns:
            [`DraftTree`] of `[R, n]` nodes, `n <= num_draft_tokens + 1`. Its roots are `last_tokens`, and its
            `max_depth` bounds the depth of its nodes. With `budget.chain`, each node has one child at most. A tree may
            be deeper than `budget.max_depth`; the surplus is never accepted.
        """

    @abstractmethod
    def select(self, kept: Sequence[int]) -> None:
        """
        Goes on with some rows of the batch; the others have ended.

        Args:
            kept: the places that these rows had before. `context.rows.active` holds them alone already.
        """


_DRAFTERS: dict[type[PreTrainedConfig], type[Drafter]] = {}


def register_drafter(config_class: type[PreTrainedConfig], drafter_class: type[Drafter]) -> type[Drafter] | None:
    """
    Lets `generate(assistant_model=...)` draft with `drafter_class` for every assistant whose `config` is of
    `config_class`, or of a class derived from it. Returns what was registered for it before. The config must have the
    target's `vocab_size`, since `generate` compares the two.

    Raises:
        TypeError: if `config_class` is not a class of configs, or `drafter_class` not a subclass of [`Drafter`].
    """
    if not (isinstance(config_class, type) and issubclass(config_class, PreTrainedConfig)):
        raise TypeError(
            f"A drafter must be registered for a subclass of `PreTrainedConfig`, got {config_class!r}. Pass the class "
            "of the assistant's config."
        )
    if not (isinstance(drafter_class, type) and issubclass(drafter_class, Drafter)):
        raise TypeError(
            f"A drafter must be a subclass of `Drafter`, got {drafter_class!r}. Derive it from "
            "`transformers_jakiro.core.drafting.Drafter`."
        )
    previous = _DRAFTERS.get(config_class)
    _DRAFTERS[config_class] = drafter_class
    return previous


def drafter_class_of(assistant: Any) -> type[Drafter] | None:
    """The kind of drafter for what `generate` was given as `assistant_model`; None if it is not ours."""
    bases = type(getattr(assistant, "config", None)).__mro__
    return next((_DRAFTERS[base] for base in bases if base in _DRAFTERS), None)


def require_drafter_class(assistant: Any) -> type[Drafter]:
    """As [`drafter_class_of`], but raises `TypeError` for an assistant that is not ours."""
    drafter_class = drafter_class_of(assistant)
    if drafter_class is None:
        raise TypeError(
            f"No drafter is registered for a {type(assistant).__name__}. Pass a `JakiroDraftModel`, or register the "
            "class of its config with `register_drafter`."
        )
    return drafter_class


def check_proposal(drafter: Drafter, tree: DraftTree, num_rows: int, budget: Budget, vocab_size: int) -> None:
    """
    Checks a tree that a drafter has proposed. What the host would have to wait for is checked when it reads the tree
    ([`~transformers_jakiro.core.choosing.TokenChooser.walk`]).

    Raises:
        TypeError, ValueError: if it is not what [`Drafter.propose`] promises, so that it would not be verified
            correctly.
    """
    name = type(drafter).__name__
    if not isinstance(tree, DraftTree):
        raise TypeError(f"A drafter must propose a `DraftTree`, but {name} proposed {tree!r}. Correct its `propose`.")
    tokens, parents = tree.tokens, tree.parents
    shape, most = tuple(tokens.shape), drafter.num_draft_tokens + 1
    if shape != tuple(parents.shape) or len(shape) != 2 or shape[0] != num_rows or not 0 < shape[1] <= most:
        raise ValueError(
            f"A drafter must propose trees whose tokens and parents are [rows, nodes], with {num_rows} rows and at "
            f"most {most} nodes (`num_draft_tokens` and the root), but {name} proposed tokens {shape} and parents "
            f"{tuple(parents.shape)}. Correct its `propose`, or its `num_draft_tokens`."
        )
    if tokens.dtype != torch.long or parents.dtype != torch.long:
        raise ValueError(
            f"The tokens and parents of a tree must be of dtype torch.long, but {name} proposed {tokens.dtype} and "
            f"{parents.dtype}. Correct its `propose`."
        )
    before = (torch.arange(shape[1]) - 1).clamp(min=0)
    if not reads_wait(tokens.device):
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise ValueError(
                f"Drafted tokens must lie in [0, {vocab_size}), the target's vocabulary, but {name} proposed tokens "
                f"from {int(tokens.min())} to {int(tokens.max())}. Correct its `propose`."
            )
        if int(parents.min()) < 0 or bool((parents > before).any()):
            raise ValueError(
                "In a tree, the root must be its own parent, and other parents must stand before their children, but "
                f"{name} proposed the parents {parents.tolist()}. Correct its `propose`."
            )
    if budget.chain and not torch.equal(parents[0].cpu(), before):
        raise ValueError(
            "This target verifies chains only, so with `budget.chain` each node may have one child at most, but "
            f"{name} proposed the parents {parents[0].tolist()}. Correct its `propose`."
        )


__all__ = [
    "Budget",
    "Drafter",
    "DraftingContext",
    "Observation",
    "check_proposal",
    "drafter_class_of",
    "register_drafter",
    "require_drafter_class",
]
