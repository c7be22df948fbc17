# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Fixtures and options. Nothing heavy is imported here, as the process that hands out the tests would import it as well.
"""

import gc
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from helpers.processes import TRANSFORMERS, WarmPython

os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads: the tests run in two processes
PROCESSES = {"bare_python", "browser", "pythons", "site", "warm_python"}  # fixtures


@pytest.fixture(scope="module")  # while it is open, an event loop runs in this thread
def browser():
    """A headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    with playwright.sync_playwright() as driver:
        candidates = [*map(shutil.which, names), driver.chromium.executable_path]
        path = next((path for path in candidates if path and Path(path).exists()), None)
        if path is None:
            pytest.skip(f"needs Chromium: none of {', '.join(names)} is on the PATH (apt-get install chromium)")
        # without a sandbox, as it may be run as root, and without calls home
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        chromium = driver.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def warm_python():
    """Runs code in processes that have imported transformers, and nothing of ours."""
    with WarmPython(TRANSFORMERS) as python:
        yield python


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """An interpreter with this one's packages, but for ours."""
    import torch
    import transformers

    import transformers_jakiro

    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # the paths that packages lie in, without the links to checkouts that lie beside them
    paths = {str(Path(module.__file__).parents[1]) for module in (torch, transformers)}
    if str(Path(transformers_jakiro.__file__).parents[1]) in paths:
        pytest.skip("this package lies beside the others: install it with `pip install --editable`")
    (Path(site.strip()) / "others.pth").write_text("\n".join(paths) + "\n")
    return python


def pytest_addoption(parser):
    parser.addoption(
        "--other-python",
        type=Path,
        metavar="PYTHON",
        help="interpreter with this package and another version of transformers: writes drafters that are loaded here",
    )
    parser.addoption(
        "--compat",
        action="store_true",
        help="only the tests marked `compat`, and of those that take an architecture only a handful",
    )


def pytest_collection_finish():
    """What has been imported stays; nothing is gained by searching it for garbage again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    """Skips tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(config, items):
    """Marks tests whose fixtures start processes. `--compat` leaves the tests of `make test-matrix`."""
    for item in items:
        if PROCESSES & set(item.fixturenames):
            item.add_marker(pytest.mark.integration)
    if not config.getoption("--compat"):
        return

    def is_chosen(item: pytest.Item) -> bool:
        architecture = getattr(item, "callspec", None) and item.callspec.params.get("architecture")
        marker = item.get_closest_marker("compat")
        wanted = marker is not None and marker.args != (False,)  # `compat(False)`: not this one of a marked module
        return wanted and architecture in (None, "llama", "gemma3", "qwen3_moe", "gpt2")

    left_out = [item for item in items if not is_chosen(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if is_chosen(item)]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with numbers of the published implementation; its README says what they are."""
    return Path(__file__).with_name("golden")


@pytest.fixture
def golden_original(golden, tmp_path):
    """Function: copies the drafter of a golden folder as a checkpoint folder, and returns that."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(golden / name / "draft_original.safetensors", folder / "model.safetensors")
        shutil.copy(golden / name / "draft_original_config.json", folder / "config.json")
        return folder

    return copy


@pytest.fixture
def target_config():
    """A target that [`make_original`] drafters fit."""
    from transformers import LlamaConfig

    from helpers.original_checkpoints import HEADS, HIDDEN, KV_HEADS, VOCAB

    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        bos_token_id=5,
        eos_token_id=[6, 7],
        pad_token_id=8,
    )
