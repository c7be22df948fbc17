# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Converts published checkpoints to [`JakiroDraftModel`]: original Jakiro, Jakiro\\* and EAGLE-1/2 drafters, and EAGLE-3
drafters in the layouts of SafeAILab, SpecForge and speculators.

Nothing in such a checkpoint marks its variant, and its config holds fields that do not apply. So the architecture is
inferred from the names and shapes of tensors, and the config only supplies what shapes cannot tell. Then every tensor
must be present, finite and of the expected shape, and there must be no others: a drafter with a wrong weight still
runs, but drafts nonsense.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..core.checkpoint import read_json
from ..core.configuration_jakiro import JakiroDraftConfig
from ..core.modeling_jakiro import JakiroDraftModel
from .architecture import count_indices, infer_config
from .eagle3 import drop_target_embeddings, is_eagle3, read_draft_token_ids, unify_eagle3
from .key_map import (
    check_tensors,
    jakiro_state_dict_to_original,
    original_shapes,
    original_state_dict_to_jakiro,
)
from .reading import WEIGHTS_FILES, read_weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}

# the files to fetch from the Hub for either format
_HUB_PATTERNS = (
    ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"],
    ["config.json", "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"],
)
# fields of config.json that have the same names in both layouts
_SAME_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_PREFIXES = ("model.", "ea_layer.")
# tensors of the target, tensors that are recomputed, and tensors that were read before
_IGNORED = re.compile(
    r"embed_tokens\.weight|lm_head\.weight|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|verifier_(norm|lm_head)\.weight|d2t|t2d"
)
# names without a prefix, even where all others have one
_WITHOUT_PREFIX = ("lm_head.weight", "d2t", "t2d")


def load_original(
    path_or_repo_id: str | Path,
    target: PreTrainedModel | PreTrainedConfig | str | Path | None = None,
    *,
    model_class: type[JakiroDraftModel] = JakiroDraftModel,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> JakiroDraftModel:
    """
    Reads a drafter in the layout of the published Jakiro, Jakiro\\* and EAGLE-1/2 checkpoints, or an EAGLE-3 drafter
    in the layout of SafeAILab, SpecForge or speculators.

    Args:
        path_or_repo_id (`str` or `Path`):
            A folder with `config.json` and weights (`model.safetensors`, `pytorch_model.bin`, or either one sharded),
            or the id of such a repository on the Hub. Pickled weights are read with `weights_only=True`.
        target ([`~transformers.PreTrainedModel`], [`~transformers.PreTrainedConfig`], `str` or `Path`, *optional*):
            The target, its config, or the place to load its config from. Supplies vocabulary size, special tokens and
            name, which otherwise come from the checkpoint's own config, and is checked against the checkpoint. Most
            EAGLE-3 drafters need it to determine the layers they read. Their own embeddings are dropped if they equal
            the target's; to compare them, the target must be a model or a local folder with safetensors.
        model_class (`type`, *optional*):
            The class of the drafter. Default: [`JakiroDraftModel`] without the methods for the Hub.
        dtype (`torch.dtype` or `str`, *optional*):
            The precision of the drafter. None or `"auto"`: the checkpoint's.
        revision, token, cache_dir, local_files_only:
            See [`~huggingface_hub.snapshot_download`]. `revision` is the drafter's, not the target's.

    Returns:
        The drafter, an instance of `model_class`.

    Raises:
        ValueError: if the checkpoint is damaged or incomplete, if it contradicts itself or the target, or if it is not
            such a drafter.
        OSError: if files are missing.
    """
    torch_dtype = _as_dtype(dtype)
    hub_kwargs = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = _locate(path_or_repo_id, revision=revision, **hub_kwargs)
    original_config = read_json(folder / "config.json")
    tensors = read_weights(folder)
    target_config = _load_target_config(target, **hub_kwargs)
    try:
        tensors = _strip_prefix(tensors)
        _refuse_foreign(tensors, original_config)
        if is_eagle3(tensors, original_config):
            tensors, original_config = unify_eagle3(tensors, original_config)
            drop_target_embeddings(tensors, target)
        config = infer_config(tensors, original_config, target_config)
        if isinstance(target, (str, Path)):
            config.target_name_or_path = str(target)
        draft_token_ids = read_draft_token_ids(tensors, config)
        shapes = original_shapes(config)
        tensors = {name: tensor for name, tensor in tensors.items() if name in shapes or not _IGNORED.fullmatch(name)}
        check_tensors(tensors, shapes, "an original checkpoint")
        tensors = _check_and_cast(tensors, torch_dtype)
    except ValueError as error:
        raise ValueError(f"Cannot convert {path_or_repo_id}: {error}") from error
    weights = original_state_dict_to_jakiro(tensors, config)
    if draft_token_ids is not None:
        weights["draft_token_ids"] = draft_token_ids
    model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=tensors["fc.weight"].dtype)
    model.config.name_or_path = model.name_or_path = str(path_or_repo_id)
    return model


