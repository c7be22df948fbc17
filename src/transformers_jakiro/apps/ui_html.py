# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Answers as HTML: their text, their figures, and how two of them compare."""

from collections.abc import Sequence
from html import escape
from itertools import takewhile

from .answering import Answer, Step


def answer_html(steps: Sequence[Step], chosen: int | None = None) -> str:
    """
    The text of an answer: a `span` for each step, with a `mark` for what was drafted and accepted.

    Args:
        steps: those of the answer.
        chosen: index of the step to highlight.
    """
    parts = []
    for index, step in enumerate(steps):
        runs = "".join(f"<mark>{escape(text)}</mark>" if accepted else escape(text) for text, accepted in step.runs)
        if step.tree is None:
            parts.append(f"<span>{runs}</span>")
        else:
            mark = " chosen" if index == chosen else ""
            parts.append(f'<span class="step{mark}" data-step="{index}" title="step {index}">{runs}</span>')
    return "".join(parts)


def panel_html(title: str, answer: Answer | None, chosen: int | None = None, waiting: str = "") -> str:
    """
    An answer with its title and figures.

    Args:
        title: name of the panel.
        answer: None before it is written.
        chosen: index of the step to highlight.
        waiting: shown in place of an answer without a step.
    """
    figures = [("–", "tokens/s"), ("–", "tokens per forward"), ("–", "tokens")]
    text = f'<span class="quiet">{escape(waiting)}</span>'
    if answer is not None and answer.steps:
        end = " (stopped)" if answer.stopped else " (the limit)" if answer.reached_limit else ""
        figures = [
            (f"{answer.tokens_per_second:.1f}", "tokens/s"),
            (f"{answer.tokens_per_forward:.2f}", "tokens per forward"),
            (f"{answer.num_tokens}", f"tokens in {answer.seconds:.1f} s{end}"),
        ]
        text = answer_html(answer.steps, chosen)
    cells = "".join(f'<div class="figure"><b>{value}</b>{name}</div>' for value, name in figures)
    return (
        f'<section class="panel" aria-label="{escape(title)}"><h2>{escape(title)}</h2>'
        f'<div class="figures">{cells}</div><div class="answer">{text}</div></section>'
    )


def verdict_html(answer: Answer, plain: Answer) -> str:
    """The speed-up of a complete answer over that of plain `generate`, and whether their tokens are the same."""
    speed_up = answer.tokens_per_second / plain.tokens_per_second
    if answer.tokens == plain.tokens:
        same = "the same text, token for token"
    else:
        pairs = zip(answer.tokens, plain.tokens, strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        same = f"other tokens from token {shared + 1} on, which rounding in half precision can cause"
    return f'<p class="verdict"><b>{speed_up:.2f} times</b> the speed of plain generate, {same}.</p>'


__all__ = ["answer_html", "panel_html", "verdict_html"]
