# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Makes a virtual environment with this checkout in it: from the lock, or with the newest or oldest versions that
`pyproject.toml` allows.

PyTorch is the build that fits the machine (a CPU build where there is no GPU): a wheel in a folder that pip's own
`find-links` names if there is one, else what uv's `--torch-backend=auto` picks, else the one of the package index.
Needs nothing but a Python; runs on old ones too, to tell them that they are too old.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class SetUpError(Exception):
    """What cannot be installed, and what to do about it."""


def check_python(interpreter, remedy):
    """Raises `SetUpError` if an interpreter is older than this package's oldest."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.search(r'^requires-python = ">=(\d+)\.(\d+)"', text, flags=re.M).groups()
    version = platform.python_version()
    if str(interpreter) != sys.executable:
        version = subprocess.check_output([str(interpreter), "-V"]).decode().split()[-1]
    if tuple(map(int, version.split(".")[:2])) < tuple(map(int, needed)):
        raise SetUpError(
            f"transformers-jakiro needs Python {'.'.join(needed)} or newer, {interpreter} is {version}. {remedy}"
        )
    return version


def python_of(environment):
    """The interpreter of an environment."""
    return Path(environment) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(environment, requirements, lock=None, resolution="highest", python=sys.executable):
    """
    Makes the environment, or completes it.

    Args:
        environment (`Path`): its folder.
        requirements (`list[str]`): what to install, as `pip install` takes it; `-e .[test]` is this checkout.
        lock (`Path`, *optional*): exact versions, of what is built with, too.
        resolution (`str`): where the lock says nothing, `"highest"` or `"lowest-direct"`, as uv calls it.
        python (`str`): interpreter for a new environment.

    Raises:
        SetUpError: if something cannot be installed.
    """
    inside = python_of(environment)
    if lock is not None and not Path(lock).is_file():
        raise SetUpError(f"The lock must be a file, got {lock}. `make lock` writes one.")
    if not inside.exists():
        try:
            check_python(python, "Name a newer one: `make ... PYTHON=python3.12`.")
            _run(
                [python, "-m", "venv", str(environment)],
                f"A virtual environment cannot be made in {environment}. If ensurepip is missing: "
                "`apt-get install python3-venv` adds it on Debian and Ubuntu.",
            )
        except SetUpError:
            shutil.rmtree(environment, ignore_errors=True)  # it would be taken for a whole one
            raise
    version = check_python(inside, f"Remove {environment} and try again.")
    _run([str(inside), "-m", "pip", "--version"], f"{environment} has no pip. Remove it and try again.")
    print(f"Installing into {environment}, which takes a minute or two.", file=sys.stderr, flush=True)
    pins = [] if lock is None else ["--constraint", str(lock)]
    remedy = "Check the network and the package index."
    if lock is not None:
        remedy = (
            f"{Path(lock).name} may not fit {platform.platform()} with Python {version}. "
            "`make ... LOCK= VENV=.venv-newest` takes the newest versions that pyproject.toml allows instead."
        )
    pip = [str(inside), "-m", "pip", "install", "--quiet", *pins]
    _run([*pip, "uv"], f"uv cannot be installed. {remedy}")
    uv = [str(inside), "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(inside), *pins]
    if lock is None:  # what is there already may have become old
        uv += ["--upgrade", "--resolution", resolution]
    else:
        uv += ["--build-constraints", str(lock)]
        # pip knows where the wheels of this machine are
        if (
            subprocess.run([*pip, "--no-index", "--no-deps", "torch"], capture_output=True, check=False).returncode
            == 0
        ):
            _run([*uv, *requirements], f"The packages cannot be installed. {remedy}")
            return
    fitting = subprocess.run([*uv, "--torch-backend=auto", *requirements], capture_output=True, check=False)
    if fitting.returncode != 0:
        # PyTorch's own index cannot be reached, or another fault that shows again now
        print(
            "Not the build of PyTorch that fits this machine, but that of the package index, which may be larger.",
            file=sys.stderr,
            flush=True,
        )
        _run([*uv, *requirements], f"The packages cannot be installed. {remedy}")


def _run(command, problem):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        output = done.stdout.decode(errors="replace").strip()
        raise SetUpError(f"{problem}\n\n{output}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("environment", type=Path, help="folder of the environment")
    parser.add_argument("requirements", nargs="+", help="what to install, for example '.[test]'")
    parser.add_argument("--editable", action="store_true", help="install the first one so that changes take effect")
    parser.add_argument("--lock", type=Path, help="file of exact versions (none)")
    parser.add_argument(
        "--resolution",
        choices=("highest", "lowest-direct"),
        default="highest",
        help="which of the allowed versions to take without a lock (highest)",
    )
    args = parser.parse_args()
    requirements = ["--editable"] * args.editable + args.requirements
    try:
        install(args.environment, requirements, args.lock, args.resolution)
    except SetUpError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
