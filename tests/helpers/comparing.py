# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Comparisons with plain `generate`, token for token."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from helpers.knowing import knowing_drafter
from helpers.targets import make_drafter
from transformers_jakiro import install_generation_hook, jakiro_generate, remove_generation_hook


class Fresh:
    """An argument of `generate` that is made anew for each run."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make

    def __call__(self) -> Any:
        return self._make()


def compare(
    target: PreTrainedModel,
    draft: Any,
    inputs: dict[str, Any],
    knows: bool = True,
    seed: int | None = None,
    logits: bool = False,
    **kwargs: Any,
) -> Any:
    """
    Asserts that `generate` with a drafter gives exactly the tokens of plain `generate`, row by row, and leaves the
    random generator alike: first with the drafter as it is, then, if `knows`, with one that knows the continuations.

    Args:
        inputs, kwargs: arguments of `generate`; a [`Fresh`] one is made anew for each run.
        seed: of the random numbers; needed for sampling.
        logits: whether the logits of accepted paths are compared, too, on trees without what the drafter proposes.

    Returns:
        The output of the last run with the drafter.
    """

    def run(**extra: Any) -> tuple[Any, torch.Tensor]:
        torch.manual_seed(seed or 0)
        values = {"do_sample": False, **inputs, **kwargs}
        # what a run uses up is given as a function that makes it
        values = {name: value() if isinstance(value, Fresh) else value for name, value in values.items()}
        output = target.generate(**values, **{"return_dict_in_generate": True, **extra})
        return output, torch.get_rng_state()

    def check(**extra: Any) -> Any:
        output, our_state = run(assistant_model=draft, **extra)
        check_output(plain, output, continuations)
        assert torch.equal(our_state, state)
        if len(continuations) > 1:  # rows that have ended leave the batch then
            sequences, our_state = run(assistant_model=draft, return_dict_in_generate=False)
            assert sequences.tolist() == plain.sequences.tolist()
            assert torch.equal(our_state, state)
        return output

    plain, state = run(output_scores=True, output_logits=True)
    prompt_length = plain.sequences.shape[1] - len(plain.scores)
    continuations = plain.sequences[:, prompt_length:].tolist()
    length = len(continuations[0])
    if seed is None:
        best = torch.stack(plain.scores).topk(2).values
        least = 1e-5 if target.dtype == torch.float32 else 1e-7  # scores are recorded in float32 in either case
        assert (best[..., 0] - best[..., 1]).min() > least, "rounding decides: choose another prompt"
    ours = check()
    if knows:
        with knowing_drafter(continuations, seed=seed or 0) as trees:
            ours = check()
        if len(continuations) == 1:
            assert ours.num_drafted_tokens == sum(tree.num_nodes - 1 for tree in trees)
            assert length < 8 or ours.num_accepted_tokens >= length // 3, "hardly anything was accepted"
        else:
            steps = max(map(len, ours.accept_lengths))
            assert length < 6 or steps < length - 1, "a row came no further than plain generation does"
    if logits:
        with knowing_drafter(continuations, seed=1, keep_drafted=False):
            ours = check(output_logits=True)
        assert len(ours.logits) == len(plain.logits)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(plain.logits), atol=1e-3, rtol=1e-3)
    return ours


def compare_batch(target: PreTrainedModel, inputs: dict[str, Any], draft: Any = None, **kwargs: Any) -> Any:
    """[`compare`] for short answers, with a drafter made for the target if there is none."""
    return compare(target, draft or make_drafter(target), inputs, **{"max_new_tokens": 16, **kwargs})


def check_output(plain: Any, ours: Any, continuations: Sequence[Sequence[int]]) -> None:
    """Same tokens, and accept lengths that account for each of them."""
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert len(ours.accept_lengths) == len(continuations)
    if len(continuations) == 1:  # without padding
        # the prompt's forward gives one token, each later one one more than it accepts
        assert 1 + sum(length + 1 for length in ours.accept_lengths[0]) == len(continuations[0])
    assert ours.num_accepted_tokens == sum(map(sum, ours.accept_lengths)) <= ours.num_drafted_tokens


@contextmanager
def assistance(draft: PreTrainedModel, hooked: bool) -> Iterator[dict[str, Any]]:
    """The arguments of `generate` that let it draft: by the hook, or by the callable while there is no hook."""
    if hooked:
        yield {"assistant_model": draft}
        return
    remove_generation_hook()
    try:
        yield {"custom_generate": jakiro_generate(draft)}
    finally:
        install_generation_hook()
