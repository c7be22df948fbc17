# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Supported versions: said the same everywhere, and anything else refused in one message."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import transformers_jakiro
from transformers_jakiro import UnsupportedVersionError
from transformers_jakiro.core import versions

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(monkeypatch):
    """Function: lets a package seem to be installed in another version, None for not at all."""

    def pretend(name, version):
        original = metadata.version

        def other(asked):
            if asked != name:
                return original(asked)
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(versions, "version", other)

    return pretend


def test_the_metadata_says_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == versions.version_range(versions.SUPPORTED_PYTHON)
    requirements = {each.name: each for each in map(Requirement, project["dependencies"])}
    for name, supported in versions.SUPPORTED_PACKAGES.items():
        assert requirements[name].specifier == Requirement(name + versions.version_range(supported)).specifier
    capped = [name for name, each in requirements.items() if any(part.operator == "<" for part in each.specifier)]
    assert capped == ["transformers"]


def test_the_recipe_of_a_published_drafter_says_the_same():
    """One condition in each line: transformers reads no more."""
    lines = (ROOT / "src" / "transformers_jakiro" / "hub" / "custom_generate" / "requirements.txt").read_text().split()
    ranges = {name: versions.version_range(supported) for name, supported in versions.SUPPORTED_PACKAGES.items()}
    assert lines == [name + part for name, text in ranges.items() for part in text.split(",")]


def test_one_version_of_ours():
    assert metadata.version("transformers-jakiro") == transformers_jakiro.__version__


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        (
            "transformers",
            "5.14.1",
            r"needs transformers>=5.15,<5.25, got transformers 5.14.1. Run `pip install 'transformers>=5.15,<5.25'`.$",
        ),
        ("transformers", "5.25.0.dev0", r"got transformers 5.25.0.dev0. Run .*, or upgrade transformers-jakiro\.$"),
        ("transformers", "4.57.6", r"got transformers 4.57.6"),
        ("torch", "2.6.0+cu124", r"needs torch>=2.7, got torch 2.6.0\+cu124. Run `pip install 'torch>=2.7'`\.$"),
        ("torch", None, r"needs torch>=2.7, got no torch. Run `pip install 'torch>=2.7'`\.$"),
    ],
)
def test_unsupported_packages(name, version, message, installed):
    installed(name, version)
    with pytest.raises(UnsupportedVersionError, match=message):
        versions.check_versions()


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("5.24rc1", (5, 24)),
        ("5.24+local", (5, 24)),
        ("2.9.0a0+gitabc", (2, 9)),
        ("1!5.24.0", (5, 24)),
        ("5", (5, 0)),
        ("unknown", (0, 0)),
        (None, (0, 0)),
    ],
)
def test_odd_versions(text, minor):
    assert versions.minor_version(text) == minor


@pytest.mark.parametrize(
    ("name", "version"), [("transformers", "5.24.9"), ("transformers", "5.15.0"), ("torch", "3.0")]
)
def test_supported_packages(name, version, installed):
    installed(name, version)
    versions.check_versions()


def test_unsupported_python(monkeypatch):
    monkeypatch.setattr(versions.sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(UnsupportedVersionError, match=r"needs Python>=3.11, got 3.10.13"):
        versions.check_versions()


@pytest.mark.integration
def test_importing_says_it_first(tmp_path):
    """Before any import that such a version lacks: here transformers is an empty module. And the command says it."""
    site = tmp_path / "site"
    (site / "transformers-5.3.0.dist-info").mkdir(parents=True)
    (site / "transformers-5.3.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 5.3.0\n")
    (site / "transformers.py").touch()
    for code, stands_alone in (
        ("import transformers_jakiro", False),
        ("import jakiro_cli; jakiro_cli.main(['demo'])", True),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, text=True
        )
        last = done.stderr.strip().splitlines()[-1]
        assert "needs transformers>=5.15,<5.25, got transformers 5.3.0. Run `pip install" in last
        assert ("Traceback" in done.stderr) != stands_alone


@pytest.mark.compat(False)
@pytest.mark.integration
def test_public_names_have_one_home(warm_python):
    """Each is documented where it is defined, and the trainer is imported only when it is asked for."""
    reference = (ROOT / "docs" / "api" / "index.md").read_text()
    linked = dict(re.findall(r"\[`(\w+)`\]\(\w+\.md#([\w.]+)\)", reference))
    assert set(linked) == set(transformers_jakiro.__all__)
    for name, home in linked.items():
        value = getattr(transformers_jakiro, name)
        assert home == f"{value.__module__}.{value.__qualname__}"
    code = "import sys, transformers_jakiro as j; print('peft' in sys.modules, 'JakiroTrainer' in dir(j))"
    assert warm_python.run(code).stdout == "False True\n"
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        transformers_jakiro.Trainer  # noqa: B018


@pytest.mark.compat(False)
@pytest.mark.integration
def test_a_lock_that_does_not_fit_the_platform(tmp_path, bare_python):
    """One message with the remedy and what pip said."""
    environment = bare_python.parents[1] if find_spec("pip") else tmp_path / "venv"  # a new one takes a while
    lock = tmp_path / "some.lock"
    lock.write_text("uv==0.0.1.dev999\n")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "environment.py", environment, ".", "--lock", lock],
        env={**os.environ, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "\nerror: uv cannot be installed. some.lock may not fit " in done.stderr
    assert "LOCK= VENV=.venv-newest` takes the newest versions" in done.stderr
    assert "uv" in done.stderr.partition("\n\n")[2]  # what pip said
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_environments_of_an_old_python_are_refused(tmp_path):
    code = (
        "import platform, sys, runpy; platform.python_version = lambda: '3.8.10'; "
        "sys.argv = ['environment', 'venv', '.']; "
        f"runpy.run_path({str(ROOT / 'tools' / 'environment.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"error: transformers-jakiro needs Python 3.11 or newer, .*PYTHON=python3.12`.\n", done.stderr)
    assert not (tmp_path / "venv").exists()


@pytest.mark.compat(False)
@pytest.mark.integration
def test_environments_that_are_not_whole_are_named(tmp_path):
    tool, folder = ROOT / "tools" / "environment.py", tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    for arguments, message in (
        ([folder, "."], rf"{folder} has no pip. Remove it and try again."),
        ([folder, ".", "--lock", tmp_path / "no.lock"], r"The lock must be a file, got .*no.lock. `make lock` writes"),
    ):
        done = subprocess.run([sys.executable, tool, *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert re.match(f"error: {message}", done.stderr)
        assert "Traceback" not in done.stderr
