# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The fields that requests to `jakiro serve` may have. They are checked before transformers reads a request, because
transformers answers wrong types with a traceback and ignores many fields.

Pydantic comes with FastAPI, in the extra `serve`.
"""

import json
from collections.abc import Collection
from reprlib import repr as short
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

# what the server itself passes to `apply_chat_template`
_TEMPLATE_ARGUMENTS = {"chat_template", "tokenize", "return_tensors", "return_dict", "add_generation_prompt", "tools"}


def _without_template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    if value.keys() & _TEMPLATE_ARGUMENTS:
        raise ValueError("has an argument that the server sets itself")
    return value


_Text = Annotated[str | None, Field(description="a text")]
_NonEmptyText = Annotated[str, Field(min_length=1)]
_NonEmptyTexts = Annotated[list[_NonEmptyText], Field(min_length=1)]
_Length = Annotated[int | None, Field(ge=1, description="a positive integer")]
_Number = Annotated[float, Field(gt=-1e9, lt=1e9, allow_inf_nan=False)]
_TokenId = Annotated[str, Field(pattern=r"^\d+$")]
_Objects = list[dict[str, Any]]
_SomeObjects = Annotated[_Objects, Field(min_length=1)]
_TemplateArguments = Annotated[dict[str, Any], AfterValidator(_without_template_arguments)]


class _Fields(BaseModel):
    """Values are not converted: "9" is no integer. A field's description completes the sentence "It must be ..."."""

    model_config = ConfigDict(strict=True)


class Request(_Fields):
    """The fields of all three APIs. transformers refuses those that an API does not have."""

    model: _Text = None
    stream: bool | None = Field(None, description="true or false")
    max_tokens: _Length = None
    max_completion_tokens: _Length = None
    max_output_tokens: _Length = None
    temperature: Annotated[_Number, Field(ge=0)] | None = Field(None, description="a number, 0 or more")
    top_p: float | None = Field(None, gt=0, le=1, description="a number above 0, at most 1")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="an integer of 64 bits")
    # transformers adds it to a repetition penalty of 1
    frequency_penalty: float | None = Field(None, gt=-1, le=2, description="a number above -1, at most 2")
    stop: _NonEmptyText | _NonEmptyTexts | None = Field(None, description="a text or a list of texts")
    logit_bias: dict[_TokenId, _Number] | None = Field(None, description="an object of token ids and numbers")
    instructions: _Text = None
    suffix: _Text = None
    tools: _Objects | None = Field(None, description="a list of objects")
    generation_config: Json[dict[str, Any]] | None = Field(None, description="a text that is a JSON object")
    chat_template_kwargs: _TemplateArguments | None = Field(
        None, description=f"an object without what the server sets itself ({', '.join(sorted(_TEMPLATE_ARGUMENTS))})"
    )


class ChatRequest(Request):
    """Of `/v1/chat/completions`."""

    messages: _SomeObjects = Field(description="a list of messages, at least one")


class TextRequest(Request):
    """Of `/v1/completions`."""

    prompt: _NonEmptyText = Field(description="a text that is not empty")


class ResponseRequest(Request):
    """Of `/v1/responses`."""

    input: str | _SomeObjects = Field(description="a text or list of items")


class _FunctionCallItem(_Fields):
    call_id: str = Field(description="a text")
    name: str = Field(description="a text")
    arguments: str = Field(description="a text")


class _FunctionCallOutputItem(_Fields):
    call_id: str = Field(description="a text")
    output: str = Field(description="a text")


class _Function(_Fields):
    name: Any
    arguments: Any


class _ToolCall(_Fields):
    function: _Function

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, call: Any) -> Any:
        """Name and arguments may also stand in the call itself."""
        return {"function": call} if isinstance(call, dict) and not call.get("function") else call


class _Message(_Fields):
    role: str = Field(description="a text")
    content: str | _Objects = Field("", description="a text or a list of parts")
    tool_calls: list[_ToolCall] = Field([], description="a list of calls with `name` and `arguments`")


_ITEMS: dict[str, type[_Fields]] = {
    "function_call": _FunctionCallItem,
    "function_call_output": _FunctionCallOutputItem,
}
_TEXT_PARTS = ("text", "input_text", "output_text")
# Fields that transformers ignores, and the values that change nothing. Other values are refused.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
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


def check_fields(body: dict[str, Any], fields: type[Request], ignored: Collection[str]) -> None:
    """
    Checks a request, and removes the fields that are null.

    Args:
        body: the request.
        fields: those of its API.
        ignored: names of the fields that transformers ignores.

    Raises:
        ValueError: if a field has a wrong type or value, or its value would be ignored.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise ValueError(f"The request's texts must be valid Unicode: {error}") from error
    for name in [name for name, value in body.items() if value is None]:
        del body[name]
    for name in sorted(_NEUTRAL_VALUES.keys() & ignored & body.keys()):
        if body[name] not in _NEUTRAL_VALUES[name]:
            neutral = "".join(f" or be {json.dumps(value)}" for value in _NEUTRAL_VALUES[name])
            raise ValueError(f"`{name}` is not supported: it must be left out{neutral}; got {short(body[name])}.")
    _check(fields, body, "The request")


def check_items(items: Any) -> None:
    """
    Checks the `input` of a request to `/v1/responses`, a text or a list of items.

    Raises:
        ValueError: if an item lacks a field, or has one of a wrong type.
    """
    for item in items if isinstance(items, list) else ():
        kind = item.get("type")
        if isinstance(kind, str) and kind in _ITEMS:
            _check(_ITEMS[kind], item, f"A {kind.replace('_', ' ')}")


def check_message(message: dict[str, Any], text_only: bool) -> None:
    """
    Checks a message of a conversation, from which fields that are null or empty lists have been removed.

    Args:
        message: the message.
        text_only: whether the target reads text alone.

    Raises:
        ValueError: if a field or a part of the content is missing or has a wrong type.
    """
    _check(_Message, message, "A message")
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        kind, text = part.get("type"), part.get("text")
        if kind in _TEXT_PARTS and not isinstance(text, str):
            raise ValueError(f"A part of type {kind!r} must have a `text`, got {short(text)}.")
        if kind not in _TEXT_PARTS and (text_only or not isinstance(kind, str)):
            raise ValueError(f"The parts of a message must be of type 'text' for this model, got {kind!r}.")


def _check(fields: type[_Fields], values: dict[str, Any], owner: str) -> None:
    """Raises a `ValueError` that names the first wrong field, in our words: pydantic's speak of Python's types."""
    try:
        fields.model_validate(values)
    except ValidationError as refused:
        name = str(refused.errors()[0]["loc"][0])
        expected = fields.model_fields[name].description
        if name not in values:
            raise ValueError(f"{owner} must have `{name}`: {expected}.") from None
        raise ValueError(f"{owner}'s `{name}` must be {expected}, got {short(values[name])}.") from None


__all__ = ["ChatRequest", "Request", "ResponseRequest", "TextRequest", "check_fields", "check_items", "check_message"]
