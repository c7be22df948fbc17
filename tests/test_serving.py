# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`jakiro serve`, with OpenAI's own client: the text of plain `generate`, refusals, clients that leave."""

import http.client
import io
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM, set_seed

from jakiro_cli import main
from transformers_jakiro import pair
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter

pytestmark = pytest.mark.compat

openai = pytest.importorskip("openai", reason="in the extra `serve`")
uvicorn = pytest.importorskip("uvicorn", reason="in the extra `serve`")
from transformers.cli.serving import utils as serving_utils  # noqa: E402
from transformers.cli.serving.model_manager import ModelManager  # noqa: E402

from transformers_jakiro.apps import serving  # noqa: E402
from transformers_jakiro.apps.serving import Server, ServerStoppingError, create_app  # noqa: E402

TARGET, DRAFT = str(pair.TARGET), str(pair.DRAFT)
LONG = json.dumps({"eos_token_id": 2047, "max_new_tokens": 900, "do_sample": False})  # a token that never comes


@contextmanager
def running(app) -> Iterator[SimpleNamespace]:
    """A server on a free port, in a thread."""
    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, max_retries=0) as client:
            yield SimpleNamespace(app=app, port=port, url=url, client=client, server=server)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server():
    with running(create_app(TARGET, DRAFT, dtype="float32")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.client


@pytest.fixture
def answers(caplog):
    """Function: the answers in the log so far, as (tokens, tokens per target forward, how it ended)."""
    caplog.set_level(logging.INFO, logger="transformers_jakiro.apps.serving")
    line = re.compile(r"(\d+) tokens in \S+ s, \S+ tokens/s, (\S+) tokens per target forward \((.*)\)")

    def read():
        messages = [
            record.getMessage() for record in caplog.records if record.name == "transformers_jakiro.apps.serving"
        ]
        return [(int(tokens), float(rate), end) for tokens, rate, end in (line.match(m).groups() for m in messages)]

    return read


@pytest.fixture(scope="module")
def questions():
    lines = pair.PROMPTS.read_text(encoding="utf-8").splitlines()[:6]
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture(scope="module")
def plain():
    """Function: the answer of plain `generate` to a question, or its continuation of a text."""
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TARGET)

    def answer(text, chat=True, seed=None, max_new_tokens=1024, **kwargs):
        messages = [{"role": "user", "content": text}]
        inputs = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            if chat
            else tokenizer(text, return_tensors="pt")
        )
        if seed is not None:
            set_seed(seed)
        output = target.generate(**inputs, max_new_tokens=max_new_tokens, tokenizer=tokenizer, **kwargs)
        length = inputs["input_ids"].shape[1]
        new = output[0, length:]
        reason = "length" if len(new) == max_new_tokens else "stop"
        usage = (length, len(new), length + len(new))
        return SimpleNamespace(text=tokenizer.decode(new, skip_special_tokens=True), reason=reason, usage=usage)

    return answer


def chat(client, question, stream=False, **kwargs):
    """Text, finish reason and usage of a chat completion."""
    response = client.chat.completions.create(
        model=TARGET, messages=[{"role": "user", "content": question}], stream=stream, **kwargs
    )
    if not stream:
        return response.choices[0].message.content, response.choices[0].finish_reason, counts(response.usage)
    chunks = list(response)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return text, chunks[-1].choices[0].finish_reason, counts(chunks[-1].usage)


def counts(usage):
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


