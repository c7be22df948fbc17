# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Publishing a drafter: its repository on the Hub – weights, config, model card and, optionally, the code that loads it
without this package – and `jakiro push`.

A `payload` is the contents of a `results.json` of `jakiro bench`. No figure in a card comes from anywhere else.
"""

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HFValidationError

from ..core.compat import has_adapter
from ..core.configuration_jakiro import JakiroDraftConfig
from ..core.modeling_jakiro import JakiroDraftModel
from ..files import write_json
from ..measuring import report

TEMPLATE = Path(__file__).with_name("drafter.md.jinja")
TRAINING = "training.json"
TAGS = ("jakiro", "speculative-decoding", "draft-model")
_CODE = Path(__file__).parents[1] / "core"
_RECIPE = Path(__file__).with_name("custom_generate")
_KINDS = {"contrastive": "Jakiro", "decoupled": "Jakiro\\*", "single": "dense EAGLE-style"}
# fields of a config that may differ between a drafter when it was measured and when it is published
_FREE_FIELDS = {
    "target_name_or_path",
    "target_revision",
    "num_draft_tokens",
    "static_tree",
    "batch_trees",
    "couple_sampling",
    "feature_layers",  # indices shift in a deepened target
}


# -- the model card --------------------------------------------------------------------------------------------------


def drafter_card(
    config: JakiroDraftConfig,
    repo_id: str,
    num_parameters: int | None = None,
    results: Sequence[dict[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    remote_code: bool = False,
    token: bool | str | None = None,
) -> ModelCard:
    """
    Makes the model card of a drafter.

    Args:
        config ([`JakiroDraftConfig`]): the drafter's. `target_name_or_path` and `target_revision` name its target.
        repo_id (`str`): the repository that the drafter is published in.
        num_parameters (`int`, *optional*): the drafter's number of parameters.
        results (`Sequence[dict]`): the contents of one or several `results.json` of `jakiro bench`.
        training (`Mapping`, *optional*): the contents of the `training.json` of [`JakiroTrainer`]: `data` (a `str` or
            a mapping with `name`), `changed_arguments`, `arguments`, and anything else that the card should list under
            its name.
        license (`str`, *optional*): default: the target's, if its card can be read.
        tags (`Sequence[str]`): added to the tags of every drafter.
        remote_code (`bool`, defaults to `False`): whether the code is published with the drafter.
        token (`bool` or `str`, *optional*): the token to read the target's card with. Default: the environment's.

    Raises:
        ValueError: if the target is unknown or named by a local folder, or if results are of another drafter or not of
            `jakiro bench`.
    """
    name = check_target_name(config)
    for payload in results:
        _check_results(payload, config)
    licence = _license(license, name if _is_hub_id(name) else None, config.target_revision, token)
    own_tags = [
        *TAGS,
        *(["moe"] if config.num_experts > 1 else []),
        *(["custom_code", "custom_generate"] if remote_code else []),
        *tags,
    ]
    card_data = ModelCardData(**_metadata(name, repo_id, results, training), **licence, tags=own_tags)
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=_title(repo_id),
        repo_id=repo_id,
        remote_code=remote_code,
        architecture=_architecture(config, num_parameters),
        limits=_limits(config, card_data.license),
        **_target_values(config, name),
        **_training_values(training),
        **_results_values(results),
    )


def _title(repo_id: str) -> str:
    return repo_id.split("/")[-1]


def _is_hub_id(name: str) -> bool:
    return "/" in name


def _metadata(
    target: str, repo_id: str, results: Sequence[dict[str, Any]], training: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The card's metadata for the Hub, without licence and tags."""
    eval_results = [result for payload in results for result in _eval_results(payload)]
    data = (training or {}).get("data")
    dataset = data.get("name") if isinstance(data, Mapping) else None
    return {
        "base_model": target if _is_hub_id(target) else None,
        "base_model_relation": "finetune" if _is_hub_id(target) else None,
        "datasets": [dataset] if dataset and re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) else None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "model_name": _title(repo_id) if eval_results else None,
        "eval_results": eval_results or None,
    }


