# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Answers to conversations, for people to watch: step by step as they are written, with what was drafted in them.
What `jakiro demo`, `jakiro chat` and `jakiro ui` have in common.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    set_seed,
)

from .. import pair as shipped_pair
from ..conversations import encode_conversation
from ..core.generation import is_jakiro_drafter
from ..core.tree import DraftTree
from ..measuring.acceptance import tokens_per_forward

ACCEPTED = "bold green"


@dataclass(frozen=True)
class Step:
    """
    What one forward of the target brought to an answer.

    Args:
        tokens (`list[int]`): all but the last were drafted and accepted.
        runs (`list[tuple[str, bool]]`): their text, in parts that were drafted (True) or are the target's own. A
            character is part of the run that completes it.
        tree ([`DraftTree`], *optional*): what was drafted; None for the prompt's forward and for plain `generate`.
        visited (`list[int]`): nodes of the tree that were accepted, the root first.
        seconds (`float`): from the beginning of the generation, prompt included.
    """

    tokens: list[int]
    runs: list[tuple[str, bool]]
    tree: DraftTree | None
    visited: list[int]
    seconds: float


class StepTextStreamer:
    """
    A [`~transformers_jakiro.StepStreamer`] that turns tokens into text, for plain `generate`, too. Its clock starts
    when it is made.

    Args:
        tokenizer: the target's.
        on_step: called with each [`Step`]. What remains of an answer that ends within a character comes as one
            without tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_step: Callable[[Step], None]):
        self._tokenizer, self._on_step = tokenizer, on_step
        self._start = time.perf_counter()
        self._prompt_seen = False
        self._tokens: list[int] = []
        self._context = self._decoded = 0  # text of a token depends on those before it: from there on they are decoded

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.put_step(value, None, [])
        self._prompt_seen = True  # `generate` hands over the prompt first

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        seconds = time.perf_counter() - self._start
        *accepted, own = new = tokens.tolist()
        runs = [(self._text(accepted), True), (self._text([own]), False)]
        self._on_step(Step(new, [run for run in runs if run[0]], tree, visited, seconds))

    def end(self) -> None:
        seconds = time.perf_counter() - self._start
        if rest := self._text([], complete=True):
            self._on_step(Step([], [(rest, False)], None, [], seconds))

    def _text(self, tokens: list[int], complete: bool = False) -> str:
        """The text of further tokens, without the character at its end that they leave incomplete."""
        self._tokens += tokens
        before, text = (
            self._tokenizer.decode(self._tokens[self._context : end], skip_special_tokens=True)
            for end in (self._decoded, len(self._tokens))
        )
        if text.endswith("\ufffd") and not complete:
            return ""
        self._context, self._decoded = self._decoded, len(self._tokens)
        return text[len(before) :]


class Answer:
    """
    An answer that is being written in a thread of its own. Iterate over it once for its steps; who stops iterating
    (closes the iterator), stops the generation.

    Args:
        generate: called in the thread with a function for each [`Step`] and a [`~transformers.StoppingCriteria`].
        max_new_tokens (`int`): its limit.

    Attributes:
        steps (`list[Step]`): those iterated over so far.
        stopped (`bool`): whether [`~Answer.stop`] was called before the answer was complete.
    """

    def __init__(self, generate: Callable[[Callable[[Step], None], StoppingCriteria], None], max_new_tokens: int):
        self._generate, self._max_new_tokens = generate, max_new_tokens
        self._stop = _StopWhenSet()
        self.steps: list[Step] = []
        self.stopped = False

    def __iter__(self) -> Generator[Step, None, None]:
        arrived: SimpleQueue[Step | BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                self._generate(arrived.put, self._stop)
            except BaseException as error:  # raised again where it is waited for
                arrived.put(error)
            arrived.put(None)

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            while (step := arrived.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                self.steps.append(step)
                yield step
        except BaseException:
            self.stop()
            raise
        finally:
            worker.join()

    def stop(self) -> None:
        """Ends the generation with the next token. From any thread."""
        self.stopped = True
        self._stop.event.set()

    @property
    def text(self) -> str:
        return "".join(text for step in self.steps for text, _ in step.runs)

    @property
    def tokens(self) -> list[int]:
        return [token for step in self.steps for token in step.tokens]

    @property
    def num_tokens(self) -> int:
        return sum(len(step.tokens) for step in self.steps)

    @property
    def seconds(self) -> float:
        return self.steps[-1].seconds if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Prompt's forward included."""
        return self.num_tokens / self.seconds if self.steps else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """See [`~transformers_jakiro.measuring.acceptance.tokens_per_forward`]."""
        return tokens_per_forward(self.accept_lengths)

    @property
    def accept_lengths(self) -> list[int]:
        """Drafted tokens that were accepted in each forward after the prompt's."""
        return [len(step.tokens) - 1 for step in self.steps[1:] if step.tokens]

    @property
    def reached_limit(self) -> bool:
        return not self.stopped and self.num_tokens == self._max_new_tokens


