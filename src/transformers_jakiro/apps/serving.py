# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
`jakiro serve`: transformers' own OpenAI-compatible server, with a drafter in every generation.

It adds the drafter, refusals that say what is wrong with a request, a seed for each request, and generations that end
when their client leaves. One thread generates, one request after another in the order of arrival. That is
`transformers serve` without continuous batching, which takes no drafter.

Only this file and `serving_generation.py` use `transformers.cli.serving`, which transformers does not promise to keep.
"""

import asyncio
import inspect
import json
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.import_utils import is_serve_available
from transformers.utils.logging import set_verbosity

from ..core.generation import is_drafter
from ..core.requests import check_request

if not is_serve_available():
    raise ImportError("Serving needs FastAPI, uvicorn and openai: `pip install 'transformers-jakiro[serve]'`.")

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from transformers.cli.serving import utils as serving_utils
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, Modality, _GenerationCancelled
from uvicorn.config import LOGGING_CONFIG

from .serving_fields import (
    ChatRequest,
    Request,
    ResponseRequest,
    TextRequest,
    check_fields,
    check_items,
    check_message,
)
from .serving_generation import Generation, JakiroGenerateManager, JakiroGenerationState, current_generation

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/load_model", "/health")


class ServerStoppingError(RuntimeError):
    """The server was told to stop before it had finished an answer."""


# -- the target ------------------------------------------------------------------------------------------------------


def _split_revision(name: str) -> tuple[str, str | None]:
    """Splits the revision off a name that `ModelManager.process_model_name` has returned."""
    if hasattr(serving_utils, "split_revision"):  # goes when 5.24 is the oldest version
        return serving_utils.split_revision(name)
    if Path(name).exists():
        return name, None
    model_id, _, revision = name.partition("@")
    return model_id, revision or None


class _TargetManager(ModelManager):
    """Holds the target and loads no other model."""

    force_model: str
    _created: int  # time of loading, in seconds

    @property
    def names(self) -> tuple[str, str]:
        """The names by which a request may call the target: as it was given, and with its revision."""
        return self.force_model, self.process_model_name(self.force_model)

    def check_name(self, name: str) -> None:
        """Refuses every other model with an `HTTPException`."""
        if name not in self.names:
            raise HTTPException(404, f"The model must be {self.force_model!r}, the only one here; got {name!r}.")

    def load_model_streaming(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        self.check_name(model_id_and_revision)
        return super().load_model_streaming(model_id_and_revision, *args, **kwargs)

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        owner = self.force_model.split("/")[0] if self.force_model.count("/") == 1 else ""
        return [{"id": self.force_model, "object": "model", "created": self._created, "owned_by": owner}]

    get_gen_models = list_models  # its name before 5.24; goes when that is the oldest version

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> PreTrainedModel:
        # transformers' method looks for the model's class among its own, where classes of remote code are missing
        self._created = int(time.time())
        model_id, revision = _split_revision(model_id_and_revision)
        return AutoModelForCausalLM.from_pretrained(
            model_id,
            revision=revision,
            attn_implementation=self.attn_implementation,
            dtype=self.dtype,
            device_map=self.device,
            trust_remote_code=self.trust_remote_code,
            quantization_config=self.get_quantization_config(),
            gguf_file=kwargs.get("gguf_file"),
        )


# -- requests --------------------------------------------------------------------------------------------------------


class _Handler(BaseHandler):
    """
    A mixin for transformers' handlers. It refuses what they would stumble over or ignore, and starts a stream only
    once its first token is there.
    """

    model_manager: _TargetManager
    fields: type[Request]  # of the API

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """
        Raises:
            HTTPException: 404 for another model, 422 for unknown fields, else 400.
        """
        generation = current_generation.get()
        upstream: Any = super()  # the handler that this class is mixed into
        try:
            self.check(body)
            generation.seed = body.pop("seed", None)  # transformers would set it now, in the middle of another answer
            response = await upstream.handle_request(body, request_id)
            if generation.started is not None:  # an error can have a status only before the first chunk
                await generation.started
        except (ValueError, NotImplementedError, TemplateError) as error:
            raise HTTPException(400, str(error)) from error
        return response

    def check(self, body: dict[str, Any]) -> None:
        """Refuses wrong fields with a `ValueError` or `HTTPException`, and sets those that transformers misreads."""
        self._validate_request(body)
        check_fields(body, self.fields, self._unused_fields)
        self.model_manager.check_name(body.get("model", self.model_manager.force_model))
        body["model"] = self.model_manager.force_model

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        try:
            config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        except TypeError as error:
            raise ValueError(f"`generation_config` has a value of a wrong type: {error}") from error
        if "temperature" in body or "top_p" in body:  # otherwise the model's generation config decides
            config.do_sample = body.get("temperature") != 0
        if "logit_bias" in body:  # transformers ignores it in completions, and `generate` refuses integers
            config.sequence_bias = {(int(token),): float(bias) for token, bias in body["logit_bias"].items()}
        return config

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict[str, Any]], modality: Modality) -> list[dict[str, Any]]:
        # Clients send earlier answers back with `tool_calls` that are null or empty. transformers would take such an
        # answer for a tool call and drop its content.
        messages = [{name: value for name, value in one.items() if value not in (None, [])} for one in messages]
        for message in messages:
            check_message(message, text_only=modality == Modality.LLM)
        return BaseHandler.get_processor_inputs_from_messages(messages, modality)


class _ChunkHandler(_Handler):
    """Streams of completions. An error is sent as a JSON object, and the last line is `[DONE]`."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        response = await super().handle_request(body, request_id)
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._finished(response.body_iterator, current_generation.get())
        return response

    @staticmethod
    async def _finished(chunks: AsyncIterable[Any], generation: Generation) -> AsyncIterator[str]:
        async for chunk in chunks:
            if generation.error is not None:
                # transformers ends the stream with the error's message between quotes. That is no JSON if the message
                # itself has a quote or a line break, and OpenAI's clients read a message from an object only. The
                # handler writes this line inside of its generator, so it can be replaced nowhere else.
                line = f'data: {{"error": "{generation.error}"}}\n\n'
                if chunk.endswith(line):
                    told = json.dumps({"error": _error(str(generation.error), "server_error")})
                    chunk = f"{chunk.removesuffix(line)}data: {told}\n\n"
            yield chunk
        yield "data: [DONE]\n\n"


