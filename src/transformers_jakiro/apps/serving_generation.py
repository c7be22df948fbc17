# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The generations of `jakiro serve`: transformers' sequential generation, with a drafter, a seed and a log line for each
request, and a way to stop.
"""

import asyncio
import logging
import time
from contextvars import ContextVar
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cli.serving.utils import GenerateManager, GenerationState, _GenerationCancelled

from ..core.tree import DraftTree

logger = logging.getLogger(f"{__package__}.serving")  # the server's


class Generation:
    """A request's generation. Its handler, the task that watches its client and the generating thread share it."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.started: asyncio.Future[None] | None = None  # streams only: done at the first token, or at an error
        self.error: BaseException | None = None
        self._stop: Exception | None = None

    def stop(self, reason: Exception) -> None:
        """Lets the generation raise `reason` before its next token."""
        self._stop = self._stop or reason

    def check(self) -> None:
        """Raises the reason to stop, if there is one."""
        if self._stop is not None:
            raise self._stop

    def start(self, error: BaseException | None = None) -> None:
        """Tells the handler of a token or an error. Called by the generating thread."""
        self.error = error
        if self.started is not None and not self.started.done():
            self.started.get_loop().call_soon_threadsafe(_finish, self.started, error)


def _finish(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


current_generation: ContextVar[Generation] = ContextVar("generation")  # that of the request being handled


class _Streamer:
    """
    A [`~transformers_jakiro.StepStreamer`] that counts tokens and forwards, and raises if its generation should stop.
    """

    def __init__(self, generation: Generation, streamer: Any = None):
        self._generation = generation
        self._streamer = streamer
        self.num_tokens = 0
        self.num_forwards = 0

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt `[1, L]`."""
        self._generation.check()
        if self._streamer is not None:
            self._streamer.put(value)

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        """Takes the new tokens `[N]` of one forward."""
        self._generation.check()
        self.num_tokens += len(tokens)
        self.num_forwards += tree is not None
        if self._streamer is not None:
            self._streamer.put(tokens)
        self._generation.start()

    def end(self) -> None:
        """Ends the stream."""
        if self._streamer is not None:
            self._streamer.end()


class _DraftedModel:
    """The target with its drafter, for one request. transformers' manager calls its `generate`."""

    def __init__(self, model: PreTrainedModel, draft_model: PreTrainedModel, generation: Generation):
        self._model = model
        self._draft_model = draft_model
        self._generation = generation

    def generate(self, streamer: Any = None, **kwargs: Any) -> torch.LongTensor:
        """Returns the sequence `[1, L]`, prompt included, and logs how fast it was generated."""
        counted = _Streamer(self._generation, streamer)
        start = time.perf_counter()
        end = "done"
        try:
            self._generation.check()  # the client may have left while it waited for its turn
            if self._generation.seed is not None:
                torch.manual_seed(self._generation.seed)
            generate: Any = self._model.generate
            return generate(**kwargs, assistant_model=self._draft_model, streamer=counted)
        except Exception as error:
            end = "client left" if isinstance(error, _GenerationCancelled) else f"{type(error).__name__}: {error}"
            self._generation.start(error)
            raise
        finally:
            seconds = time.perf_counter() - start
            logger.info(
                "%d tokens in %.2f s, %.1f tokens/s, %.2f tokens per target forward (%s)",
                counted.num_tokens,
                seconds,
                counted.num_tokens / seconds,
                max(0, counted.num_tokens - 1) / max(1, counted.num_forwards),
                end,
            )


class JakiroGenerateManager(GenerateManager):
    """
    transformers' sequential generation with a drafter: one request after another, on one thread.

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter.
        num_assistant_tokens (`int`, *optional*): nodes per tree for requests that do not set it. The default is the
            drafter's `num_draft_tokens`.
    """

    def __init__(self, draft_model: PreTrainedModel, num_assistant_tokens: int | None = None):
        super().__init__()
        self._draft_model = draft_model
        self._num_assistant_tokens = num_assistant_tokens

    def generate_streaming(
        self, model: Any, processor: Any, inputs: dict[str, Any], gen_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Returns the queue of the answer's parts and its streamer, see transformers' method."""
        generation = self._prepare(model, inputs, gen_config)
        generation.started = asyncio.get_running_loop().create_future()
        model = _DraftedModel(model, self._draft_model, generation)
        return super().generate_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: dict[str, Any], gen_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Returns the answer, the number of prompt tokens and the new tokens `[N]`, see transformers' method."""
        model = _DraftedModel(model, self._draft_model, self._prepare(model, inputs, gen_config))
        return await super().generate_non_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    def _prepare(self, model: PreTrainedModel, inputs: dict[str, Any], gen_config: GenerationConfig) -> Generation:
        """
        Completes a request's generation config, so that the answer ends where the target's context does.

        Args:
            model: the target.
            inputs: `input_ids` `[1, L]` and what belongs to them.
            gen_config: completed in place.

        Raises:
            ValueError: if the prompt fills the context, or the request asks for several answers.
        """
        if gen_config.num_assistant_tokens is None:
            gen_config.num_assistant_tokens = self._num_assistant_tokens
        if (gen_config.num_return_sequences or 1) != 1:
            raise ValueError(f"`num_return_sequences` must be 1, got {gen_config.num_return_sequences}.")
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if context is not None:
            num_tokens = inputs["input_ids"].shape[-1]
            if num_tokens >= context:
                raise ValueError(
                    f"The prompt must be shorter than the model's context of {context} tokens, got {num_tokens}."
                )
            if gen_config.max_new_tokens is not None:
                gen_config.max_new_tokens = min(gen_config.max_new_tokens, context - num_tokens)
        gen_config.return_dict_in_generate = False
        return current_generation.get()


class JakiroGenerationState(GenerationState):
    """Hands the one manager to all requests."""

    def __init__(self, manager: JakiroGenerateManager, compile: bool):
        super().__init__(compile=compile)
        self._manager = manager

    def get_manager(self, model_id: str, use_cb: bool = False) -> JakiroGenerateManager:
        return self._manager


__all__ = ["Generation", "JakiroGenerateManager", "JakiroGenerationState", "current_generation"]