# -- the text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "generated"),
    [
        ({}, {}),
        ({"max_completion_tokens": 7, "temperature": 0}, {"max_new_tokens": 7}),
        (
            {"max_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 4},
            {"max_new_tokens": 40, "do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 4},
        ),
        ({"top_p": 1, "seed": 5, "max_tokens": 40}, {"max_new_tokens": 40, "do_sample": True, "seed": 5}),
        ({"stop": ["."], "n": 1}, {"stop_strings": ["."]}),
        ({"frequency_penalty": 0.2, "max_tokens": 30}, {"repetition_penalty": 1.2, "max_new_tokens": 30}),
        ({"logit_bias": {"300": 5}, "max_tokens": 30}, {"sequence_bias": {(300,): 5.0}, "max_new_tokens": 30}),
        (
            {"extra_body": {"generation_config": '{"max_new_tokens": 30, "min_new_tokens": 30, "top_k": 3}'}},
            {"max_new_tokens": 30, "min_new_tokens": 30},
        ),
    ],
)
def test_chat_completions(client, plain, questions, answers, asked, generated, stream):
    expected = plain(questions[0], **generated)
    assert chat(client, questions[0], stream, **asked) == (expected.text, expected.reason, expected.usage)
    wait_until(answers)
    ((num_tokens, rate, end),) = answers()
    assert (num_tokens, end) == (expected.usage[1], "done")
    assert rate > 1.2  # drafted


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client, plain, stream):
    expected = plain("Tom has 3 apples", chat=False, max_new_tokens=20, sequence_bias={(300,): 8.0})
    assert expected.text != plain("Tom has 3 apples", chat=False, max_new_tokens=20).text
    response = client.completions.create(
        model=TARGET, prompt="Tom has 3 apples", max_tokens=20, logit_bias={"300": 8}, stream=stream
    )
    chunks = list(response) if stream else [response]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert counts(chunks[-1].usage) == expected.usage
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client, plain, questions, stream):
    expected = plain(questions[1], max_new_tokens=40, do_sample=True, seed=2)
    response = client.responses.create(
        model=TARGET, input=questions[1], max_output_tokens=40, temperature=1, stream=stream, extra_body={"seed": 2}
    )
    if stream:
        events = list(response)
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == expected.text
        response = events[-1].response
    assert response.output_text == expected.text
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == expected.usage


def test_conversations_with_parts_and_nulls(client, plain, questions):
    """Clients send content in parts, and earlier answers with fields that are null."""
    parts = [{"type": "text", "text": questions[0]}]
    messages = [{"role": "user", "content": parts, "tool_calls": None, "name": None}]
    response = client.chat.completions.create(
        model=TARGET, messages=messages, max_tokens=20, stop=None, extra_body={"tools": None, "user": "me"}
    )
    expected = plain(questions[0], max_new_tokens=20)
    assert response.choices[0].message.content == expected.text
    answer, then = response.choices[0].message.model_dump(), {"role": "user", "content": "And then?"}
    for calls in (None, []):
        conversation = [*messages, {**answer, "tool_calls": calls}, then]
        response = client.chat.completions.create(model=TARGET, messages=conversation, max_tokens=5)
        assert response.usage.prompt_tokens > expected.usage[2]


def test_clients_at_once(client, plain, questions):
    """Each gets the answer that it would get alone, even when sampling."""
    expected = [plain(q, max_new_tokens=40, do_sample=True, seed=seed) for seed, q in enumerate(questions)]
    with ThreadPoolExecutor(len(questions)) as pool:
        futures = [
            pool.submit(chat, client, question, stream=seed % 2 == 0, max_tokens=40, temperature=1, seed=seed)
            for seed, question in enumerate(questions)
        ]
        assert [future.result()[0] for future in futures] == [each.text for each in expected]


@pytest.mark.parametrize("minor", [23, 24])
def test_folders_with_an_at_sign(minor, tmp_path, monkeypatch):
    """An `@` in a path is not a revision. Before 5.24, transformers takes it for one, so the target is refused."""
    folder = tmp_path / "step@1000"
    folder.mkdir()
    if minor == 23:
        monkeypatch.delattr(serving_utils, "split_revision", raising=False)
        with pytest.raises(ValueError, match=r"path of the target must have no `@`, got .*step@1000"):
            create_app(str(folder), str(DRAFT))
    elif not hasattr(serving_utils, "split_revision"):
        pytest.skip("transformers before 5.24")
    assert serving._split_revision(str(folder)) == (str(folder), None)
    assert serving._split_revision("org/name@v1") == ("org/name", "v1")


def test_what_the_server_has(server, client):
    (model,) = client.models.list()
    assert model.id == TARGET
    answered = ModelManager.process_model_name(TARGET)  # what answers call it: until 5.23 with "@main"
    for name in (TARGET, answered):
        response = client.completions.create(model=name, prompt="Tom", max_tokens=1)
        assert response.model == answered
    for path, status in (("/health", 200), ("/v1/systemone", 404), ("/v1/audio/transcriptions", 404)):
        assert raw(server, "GET", path)[0] == status
    assert raw(server, "POST", "/load_model", json.dumps({"model": "org/other"}))[0] == 404


def test_transformers_chat(server, plain, monkeypatch, capsys):
    cli = pytest.importorskip("transformers.cli.chat", reason="needs requests in 5.15")
    monkeypatch.setattr("sys.stdin", io.StringIO("How many eggs are in 3 nests of 2?\n!exit\n"))
    cli.Chat(TARGET, server.url, ["max_new_tokens=200", "do_sample=False"])
    answer = plain("How many eggs are in 3 nests of 2?", max_new_tokens=200)
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(answer.text.split()) in shown
    assert f"{answer.usage[1]} tokens in" in shown


