# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The methods that `jakiro bench` compares: a table of names, descriptions and builders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..core import compat

# the fields of the published trees
PUBLISHED = {"tree_depth": 7, "tree_top_k": 10, "tree_width": 10, "num_draft_tokens": 59}


@dataclass(frozen=True)
class Method:
    """
    A way to generate.

    Args:
        options: arguments of `generate`.
        draft ([`JakiroDraftModel`], *optional*): the drafter, also among the options.
        tree: fields of the drafter's config while this method runs.
        modules: whose forwards to time in profiled runs: `target`, `draft`, `head`; None where hooks would change what
            is run, or could not tell the two apart.
    """

    name: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draft: Any = None
    tree: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, torch.nn.Module] | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Sets the fields of the drafter's config, and takes them back."""
        before = {name: getattr(self.draft.config, name) for name in self.tree}
        try:
            for name, value in self.tree.items():
                setattr(self.draft.config, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self.draft.config, name, value)


@dataclass(frozen=True)
class Models:
    """
    What methods are made of.

    Args:
        target, draft: the two models.
        control (*optional*): another drafter.
        assistant (*optional*): a small causal language model with the same tokenizer.
        early_exit (`int`, *optional*): layers of the target to draft with.
        sizes (`Sequence[int]`): nodes per tree; empty: as many as the drafter likes.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    control: PreTrainedModel | None = None
    assistant: PreTrainedModel | None = None
    early_exit: int | None = None
    sizes: Sequence[int] = ()


class Kind(NamedTuple):
    """
    A row of [`METHODS`].

    Args:
        description (`str`): for people.
        build: the methods of this kind, given its name, its description and the models.
        needs (`str`, *optional*): the field of [`Models`] that must be given.
    """

    description: str
    build: Callable[[str, str, Models], list[Method]]
    needs: str | None = None


def _compiled() -> dict[str, Any]:
    return {"cache_implementation": "static", "compile_config": compat.compile_everywhere()}


def _plain(name: str, description: str, models: Models) -> list[Method]:
    return [Method(name, description, modules={"target": models.target})]


def _static(name: str, description: str, models: Models) -> list[Method]:
    return [Method(name, description, _compiled())]


def _drafted(
    name: str, description: str, models: Models, nodes: int | None, draft: PreTrainedModel | None = None, **tree: Any
) -> Method:
    """Trees of a drafter, with `nodes` nodes if given, and with fields of its config as in `tree`."""
    drafter = draft or models.draft
    options: dict[str, Any] = {"assistant_model": drafter}
    if nodes is not None:
        options["num_assistant_tokens"] = nodes
        description += f", {nodes} nodes"
    modules = {"target": models.target, "draft": drafter, "head": models.target.get_output_embeddings()}
    return Method(name, description, options, drafter, tree, modules)


def _each_size(
    name: str, description: str, models: Models, draft: PreTrainedModel | None = None, **tree: Any
) -> list[Method]:
    """One method per size of the trees, called `name-size` if there are several."""
    several = len(models.sizes) > 1
    return [
        _drafted(f"{name}-{nodes}" if several else name, description, models, nodes, draft, **tree)
        for nodes in models.sizes or (None,)
    ]


def _first_size(models: Models) -> int | None:
    return models.sizes[0] if models.sizes else None


def _jakiro_static(name: str, description: str, models: Models) -> list[Method]:
    method = _drafted(name, description, models, _first_size(models))
    return [replace(method, options={**method.options, **_compiled()}, modules=None)]


def _eagle2(name: str, description: str, models: Models) -> list[Method]:
    tree = {field: getattr(models.draft.config, field) for field in (*PUBLISHED, "batch_trees")}
    return _each_size(name, description, models, models.control, **tree, static_tree=None)


def _published(name: str, description: str, models: Models) -> list[Method]:
    tree: dict[str, Any] = {**PUBLISHED, "static_tree": None, "batch_trees": None}
    return [_drafted(name, description, models, PUBLISHED["num_draft_tokens"], **tree)]


def _adaptive(name: str, description: str, models: Models) -> list[Method]:
    method = _drafted(name, description, models, _first_size(models))
    return [replace(method, options={**method.options, "num_assistant_tokens_schedule": "heuristic"})]


def _chain(name: str, description: str, models: Models) -> list[Method]:
    tree: dict[str, Any] = {"static_tree": None, "batch_trees": None, "tree_top_k": 1, "tree_width": None}
    return [_drafted(name, description, models, models.draft.config.tree_depth, **tree)]


def _prompt_lookup(name: str, description: str, models: Models) -> list[Method]:
    return [Method(name, description, {"prompt_lookup_num_tokens": 10}, modules={"target": models.target})]


def _prompt_lookup_static(name: str, description: str, models: Models) -> list[Method]:
    return [Method(name, description, {"prompt_lookup_num_tokens": 10, **_compiled()})]


def _assistant(name: str, description: str, models: Models) -> list[Method]:
    assert models.assistant is not None
    modules = {"target": models.target, "draft": models.assistant}
    return [Method(name, description, {"assistant_model": models.assistant}, modules=modules)]


def _assistant_static(name: str, description: str, models: Models) -> list[Method]:
    return [Method(name, description, {"assistant_model": models.assistant, **_compiled()})]


def _early_exit(name: str, description: str, models: Models) -> list[Method]:
    options = {"assistant_early_exit": models.early_exit}
    return [Method(name, f"{description}: {models.early_exit}", options)]


def _mtp(name: str, description: str, models: Models) -> list[Method]:
    return [Method(name, description, {"use_mtp": True})]


METHODS = {
    "plain": Kind("plain `generate`", _plain),
    "static": Kind("plain `generate` with a static cache and `torch.compile`", _static),
    "jakiro": Kind("trees of the drafter", _each_size),
    "jakiro_static": Kind("trees of the drafter, with a static cache and `torch.compile`", _jakiro_static),
    "published": Kind("trees of the same drafter, in the published shape (7 levels, 10 wide)", _published),
    "adaptive": Kind("trees of the drafter, sized while generating", _adaptive),
    "chain": Kind("chains of the same drafter", _chain),
    "eagle2": Kind("trees of the control drafter, in the shape of the drafter's", _eagle2, needs="control"),
    "prompt_lookup": Kind("transformers' prompt lookup, 10 tokens", _prompt_lookup),
    "prompt_lookup_static": Kind(
        "transformers' prompt lookup, 10 tokens, with a static cache and `torch.compile`", _prompt_lookup_static
    ),
    "assistant": Kind("transformers' assisted generation with a small model", _assistant, needs="assistant"),
    "assistant_static": Kind(
        "transformers' assisted generation with a small model, a static cache and `torch.compile`",
        _assistant_static,
        needs="assistant",
    ),
    "early_exit": Kind(
        "transformers' assisted generation with the target's own lower layers", _early_exit, needs="early_exit"
    ),
    "mtp": Kind("transformers' multi-token prediction with the target's own layers for it", _mtp),
}
# run without being named, the last three if their model is given
_DEFAULT = ("plain", "jakiro", "chain", "prompt_lookup", "eagle2", "assistant", "early_exit")
_OPTIONS = {"control": "--control", "assistant": "--assistant", "early_exit": "--assistant-early-exit"}


def make_methods(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    names: Sequence[str] | None = None,
    control: PreTrainedModel | None = None,
    assistant: PreTrainedModel | None = None,
    early_exit: int | None = None,
    num_assistant_tokens: Sequence[int] = (),
) -> list[Method]:
    """
    The methods to compare, plain `generate` always the first.

    Args:
        target, draft: the two models.
        names: of [`METHODS`]; default: `plain`, `jakiro`, `chain`, `prompt_lookup`, and of `eagle2`, `assistant` and
            `early_exit` those whose model is given.
        control: another drafter, with trees of the same shape: `eagle2`.
        assistant: a small causal language model with the same tokenizer: `assistant`.
        early_exit: layers of the target to draft with: `early_exit`.
        num_assistant_tokens: nodes per tree; default: the drafter's. With several, `jakiro` and `eagle2` run once
            with each, as `jakiro-8` and so on.

    Raises:
        ValueError: for unknown names, and for methods whose model is not given.
    """
    sizes = list(dict.fromkeys(num_assistant_tokens))
    models = Models(target, draft, control, assistant, early_exit, sizes)

    def is_given(name: str) -> bool:
        needs = METHODS[name].needs
        return needs is None or getattr(models, needs) is not None

    chosen = [name for name in _DEFAULT if is_given(name)] if names is None else list(dict.fromkeys(("plain", *names)))
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise ValueError(f"`--methods` must be of {[*METHODS]}, got {unknown}.")
    for name in chosen:
        if not is_given(name):
            option = _OPTIONS[METHODS[name].needs or ""]
            raise ValueError(f"The method `{name}` needs `{option}`. Give it, or leave the method out.")
    return [method for name in chosen for method in METHODS[name].build(name, METHODS[name].description, models)]


__all__ = ["METHODS", "PUBLISHED", "Kind", "Method", "Models", "make_methods"]
