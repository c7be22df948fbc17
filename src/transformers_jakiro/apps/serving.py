# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
`jakiro serve`: transformers' own OpenAI-compatible server, with a drafter in every generation.

The only file that touches `transformers.cli.serving`, which transformers does not promise to keep. What is added: the
drafter; refusals that say what is wrong with a request; seeds that hold for one
request; generations that end when their client leaves. One thread generates, for one request at a time and in the
order of arrival, as `transformers serve` does without continuous batching, which takes no drafter.
"""

import asyncio
import inspect
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from copy import deepcopy
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.import_utils import is_serve_available
from transformers.utils.logging import set_verbosity

from ..core.generation import check_request, is_jakiro_drafter
from ..core.tree import DraftTree

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
from transformers.cli.serving.utils import (
    BaseHandler,
    GenerateManager,
    GenerationState,
    Modality,
    _GenerationCancelled,
)
from uvicorn.config import LOGGING_CONFIG

logger = logging.getLogger(__name__)

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/load_model", "/health")


class ServerStoppingError(RuntimeError):
    """The server was told to stop before an answer was finished."""


# -- one generation --------------------------------------------------------------------------------------------------


class _Generation:
    """A request's generation, shared by its handler, by what watches its client, and by the thread that generates."""

    def __init__(self):
        self.seed: int | None = None
        self.started: asyncio.Future[None] | None = None  # of streams: a token is there, or an error
        self.error: BaseException | None = None
        self._stop: Exception | None = None

    def stop(self, reason: Exception) -> None:
        """Ends the generation with `reason`, before its next token."""
        self._stop = self._stop or reason

    def check(self) -> None:
        if self._stop is not None:
            raise self._stop

    def start(self, error: BaseException | None = None) -> None:
        """Called by the thread that generates, at each token and for an error."""
        self.error = error
        if self.started is not None and not self.started.done():
            self.started.get_loop().call_soon_threadsafe(self._set_started, error)

    def _set_started(self, error: BaseException | None) -> None:
        if self.started.done():
            return
        if error is None:
            self.started.set_result(None)
        else:
            self.started.set_exception(error)


_CURRENT: ContextVar[_Generation] = ContextVar("generation")  # of the request that is being handled


class _Streamer:
    """A [`~transformers_jakiro.StepStreamer`] that counts, and ends the generation when it is told to."""

    def __init__(self, generation: _Generation, streamer: Any = None):
        self._generation, self._streamer = generation, streamer
        self.num_tokens = self.num_forwards = 0

    def put(self, value: torch.Tensor) -> None:
        """The prompt."""
        self._generation.check()
        if self._streamer is not None:
            self._streamer.put(value)

    def put_step(self, tokens: torch.LongTensor, tree: DraftTree | None, visited: list[int]) -> None:
        self._generation.check()
        self.num_tokens += len(tokens)
        self.num_forwards += tree is not None
        if self._streamer is not None:
            self._streamer.put(tokens)
        self._generation.start()

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()


class _DraftedModel:
    """What transformers' manager calls `generate` of: the target with its drafter, for one request."""

    def __init__(self, model: PreTrainedModel, draft_model: PreTrainedModel, generation: _Generation):
        self._model, self._draft_model, self._generation = model, draft_model, generation

    def generate(self, streamer: Any = None, **kwargs: Any) -> torch.LongTensor:
        counted = _Streamer(self._generation, streamer)
        start = time.perf_counter()
        end = "done"
        try:
            self._generation.check()  # it may have waited for its turn
            if self._generation.seed is not None:
                torch.manual_seed(self._generation.seed)
            return self._model.generate(**kwargs, assistant_model=self._draft_model, streamer=counted)
        except Exception as error:
            end = "client left" if isinstance(error, _GenerationCancelled) else f"{type(error).__name__}: {error}"
            self._generation.start(error)
            raise
        finally:
            seconds = time.perf_counter() - start
            logger.info(
                "%d tokens in %.2f s, %.1f tokens/s, %.2f tokens per target forward (%s)",
                *(counted.num_tokens, seconds, counted.num_tokens / seconds),
                max(0, counted.num_tokens - 1) / max(1, counted.num_forwards),
                end,
            )


