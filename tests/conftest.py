# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig

torch.set_num_threads(1)

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, INNER = 32, 4, 2, 8, 48, 24


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
def bare_python(tmp_path_factory):
    """An interpreter with this one's packages, but for ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # the paths that packages lie in, without the links to checkouts that lie beside them
    paths = {str(Path(module.__file__).parents[1]) for module in (torch, transformers)}
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


def pytest_collection_modifyitems(config, items):
    """The subset that `make test-matrix` runs with each version of transformers."""
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
def golden(request) -> Path:
    """Numbers of the published implementation; they live next to the repository, not in it."""
    path = request.config.rootpath.parent / "shared" / "golden"
    if not path.is_dir():
        pytest.skip("the golden vectors are not here: expected in ../shared/golden, next to the repository")
    return path


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
def target_config() -> LlamaConfig:
    """A target that [`make_original`] drafters fit."""
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


def make_original(
    variant: str = "jakiro",
    num_experts: int = 2,
    num_layers: int = 1,
    fc_bias: bool = True,
    qkv_bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, torch.Tensor], dict]:
    """
    Tensors and config of an original checkpoint: `variant` is "jakiro", "star" or "eagle". The names are spelled out
    here once more, on purpose.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"fc.weight": (HIDDEN, 2 * HIDDEN)}
    if fc_bias:
        shapes["fc.bias"] = (HIDDEN,)
    for layer in range(num_layers):
        prefix = f"layers.{layer}."
        for name, rows in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            if qkv_bias:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
        if layer > 0:
            shapes[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
        if variant == "eagle":
            shapes[f"{prefix}mlp.gate_proj.weight"] = (INNER, HIDDEN)
            shapes[f"{prefix}mlp.up_proj.weight"] = (INNER, HIDDEN)
            shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INNER)
            continue
        contrastive = variant == "jakiro" and layer == num_layers - 1
        shapes[f"{prefix}mlp_moe.gate.weight"] = (num_experts + (2 if contrastive else 0), HIDDEN)
        for expert in range(num_experts):
            for name in ("gate_proj", "up_proj") if variant == "jakiro" else ("fc",):
                shapes[f"{prefix}mlp_moe.experts.{expert}.{name}.weight"] = (INNER, HIDDEN)
            name = "down_proj" if variant == "jakiro" else "proj"
            shapes[f"{prefix}mlp_moe.experts.{expert}.{name}.weight"] = (HIDDEN, INNER)
    tensors = {}
    for name, shape in shapes.items():
        offset, scale = (1.0, 0.1) if "norm" in name else (0.0, 1.0 if "gate.weight" in name else 0.3)
        tensors[name] = (offset + scale * torch.randn(shape, generator=generator)).to(dtype)
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 999 if variant == "jakiro" else INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if variant != "eagle":
        config |= {"num_local_experts": num_experts, "num_experts_per_tok": 2}
    if not fc_bias:
        config["bias"] = False
    if qkv_bias:
        config["qkv_bias"] = True
    return tensors, config


def write_original(folder: Path, tensors: dict, config: dict | None, weights: str = "model.safetensors") -> Path:
    """Writes a checkpoint folder; `weights` is one of the four names a loader looks for."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if not weights.endswith(".index.json"):
        save = save_file if weights.endswith(".safetensors") else torch.save
        save(tensors, folder / weights)
        return folder
    stem, suffix = weights.removesuffix(".index.json").split(".")
    save = save_file if suffix == "safetensors" else torch.save
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-0000{part}-of-00002.{suffix}"
        save({name: tensors[name] for name in chosen}, folder / shard)
        weight_map |= dict.fromkeys(chosen, shard)
    (folder / weights).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
