# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Converts published checkpoints to [`JakiroDraftModel`]: original Jakiro, Jakiro\\* and EAGLE-1/2 drafters, and EAGLE-3
drafters in the layouts of SafeAILab, SpecForge and speculators.

Nothing in such a checkpoint marks its variant, and its config holds fields that do not apply. So the architecture is
inferred from the names and shapes of tensors, and the config only supplies what shapes cannot tell. Then every tensor
must be present, finite and of the expected shape, and there must be no others: a drafter with a wrong weight still
runs, but drafts nonsense.

Symbols in shape comments: H hidden size, N experts, I inner width of one expert.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..core.checkpoint import read_json
from ..core.configuration_jakiro import JakiroDraftConfig
from ..core.modeling_jakiro import JakiroDraftModel
from .eagle3 import (
    Layout,
    drop_target_embeddings,
    eagle3_layout,
    infer_draft_vocab_size,
    infer_eagle3,
    is_eagle3,
    read_draft_token_ids,
    unify_eagle3,
)
from .reading import WEIGHTS_FILES, config_int, matrix_shape, read_weights

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
_PUBLISHED_MAX_POSITIONS = 2048  # the default of the published code
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
        config = _infer_config(tensors, original_config, target_config)
        if isinstance(target, (str, Path)):
            config.target_name_or_path = str(target)
        draft_token_ids = read_draft_token_ids(tensors, config)
        shapes = _original_shapes(config)
        tensors = {name: tensor for name, tensor in tensors.items() if name in shapes or not _IGNORED.fullmatch(name)}
        _check_layout(tensors, shapes, "an original checkpoint")
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


# --- the key map -----------------------------------------------------------------------------------------------------


def _layout(config: JakiroDraftConfig) -> Layout:
    """
    The key map, both ways: each of our tensors is the concatenation, along a dimension, of original tensors.

    Returns:
        `{our name: (dimension, {original name: its shape})}`.

    Raises:
        ValueError: if no original checkpoint has experts of this kind.
    """
    eagle3 = config.fusion == "eagle3"
    if not eagle3:
        _check_has_layout(config)
    fields: dict[str, Any] = config.to_dict()
    hidden, inner = fields["hidden_size"], fields["expert_intermediate_size"]
    q_size = fields["num_attention_heads"] * fields["head_dim"]
    kv_size = fields["num_key_value_heads"] * fields["head_dim"]
    if eagle3:
        layout = eagle3_layout(config)
    else:
        layout = {"fc.weight": (0, {"fc.weight": (hidden, 2 * hidden)})}
        if config.fusion_bias:
            layout["fc.bias"] = (0, {"fc.bias": (hidden,)})
    for layer in range(config.num_hidden_layers):
        ours = f"layers.{layer}"
        attention, norms = f"{ours}.self_attn", ["post_attention_layernorm"]
        qkv, qkv_in = {"q": q_size, "k": kv_size, "v": kv_size}, hidden
        if eagle3 and layer == 0:
            qkv_in = 2 * hidden
            norms += ["input_layernorm", "hidden_norm"]
        layout[f"{attention}.qkv_proj.weight"] = (
            0,
            {f"{attention}.{x}_proj.weight": (rows, qkv_in) for x, rows in qkv.items()},
        )
        if config.attention_bias:
            layout[f"{attention}.qkv_proj.bias"] = (
                0,
                {f"{attention}.{x}_proj.bias": (rows,) for x, rows in qkv.items()},
            )
        layout[f"{attention}.o_proj.weight"] = (0, {f"{attention}.o_proj.weight": (hidden, q_size)})
        if layer > 0:
            norms.append("input_layernorm")
        for norm in norms:
            layout[f"{ours}.{norm}.weight"] = (0, {f"{ours}.{norm}.weight": (hidden,)})

        if config.num_experts == 1:
            mlps = [f"{ours}.mlp"]
        else:
            mlps = [f"{ours}.mlp_moe.experts.{expert}" for expert in range(config.num_experts)]
            # only the last layer has a contrastive branch, hence its two logits
            has_contrast = config.head_mode == "contrastive" and layer == config.num_hidden_layers - 1
            gate_size = config.num_experts + (2 if has_contrast else 0)
            layout[f"{ours}.mlp.gate.weight"] = (0, {f"{ours}.mlp_moe.gate.weight": (gate_size, hidden)})
        if config.gated_experts:
            gate_up = _named(mlps, "gate_proj", inner, hidden) | _named(mlps, "up_proj", inner, hidden)
            layout[f"{ours}.mlp.experts.gate_up_proj.weight"] = (0, gate_up)
            down = _named(mlps, "down_proj", hidden, inner)
        else:
            layout[f"{ours}.mlp.experts.up_proj.weight"] = (0, _named(mlps, "fc", inner, hidden))
            down = _named(mlps, "proj", hidden, inner)
        layout[f"{ours}.mlp.experts.down_proj.weight"] = (1, down)
    return layout


