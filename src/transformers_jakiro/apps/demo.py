# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
`jakiro demo`: answers prompts with the pair that ships, shows what was drafted, and compares with plain `generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from transformers import PreTrainedTokenizerBase

from .. import pair as shipped_pair
from ..core.tree import DraftTree
from ..measuring.acceptance import tokens_per_forward
from .answering import ACCEPTED, Pair, Step


def print_step(step: Step, console: Console) -> None:
    """Prints the text of a step. Accepted text is in colour, or in [brackets] on a console without colours."""
    for text, accepted in step.runs:
        if accepted and console.color_system is None:
            text = f"[{text}]"
        console.print(Text(text, style=ACCEPTED if accepted else ""), end="", soft_wrap=True)


@dataclass
class DemoResult:
    """
    Measurements of one prompt, or the sum over several.

    Args:
        identical: prompts for which both answers have the same tokens.
        prompts: number of prompts.
        plain_tokens, plain_seconds: tokens and time of plain `generate`.
        tokens, seconds: tokens and time with the drafter.
        accept_lengths: accepted tokens in each forward of the target.
    """

    identical: int = 0
    prompts: int = 0
    plain_tokens: int = 0
    plain_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    accept_lengths: list[int] = field(default_factory=list)

    def __add__(self, other: "DemoResult") -> "DemoResult":
        return DemoResult(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def run_demo(
    prompts: Sequence[str],
    target: str | None = None,
    draft: str | None = None,
    num_prompts: int = 3,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    dtype: str = "float32",
    show_tree: bool = False,
    seed: int = 0,
    console: Console | None = None,
) -> DemoResult:
    """
    The `jakiro demo` command: answers prompts and prints a comparison with plain `generate`.

    Args:
        prompts: the questions. The default is `num_prompts` questions of GSM8K that the drafter was not trained on.
        target, draft: folders or Hub ids. The default is the pair that ships with the package.
        max_new_tokens: limit of each answer.
        temperature: 0 is greedy.
        dtype: precision of both models.
        show_tree: draw the tree of the step that accepted most.
        seed: seed of the sampling.
        console: where to print.

    Raises:
        ValueError: if a prompt is empty, only one of `target` and `draft` is given, or the two do not fit together.
    """
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("A prompt is empty. Give some text to answer.")
    console = console or Console(highlight=False)
    if not prompts:
        prompts = shipped_pair.prompts()[:num_prompts]
    pair = Pair.load(target, draft, dtype)
    settings = {"seed": seed, "max_new_tokens": max_new_tokens, "temperature": temperature}
    if draft is None:
        console.print(
            "A toy target of a few million parameters, trained on grade-school math: fluent, often wrong. "
            "The point is that the drafter changes its speed, not its words."
        )
    console.print(
        Text("Accepted drafts are ")
        + (Text("green", style=ACCEPTED) if console.color_system else Text("[in brackets]"))
        + Text(", the rest is the target's own.\n")
    )
    total = DemoResult()
    for prompt in prompts:
        total += _answer_twice(pair, prompt, settings, show_tree, console)
        console.print()
    console.print(comparison_table(total))
    return total


def _answer_twice(pair: Pair, prompt: str, settings: dict[str, Any], show_tree: bool, console: Console) -> DemoResult:
    """Answers a prompt with the drafter, in sight, and with plain `generate`."""
    messages = [{"role": "user", "content": prompt}]
    console.print(f"[bold]{escape(prompt)}[/bold]", soft_wrap=True)
    answer = pair.answer(messages, **settings)
    for step in answer:
        print_step(step, console)
    console.print()
    plain = pair.answer(messages, drafted=False, **settings)
    for _ in plain:
        pass
    if show_tree:
        steps = [(len(step.visited), step.tree, step.visited) for step in answer.steps if step.tree is not None]
        if steps:
            _, tree, visited = max(steps, key=lambda step: step[0])
            console.print(draw_tree(tree, visited, pair.tokenizer, colour=console.color_system is not None))
    return DemoResult(
        identical=int(plain.tokens == answer.tokens),
        prompts=1,
        plain_tokens=plain.num_tokens,
        plain_seconds=plain.seconds,
        tokens=answer.num_tokens,
        seconds=answer.seconds,
        accept_lengths=answer.accept_lengths,
    )


def draw_tree(
    tree: DraftTree, visited: Sequence[int], tokenizer: PreTrainedTokenizerBase, colour: bool = True
) -> Tree:
    """
    A step's tree. The accepted path is in colour, or marked with `*` without colours.

    Args:
        tree ([`DraftTree`]): its first row is drawn.
        visited: the accepted nodes, the root first.
        tokenizer: the target's.
        colour: whether to use colours.
    """
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    accepted = set(visited)

    def label(node: int) -> Text:
        text = repr(tokenizer.decode([tokens[node]]))
        if node not in accepted:
            return Text(text, style="dim" if colour else "")
        return Text(text, style=ACCEPTED) if colour else Text(f"{text} *")

    summary = f"  {len(tokens) - 1} drafted, {len(visited) - 1} accepted"
    root = Tree(Text.assemble(label(0), summary), guide_style="dim" if colour else "")
    branches = {0: root}
    for node in range(1, len(tokens)):
        branches[node] = branches[parents[node]].add(label(node))
    return root


def comparison_table(total: DemoResult) -> Table:
    """Speed and acceptance of both ways to generate."""
    table = Table(title=f"{total.prompts} prompt{'s' if total.prompts > 1 else ''}, same process")
    for column in ("", "tokens/s", "speed-up", "tokens per target forward", "identical outputs"):
        table.add_column(column, justify="left" if not column else "right")
    plain_speed = total.plain_tokens / total.plain_seconds
    speed = total.tokens / total.seconds
    table.add_row("plain generate", f"{plain_speed:.1f}", "1.00", "1.00", "")
    table.add_row(
        "with the drafter",
        f"{speed:.1f}",
        f"{speed / plain_speed:.2f}",
        f"{tokens_per_forward(total.accept_lengths):.2f}",
        f"{total.identical}/{total.prompts}",
    )
    return table


__all__ = ["DemoResult", "comparison_table", "draw_tree", "run_demo"]