# -- other settings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server with the same target, but a context of 64 tokens, a static cache and 3 nodes per tree."""
    folder = tmp_path_factory.mktemp("small") / "target"
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    target.config.max_position_embeddings = 64
    target.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    tokenizer.save_pretrained(folder)
    app = create_app(str(folder), DRAFT, num_assistant_tokens=3, compile=True, enable_cors=True)
    with running(app) as server:
        server.name = str(folder)
        yield server


def test_options(small, plain, monkeypatch):
    trees = []
    propose = JakiroDrafter.propose

    def recorded(self, *args, **kwargs):
        trees.append((self.shape.num_draft_tokens, self.is_static))
        return propose(self, *args, **kwargs)

    monkeypatch.setattr(JakiroDrafter, "propose", recorded)
    response = small.client.completions.create(model=small.name, prompt="Tom has 3 apples", max_tokens=12)
    assert response.choices[0].text == plain("Tom has 3 apples", chat=False, max_new_tokens=12).text
    assert set(trees) == {(3, True)}
    assert "access-control-allow-origin" in raw(small, "GET", "/health", headers={"Origin": "http://page"})[1]


def test_answers_end_with_the_context(small):
    for length in ({}, {"max_tokens": 1000}):
        response = small.client.completions.create(
            model=small.name, prompt="Tom has", **length, logit_bias={"2": -100}
        )
        assert response.usage.total_tokens == 64
        assert response.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match=r"shorter than the model's context of 64 tokens, got 140\."):
        small.client.completions.create(model=small.name, prompt=" 2" * 70)


def test_what_the_chat_template_refuses(small):
    with pytest.raises(openai.BadRequestError, match="Roles must alternate"):
        small.client.chat.completions.create(model=small.name, messages=HELLO)


# -- clients that leave ----------------------------------------------------------------------------------------------


def test_a_stream_that_is_closed(server, client, questions, answers):
    stream = client.chat.completions.create(
        model=TARGET,
        messages=[{"role": "user", "content": questions[0]}],
        stream=True,
        extra_body={"generation_config": LONG},
    )
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    wait_until(answers)
    ((num_tokens, _, end),) = answers()
    assert end == "client left"
    assert 0 < num_tokens < 450
    wait_until(lambda: not server.app.state.generations)


def test_a_client_that_hangs_up(server, questions, answers):
    """Its answer is not streamed, and another client waits behind it."""
    body = json.dumps({"messages": [{"role": "user", "content": questions[0]}], "generation_config": LONG})
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(2)]
    for number, connection in enumerate(connections, 1):
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        wait_until(lambda number=number: len(server.app.state.generations) == number)
    time.sleep(0.2)
    for connection in reversed(connections):
        connection.close()
    wait_until(lambda: not server.app.state.generations)
    (first, _, end), (second, _, other_end) = answers()
    assert end == other_end == "client left"
    assert first < 450
    assert second == 0  # it left before its turn came
    assert chat(server.client, "Tom", max_tokens=3)[2][1] == 3


def test_a_server_that_stops(questions, answers):
    request = {
        "model": TARGET,
        "messages": [{"role": "user", "content": questions[0]}],
        "extra_body": {"generation_config": LONG},
    }
    with running(create_app(TARGET, DRAFT)) as server, ThreadPoolExecutor() as pool:
        stream = server.client.chat.completions.create(**request, stream=True)
        next(stream)
        waiting = pool.submit(server.client.chat.completions.create, **request)
        wait_until(lambda: len(server.app.state.generations) == 2)
        server.server.should_exit = True
        with pytest.raises(openai.APIError, match="The server stops"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match=r"503.*The server stops") as refused:
            waiting.result(30)
    assert refused.value.status_code == 503
    assert [end for _, _, end in answers()] == [f"{ServerStoppingError.__name__}: The server stops."] * 2


def test_an_error_within_a_stream(server, client, questions):
    """The client gets its message, even with quotes and line breaks."""
    stream = client.chat.completions.create(
        model=TARGET,
        messages=[{"role": "user", "content": questions[0]}],
        stream=True,
        extra_body={"generation_config": LONG},
    )
    next(stream)
    (generation,) = server.app.state.generations
    generation.stop(RuntimeError('out of "memory"\nor so'))
    with pytest.raises(openai.APIError) as raised:
        list(stream)
    assert raised.value.message == 'out of "memory"\nor so'