def _check_has_layout(config: JakiroDraftConfig) -> None:
    """Raises `ValueError` if the layouts of Jakiro and EAGLE-1/2 have no drafter of this kind."""
    kind = (config.gated_experts, config.num_experts > 1, config.head_mode)
    if kind not in ((True, True, "contrastive"), (False, True, "decoupled"), (True, False, "single")):
        raise ValueError(
            "The original layout has gated experts with a contrastive branch (Jakiro), two-layer experts with "
            "decoupled heads (Jakiro*) or one gated expert with a single head (EAGLE-1/2), got "
            f"gated_experts={config.gated_experts}, num_experts={config.num_experts}, head_mode='{config.head_mode}'. "
            "Save this drafter with `save_pretrained` instead."
        )
    if (config.embedding_multiplier, config.feature_multiplier) != (1, 1):
        raise ValueError(
            "The original layout has no multipliers of embeddings and features, got "
            f"embedding_multiplier={config.embedding_multiplier}, feature_multiplier={config.feature_multiplier}. "
            "Call `draft.fold_multipliers()` first."
        )
    if config.final_norm:
        raise ValueError(
            "The original layout has no norm after the experts, got `final_norm=True`. Save this drafter with "
            "`save_pretrained` instead; to export a drafter, train it with `final_norm=False`."
        )
    if config.feature_layers is not None:
        raise ValueError(
            "Drafters in the original layout read only the target's last hidden states, got "
            f"feature_layers={config.feature_layers}. Save this drafter with `save_pretrained` instead."
        )
    if config.draft_vocab_size is not None:
        raise ValueError(
            f"The original layout knows no part of the vocabulary to draft, got `draft_vocab_size="
            f"{config.draft_vocab_size}` of {config.vocab_size}. Save this drafter with `save_pretrained` instead."
        )