def convert_original(
    src: str | Path,
    dst: str | Path,
    target: PreTrainedModel | PreTrainedConfig | str | Path | None = None,
    **kwargs: Any,
) -> Path:
    """
    Converts an original checkpoint to a folder for [`JakiroDraftModel.from_pretrained`].

    The folder appears complete or not at all: it is written next to `dst` under another name and then renamed.

    Args:
        src (`str` or `Path`): folder or Hub id of the original checkpoint.
        dst (`str` or `Path`): the new folder. Must not exist, or be empty.
        target, kwargs: see [`load_original`].

    Returns:
        `Path`: the absolute path of `dst`.

    Raises:
        FileExistsError: if `dst` is a file or holds files.
        ValueError, OSError: see [`load_original`].
    """
    dst = _new_folder(dst)
    model = load_original(src, target=target, **kwargs)
    with _complete_or_absent(dst) as folder:
        model.save_pretrained(folder)
    return dst


def export_original(draft_model: JakiroDraftModel, dst: str | Path) -> Path:
    """
    Reverses [`convert_original`]: writes a folder in the layout of the published Jakiro, Jakiro\\* or EAGLE-1/2
    checkpoints, with `config.json` and `model.safetensors`. It appears complete or not at all.

    Args:
        draft_model ([`JakiroDraftModel`]): a drafter that the published code of this layout runs with the same result.
        dst (`str` or `Path`): the new folder. Must not exist, or be empty.

    Returns:
        `Path`: the absolute path of `dst`.

    Raises:
        FileExistsError: if `dst` is a file or holds files.
        ValueError: if the published code cannot run this drafter; the message says why.
    """
    dst = _new_folder(dst)
    config = cast(JakiroDraftConfig, draft_model.config)
    tensors = jakiro_state_dict_to_original(draft_model.state_dict(), config)
    _check_published_code_runs(config)
    original = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": config.expert_intermediate_size,
        "rope_theta": _rope(config)["rope_theta"],
        "bias": config.fusion_bias,
        "torch_dtype": str(draft_model.dtype).removeprefix("torch."),
        "tie_word_embeddings": False,
        **{name: getattr(config, name) for name in _SAME_FIELDS},
    }
    if config.attention_bias:
        original["qkv_bias"] = True
    if config.num_experts > 1:
        original |= {"num_local_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_tok}
    if config.static_tree is not None:
        original["static_tree"] = config.static_tree
    with _complete_or_absent(dst) as folder:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(original, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return dst


def _rope(config: JakiroDraftConfig) -> dict[str, Any]:
    return cast(dict[str, Any], config.rope_parameters)


def _check_published_code_runs(config: JakiroDraftConfig) -> None:
    """Raises `ValueError` for what the published code hard-wires differently; it would load, and draft nonsense."""
    is_jakiro = config.head_mode == "contrastive"
    is_star = config.head_mode == "decoupled"
    theta = _rope(config)["rope_theta"]
    for wrong, rule, got in (
        (config.num_experts > 2, "two experts at most", f"num_experts={config.num_experts}"),
        (
            is_jakiro and config.expert_intermediate_size != config.hidden_size,
            f"experts as wide as the hidden size ({config.hidden_size})",
            f"expert_intermediate_size={config.expert_intermediate_size}",
        ),
        (
            (is_jakiro or is_star) and config.num_hidden_layers > 1,
            "one layer with experts",
            f"num_hidden_layers={config.num_hidden_layers}",
        ),
        (
            cast(int, config.head_dim) * config.num_attention_heads != config.hidden_size,
            f"heads that make up the hidden size ({config.hidden_size})",
            f"num_attention_heads={config.num_attention_heads}, head_dim={config.head_dim}",
        ),
        (
            _rope(config).get("rope_type", "default") != "default",
            "rotary embeddings without scaling",
            f"rope_parameters={config.rope_parameters}",
        ),
        (is_star and theta != 10000, "a rotary base of 10000 for Jakiro*", f"rope_theta={theta}"),
        (is_star and config.attention_bias, "no bias in the attention of Jakiro*", "attention_bias=True"),
    ):
        if wrong:
            raise ValueError(
                f"The published code of this layout supports only {rule}, got {got}. Save this drafter with "
                "`save_pretrained` instead."
            )


def _new_folder(path: str | Path) -> Path:
    path = Path(path).expanduser().resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"{path} exists and is not an empty folder: choose another destination, or remove it first."
        )
    return path


@contextmanager
def _complete_or_absent(dst: Path) -> Iterator[Path]:
    """Gives a path to write a folder at, which is renamed to `dst` if there was no error."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}-", dir=dst.parent) as scratch:
        complete = Path(scratch) / dst.name
        yield complete
        if dst.is_dir():
            dst.rmdir()  # raises unless it is empty; renaming onto an empty folder is not portable
        complete.rename(dst)


def _strip_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drops `model.` or `ea_layer.` if every name begins with it."""
    for prefix in _PREFIXES:
        prefixed = [name.startswith(prefix) for name in tensors if name not in _WITHOUT_PREFIX]
        if prefixed and all(prefixed):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _refuse_foreign(tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a checkpoint that is recognizably something else; the message says what it is."""
    supported = "Supported are original Jakiro, Jakiro* and EAGLE-1/2/3 drafters."
    kind = original.get("speculators_model_type", "eagle3")
    if kind != "eagle3":
        raise ValueError(
            f"it is a drafter of the speculators library with `speculators_model_type={kind!r}`, expected 'eagle3'. "
            f"{supported}"
        )
    if original.get("model_type") == JakiroDraftConfig.model_type or any(".qkv_proj." in name for name in tensors):
        raise ValueError(
            "it is not in the original layout; if it was saved by this library, load it with "
            f"`JakiroDraftModel.from_pretrained`. {supported}"
        )
    if "fc.weight" not in tensors:
        num_layers = count_indices(tensors, r"(?:.*\.)?layers\.(\d+)\..+")
        is_language_model = any(re.fullmatch(r"(.*\.)?layers\.0\.input_layernorm\.weight", name) for name in tensors)
        what = (
            f"it looks like a full language model of {num_layers} layers"
            if is_language_model
            else "it is not a drafter"
        )
        raise ValueError(
            f"{what}: `fc.weight` is missing, the layer that fuses embeddings and features (found {len(tensors)} "
            f"tensors, such as {sorted(tensors)[:3]}). {supported}"
        )


def _check_and_cast(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Casts all tensors to `dtype`, if any. Raises `ValueError` for integers, mixed dtypes, NaN and infinity."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)} is of dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}. "
                "Quantized checkpoints are not supported: use the original one."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)} holds NaN or infinite values. The checkpoint is damaged, or its "
                "training diverged: use another one."
            )
    if dtype is None:
        first, dtype = next((name, tensor.dtype) for name, tensor in tensors.items())
        other = next((name for name, tensor in tensors.items() if tensor.dtype != dtype), None)
        if other is not None:
            raise ValueError(
                f"`{first}` is {dtype}, but `{other}` is {tensors[other].dtype}: choose one with `dtype`, for example "
                "`dtype='float32'`."
            )
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in cast.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)} overflows in {dtype}: choose `dtype='bfloat16'` or wider."
            )
    return cast


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    known = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if known not in DTYPES.values():
        raise ValueError(f"`dtype` must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}.")
    return known


def _locate(path_or_repo_id: str | Path, revision: str | None, **hub_kwargs: Any) -> Path:
    """The local folder: the path itself, or a snapshot of the Hub repository."""
    path = Path(path_or_repo_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{path} is a file: give the folder that holds config.json and the weights.")
    try:
        for patterns in _HUB_PATTERNS:
            folder = Path(
                snapshot_download(str(path_or_repo_id), revision=revision, allow_patterns=patterns, **hub_kwargs)
            )
            if any((folder / name).is_file() for name in WEIGHTS_FILES):
                break
    except (HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{path_or_repo_id} is not a local folder and could not be fetched from the Hub: {error}"
        ) from error
    return folder


def _load_target_config(
    target: PreTrainedModel | PreTrainedConfig | str | Path | None, **hub_kwargs: Any
) -> PreTrainedConfig | None:
    if target is None or isinstance(target, PreTrainedConfig):
        return target
    if isinstance(target, PreTrainedModel):
        return target.config
    if isinstance(target, (str, Path)):
        return AutoConfig.from_pretrained(target, trust_remote_code=False, **hub_kwargs)
    raise TypeError(f"`target` must be a model, a config, a path or a Hub id, got {type(target).__name__}.")


__all__ = ["convert_original", "export_original", "load_original"]