def _target_values(config: JakiroDraftConfig, name: str) -> dict[str, Any]:
    """The template's values for the kind of drafter and its target."""
    return {
        "kind": _KINDS[config.head_mode],
        "target": f"[{name}](https://huggingface.co/{name})" if _is_hub_id(name) else f"`{name}`",
        "target_name": name,
        "target_revision": config.target_revision,
    }


def _training_values(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """The template's values for the training: a table, and all arguments as JSON."""
    arguments = (training or {}).get("arguments")
    return {
        "training": _training_rows(training or {}),
        "arguments": None if arguments is None else json.dumps(arguments, indent=1),
    }


def _results_values(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The template's values for the measured figures."""
    measured = {row["temperature"] for payload in results for row in payload["summary"]}
    return {
        "tables": [table for payload in results for table in _tables(payload)],
        "not_measured": ", ".join(f"T = {value}" for value in (0, 1) if value not in measured),
    }


def check_target_name(config: JakiroDraftConfig) -> str:
    """
    Returns the name of a drafter's target. Raises `ValueError` if there is none, or if it is a local folder, which
    means nothing elsewhere.
    """
    name = config.target_name_or_path
    remedy = (
        "Give the target's Hub id: `target_name_or_path` of the config, `target=` of `push_to_hub`, "
        "`--target org/name` of `jakiro push`, `--target_name` of `jakiro train`."
    )
    if not name:
        raise ValueError(f"The drafter's config does not say which target it is for. {remedy}")
    if Path(name).is_absolute() or Path(name).exists() or name.startswith((".", "~")):
        raise ValueError(
            f"The drafter's target is named by a folder of this machine, {name}, which means nothing to others. "
            + remedy
        )
    return name


def _license(given: str | None, target: str | None, revision: str | None, token: bool | str | None) -> dict[str, Any]:
    """The given licence; otherwise `license`, `license_name` and `license_link` from the target's card."""
    if given is not None or target is None:
        return {} if given is None else {"license": given}
    try:
        path = hf_hub_download(target, "README.md", revision=revision, token=token)
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, HFValidationError) as error:
        warnings.warn(
            f"The model card will not name a licence, because the card of {target} could not be read "
            f"({type(error).__name__}). Give the licence: `license=...` or `--license ...`.",
            stacklevel=4,
        )
        return {}
    values = {name: card.data.get(name) for name in ("license", "license_name", "license_link")}
    return {name: value for name, value in values.items() if value is not None}


def _architecture(config: JakiroDraftConfig, num_parameters: int | None) -> dict[str, str]:
    """The card's table about the drafter."""
    layers = "1 decoder layer" if config.num_hidden_layers == 1 else f"{config.num_hidden_layers} decoder layers"
    norm = ", norm on the features" if config.final_norm else ""
    rows = {
        "Parameters": "" if num_parameters is None else f"{num_parameters:,}",
        "Architecture": f"{layers}, {_experts(config)} of width {config.expert_intermediate_size:,}, hidden size "
        f"{config.hidden_size:,}{norm}",
        "Reads besides": f"the target's hidden states {config.feature_layers}" if config.feature_layers else "",
        "Drafts": f"{config.draft_vocab_size:,} of the target's {config.vocab_size:,} tokens"
        if config.draft_vocab_size
        else "",
        "Trees by default": _default_trees(config),
    }
    return {name: value for name, value in rows.items() if value}


def _experts(config: JakiroDraftConfig) -> str:
    if config.num_experts == 1:
        return "one dense MLP"
    kind = "gated" if config.gated_experts else "two-layer"
    return f"{config.num_experts} {kind} experts, {config.num_experts_per_tok} per token,"


def _default_trees(config: JakiroDraftConfig) -> str:
    if config.static_tree is not None:
        return f"static, {len(config.static_tree)} nodes"
    return (
        f"{config.tree_depth} levels, {config.num_draft_tokens} nodes at most, {config.tree_top_k} children of "
        f"{config.tree_width or config.tree_top_k} nodes per level"
    )


def _training_rows(training: Mapping[str, Any]) -> dict[str, str]:
    """The card's table about the training: everything but the complete arguments, which follow the table."""
    rows = {}
    for name, value in training.items():
        if name == "arguments" or value in (None, {}):
            continue
        if isinstance(value, Mapping):
            template = "`{}={}`" if name == "changed_arguments" else "{} {}"
            value = ", ".join(
                template.format(key, one if isinstance(one, str) else json.dumps(one)) for key, one in value.items()
            )
        rows[name.replace("_", " ").capitalize()] = str(value).replace("|", "\\|")
    return rows


def _limits(config: JakiroDraftConfig, license: str | None) -> list[str]:
    limits = [
        "It drafts for the target above and no other: a fine-tuned or newer version of it accepts fewer tokens.",
        "The text is the target's own, with all of the target's limits. Far from the training data (other languages, "
        "other tasks) fewer tokens are accepted: the text stays the same, but the speed-up shrinks.",
        "The speed-up depends on the machine, the precision and the number of prompts at a time. Measure yours with "
        "`jakiro bench`, and let `jakiro tune` choose the trees.",
        "In float32 the output is that of plain `generate`. In half precision the last bits of the target's logits "
        "depend on the number of tokens in a forward; where two tokens are that close, the other one may be chosen.",
    ]
    if config.draft_vocab_size:
        limits.append("Tokens outside the drafted part of the vocabulary are never drafted; the target writes them.")
    if license is None:
        limits.append("No licence is stated here: those of the target and the training data apply.")
    return limits


# -- figures ---------------------------------------------------------------------------------------------------------


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a `results.json` of `jakiro bench`. Raises `ValueError` if the file is something else."""
    payload = _read_mapping(path)
    version, absent = payload.get("schema_version"), {"provenance", "summary"} - payload.keys()
    if version != report.SCHEMA_VERSION or absent:
        raise ValueError(
            f"{path} is not a `results.json` of `jakiro bench` with `schema_version` {report.SCHEMA_VERSION}: it has "
            f"{version}, and lacks {sorted(absent) or 'nothing'}. Measure the drafter with `jakiro bench --output "
            "DIR` and give DIR/results.json."
        )
    return payload


def _read_mapping(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Give a JSON file.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, got {type(content).__name__}.")
    return content


def _check_results(payload: dict[str, Any], config: JakiroDraftConfig) -> None:
    """Raises `ValueError` if the measured drafter cannot be the one with this config."""
    measured = payload["provenance"]["draft_config"]
    own = config.to_dict()
    fields = JakiroDraftConfig.__annotations__.keys() & measured.keys() & own.keys() - _FREE_FIELDS
    differing = sorted(name for name in fields if not name.startswith("tree_") and measured[name] != own[name])
    if differing:
        name = differing[0]
        raise ValueError(
            f"The results are those of another drafter: it has {name}={measured[name]}, this one {own[name]}. Measure "
            "this one with `jakiro bench`."
        )


def _drafted_rows(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the summary that are about the drafter's trees."""
    return [row for row in payload["summary"] if row["method"].partition("-")[0] in ("jakiro", "adaptive")]


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows if row["task"] != "mean"))