class JakiroGenerateManager(GenerateManager):
    """
    transformers' sequential generation, one request after another on one thread, with a drafter.

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter.
        num_assistant_tokens (`int`, *optional*): nodes per tree where the request says nothing; default: the
            drafter's `num_draft_tokens`.
    """

    def __init__(self, draft_model: PreTrainedModel, num_assistant_tokens: int | None = None):
        super().__init__()
        self._draft_model, self._num_assistant_tokens = draft_model, num_assistant_tokens

    def generate_streaming(self, model, processor, inputs, gen_config, *args: Any, **kwargs: Any):
        generation = self._prepare(model, inputs, gen_config)
        generation.started = asyncio.get_running_loop().create_future()
        model = _DraftedModel(model, self._draft_model, generation)
        return super().generate_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, *args: Any, **kwargs: Any):
        model = _DraftedModel(model, self._draft_model, self._prepare(model, inputs, gen_config))
        return await super().generate_non_streaming(model, processor, inputs, gen_config, *args, **kwargs)

    def _prepare(self, model: PreTrainedModel, inputs: dict[str, Any], gen_config: GenerationConfig) -> _Generation:
        """
        Completes the request's generation config: the answer ends where the target's context does.

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
        return _CURRENT.get()


class _GenerationState(GenerationState):
    """All requests' way to the one manager."""

    def __init__(self, manager: JakiroGenerateManager, compile: bool):
        super().__init__(compile=compile)
        self._manager = manager

    def get_manager(self, model_id: str, use_cb: bool = False) -> JakiroGenerateManager:
        return self._manager


def _split_revision(name: str) -> tuple[str, str | None]:
    """The model and the revision in a name as `ModelManager.process_model_name` gives it."""
    if hasattr(serving_utils, "split_revision"):  # since transformers 5.24
        return serving_utils.split_revision(name)
    if Path(name).exists():
        return name, None
    model_id, _, revision = name.partition("@")
    return model_id, revision or None


class _TargetManager(ModelManager):
    """Holds the target, and loads nothing else."""

    @property
    def names(self) -> tuple[str, str]:
        """What a request may call the target: as it was given, or with its revision."""
        return self.force_model, self.process_model_name(self.force_model)

    def check_name(self, name: str) -> None:
        if name not in self.names:
            raise HTTPException(404, f"The model must be {self.force_model!r}, which this server has; got {name!r}.")

    def load_model_streaming(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        self.check_name(model_id_and_revision)
        return super().load_model_streaming(model_id_and_revision, *args, **kwargs)

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        owner = self.force_model.split("/")[0] if self.force_model.count("/") == 1 else ""
        return [{"id": self.force_model, "object": "model", "created": self._created, "owned_by": owner}]

    get_gen_models = list_models  # its name before transformers 5.24

    def _load_model(self, model_id_and_revision: str, **kwargs: Any) -> PreTrainedModel:
        # transformers' own looks for the class in its own modules, which classes of remote code are not in
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


def _is_integer(value: Any, least: float = -math.inf, largest: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) and text for text in value)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except json.JSONDecodeError:
        return False


_TEMPLATE_ARGUMENTS = {"chat_template", "tokenize", "return_tensors", "return_dict", "add_generation_prompt", "tools"}
_LENGTH = (lambda value: _is_integer(value, 1), "a positive integer")
_TEXT = (lambda value: isinstance(value, str), "a text")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": _TEXT,
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "max_tokens": _LENGTH,
    "max_completion_tokens": _LENGTH,
    "max_output_tokens": _LENGTH,
    "temperature": (lambda value: _is_number(value) and value >= 0, "a number, 0 or more"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "seed": (lambda value: _is_integer(value, -(2**63), 2**63 - 1), "an integer of 64 bits"),
    # transformers takes it for a repetition penalty of 1 more
    "frequency_penalty": (lambda value: _is_number(value) and -1 < value <= 2, "a number above -1, at most 2"),
    "stop": (lambda value: (isinstance(value, str) and value != "") or _is_texts(value), "a text or a list of texts"),
    "logit_bias": (
        lambda value: (
            isinstance(value, dict) and all(key.isdecimal() and _is_number(bias) for key, bias in value.items())
        ),
        "an object of token ids and numbers",
    ),
    "messages": (lambda value: _is_objects(value) and value != [], "a list of messages, at least one"),
    "prompt": (lambda value: isinstance(value, str) and value != "", "a text that is not empty"),
    "input": (lambda value: isinstance(value, str) or (_is_objects(value) and value != []), "a text or list of items"),
    "instructions": _TEXT,
    "suffix": _TEXT,
    "tools": (_is_objects, "a list of objects"),
    "generation_config": (_is_json_object, "a text that is a JSON object"),
    "chat_template_kwargs": (
        lambda value: isinstance(value, dict) and not value.keys() & _TEMPLATE_ARGUMENTS,
        "an object without what the server sets itself",
    ),
}
# values that change nothing, of fields that transformers ignores: others are refused
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "tool_choice": ("auto",),
    "function_call": (),
    "functions": (),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "background": (False,),
    "previous_response_id": (),
    "prompt": (),
    "truncation": ("disabled",),
}
_ITEM_KEYS = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id", "output")}
_TEXT_PARTS = ("text", "input_text", "output_text")