class _ChatHandler(_ChunkHandler, ChatCompletionHandler):
    fields = ChatRequest

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        if "max_completion_tokens" in body:  # 5.15 ignores it; goes with that version
            body["max_tokens"] = body.pop("max_completion_tokens")


class _TextHandler(_ChunkHandler, CompletionHandler):
    fields = TextRequest


class _ResponseHandler(_Handler, ResponseHandler):
    fields = ResponseRequest

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        body.setdefault("stream", False)  # the default of OpenAI and its clients; transformers would stream
        check_items(body["input"])


# -- the server ------------------------------------------------------------------------------------------------------


class _ClientWatcher:
    """ASGI middleware that gives each request a generation, and stops it when the client disconnects."""

    def __init__(self, app: Any, generations: set[Generation]):
        self._app = app
        self._generations = generations

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        generation = Generation()
        gone = asyncio.Event()
        watcher: asyncio.Task[None] | None = None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            generation.stop(_GenerationCancelled())
            gone.set()

        async def receive_and_watch() -> dict[str, Any]:
            nonlocal watcher
            if watcher is None:
                message = await receive()
                if message["type"] == "http.request" and not message.get("more_body"):
                    watcher = asyncio.create_task(watch())
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        self._generations.add(generation)
        current_generation.set(generation)
        try:
            await self._app(scope, receive_and_watch, send)
        finally:
            self._generations.discard(generation)
            if watcher is not None:
                watcher.cancel()


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": None}


def _answer_errors(app: FastAPI) -> None:
    """Sends errors in the form that OpenAI's clients read."""

    def answer(status: int, message: str, kind: str) -> JSONResponse:
        return JSONResponse({"error": _error(message, kind)}, status_code=status)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Any, error: StarletteHTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), "invalid_request_error")

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Any, error: RequestValidationError) -> JSONResponse:
        (first, *_rest) = error.errors()
        reason = (first.get("ctx") or {}).get("error", first["msg"])
        message = f"The request must be a JSON object, sent with `Content-Type: application/json`: {reason}."
        return answer(400, message, "invalid_request_error")

    @app.exception_handler(Exception)
    async def failed(_: Any, error: Exception) -> JSONResponse:
        return answer(500, f"{type(error).__name__}: {error}", "server_error")  # the log has the traceback

    @app.exception_handler(ServerStoppingError)
    async def stopping(_: Any, error: ServerStoppingError) -> JSONResponse:
        return answer(503, str(error), "server_error")

    @app.exception_handler(_GenerationCancelled)
    async def left(_: Any, error: _GenerationCancelled) -> JSONResponse:
        return answer(499, "The client has left.", "invalid_request_error")  # no one reads it


