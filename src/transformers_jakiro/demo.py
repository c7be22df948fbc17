# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`jakiro demo`: answers prompts with the pair that ships, shows what was drafted, compares with plain `generate`."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, set_seed

from .benchmark import tokens_per_forward
from .tree import DraftTree

PAIR = Path(__file__).parent / "pair"
ACCEPTED = "bold green"


class DemoStreamer:
    """
    Prints an answer as it is written, accepted runs in colour, or in [brackets] where there are no colours.
    A [`~transformers_jakiro.StepStreamer`].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console):
        self._tokenizer, self._console = tokenizer, console
        self._tokens: list[int] = []
        self._printed = 0
        self.best_step: tuple[DraftTree, list[int]] | None = None  # the step that accepted most

    def put(self, value: torch.Tensor) -> None:
        """The prompt, which is not printed again."""

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        *accepted, own = tokens.tolist()
        if accepted:
            self._print(accepted, accepted=True)
        self._print([own], accepted=False)
        if tree is not None and (self.best_step is None or len(visited) > len(self.best_step[1])):
            self.best_step = (tree, visited)

    def end(self) -> None:
        self._console.print()

    def _print(self, tokens: list[int], accepted: bool) -> None:
        self._tokens.extend(tokens)
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if text.endswith("\ufffd"):  # a character whose last bytes are still to come
            return
        new, self._printed = text[self._printed :], len(text)
        if accepted and new and self._console.color_system is None:
            new = f"[{new}]"
        self._console.print(Text(new, style=ACCEPTED if accepted else ""), end="", soft_wrap=True)


@dataclass
class DemoResult:
    """Times in seconds, of one prompt or of several added up."""

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
    Answers prompts (default: `num_prompts` held-out GSM8K questions) and prints the comparison with plain `generate`.

    Args:
        prompts: what to ask.
        target, draft: folders or Hub ids; default: the pair that ships with the package.
        temperature: 0 is greedy.
        show_tree: draw the tree of the step that accepted most.

    Raises:
        ValueError: if a prompt is empty or only one of `target` and `draft` is given.
    """
    if (target is None) != (draft is None):
        raise ValueError("`--target` and `--draft` belong together: give both, or none for the pair that ships.")
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("A prompt is empty. Give some text to answer.")
    console = console or Console(highlight=False)
    if not prompts:
        lines = (PAIR / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines[:num_prompts]]
    target_path = target or PAIR / "target"
    tokenizer = AutoTokenizer.from_pretrained(target_path)
    target_model = AutoModelForCausalLM.from_pretrained(target_path, dtype=dtype).eval()
    draft_model = AutoModel.from_pretrained(draft or PAIR / "draft", dtype=dtype).eval()
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    settings = {**sampling, "max_new_tokens": max_new_tokens}
    if draft is None:
        console.print(
            "A toy target of a few million parameters, trained on grade-school math: fluent, often wrong. "
            "What counts is that the drafter changes its speed, not its words."
        )
    console.print(
        Text("Accepted drafts are ")
        + (Text("green", style=ACCEPTED) if console.color_system else Text("[in brackets]"))
        + Text(", the rest is the target's own.\n")
    )
    total = DemoResult()
    for index, prompt in enumerate(prompts):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        inputs = {name: inputs[name].to(target_model.device) for name in ("input_ids", "attention_mask")}
        if index == 0:  # warm-up of both
            target_model.generate(**inputs, max_new_tokens=8, do_sample=False)
            target_model.generate(**inputs, max_new_tokens=8, do_sample=False, assistant_model=draft_model)
        console.print(f"[bold]{escape(prompt)}[/bold]", soft_wrap=True)
        streamer = DemoStreamer(tokenizer, console)
        set_seed(seed)
        start = time.perf_counter()
        output = target_model.generate(
            **inputs, **settings, assistant_model=draft_model, streamer=streamer, return_dict_in_generate=True
        )
        seconds = time.perf_counter() - start
        set_seed(seed)
        start = time.perf_counter()
        plain = target_model.generate(**inputs, **settings)
        plain_seconds = time.perf_counter() - start
        prompt_length = inputs["input_ids"].shape[1]
        result = DemoResult(
            identical=int(torch.equal(plain, output.sequences)),
            prompts=1,
            plain_tokens=plain.shape[1] - prompt_length,
            plain_seconds=plain_seconds,
            tokens=output.sequences.shape[1] - prompt_length,
            seconds=seconds,
            accept_lengths=output.accept_lengths[0],
        )
        total += result
        if show_tree and streamer.best_step is not None:
            console.print(draw_tree(*streamer.best_step, tokenizer, colour=console.color_system is not None))
        console.print()
    console.print(comparison_table(total))
    return total


def draw_tree(
    tree: DraftTree, visited: Sequence[int], tokenizer: PreTrainedTokenizerBase, colour: bool = True
) -> Tree:
    """A step's tree, the accepted path in colour, or marked with `*` where there are no colours."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    accepted = set(visited)

    def label(node: int) -> Text:
        text = repr(tokenizer.decode([tokens[node]]))
        if node not in accepted:
            return Text(text, style="dim" if colour else "")
        return Text(text, style=ACCEPTED) if colour else Text(f"{text} *")

    root = Tree(label(0), guide_style="dim" if colour else "")
    branches = {0: root}
    for node in range(1, len(tokens)):
        branches[node] = branches[parents[node]].add(label(node))
    root.label = Text.assemble(root.label, f"  {len(tokens) - 1} drafted, {len(visited) - 1} accepted")
    return root


def comparison_table(total: DemoResult) -> Table:
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