class _Handler(BaseHandler):
    """Before transformers' handlers: what they would stumble over is refused, and streams begin with their tokens."""

    required: str  # field that holds the prompt

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """
        Raises:
            HTTPException: 404 for another model, 422 for unknown fields, else 400.
        """
        generation = _CURRENT.get()
        try:
            self.check(body)
            generation.seed = body.pop("seed", None)  # transformers would set it at once, amid another generation
            response = await super().handle_request(body, request_id)
            if generation.started is not None:  # an error has a status only before the first chunk
                await generation.started
        except (ValueError, NotImplementedError, TemplateError) as error:
            raise HTTPException(400, str(error)) from error
        return response

    def check(self, body: dict[str, Any]) -> None:
        """Refuses (`ValueError`) fields of wrong types and values, and fills in what transformers takes otherwise."""
        self._validate_request(body)
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise ValueError(f"The request's texts must be valid Unicode: {error}") from error
        for name in [name for name, value in body.items() if value is None]:
            del body[name]
        if self.required not in body:
            raise ValueError(f"The request must have `{self.required}`.")
        for name in sorted(self._unused_fields & body.keys() & _NEUTRAL.keys()):
            if body[name] not in _NEUTRAL[name]:
                neutral = "".join(f" or be {json.dumps(value)}" for value in _NEUTRAL[name])
                raise ValueError(f"`{name}` is not supported: it must be left out{neutral}; got {short(body[name])}.")
        for name in body.keys() & _FIELDS.keys():
            is_right, expected = _FIELDS[name]
            if not is_right(body[name]):
                raise ValueError(f"`{name}` must be {expected}, got {short(body[name])}.")
        self.model_manager.check_name(body.get("model", self.model_manager.force_model))
        body["model"] = self.model_manager.force_model

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        try:
            config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        except TypeError as error:
            raise ValueError(f"`generation_config` has a value of a wrong type: {error}") from error
        if "temperature" in body or "top_p" in body:  # else as the model's generation config says
            config.do_sample = body.get("temperature") != 0
        if "logit_bias" in body:  # transformers ignores it in completions, and `generate` refuses integers
            config.sequence_bias = {(int(token),): float(bias) for token, bias in body["logit_bias"].items()}
        return config

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict[str, Any]], modality: Modality) -> list[dict[str, Any]]:
        # clients send former answers back with `tool_calls` that are null or none, for which content would be dropped
        messages = [{name: value for name, value in one.items() if value not in (None, [])} for one in messages]
        for message in messages:
            _check_message(message, text_only=modality == Modality.LLM)
        return BaseHandler.get_processor_inputs_from_messages(messages, modality)


def _check_message(message: dict[str, Any], text_only: bool) -> None:
    if not isinstance(message.get("role"), str):
        raise ValueError(f"Each message must have a `role` that is a text, got {short(message.get('role'))}.")
    content = message.get("content", "")
    if not isinstance(content, str) and not _is_objects(content):
        raise ValueError(f"A message's `content` must be a text or a list of parts, got {short(content)}.")
    for part in content if isinstance(content, list) else ():
        if part.get("type") in _TEXT_PARTS and not isinstance(part.get("text"), str):
            raise ValueError(f"A part of type {part['type']!r} must have a `text`, got {short(part.get('text'))}.")
        if part.get("type") not in _TEXT_PARTS and (text_only or not isinstance(part.get("type"), str)):
            raise ValueError(
                f"The parts of a message must be of type 'text' for this model, got {part.get('type')!r}."
            )
    calls = message.get("tool_calls", [])
    for call in calls if _is_objects(calls) else [None]:
        function = call and (call.get("function") or call)
        if not isinstance(function, dict) or "name" not in function or "arguments" not in function:
            raise ValueError(f"`tool_calls` must be a list of calls with `name` and `arguments`, got {short(calls)}.")