def _eval_results(payload: dict[str, Any]) -> Iterator[EvalResult]:
    """The figures for the card's `model-index`: means over the tasks. The card's tables have a row for each task."""
    rows = _drafted_rows(payload)
    arguments = payload["provenance"]["arguments"]
    tasks = _tasks(rows)
    for row in rows:
        if row["task"] != "mean":
            continue
        for metric, name, value in (
            ("tokens_per_forward", "Tokens per target forward", row["tokens_per_forward"]),
            ("speed_up", "Speed-up over plain generate", row["speed_up"]["median"]),
        ):
            if value is None:  # all answers ended with their first token
                continue
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type="-".join(tasks),
                dataset_name=f"mean of {', '.join(tasks)}" if len(tasks) > 1 else tasks[0],
                metric_type=metric,
                metric_name=f"{name}, T = {row['temperature']:g}",
                metric_value=round(value, 3),
                metric_args={
                    "temperature": row["temperature"],
                    "method": row["method"],
                    "prompts": row["prompts"],
                    "max_new_tokens": arguments["max_new_tokens"],
                    "dtype": arguments["dtype"],
                },
            )


def _tables(payload: dict[str, Any]) -> Iterator[dict[str, str]]:
    """A table for each way to draft, with the settings it depends on."""
    rows = _drafted_rows(payload)
    tasks = _tasks(rows)
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    columns = ["task", "prompts"]
    columns += [f"{name}, T = {value:g}" for value in temperatures for name in ("tokens per forward", "speed-up")]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {(row["task"], row["temperature"]): row for row in rows if row["method"] == method}
        lines = []
        for task in [*tasks, "mean"] if len(tasks) > 1 else tasks:
            cells = [own[task, value] for value in temperatures]
            figures = (figure for cell in cells for figure in _figures(cell))
            lines.append([task, str(cells[0]["prompts"]), *figures])
        yield {"settings": _settings(payload, method), "text": report.markdown_table(columns, lines)}