class _StopWhenSet(StoppingCriteria):
    def __init__(self):
        self.event = Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


@dataclass
class Pair:
    """
    A target with its tokenizer and drafter.

    Args:
        target, draft: the two models.
        tokenizer: the target's, with a chat template if it has one.
        names (`tuple[str, str]`): what the models are called, for people.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, str] = ("target", "draft")
    _lock: Lock = field(default_factory=Lock, repr=False)  # one generation at a time

    @classmethod
    def load(cls, target: str | None = None, draft: str | None = None, dtype: str | None = None) -> "Pair":
        """
        Loads two models, on the accelerator if there is one, and lets both run once: a first call takes longer.

        Args:
            target, draft: folders or Hub ids; default: the pair that ships with the package.
            dtype: of both; default: float32 for the pair that ships, else the target's own.

        Raises:
            ValueError: if only one of `target` and `draft` is given, or the two do not fit.
        """
        if (target is None) != (draft is None):
            raise ValueError("`--target` and `--draft` belong together: give both, or none for the pair that ships.")
        names = ("the toy target that ships", "its drafter") if target is None else (target, draft)
        where = {"device_map": "auto"} if torch.accelerator.is_available() else {}
        path, dtype = target or shipped_pair.TARGET, dtype or ("float32" if target is None else "auto")
        tokenizer = AutoTokenizer.from_pretrained(path)
        target_model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **where).eval()
        device = target_model.get_output_embeddings().weight.device
        draft_model = (
            AutoModel.from_pretrained(draft or shipped_pair.DRAFT, dtype=target_model.dtype).to(device).eval()
        )
        if not is_jakiro_drafter(draft_model):
            raise ValueError(f"`--draft` must be a Jakiro drafter, got a {type(draft_model).__name__} in {draft}.")
        pair = cls(target_model, draft_model, tokenizer, names)
        for drafted in (True, False):
            for _ in pair.answer([{"role": "user", "content": "Hello"}], drafted, max_new_tokens=8):
                pass
        return pair

    def answer(
        self,
        messages: Sequence[Mapping[str, str]],
        drafted: bool = True,
        seed: int = 0,
        max_new_tokens: int = 256,
        **settings: Any,
    ) -> Answer:
        """
        The target's answer to a conversation, to be iterated over.

        Args:
            messages: `role` and `content` of each.
            drafted (`bool`): with the drafter; else plain `generate`.
            seed (`int`): of the sampling.
            max_new_tokens (`int`): at most; less where the target has no positions for them.
            settings: further arguments of `generate`. A `temperature` of 0 is greedy, any other samples, None is as
                the target's generation config says.

        Raises:
            ValueError: if the conversation is longer than what the target reads, or its chat template refuses it.
        """
        inputs = encode_conversation(self.tokenizer, messages, self.target.get_input_embeddings().weight.device)
        length = inputs["input_ids"].shape[1]
        limit = getattr(self.target.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None:
            if length >= limit:
                raise ValueError(
                    f"The conversation has {length} tokens, the target reads at most {limit}, its answer included. "
                    "Ask less, or begin a new conversation."
                )
            max_new_tokens = min(max_new_tokens, limit - length)
        arguments = {**inputs, **generation_arguments(settings), "max_new_tokens": max_new_tokens}
        if drafted:
            arguments["assistant_model"] = self.draft

        def generate(on_step: Callable[[Step], None], stop: StoppingCriteria) -> None:
            with self._lock:
                set_seed(seed)
                streamer = StepTextStreamer(self.tokenizer, on_step)
                self.target.generate(**arguments, streamer=streamer, stopping_criteria=[stop])

        return Answer(generate, max_new_tokens)


def generation_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as `generate` takes them: its arguments, but a `temperature` may be 0 (greedy) or None (not given)."""
    settings = dict(settings)
    temperature = settings.pop("temperature", None)
    if temperature == 0:
        settings["do_sample"] = False
    elif temperature is not None:
        settings |= {"do_sample": True, "temperature": temperature}
    return settings


__all__ = ["ACCEPTED", "Answer", "Pair", "Step", "StepTextStreamer"]