def create_app(
    target: str,
    draft: str,
    num_assistant_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    quantization: str | None = None,
    compile: bool = False,
    trust_remote_code: bool = False,
    enable_cors: bool = False,
) -> FastAPI:
    """
    Loads a target and its drafter, and builds the server: an ASGI application that must run in one process.

    Args:
        target, draft: folders or Hub ids, followed by `@revision` if needed.
        num_assistant_tokens: nodes per tree. The default is the drafter's `num_draft_tokens`; the `generation_config`
            of a request overrides it.
        device, dtype, attn_implementation, quantization, compile, trust_remote_code: the options of
            `transformers serve`. The drafter goes to the device of the target's first layer and takes the target's
            precision.
        enable_cors: allow requests from all web pages.

    Raises:
        ValueError: if the two do not fit together, or an option has an invalid value.
        NotImplementedError: if the target is of a kind that cannot be drafted for.
        OSError: if one of the two cannot be loaded.
    """
    if num_assistant_tokens is not None and num_assistant_tokens < 1:
        raise ValueError(f"`num_assistant_tokens` must be at least 1, got {num_assistant_tokens}.")
    if "@" in target and Path(target).exists() and not hasattr(serving_utils, "split_revision"):
        raise ValueError(
            f"Before transformers 5.24, the path of the target must have no `@`, got {target}. Rename the folder or "
            "upgrade transformers."
        )
    models = _TargetManager(
        force_model=target,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    (loaded,) = models.loaded_models.values()
    draft_model = _load_drafter(models, draft, loaded.model)
    manager = JakiroGenerateManager(draft_model, num_assistant_tokens)
    state = JakiroGenerationState(manager, compile)
    handlers: dict[str, Any] = {
        name: None for name in inspect.signature(build_server).parameters if name.endswith("_handler")
    }
    handlers["chat_handler"] = _ChatHandler(models, state)
    handlers["completion_handler"] = _TextHandler(models, state)
    handlers["response_handler"] = _ResponseHandler(models, state)
    app = build_server(models, **handlers, generation_state=state, enable_cors=enable_cors)
    # the other routes load other models
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in PATHS]
    app.state.generations = set()
    app.add_middleware(_ClientWatcher, generations=app.state.generations)
    _answer_errors(app)
    return app


def _load_drafter(models: _TargetManager, draft: str, target_model: PreTrainedModel) -> PreTrainedModel:
    draft_id, revision = _split_revision(models.process_model_name(draft))
    draft_model = AutoModel.from_pretrained(
        draft_id, revision=revision, dtype=target_model.dtype, trust_remote_code=models.trust_remote_code
    )
    if not is_drafter(draft_model):
        raise ValueError(
            f"{draft} must be a Jakiro drafter, got a {type(draft_model).__name__}. `jakiro convert` makes one from a "
            "published checkpoint."
        )
    check_request(target_model, draft_model, target_model.generation_config)
    return draft_model.to(target_model.device).eval()


class Server(uvicorn.Server):
    """uvicorn's server. When it is told to stop, it also ends the answers that are being written."""

    async def shutdown(self, sockets: Any = None) -> None:
        """Ends all answers, then the server."""
        app: Any = self.config.app
        for generation in app.state.generations:
            generation.stop(ServerStoppingError("The server stops."))
        await super().shutdown(sockets)


def run_serve(
    target: str,
    draft: str,
    host: str = "localhost",
    port: int = 8000,
    default_seed: int | None = None,
    log_level: str = "info",
    **options: Any,
) -> None:
    """
    The `jakiro serve` command: serves until it is interrupted.

    Args:
        target, draft, options: see [`create_app`].
        host, port: the address to listen on.
        default_seed: a seed that is set once, at the start. Requests may have seeds of their own.
        log_level: level of the server's log; `"info"` has a line for each answer.
    """
    level = logging.getLevelName(log_level.upper())
    set_verbosity(max(level, logging.WARNING))  # at "info", transformers prints every config that it loads
    log_config = deepcopy(LOGGING_CONFIG)
    log_config["loggers"][__name__] = {"handlers": ["default"], "level": level, "propagate": False}
    app = create_app(target, draft, **options)
    if default_seed is not None:
        torch.manual_seed(default_seed)
    config = uvicorn.Config(app, host=host, port=port, log_level=log_level, log_config=log_config)
    Server(config).run()


__all__ = ["Server", "ServerStoppingError", "create_app", "run_serve"]