def _figures(row: dict[str, Any]) -> tuple[str, str]:
    speed, tokens_per_forward = row["speed_up"], row["tokens_per_forward"]
    return (
        "–" if tokens_per_forward is None else f"{tokens_per_forward:.2f}",
        f"{speed['median']:.2f} ({speed['q1']:.2f}–{speed['q3']:.2f})",
    )


def _settings(payload: dict[str, Any], method: str) -> str:
    """The trees, the precision and the machine that a table's figures depend on."""
    arguments = payload["provenance"]["arguments"]
    config = payload["provenance"]["draft_config"]
    if config.get("static_tree"):
        trees = f"the drafter's static tree of {len(config['static_tree'])} nodes"
    else:
        tree = JakiroDraftConfig.from_dict(config).tree_fields(report.batch_size(payload))
        sizes = arguments["num_assistant_tokens"] or [tree["num_draft_tokens"]]
        nodes = method.partition("-")[2] or str(sizes[0])
        trees = f"trees of {tree['tree_depth']} levels and {nodes} nodes at most"
    if method == "adaptive":
        trees += ", sized while generating"
    deepened = ""
    if arguments.get("deepen"):
        deepened = f"; target deepened to {arguments['deepen']} layers by identity layers"
    return f"**{trees[0].upper()}{trees[1:]}**; {arguments['dtype']}{deepened}. {report.conditions(payload)}"


# -- the repository --------------------------------------------------------------------------------------------------


def save_remote_code(folder: str | Path) -> None:
    """
    Adds the code to a saved drafter that loads it with `trust_remote_code=True` where this package is not installed: a
    copy of `core`, and the recipe for `custom_generate`.
    """
    folder = Path(folder)
    for file in _CODE.glob("*.py"):
        if file.name != "__init__.py":
            shutil.copy(file, folder / file.name)
    recipe = folder / _RECIPE.name
    recipe.mkdir(exist_ok=True)
    for file in _RECIPE.iterdir():
        if file.is_file():
            shutil.copy(file, recipe / file.name)
    auto_map = {
        "AutoConfig": f"remote_code.{JakiroDraftConfig.__name__}",
        "AutoModel": f"remote_code.{JakiroDraftModel.__name__}",
    }
    _update_config(folder, auto_map=auto_map)