def test_an_error_of_the_server(server, client, questions):
    with ThreadPoolExecutor() as pool:
        future = pool.submit(chat, client, questions[0], extra_body={"generation_config": LONG})
        wait_until(lambda: server.app.state.generations)
        (generation,) = server.app.state.generations
        generation.stop(RuntimeError("out of memory"))
        with pytest.raises(openai.InternalServerError, match=r"500 - .*RuntimeError: out of memory"):
            future.result(30)


# -- refusals --------------------------------------------------------------------------------------------------------


def raw(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "application/json"} if headers is None else headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, text


CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = [{"role": "user", "content": "Hello"}]


def message(**fields):
    return {"messages": [{"role": "user", "content": "Hello", **fields}]}


def config(**fields):
    return {"messages": HELLO, "generation_config": json.dumps(fields)}


@pytest.mark.compat(False)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        (CHAT, {}, 400, "must have `messages`"),
        (CHAT, {"messages": None}, 400, "must have `messages`"),
        (CHAT, {"messages": []}, 400, "`messages` must be a list of messages, at least one, got []"),
        (CHAT, {"messages": "Hello"}, 400, "`messages` must be a list"),
        (CHAT, {"messages": HELLO, "model": "org/other"}, 404, f"must be '{TARGET}', the only one here; got 'org"),
        (CHAT, {"messages": HELLO, "model": 5}, 400, "`model` must be a text"),
        (CHAT, {"messages": HELLO, "max_tokens": -1}, 400, "`max_tokens` must be a positive integer, got -1"),
        (CHAT, {"messages": HELLO, "max_tokens": "9"}, 400, "`max_tokens` must be a positive integer, got '9'"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": True}, 400, "`max_completion_tokens` must be a positive"),
        (CHAT, {"messages": HELLO, "temperature": -0.1}, 400, "`temperature` must be a number, 0 or more"),
        (CHAT, {"messages": HELLO, "temperature": float("nan")}, 400, "`temperature` must be a number"),
        (CHAT, {"messages": HELLO, "temperature": 10**400}, 400, "`temperature` must be a number"),
        (CHAT, {"messages": HELLO, "top_p": 0}, 400, "`top_p` must be a number above 0, at most 1"),
        (CHAT, {"messages": HELLO, "seed": 0.5}, 400, "`seed` must be an integer"),
        (CHAT, {"messages": HELLO, "seed": 2**70}, 400, "`seed` must be an integer of 64 bits"),
        (CHAT, {"messages": HELLO, "stop": [""]}, 400, "`stop` must be a text or a list of texts"),
        (CHAT, {"messages": HELLO, "logit_bias": {"a": 1}}, 400, "`logit_bias` must be an object of token ids"),
        (CHAT, {"messages": HELLO, "logit_bias": {"5000": 1}}, 400, "vocabulary size is 2048"),
        (CHAT, {"messages": HELLO, "frequency_penalty": -1.5}, 400, "`frequency_penalty` must be a number above -1"),
        (CHAT, {"messages": HELLO, "colour": "red"}, 422, "colour"),
        (CHAT, {"messages": HELLO, "n": 2}, 400, "`n` is not supported: it must be left out or be 1; got 2"),
        (CHAT, {"messages": HELLO, "logprobs": True}, 400, "`logprobs` is not supported"),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "`response_format` is not supp"),
        (CHAT, {"messages": HELLO, "tools": ["hammer"]}, 400, "`tools` must be a list of objects"),
        (CHAT, {"messages": HELLO, "chat_template_kwargs": {"tokenize": False}}, 400, "what the server sets itself"),
        (CHAT, {"messages": ["Hello"]}, 400, "`messages` must be a list of messages"),
        (CHAT, message(role=None), 400, "A message must have `role`: a text"),
        (CHAT, message(content=5), 400, "`content` must be a text or a list of parts, got 5"),
        (CHAT, message(content=[{"type": "text"}]), 400, "of type 'text' must have a `text`, got None"),
        (CHAT, message(content=[{"type": "image_url"}]), 400, "of type 'text' for this model, got 'image_url'"),
        (CHAT, message(tool_calls=[{"id": "1"}]), 400, "list of calls with `name` and `arguments`"),
        (CHAT, message(content="\ud800"), 400, "must be valid Unicode"),
        (CHAT, message(content="long " * 1100), 400, "must be shorter than the model's context of 1024 tokens, got "),
        (
            CHAT,
            {"messages": HELLO, "generation_config": "{"},
            400,
            "`generation_config` must be a text that is a JSON",
        ),
        (CHAT, config(max_new_tokens="5"), 400, "`generation_config` has a value of a wrong type"),
        (CHAT, config(num_return_sequences=2, do_sample=True), 400, "`num_return_sequences` must be 1, got 2"),
        # requests that the drafter does not support
        (CHAT, config(num_beams=3), 400, "Drafting needs `num_beams=1`, got 3"),
        (CHAT, config(use_cache=False), 400, "Drafting needs the key/value cache"),
        (CHAT, config(num_assistant_tokens=0), 400, "`num_assistant_tokens` must be at least 1, got 0"),
        (CHAT, config(cache_implementation="offloaded"), 400, "Offloaded caches are not supported"),
        (TEXT, {"max_tokens": 5}, 400, "must have `prompt`"),
        (TEXT, {"prompt": ""}, 400, "`prompt` must be a text that is not empty"),
        (TEXT, {"prompt": ["a", "b"]}, 400, "`prompt` must be a text"),
        (TEXT, {"prompt": "Hello", "echo": True}, 400, "`echo` is not supported"),
        (RESPONSES, {"input": []}, 400, "`input` must be a text or list of items"),
        (RESPONSES, {"input": 5}, 400, "`input` must be a text or list of items"),
        (RESPONSES, {"input": "Hello", "previous_response_id": "1"}, 400, "`previous_response_id` is not supported"),
        (RESPONSES, {"input": "Hello", "max_output_tokens": 0}, 400, "`max_output_tokens` must be a positive integer"),
        (RESPONSES, {"input": [{"role": "user", "content": "a"}, {"type": "function_call"}]}, 400, "have `call_id`"),
    ],
)
def test_bad_requests(server, path, body, status, reason, stream):
    if "offloaded" in str(body) and torch.version.cuda is not None and not torch.cuda.is_available():
        pytest.skip("a CUDA build of PyTorch makes no offloaded cache without a driver")
    got, headers, text = raw(server, "POST", path, json.dumps({**body, "stream": stream}))
    assert (got, headers["content-type"]) == (status, "application/json")
    assert reason in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        ('{"messages": [', None, "must be a JSON object, sent with `Content-Type: application/json`: Expecting value"),
        ("[1]", None, "must be a JSON object"),
        (
            json.dumps({"messages": HELLO}),
            {"Content-Type": "text/plain"},
            "must be a JSON object, sent with `Content-Type: application/json`",
        ),
    ],
)
def test_malformed_requests(server, body, headers, reason):
    status, _, text = raw(server, "POST", CHAT, body, headers)
    assert status == 400
    assert reason in json.loads(text)["error"]["message"]


