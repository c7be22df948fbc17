# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Other processes: copies of an interpreter that has imported much, two that a launcher would start, killed ones."""

import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Reads requests to start code or to wait for it, one JSON object a line, and answers each with a number. Stands alone,
# as it also runs where this package is not installed.
SERVER = """
import gc, importlib, json, os, sys, traceback, types

gc.disable()  # until everything is imported, none of which is garbage
answers = os.dup(1)
os.dup2(2, 1)  # for whatever prints while it is imported
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()
gc.enable()


def run(request):
    os.close(answers)
    for number, path in enumerate((os.devnull, request["output"], request["errors"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(request["code"], "<string>", "exec"), main.__dict__)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


os.write(answers, b"0\\n")
for line in sys.stdin:
    request = json.loads(line)
    if "pid" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
    else:
        answer = os.fork()
        if answer == 0:
            run(request)
    os.write(answers, b"%d\\n" % answer)
"""
# for a [`WarmPython`]: what `generate`, the Auto classes and a Llama are made of
TRANSFORMERS = ("torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama")
TIMEOUT = 300  # seconds


class Running:
    """A process of a [`WarmPython`]. `returncode` is there after `communicate`, negative if a signal has ended it."""

    def __init__(self, python: "WarmPython", pid: int, folder: Path):
        self._python, self._folder = python, folder
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Waits for the end. Returns what was printed, and the errors."""
        try:
            self.returncode = self._python.ask({"pid": self.pid})
        except TimeoutError:
            self.kill()
            raise
        return (self._folder / "output").read_text(), (self._folder / "errors").read_text()


class WarmPython:
    """
    An interpreter that has imported `modules`, which can take seconds, and runs code in copies of its process. Each
    copy is as fresh as a new interpreter with these imports. For use in a `with` statement.

    Args:
        modules: names of modules; submodules are what makes lazy packages read their files.
        python: the interpreter.
        environment: all of its environment variables.
    """

    def __init__(
        self,
        modules: Sequence[str],
        python: str | Path = sys.executable,
        environment: Mapping[str, str] | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="warm-python-")
        self._server = subprocess.Popen(
            [python, "-c", SERVER, *modules], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._count = 0
        self._is_ready = False

    def __enter__(self) -> "WarmPython":
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.kill()
        self._server.communicate()
        self._folder.cleanup()

    def ask(self, request: dict[str, Any]) -> int:
        """What the server answers to a request."""
        if not self._is_ready:
            self._is_ready = self._read() == 0
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._server.stdout is not None
        readable, _, _ = select.select([self._server.stdout], [], [], TIMEOUT)
        if not readable:
            self._server.kill()
            raise TimeoutError(f"A process gave no answer in {TIMEOUT} seconds.")
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("The interpreter has ended; what it said is in the captured errors.")
        return int(line)

    def start(
        self,
        code: str,
        *arguments: Any,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """
        Starts `code` in a copy of the interpreter's process.

        Args:
            arguments: for `sys.argv[1:]`.
            folder: where it runs.
            environment: variables that are added, for code that reads them after the import of the modules.
        """
        self._count += 1
        logs = Path(self._folder.name) / str(self._count)
        logs.mkdir()
        request = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder or Path.cwd()),
            "environment": {**(environment or {})},
            "output": str(logs / "output"),
            "errors": str(logs / "errors"),
        }
        return Running(self, self.ask(request), logs)

    def run(
        self,
        code: str,
        *arguments: Any,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Like [`~WarmPython.start`], and waits for the end."""
        process = self.start(code, *arguments, folder=folder, environment=environment)
        output, errors = process.communicate()
        assert process.returncode is not None
        return subprocess.CompletedProcess(code, process.returncode, output, errors)


def launch(python: WarmPython, script: Path, values: dict[str, Any], folder: Path) -> None:
    """
    Runs `script` in two processes, with the environment that a launcher gives them and the path of a file that holds
    `values`. Both must end well.
    """
    (folder / "values.json").write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processes = [
        python.start(
            script.read_text(), folder / "values.json", environment={**common, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors[-4000:]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()


def run_until_killed(function: Callable[[], Any]) -> None:
    """Runs `function` in a copy of this process and checks that it dies of SIGKILL, which `function` arranges."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def kill_at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but the process is killed at the given call (the first is 1)."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return counted
