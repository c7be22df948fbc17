# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Answers to conversations, one step at a time, with what was drafted in each. `jakiro demo`, `jakiro chat` and
`jakiro ui` show them as they are written.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, cast

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
from ..core.generation import is_drafter
from ..core.tree import DraftTree
from ..measuring.acceptance import tokens_per_forward

ACCEPTED = "bold green"  # style of accepted text in a terminal


@dataclass(frozen=True)
class Step:
    """
    What one forward of the target added to an answer.

    Args:
        tokens (`list[int]`): the new tokens. All but the last were drafted and accepted.
        runs (`list[tuple[str, bool]]`): their text in runs, each with True if it was drafted and False if it is the
            target's own. A character belongs to the run that completes it.
        tree ([`DraftTree`], *optional*): the drafted tree. None for the prompt's forward and for plain `generate`.
        visited (`list[int]`): the accepted nodes of the tree, the root first.
        seconds (`float`): time since the start of the generation, prompt included.
    """

    tokens: list[int]
    runs: list[tuple[str, bool]]
    tree: DraftTree | None
    visited: list[int]
    seconds: float


class StepTextStreamer:
    """
    A [`~transformers_jakiro.StepStreamer`] that turns tokens into text. It works with plain `generate`, too. Its
    clock starts when it is created.

    Args:
        tokenizer: the target's.
        on_step: called with each [`Step`]. If the answer ends inside a character, a last step without tokens brings
            the rest of the text.
    """

    # `tokenizers.decoders.DecodeStream` does the same for fast tokenizers only, and keeps an incomplete character at
    # the end of an answer to itself.

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_step: Callable[[Step], None]):
        self._tokenizer = tokenizer
        self._on_step = on_step
        self._start = time.perf_counter()
        self._prompt_seen = False
        self._tokens: list[int] = []
        self._num_decoded = 0  # tokens whose text has been handed out
        self._context = 0  # index of the first token to decode again: a token's text depends on those before it

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt `[1, L]`, then the tokens `[k]` of plain `generate`."""
        if self._prompt_seen:
            self._put(value.tolist(), None, [])
        self._prompt_seen = True

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        """Takes the tokens `[k]` of one forward."""
        self._put(tokens.tolist(), tree, visited)

    def end(self) -> None:
        """Hands out the text that is left."""
        seconds = self._seconds()
        if rest := self._text([], complete=True):
            self._on_step(Step([], [(rest, False)], None, [], seconds))

    def _put(self, tokens: list[int], tree: DraftTree | None, visited: list[int]) -> None:
        seconds = self._seconds()
        runs = [(self._text(tokens[:-1]), True), (self._text(tokens[-1:]), False)]
        self._on_step(Step(tokens, [run for run in runs if run[0]], tree, visited, seconds))

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    def _text(self, tokens: list[int], complete: bool = False) -> str:
        """The text that further tokens add. Nothing, if they leave a character incomplete, unless `complete`."""
        self._tokens += tokens
        before = self._decode(self._tokens[self._context : self._num_decoded])
        text = self._decode(self._tokens[self._context :])
        if text.endswith("\ufffd") and not complete:
            return ""
        self._context = self._num_decoded
        self._num_decoded = len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class Answer:
    """
    An answer that a thread of its own writes. Iterate over it once to get its steps. The generation starts with the
    iteration; closing the iterator stops it.

    Args:
        generate: called in the thread with a function that takes each [`Step`] and with a
            [`~transformers.StoppingCriteria`].
        max_new_tokens (`int`): the limit that `generate` has.

    Attributes:
        steps (`list[Step]`): the steps so far.
        stopped (`bool`): whether [`~Answer.stop`] was called before the answer was complete.
    """

    def __init__(self, generate: Callable[[Callable[[Step], None], StoppingCriteria], None], max_new_tokens: int):
        self._generate = generate
        self._max_new_tokens = max_new_tokens
        self._stop = _StopWhenSet()
        self.steps: list[Step] = []
        self.stopped = False

    def __iter__(self) -> Generator[Step, None, None]:
        arrived: SimpleQueue[Step | BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                self._generate(arrived.put, self._stop)
            except BaseException as error:  # raised again in the thread that iterates
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
        """Ends the generation with the next token. May be called from any thread."""
        self.stopped = True
        self._stop.event.set()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(text for step in self.steps for text, _ in step.runs)

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        return [token for step in self.steps for token in step.tokens]

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far."""
        return sum(len(step.tokens) for step in self.steps)

    @property
    def seconds(self) -> float:
        """Time from the start of the generation to the last step."""
        return self.steps[-1].seconds if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The speed so far, the prompt's forward included."""
        return self.num_tokens / self.seconds if self.steps else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """See [`~transformers_jakiro.measuring.acceptance.tokens_per_forward`]."""
        return tokens_per_forward(self.accept_lengths)

    @property
    def accept_lengths(self) -> list[int]:
        """The number of accepted tokens in each forward after the prompt's."""
        return [len(step.tokens) - 1 for step in self.steps[1:] if step.tokens]

    @property
    def reached_limit(self) -> bool:
        """Whether the answer ended at `max_new_tokens`."""
        return not self.stopped and self.num_tokens == self._max_new_tokens