def write_repository(
    draft: JakiroDraftModel,
    folder: str | Path,
    repo_id: str,
    target: str | None = None,
    target_revision: str | None = None,
    results: Sequence[str | Path] = (),
    training: str | Path | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    remote_code: bool = False,
    max_shard_size: int | str = "50GB",
    token: bool | str | None = None,
) -> Path:
    """
    Writes the folder that [`push_to_hub`] uploads: weights, config, model card and, optionally, code.

    Args:
        draft ([`JakiroDraftModel`]): the drafter.
        folder (`str` or `Path`): the folder to create. It appears complete or not at all.
        target (`str`, *optional*): Hub id of the target. Default: the one in the drafter's config.
        target_revision (`str`, *optional*): commit of the target. Default: the one in the drafter's config.
        results (`Sequence`): `results.json` files of `jakiro bench`.
        training (`str` or `Path`, *optional*): the `training.json` that [`JakiroTrainer`] saved with the drafter.
        max_shard_size (`int` or `str`): see [`~transformers.PreTrainedModel.save_pretrained`].
        repo_id, license, tags, remote_code, token: see [`drafter_card`].

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: see [`drafter_card`]; also if the folder is not empty, or if the drafter has an adapter.
        OSError: if a file cannot be read or written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder. Choose another folder, or remove it first.")
    if has_adapter(draft):
        raise ValueError(
            "This drafter has an adapter that is not merged. Merge it (`PeftModel.from_pretrained(draft, adapter)"
            ".merge_and_unload()`), or publish the adapter alone with the `push_to_hub` of its `PeftModel`."
        )
    config = JakiroDraftConfig.from_dict(draft.config.to_dict())
    if target is not None:
        config.target_name_or_path, config.target_revision = target, None
    if target_revision is not None:
        config.target_revision = target_revision
    card = drafter_card(
        config,
        repo_id,
        num_parameters=draft.num_parameters(),
        results=[read_results(path) for path in results],
        training=None if training is None else _read_mapping(training),
        license=license,
        tags=tags,
        remote_code=remote_code,
        token=token,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        written = Path(temporary) / "repository"
        draft.save_pretrained(written, max_shard_size=max_shard_size)
        identity = {"target_name_or_path": config.target_name_or_path, "target_revision": config.target_revision}
        _update_config(written, **identity)
        if remote_code:
            save_remote_code(written)
        card.save(written / "README.md")
        written.replace(folder)
    return folder


def push_to_hub(
    draft: JakiroDraftModel,
    repo_id: str,
    *,
    commit_message: str = "Upload drafter",
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **kwargs: Any,
) -> Any:
    """
    Publishes a drafter.

    Args:
        draft ([`JakiroDraftModel`]): the drafter.
        repo_id (`str`): the repository on the Hub, created if it does not exist. An existing model card is replaced;
            to edit the new one first, use [`write_repository`] and upload its folder.
        commit_message, commit_description, private, token, revision, create_pr: see
            [`~transformers.utils.PushToHubMixin.push_to_hub`].
        kwargs: see [`write_repository`].

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        ValueError, OSError: see [`write_repository`]; nothing has been uploaded then.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_repository(draft, Path(temporary) / "repository", repo_id, token=token, **kwargs)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def run_push(
    draft: str,
    repo_id: str,
    output: str | None = None,
    private: bool | None = None,
    training: str | None = None,
    **options: Any,
) -> None:
    """
    The `jakiro push` command.

    Args:
        draft: folder or Hub id of the drafter.
        repo_id: the repository to publish it in.
        output: the folder to write instead of uploading.
        private: whether a new repository is private.
        training: default: the `training.json` in the drafter's folder, if there is one.
        options: see [`write_repository`].
    """
    model = JakiroDraftModel.from_pretrained(draft, dtype="auto")
    if training is None and (Path(draft) / TRAINING).is_file():
        training = str(Path(draft) / TRAINING)
    if output is not None:
        folder = write_repository(model, output, repo_id, training=training, **options)
        print(f"Saved {folder}. Nothing was uploaded; `hf upload {repo_id} {folder}` does it.")
    else:
        print(f"Published: {push_to_hub(model, repo_id, private=private, training=training, **options)}")


def _update_config(folder: Path, **values: Any) -> None:
    """Sets values in a saved config.json."""
    path = folder / "config.json"
    write_json(path, {**_read_mapping(path), **values})


__all__ = [
    "check_target_name",
    "drafter_card",
    "push_to_hub",
    "read_results",
    "run_push",
    "save_remote_code",
    "write_repository",
]
