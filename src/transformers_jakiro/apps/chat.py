# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`jakiro chat`: a conversation in the terminal, with the commands of `transformers chat`."""

import ast
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import GenerationConfig

from .. import pair as shipped_pair
from ..files import write_json
from .answering import ACCEPTED, Answer, Pair

with suppress(ImportError):  # on Windows
    import readline  # noqa: F401  lines can be edited and recalled

HELP = """\
!help                  shows this help
!status                shows the models and the settings
!clear                 starts a new conversation
!set NAME=VALUE ...    sets arguments of `generate`, such as temperature=0.7 (0 is greedy) or max_new_tokens=100
!compare               reruns the last answer with plain `generate`, from the same seed
!save [FILE]           saves the conversation and the settings as JSON
!exit                  leaves, like Ctrl-D
Ctrl-C stops an answer. The part that was written stays in the conversation."""


@dataclass
class _Turn:
    """The last question with its answer."""

    messages: list[dict[str, str]]
    seed: int
    answer: Answer


class ChatSession:
    """
    A conversation with a pair.

    Args:
        pair ([`~transformers_jakiro.apps.answering.Pair`]): the models.
        settings (`dict`): settings of [`~transformers_jakiro.apps.answering.Pair.answer`].
        console (`rich.console.Console`): where to print. If it is not a terminal, only answers, their figures and
            messages are printed.
        seed (`int`): seed of the first answer. Each further answer adds one.
        system_prompt (`str`, *optional*): the system message that every conversation starts with.
        drafted (`bool`): whether to use the drafter.
    """

    def __init__(
        self,
        pair: Pair,
        settings: dict[str, Any],
        console: Console,
        seed: int = 0,
        system_prompt: str | None = None,
        drafted: bool = True,
    ):
        self._pair = pair
        self._console = console
        self.settings = dict(settings)
        self._seed = seed
        self._drafted = drafted
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.messages = list(self._system)
        self._last: _Turn | None = None
        self._commands = {
            "!help": lambda _: self._note(HELP),
            "!status": lambda _: self._status(),
            "!clear": lambda _: self._clear(),
            "!set": self._set,
            "!compare": lambda _: self._compare(),
            "!save": self._save,
        }

    def run(self) -> None:
        """Reads lines from standard input until it ends or a line is `!exit`."""
        while True:
            try:
                line = self._console.input("[bold red]<you>:\n" if self._console.is_terminal else "").strip()
            except (EOFError, KeyboardInterrupt):
                self._heading("")
                return
            if line == "!exit":
                return
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """Runs a command, or answers a question."""
        try:
            if line.startswith("!"):
                command, _, rest = line.partition(" ")
                if command not in self._commands:
                    raise ValueError(f"{command} is not a command. The commands are:\n{HELP}")
                self._commands[command](rest.strip())
            else:
                self._ask(line)
        except (ValueError, NotImplementedError, OSError) as error:
            self._console.print(Text(str(error), style="red"), soft_wrap=True)

    def _ask(self, text: str) -> None:
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = self._write(messages, self._seed, self._drafted)
        self._last = _Turn(messages, self._seed, answer)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self._seed += 1

    def _write(self, messages: list[dict[str, str]], seed: int, drafted: bool) -> Answer:
        """Prints an answer while it is written, then its figures."""
        answer = self._pair.answer(messages, drafted, seed, **self.settings)
        self._heading(f"<{self._pair.names[0]}>:")
        try:
            with closing(iter(answer)) as steps:
                for step in steps:
                    for run, accepted in step.runs:
                        self._console.print(Text(run, style=ACCEPTED if accepted else ""), end="", soft_wrap=True)
        except KeyboardInterrupt:
            pass
        self._console.print()
        line = f"{answer.num_tokens} tokens in {answer.seconds:.1f}s ({answer.tokens_per_second:.1f} tok/s)"
        if drafted:
            line += f", {answer.tokens_per_forward:.2f} tokens per target forward"
        if answer.stopped:
            line += ", stopped"
        elif answer.reached_limit:
            line += ", stopped at the token limit"
        self._note(line)
        return answer

    def _compare(self) -> None:
        if self._last is None:
            raise ValueError("There is no answer yet to compare with plain `generate`. Ask something first.")
        last = self._last
        answer = self._write(last.messages, last.seed, drafted=False)
        if answer.stopped or last.answer.stopped:
            return
        same = "the same tokens" if answer.tokens == last.answer.tokens else "other tokens (see `Half precision`)"
        speed_up = last.answer.tokens_per_second / answer.tokens_per_second
        self._note(f"Plain `generate` gives {same}. The answer with the drafter had {speed_up:.2f} times its speed.")

    def _set(self, flags: str) -> None:
        settings = {}
        known = GenerationConfig().to_dict()
        for flag in flags.split():
            name, equals, value = flag.partition("=")
            if not equals:
                raise ValueError(f"Settings have the form NAME=VALUE and are separated by spaces, got {flag}.")
            if name not in known:
                raise ValueError(f"{name} is not an argument of `generate` that can be set.")
            settings[name] = _parse(value)
        self.settings |= settings
        self._status()

    def _clear(self) -> None:
        self.messages = list(self._system)
        self._last = None
        if self._console.is_terminal:
            self._console.clear()

    def _status(self) -> None:
        target, draft = self._pair.names
        settings = " ".join(f"{name}={value}" for name, value in self.settings.items() if value is not None)
        self._note(f"{target} with {draft if self._drafted else 'no drafter'}; {settings}")

    def _save(self, file: str) -> None:
        name = f"chat_{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
        path = Path(file or Path("chat_history", *Path(self._pair.names[0]).parts[-2:], name))
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model_id": self._pair.names[0], "config": self.settings}
        write_json(path, {"settings": settings, "chat_history": self.messages})
        self._note(f"Chat saved to {path}")

    def _heading(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(Text(text, style="bold blue"), soft_wrap=True)

    def _note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)