@pytest.mark.compat(False)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([TARGET, TARGET], "must be a Jakiro drafter, got a LlamaModel"),
        ([TARGET, DRAFT, "--num-assistant-tokens", "0"], "`num_assistant_tokens` must be at least 1, got 0"),
        ([TARGET, DRAFT, "--attn-implementation", "magic"], "Unsupported attention implementation: 'magic'"),
        ([TARGET, "./nowhere"], "./nowhere"),
    ],
)
def test_a_server_that_cannot_start(arguments, reason, capsys):
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert "jakiro: error: " in error
    assert reason in error


def test_a_target_that_cannot_be_drafted_for(tmp_path, capsys):
    config = MambaConfig(vocab_size=2048, hidden_size=192, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(TARGET).save_pretrained(tmp_path)
    assert main(["serve", str(tmp_path), DRAFT]) == 1
    assert "jakiro: error: MambaForCausalLM carries a recurrent state" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    monkeypatch.delitem(sys.modules, "transformers_jakiro.apps.serving")
    assert main(["serve", TARGET, DRAFT]) == 1
    assert "pip install 'transformers-jakiro[serve]'" in capsys.readouterr().err


@pytest.mark.compat(False)
@pytest.mark.integration
def test_the_command(questions, plain):
    """In a process of its own, it prints its address and ends with Ctrl-C."""
    command = [sys.executable, "-m", "jakiro_cli", "serve", TARGET, DRAFT, "--dtype", "float32", "--port", "0"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", timeout=60, max_retries=0) as client:
            assert chat(client, questions[0], max_tokens=20)[0] == plain(questions[0], max_new_tokens=20).text
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "20 tokens in" in rest
    assert "Traceback" not in "".join(lines) + rest