def _named(modules: list[str], projection: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{module}.{projection}.weight": shape for module in modules}


def _original_shapes(config: JakiroDraftConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for _, sources in _layout(config).values() for name, shape in sources.items()}


def _check_layout(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises `ValueError` that lists the tensors that are missing, unexpected or not of the shape in `shapes`."""
    problems = [f"`{name}` {shape} is missing" for name, shape in shapes.items() if name not in tensors]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in shapes:
            problems.append(f"`{name}` {shape} is unexpected")
        elif shape != shapes[name]:
            problems.append(f"`{name}` has shape {shape}, expected {shapes[name]}")
    if problems:
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(
            f"its {len(tensors)} tensors are not the {len(shapes)} of {what} of this architecture:\n  "
            + "\n  ".join(problems[:12])
            + more
            + "\nDownload the checkpoint again; if it is complete, its architecture is not supported."
        )


def original_state_dict_to_jakiro(
    tensors: Mapping[str, torch.Tensor], config: JakiroDraftConfig
) -> dict[str, torch.Tensor]:
    """
    Renames and fuses the tensors of an original checkpoint (without embeddings and head).

    Args:
        tensors (`Mapping[str, torch.Tensor]`): the published tensors and shapes, names without prefix.
        config ([`JakiroDraftConfig`]): the architecture they belong to.

    Returns:
        `dict[str, torch.Tensor]`: the state dict of a [`JakiroDraftModel`], which shares no memory with `tensors`.

    Raises:
        ValueError: if tensors are missing, unexpected or of a wrong shape, or if there is no original layout for the
            architecture.
    """
    _check_layout(tensors, _original_shapes(config), "an original checkpoint")
    return {
        name: torch.cat([tensors[source] for source in sources], dim=dim)
        for name, (dim, sources) in _layout(config).items()
    }


def jakiro_state_dict_to_original(
    tensors: Mapping[str, torch.Tensor], config: JakiroDraftConfig
) -> dict[str, torch.Tensor]:
    """
    The exact inverse of [`original_state_dict_to_jakiro`], for state dicts or anything shaped like one (gradients).

    Args:
        tensors (`Mapping[str, torch.Tensor]`): the state dict of a [`JakiroDraftModel`].
        config ([`JakiroDraftConfig`]): the drafter's config.

    Returns:
        `dict[str, torch.Tensor]`: contiguous tensors under their original names and with their original shapes.

    Raises:
        ValueError: if tensors are missing, unexpected or of a wrong shape, or if there is no original layout for the
            architecture.
    """
    if config.fusion == "eagle3":
        raise ValueError(
            "An EAGLE-3 drafter is not written back. It is not trained here, so the checkpoint that it was converted "
            "from holds the same weights in a layout that other loaders read. The layouts of Jakiro and EAGLE-1/2 "
            "have no place for them (a head and norms of its own, attention over embedding and feature)."
        )
    layout = _layout(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (dim, sources) in layout.items():
        shape = list(next(iter(sources.values())))
        shape[dim] = sum(source[dim] for source in sources.values())
        shapes[name] = tuple(shape)
    _check_layout(tensors, shapes, "a JakiroDraftModel")
    original = {}
    for name, (dim, sources) in layout.items():
        parts = tensors[name].split([shape[dim] for shape in sources.values()], dim=dim)
        original.update({source: part.clone() for source, part in zip(sources, parts, strict=True)})
    return {name: tensor.contiguous() for name, tensor in original.items()}


# --- the architecture ------------------------------------------------------------------------------------------------


def _infer_config(
    tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any], target: PreTrainedConfig | None
) -> JakiroDraftConfig:
    """
    Args:
        tensors: original tensors without prefix, including ignored ones.
        original: the checkpoint's `config.json`.
        target: the target's config.

    Raises:
        ValueError: if tensors that determine the architecture are missing or odd, or if config, tensors and target
            contradict each other.
    """
    text_config = target.get_text_config(decoder=True) if target is not None else None
    values = _infer_architecture(tensors, original)
    if is_eagle3(tensors, original):
        values |= infer_eagle3(tensors, original, values["hidden_size"], text_config)
    _check_against_config(tensors, original, values)
    values["vocab_size"] = config_int(original, "vocab_size")
    if text_config is not None:
        _check_against_target(values, text_config)
        values["vocab_size"] = text_config.vocab_size
        values["target_name_or_path"] = getattr(target, "name_or_path", None) or None
    elif values["vocab_size"] is None:
        raise ValueError("its config.json lacks `vocab_size`: give `target`, or add the target's to config.json.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values[name] = getattr(text_config, name, None) if text_config is not None else original.get(name)
    source = "its config.json" if text_config is None else "the config of the target"
    _check_embeddings(tensors, (values["vocab_size"], values["hidden_size"]), source)
    values["rms_norm_eps"] = _rms_norm_eps(original)
    values["max_position_embeddings"] = config_int(original, "max_position_embeddings") or _PUBLISHED_MAX_POSITIONS
    values["rope_parameters"] = _rope_parameters(original)
    values["static_tree"] = original.get("static_tree")
    if values.get("fusion") == "eagle3":
        values["draft_vocab_size"] = infer_draft_vocab_size(tensors, original, values["vocab_size"])
    try:
        return JakiroDraftConfig(**values)
    except (StrictDataclassError, KeyError, TypeError) as error:
        raise ValueError(f"its config.json results in an invalid config: {error}") from error


def _check_against_target(values: Mapping[str, Any], target: PreTrainedConfig) -> None:
    """Raises `ValueError` if the drafter's sizes are not those of the target."""
    read_size = values.get("target_hidden_size") or values["hidden_size"]
    for name, got in (("hidden_size", read_size), ("vocab_size", values["vocab_size"])):
        expected = getattr(target, name)
        if got not in (None, expected):
            raise ValueError(
                f"the drafter has `{name}={got}`, the target {expected}. A drafter only fits the target "
                "it was trained for: give that one."
            )


def _check_embeddings(tensors: Mapping[str, torch.Tensor], expected: tuple[int, int], source: str) -> None:
    """Raises `ValueError` if the drafter has embeddings that are not of the `expected` shape `[V, H]`."""
    embeddings = tensors.get("embed_tokens.weight")
    if embeddings is not None and tuple(embeddings.shape) != expected:
        raise ValueError(
            f"`embed_tokens.weight` has shape {tuple(embeddings.shape)}, expected {expected} by `vocab_size` in "
            f"{source}. Use the config or the target that belongs to these weights."
        )


def _rms_norm_eps(original: Mapping[str, Any]) -> float:
    eps = original.get("rms_norm_eps")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise ValueError(
            f"its config.json must have `rms_norm_eps`, a number between 0 and 1, got {eps!r}. Add the target's."
        )
    return float(eps)


def _infer_architecture(tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of [`JakiroDraftConfig`] that follow from names, shapes and the number of attention heads."""
    hidden_size, fc_in = matrix_shape(tensors, "fc.weight")
    if fc_in != 2 * hidden_size and not is_eagle3(tensors, original):
        raise ValueError(
            f"`fc.weight` has shape {(hidden_size, fc_in)}, expected {(hidden_size, 2 * hidden_size)}: it must fuse "
            "one embedding and one feature of the target's hidden size."
        )
    num_layers = _count(tensors, r"layers\.(\d+)\.self_attn\..+")
    num_heads = config_int(original, "num_attention_heads")
    if num_heads is None:
        raise ValueError("its config.json lacks `num_attention_heads`, which shapes cannot tell. Add it.")
    q_size, _ = matrix_shape(tensors, "layers.0.self_attn.q_proj.weight")
    kv_size, _ = matrix_shape(tensors, "layers.0.self_attn.k_proj.weight")
    head_dim = q_size // num_heads
    if q_size % num_heads != 0 or kv_size % head_dim != 0:
        raise ValueError(
            f"`num_attention_heads={num_heads}` in its config.json does not divide the attention: q_proj has {q_size} "
            f"rows, k_proj {kv_size}. Correct it to the head count that the drafter was trained with."
        )

    num_experts, inner_size, gated = _infer_experts(tensors, num_layers)
    head_mode = "single" if num_experts == 1 else "contrastive" if gated else "decoupled"
    activation = original.get("hidden_act", "silu") if gated else "gelu"  # Jakiro* ignores the field
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise ValueError(
            f"its config.json says `hidden_act={activation!r}`, which is not an activation of Transformers. Correct "
            "the field."
        )
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": kv_size // head_dim,
        "head_dim": head_dim,
        "hidden_act": activation,
        "attention_bias": any(f"layers.0.self_attn.{x}_proj.bias" in tensors for x in "qkv"),
        "fusion_bias": "fc.bias" in tensors,
        "num_experts": num_experts,
        "num_experts_per_tok": min(2, num_experts),
        "expert_intermediate_size": inner_size,
        "gated_experts": gated,
        "head_mode": head_mode,
    }


def _infer_experts(tensors: Mapping[str, torch.Tensor], num_layers: int) -> tuple[int, int, bool]:
    """The number of experts, the inner width of an expert, and whether experts are gated."""
    moe = "layers.0.mlp_moe."
    num_experts = _count(tensors, re.escape(moe) + r"experts\.(\d+)\..+")
    gated = _count(tensors, re.escape(moe) + r"experts\.(\d+)\.(fc|proj)\..+") == 0
    if num_experts == 0:
        inner_size, _ = matrix_shape(tensors, "layers.0.mlp.gate_proj.weight")
        return 1, inner_size, gated
    inner_size, _ = matrix_shape(tensors, f"{moe}experts.0.{'gate_proj' if gated else 'fc'}.weight")
    gate = f"layers.{num_layers - 1}.mlp_moe.gate.weight"
    gate_size, _ = matrix_shape(tensors, gate)
    expected = num_experts + (2 if gated else 0)
    if gate_size != expected:
        kind = "gated experts (Jakiro: two more rows than experts)" if gated else "two-layer experts (Jakiro*)"
        raise ValueError(
            f"`{gate}` has {gate_size} rows, expected {expected} for {num_experts} {kind}. The checkpoint lacks "
            "experts, or its variant is not supported."
        )
    return num_experts, inner_size, gated


def _check_against_config(
    tensors: Mapping[str, torch.Tensor], original: Mapping[str, Any], inferred: Mapping[str, Any]
) -> None:
    """Raises `ValueError` if the checkpoint's config contradicts the architecture inferred from its tensors."""
    same = ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "num_experts_per_tok")
    counterparts = {**{name: name for name in same}, "num_local_experts": "num_experts"}
    if inferred["head_mode"] != "contrastive":  # in Jakiro's configs the field is the target's, and ignored
        counterparts["intermediate_size"] = "expert_intermediate_size"
    for name, ours in counterparts.items():
        stated = config_int(original, name)
        if stated not in (None, inferred[ours]):
            raise ValueError(
                f"its config.json says `{name}={stated}`, its tensors say {inferred[ours]}. Use the config.json that "
                "belongs to these weights, or correct the field."
            )
    flags = [("qkv_bias", inferred["attention_bias"], "layers.0.self_attn.{q,k,v}_proj.bias")]
    if inferred.get("fusion") == "eagle3":
        fusion_norm = inferred["fusion_norm"]
        flags += [
            ("attention_bias", inferred["attention_bias"], "layers.0.self_attn.{q,k,v}_proj.bias"),
            ("fc_norm", fusion_norm == "each", "fc_norm.0.weight"),
            ("norm_before_fc", fusion_norm == "all", "input_norm.weight"),
        ]
    else:
        flags.insert(0, ("bias", inferred["fusion_bias"], "fc.bias"))
    for name, found, which in flags:
        stated = original.get(name)
        if stated is None and name != "bias":  # many configs do not mention the others
            continue
        if stated is not None and not isinstance(stated, bool):
            raise ValueError(f"its config.json says `{name}={stated!r}`, expected true or false.")
        if found != (stated is not False):
            says = f"lacks `{name}`, which means true" if stated is None else f"says `{name}={json.dumps(stated)}`"
            raise ValueError(
                f"`{which}` is {'there' if found else 'missing'}, but its config.json {says}. If the weights are "
                f'complete, put `"{name}": {json.dumps(found)}` into config.json.'
            )


def _rope_parameters(original: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters from the old fields `rope_theta` and `rope_scaling`, or the new `rope_parameters`."""
    scaling = original.get("rope_parameters") or original.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"its config.json says `rope_scaling={scaling!r}`, expected null or an object.")
    if scaling.get("partial_rotary_factor", original.get("partial_rotary_factor")) not in (None, 1):
        raise ValueError(
            "its config.json has a `partial_rotary_factor`: drafters that rotate parts of heads are not supported."
        )
    theta = scaling.get("rope_theta", original.get("rope_theta"))
    theta = 10000.0 if theta is None else theta  # the published code's default
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise ValueError(f"its config.json says `rope_theta={theta!r}`, expected a positive number.")
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type != "default" and rope_type not in ROPE_INIT_FUNCTIONS:
        raise ValueError(
            f"its config.json says that the rotary type is {rope_type!r}, expected one of "
            f"{['default', *ROPE_INIT_FUNCTIONS]}. Correct the field."
        )
    rest = {name: value for name, value in scaling.items() if name != "type"}
    return {**rest, "rope_type": rope_type, "rope_theta": float(theta)}


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """The number of distinct indices, the group in `pattern`. Gaps show later, as missing and unexpected tensors."""
    return len({match.group(1) for name in names if (match := re.fullmatch(pattern, name))})


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
        num_layers = _count(tensors, r"(?:.*\.)?layers\.(\d+)\..+")
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


# --- files -----------------------------------------------------------------------------------------------------------


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


__all__ = [
    "convert_original",
    "export_original",
    "jakiro_state_dict_to_original",
    "load_original",
    "original_state_dict_to_jakiro",
]