def _parse(value: str) -> Any:
    """Python's value of `0.7`, `[1, 2]`, `true` or `None`. Anything else stays a text."""
    try:
        return ast.literal_eval(value.capitalize() if value.lower() in ("true", "false", "none") else value)
    except (ValueError, SyntaxError):
        return value


def run_chat(
    target: str | None = None,
    draft: str | None = None,
    dtype: str | None = None,
    temperature: float | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    system_prompt: str | None = None,
    no_draft: bool = False,
    console: Console | None = None,
) -> None:
    """
    The `jakiro chat` command.

    Args:
        target, draft, dtype: see [`~transformers_jakiro.apps.answering.Pair.load`].
        temperature: 0 is greedy. The default comes from the target's generation config.
        max_new_tokens: limit of each answer.
        seed, system_prompt, console: see [`ChatSession`].
        no_draft: use plain `generate`, for comparison.

    Raises:
        ValueError: if only one of `target` and `draft` is given, or the two do not fit together.
    """
    console = console or Console(highlight=False)
    with console.status("Loading") if console.is_terminal else nullcontext():
        pair = Pair.load(target, draft, dtype)
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    session = ChatSession(pair, settings, console, seed, system_prompt, drafted=not no_draft)
    if console.is_terminal:
        console.print("[bold]JAKIRO CHAT[/bold]  !help shows the commands, !exit leaves, Ctrl-C stops an answer.")
        if not no_draft:
            console.print(Text("Accepted drafts are ") + Text("green", style=ACCEPTED) + Text("."))
        if target is None:
            console.print(
                "A toy target of a few million parameters that knows a little grade-school math. Ask: "
                f"{shipped_pair.prompts()[1]}",
                soft_wrap=True,
            )
    if pair.tokenizer.chat_template is None:
        console.print("The tokenizer has no chat template: the target continues the bare text of the conversation.")
    session.run()


__all__ = ["ChatSession", "run_chat"]