class _StopWhenSet(StoppingCriteria):
    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        ends = torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)
        return cast(torch.BoolTensor, ends)


@dataclass
class Pair:
    """
    A target with its tokenizer and drafter.

    Args:
        target, draft: the two models.
        tokenizer: the target's, with a chat template if it has one.
        names (`tuple[str, str]`): the names of the two models, to be shown.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, str] = ("target", "draft")
    _lock: Lock = field(default_factory=Lock, repr=False)  # one generation at a time

    @classmethod
    def load(cls, target: str | None = None, draft: str | None = None, dtype: str | None = None) -> "Pair":
        """
        Loads two models, on the accelerator if there is one. Both run once before it returns, as the first call of a
        model takes longer.

        Args:
            target, draft: folders or Hub ids. The default is the pair that ships with the package.
            dtype: precision of both. The default is float32 for the pair that ships, and otherwise the target's own.

        Raises:
            ValueError: if only one of `target` and `draft` is given, or the two do not fit together.
        """
        if target is None and draft is None:
            target, draft = str(shipped_pair.TARGET), str(shipped_pair.DRAFT)
            names = ("the toy target that ships", "its drafter")
            dtype = dtype or "float32"
        elif target is not None and draft is not None:
            names = (target, draft)
            dtype = dtype or "auto"
        else:
            raise ValueError(
                "`--target` and `--draft` belong together: give both, or neither for the pair that ships."
            )
        where = {"device_map": "auto"} if torch.accelerator.is_available() else {}
        tokenizer = AutoTokenizer.from_pretrained(target)
        target_model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, **where).eval()
        device = target_model.get_output_embeddings().weight.device
        draft_model = AutoModel.from_pretrained(draft, dtype=target_model.dtype).to(device).eval()
        if not is_drafter(draft_model):
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
        The target's answer to a conversation. It is written while you iterate over it.

        Args:
            messages: the conversation, `role` and `content` of each message.
            drafted (`bool`): whether to use the drafter; if not, this is plain `generate`.
            seed (`int`): seed of the sampling.
            max_new_tokens (`int`): limit of the answer. It is lowered if the target has fewer positions left.
            settings: further arguments of `generate`. A `temperature` of 0 is greedy, other numbers sample, and None
                leaves it to the target's generation config.

        Raises:
            ValueError: if the target has no positions left for an answer, or its chat template refuses the
                conversation.
        """
        device = next(self.target.get_input_embeddings().parameters()).device
        inputs = encode_conversation(self.tokenizer, messages, device)
        length = inputs["input_ids"].shape[1]
        limit = getattr(self.target.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None:
            if length >= limit:
                raise ValueError(
                    f"The conversation has {length} tokens, but the target reads at most {limit}, its answer "
                    "included. Shorten the question, or start a new conversation."
                )
            max_new_tokens = min(max_new_tokens, limit - length)
        arguments = {**inputs, **generation_arguments(settings), "max_new_tokens": max_new_tokens}
        if drafted:
            arguments["assistant_model"] = self.draft

        def generate(on_step: Callable[[Step], None], stop: StoppingCriteria) -> None:
            with self._lock:
                set_seed(seed)
                streamer = StepTextStreamer(self.tokenizer, on_step)
                target: Any = self.target
                target.generate(**arguments, streamer=streamer, stopping_criteria=[stop])

        return Answer(generate, max_new_tokens)


def generation_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` for settings in which `temperature` may also be 0 (greedy) or None (not given)."""
    settings = dict(settings)
    temperature = settings.pop("temperature", None)
    if temperature == 0:
        settings["do_sample"] = False
    elif temperature is not None:
        settings |= {"do_sample": True, "temperature": temperature}
    return settings


__all__ = ["ACCEPTED", "Answer", "Pair", "Step", "StepTextStreamer"]
