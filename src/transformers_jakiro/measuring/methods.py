# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The ways to generate that a benchmark compares.

[`METHODS`] describes each of them and says how to build it; [`make_methods`] builds those that are asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ..core import compat

# the tree of the paper
PUBLISHED = {"tree_depth": 7, "tree_top_k": 10, "tree_width": 10, "num_draft_tokens": 59}
_PROMPT_LOOKUP_TOKENS = 10


@dataclass(frozen=True)
class Method:
    """
    A way to generate.

    Args:
        name (`str`): unique within a benchmark.
        description (`str`): for the report.
        options: arguments of `generate`.
        draft ([`JakiroDraftModel`], *optional*): the drafter, which is also among the options.
        tree: fields of the drafter's config to set while this method runs.
        modules: modules whose forwards are timed in profiled runs: `target`, `draft`, `head`. None if hooks would
            change what is run, or could not tell the modules apart.
    """

    name: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draft: PreTrainedModel | None = None
    tree: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, torch.nn.Module] | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Sets the fields of the drafter's config, and restores them at the end."""
        if self.draft is None:
            yield
            return
        config = self.draft.config
        before = {name: getattr(config, name) for name in self.tree}
        try:
            for name, value in self.tree.items():
                setattr(config, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)


@dataclass(frozen=True)
class MethodInputs:
    """
    What methods are built from.

    Args:
        target, draft: the two models.
        control ([`JakiroDraftModel`], *optional*): another drafter.
        assistant ([`~transformers.PreTrainedModel`], *optional*): a small causal language model.
        early_exit (`int`, *optional*): number of the target's layers to draft with.
        tree_sizes (`tuple[int, ...]`): nodes per tree; if empty, as many as the drafter's config says.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    control: PreTrainedModel | None = None
    assistant: PreTrainedModel | None = None
    early_exit: int | None = None
    tree_sizes: tuple[int, ...] = ()

    @property
    def first_size(self) -> int | None:
        """For methods that run with one tree size only."""
        return self.tree_sizes[0] if self.tree_sizes else None


# Completes a method that has only its name and description. Some are run in several variants.
Builder = Callable[[Method, MethodInputs], list[Method]]


@dataclass(frozen=True)
class MethodKind:
    """
    An entry of [`METHODS`].

    Args:
        description (`str`): for the report.
        build: completes a method that has only its name and this description.
        needs (`str`, *optional*): field of [`MethodInputs`] that must be given.
        default (`bool`): whether it runs if no methods are chosen, provided that it has what it needs.
    """

    description: str
    build: Builder
    needs: str | None = None
    default: bool = False


_OPTION_OF_INPUT = {
    "control": "--control",
    "assistant": "--assistant",
    "early_exit": "--assistant-early-exit",
}


def _with_drafter(
    method: Method, given: MethodInputs, drafter: PreTrainedModel, num_nodes: int | None, **tree: Any
) -> Method:
    """Adds a drafter, the number of nodes per tree (None: the config's), and fields of the drafter's config."""
    options: dict[str, Any] = {"assistant_model": drafter}
    description = method.description
    if num_nodes is not None:
        options["num_assistant_tokens"] = num_nodes
        description += f", {num_nodes} nodes"
    modules = {"target": given.target, "draft": drafter, "head": given.target.get_output_embeddings()}
    return replace(method, description=description, options=options, draft=drafter, tree=tree, modules=modules)


def _with_each_size(method: Method, given: MethodInputs, drafter: PreTrainedModel, **tree: Any) -> list[Method]:
    """One method per tree size. With several sizes, the size is appended to the name."""
    if len(given.tree_sizes) <= 1:
        return [_with_drafter(method, given, drafter, given.first_size, **tree)]
    return [
        _with_drafter(replace(method, name=f"{method.name}-{num_nodes}"), given, drafter, num_nodes, **tree)
        for num_nodes in given.tree_sizes
    ]


def _with_static_cache(build: Builder) -> Builder:
    """The same methods with a static cache and `torch.compile`. Hooks would change what is compiled: no timers."""

    def build_static(method: Method, given: MethodInputs) -> list[Method]:
        static = {"cache_implementation": "static", "compile_config": compat.compile_everywhere()}
        return [replace(built, options={**built.options, **static}, modules=None) for built in build(method, given)]

    return build_static


def _plain(method: Method, given: MethodInputs) -> list[Method]:
    return [replace(method, modules={"target": given.target})]


def _jakiro(method: Method, given: MethodInputs) -> list[Method]:
    return _with_each_size(method, given, given.draft)


def _jakiro_of_one_size(method: Method, given: MethodInputs) -> list[Method]:
    return [_with_drafter(method, given, given.draft, given.first_size)]


def _published(method: Method, given: MethodInputs) -> list[Method]:
    tree = {**PUBLISHED, "static_tree": None, "batch_trees": None}
    return [_with_drafter(method, given, given.draft, PUBLISHED["num_draft_tokens"], **tree)]


def _adaptive(method: Method, given: MethodInputs) -> list[Method]:
    (built,) = _jakiro_of_one_size(method, given)
    return [replace(built, options={**built.options, "num_assistant_tokens_schedule": "heuristic"})]


def _chain(method: Method, given: MethodInputs) -> list[Method]:
    tree = {"static_tree": None, "batch_trees": None, "tree_top_k": 1, "tree_width": None}
    return [_with_drafter(method, given, given.draft, given.draft.config.tree_depth, **tree)]


def _eagle2(method: Method, given: MethodInputs) -> list[Method]:
    tree = {name: getattr(given.draft.config, name) for name in (*PUBLISHED, "batch_trees")}
    return _with_each_size(method, given, cast(PreTrainedModel, given.control), **tree, static_tree=None)


def _prompt_lookup(method: Method, given: MethodInputs) -> list[Method]:
    options = {"prompt_lookup_num_tokens": _PROMPT_LOOKUP_TOKENS}
    return [replace(method, options=options, modules={"target": given.target})]


def _assistant(method: Method, given: MethodInputs) -> list[Method]:
    assistant = cast(PreTrainedModel, given.assistant)
    modules = {"target": given.target, "draft": assistant}
    return [replace(method, options={"assistant_model": assistant}, modules=modules)]


def _early_exit(method: Method, given: MethodInputs) -> list[Method]:
    # no timers: the drafting forwards are the target's own
    description = f"{method.description}: {given.early_exit}"
    return [replace(method, description=description, options={"assistant_early_exit": given.early_exit})]


def _mtp(method: Method, given: MethodInputs) -> list[Method]:
    return [replace(method, options={"use_mtp": True})]


METHODS: dict[str, MethodKind] = {
    "plain": MethodKind("plain `generate`", _plain, default=True),
    "static": MethodKind("plain `generate` with a static cache and `torch.compile`", _with_static_cache(_plain)),
    "jakiro": MethodKind("trees of the drafter", _jakiro, default=True),
    "jakiro_static": MethodKind(
        "trees of the drafter, with a static cache and `torch.compile`", _with_static_cache(_jakiro_of_one_size)
    ),
    "published": MethodKind("trees of the same drafter, in the published shape (7 levels, 10 wide)", _published),
    "adaptive": MethodKind("trees of the drafter, sized while generating", _adaptive),
    "chain": MethodKind("chains of the same drafter", _chain, default=True),
    "eagle2": MethodKind(
        "trees of the control drafter, in the shape of the drafter's", _eagle2, needs="control", default=True
    ),
    "prompt_lookup": MethodKind(
        f"transformers' prompt lookup, {_PROMPT_LOOKUP_TOKENS} tokens", _prompt_lookup, default=True
    ),
    "prompt_lookup_static": MethodKind(
        f"transformers' prompt lookup, {_PROMPT_LOOKUP_TOKENS} tokens, with a static cache and `torch.compile`",
        _with_static_cache(_prompt_lookup),
    ),
    "assistant": MethodKind(
        "transformers' assisted generation with a small model", _assistant, needs="assistant", default=True
    ),
    "assistant_static": MethodKind(
        "transformers' assisted generation with a small model, a static cache and `torch.compile`",
        _with_static_cache(_assistant),
        needs="assistant",
    ),
    "early_exit": MethodKind(
        "transformers' assisted generation with the target's own lower layers",
        _early_exit,
        needs="early_exit",
        default=True,
    ),
    "mtp": MethodKind("transformers' multi-token prediction with the target's own layers for it", _mtp),
}


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
    The methods to compare, with plain `generate` always first.

    Args:
        names: keys of [`METHODS`]; default: `plain`, `jakiro`, `chain`, `prompt_lookup`, and those of `eagle2`,
            `assistant` and `early_exit` whose model is given.
        control: another drafter for `eagle2`, whose trees get the same shape.
        assistant: a small causal language model with the same tokenizer, for `assistant`.
        early_exit: number of the target's layers to draft with, for `early_exit`.
        num_assistant_tokens: nodes per tree; default: the drafter's. With several, `jakiro` and `eagle2` run once
            with each, as `jakiro-8` and so on.

    Raises:
        ValueError: for unknown names, and for methods whose model is not given.
    """
    given = MethodInputs(target, draft, control, assistant, early_exit, tuple(dict.fromkeys(num_assistant_tokens)))
    chosen = _default_names(given) if names is None else list(dict.fromkeys(("plain", *names)))
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise ValueError(f"`--methods` must be among {[*METHODS]}, got {unknown}.")
    for name in chosen:
        needs = METHODS[name].needs
        if needs is not None and getattr(given, needs) is None:
            option = _OPTION_OF_INPUT[needs]
            raise ValueError(f"The method `{name}` needs `{option}`. Give it, or leave the method out.")
    return [
        method for name in chosen for method in METHODS[name].build(Method(name, METHODS[name].description), given)
    ]


def _default_names(given: MethodInputs) -> list[str]:
    """The default methods that have what they need; those that need nothing come first."""
    kinds = {name: kind for name, kind in METHODS.items() if kind.default}
    return [name for name, kind in kinds.items() if kind.needs is None] + [
        name for name, kind in kinds.items() if kind.needs is not None and getattr(given, kind.needs) is not None
    ]


__all__ = ["METHODS", "PUBLISHED", "Method", "MethodInputs", "MethodKind", "make_methods"]