class _ChunkHandler(_Handler):
    """Streams of completions: errors are JSON objects, and the last line says that it is."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        response = await super().handle_request(body, request_id)
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._finished(response.body_iterator, _CURRENT.get())
        return response

    @staticmethod
    async def _finished(chunks: AsyncIterator[str], generation: _Generation) -> AsyncIterator[str]:
        async for chunk in chunks:
            error = generation.error
            if error is not None:  # transformers writes the message between quotes, whatever is in it
                told = json.dumps({"error": _error(str(error), "server_error")})
                chunk = chunk.replace(f'data: {{"error": "{error}"}}\n\n', f"data: {told}\n\n")
            yield chunk
        yield "data: [DONE]\n\n"


class _ChatHandler(_ChunkHandler, ChatCompletionHandler):
    required = "messages"

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        if "max_completion_tokens" in body:  # which transformers 5.15 ignores
            body["max_tokens"] = body.pop("max_completion_tokens")


class _TextHandler(_ChunkHandler, CompletionHandler):
    required = "prompt"


class _ResponseHandler(_Handler, ResponseHandler):
    required = "input"

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        body.setdefault("stream", False)  # transformers streams where nothing is said, OpenAI and its clients do not
        for item in body["input"] if isinstance(body["input"], list) else ():
            for name in _ITEM_KEYS.get(item.get("type"), ()):
                if not isinstance(item.get(name), str):
                    raise ValueError(
                        f"An item of type {item['type']!r} must have `{name}`, a text: got {short(item)}."
                    )


# -- the server ------------------------------------------------------------------------------------------------------


class _Clients:
    """ASGI middleware that gives each request its generation, and ends that when the client has gone."""

    def __init__(self, app: Any, generations: set[_Generation]):
        self._app, self._generations = app, generations

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        generation, gone = _Generation(), asyncio.Event()
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
        _CURRENT.set(generation)
        try:
            await self._app(scope, receive_and_watch, send)
        finally:
            self._generations.discard(generation)
            if watcher is not None:
                watcher.cancel()


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": None}


def _answer_errors(app: FastAPI) -> None:
    """Errors as OpenAI's clients read them."""

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
        return answer(499, "The client has left.", "invalid_request_error")  # nobody reads it


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
    Loads a target and its drafter and builds the server: an ASGI application for uvicorn and the like, in one process.

    Args:
        target, draft: folders or Hub ids, `@revision` may follow.
        num_assistant_tokens: nodes per tree; default: the drafter's `num_draft_tokens`. A request's
            `generation_config` may say otherwise.
        device, dtype, attn_implementation, quantization, compile, trust_remote_code: as for `transformers serve`. The
            drafter is put where the target's first layer is, in the target's precision.
        enable_cors: allow requests from all web pages.

    Raises:
        ValueError: if the two do not fit, or an option has a value that it cannot have.
        NotImplementedError: for kinds of targets that cannot be drafted for.
        OSError: if one of the two cannot be loaded.
    """
    if num_assistant_tokens is not None and num_assistant_tokens < 1:
        raise ValueError(f"`num_assistant_tokens` must be at least 1, got {num_assistant_tokens}.")
    if "@" in target and Path(target).exists() and not hasattr(serving_utils, "split_revision"):
        raise ValueError(
            f"Before transformers 5.24, the path of the target must have no `@`, got {target}. Rename the folder, or "
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
    draft_id, revision = _split_revision(models.process_model_name(draft))
    draft_model = AutoModel.from_pretrained(
        draft_id, revision=revision, dtype=loaded.model.dtype, trust_remote_code=trust_remote_code
    )
    if not is_jakiro_drafter(draft_model):
        raise ValueError(
            f"{draft} must be a Jakiro drafter, got a {type(draft_model).__name__}. `jakiro convert` makes one of a "
            "published checkpoint."
        )
    check_request(loaded.model, draft_model, loaded.model.generation_config)
    manager = JakiroGenerateManager(draft_model.to(loaded.model.device).eval(), num_assistant_tokens)
    state = _GenerationState(manager, compile)
    handlers = {name: None for name in inspect.signature(build_server).parameters if name.endswith("_handler")}
    handlers["chat_handler"] = _ChatHandler(models, state)
    handlers["completion_handler"] = _TextHandler(models, state)
    handlers["response_handler"] = _ResponseHandler(models, state)
    app = build_server(models, **handlers, generation_state=state, enable_cors=enable_cors)
    app.router.routes[:] = [route for route in app.router.routes if route.path in PATHS]  # others take other models
    app.state.generations = set()
    app.add_middleware(_Clients, generations=app.state.generations)
    _answer_errors(app)
    return app


class Server(uvicorn.Server):
    """uvicorn's, but answers that are being written end when the server is told to."""

    async def shutdown(self, sockets: Any = None) -> None:
        for generation in self.config.app.state.generations:
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
    Serves until it is interrupted.

    Args:
        target, draft, options: see [`create_app`].
        host, port: where to listen.
        default_seed: of PyTorch's random numbers, set once; requests may bring their own.
        log_level: of the server's log; `"info"` has a line for each answer.
    """
    level = logging.getLevelName(log_level.upper())
    set_verbosity(max(level, logging.WARNING))  # below, transformers prints each config that it loads
    log_config = deepcopy(LOGGING_CONFIG)
    log_config["loggers"][__name__] = {"handlers": ["default"], "level": level, "propagate": False}
    app = create_app(target, draft, **options)
    if default_seed is not None:
        torch.manual_seed(default_seed)
    config = uvicorn.Config(app, host=host, port=port, log_level=log_level, log_config=log_config)
    Server(config).run()


__all__ = ["JakiroGenerateManager", "Server", "ServerStoppingError", "create_app", "run_serve"]
