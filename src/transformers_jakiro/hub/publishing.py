# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Publishing a drafter: what its repository on the Hub holds – weights, config, model card and, if wanted, the code that
loads it without this package – and `jakiro push`.

`payload` is what `results.json` of `jakiro bench` holds. No figure in a card comes from anywhere else.
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
# of a config: what may differ between a drafter as it was measured and as it is published
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
    results: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    remote_code: bool = False,
    token: bool | str | None = None,
) -> ModelCard:
    """
    The model card of a drafter.

    Args:
        config ([`JakiroDraftConfig`]): the drafter's; `target_name_or_path` and `target_revision` name its target.
        repo_id (`str`): where the drafter is going to be.
        num_parameters (`int`, *optional*): of the drafter.
        results (`Sequence[Mapping]`): what `results.json` of `jakiro bench` holds, for one or several runs.
        training (`Mapping`, *optional*): what `training.json` of [`JakiroTrainer`] holds: `data` (a `str` or a mapping
            with `name`), `changed_arguments`, `arguments`, and anything else that is to be told, by its name.
        license (`str`, *optional*): default: the target's, if its card can be read.
        tags (`Sequence[str]`): besides those of every drafter.
        remote_code (`bool`, defaults to `False`): whether the code is published with the drafter.
        token (`bool` or `str`, *optional*): to read the target's card with; default: that of the environment.

    Raises:
        ValueError: if the target is unknown or named by a folder of this machine, or a result is that of another
            drafter or not one of `jakiro bench`.
    """
    name = check_target_name(config)
    is_hub_id = "/" in name
    for payload in results:
        _check_results(payload, config)
    data = (training or {}).get("data")
    dataset = data.get("name") if isinstance(data, Mapping) else None
    title = repo_id.split("/")[-1]
    eval_results = [result for payload in results for result in _eval_results(payload)]
    card_data = ModelCardData(
        base_model=name if is_hub_id else None,
        base_model_relation="finetune" if is_hub_id else None,
        datasets=[dataset] if dataset and re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[
            *TAGS,
            *(["moe"] if config.num_experts > 1 else []),
            *(["custom_code", "custom_generate"] if remote_code else []),
            *tags,
        ],
        model_name=title if eval_results else None,
        eval_results=eval_results or None,
        **_license(license, name if is_hub_id else None, config.target_revision, token),
    )
    tables = [table for payload in results for table in _tables(payload)]
    measured = {row["temperature"] for payload in results for row in payload["summary"]}
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        kind=_KINDS[config.head_mode],
        repo_id=repo_id,
        target=f"[{name}](https://huggingface.co/{name})" if is_hub_id else f"`{name}`",
        target_name=name,
        target_revision=config.target_revision,
        architecture=_architecture(config, num_parameters),
        remote_code=remote_code,
        training=_training_rows(training),
        arguments=json.dumps(training["arguments"], indent=1) if training and "arguments" in training else None,
        tables=tables,
        not_measured=", ".join(f"T = {value}" for value in (0, 1) if value not in measured),
        limits=_limits(config, card_data.license),
    )


def check_target_name(config: JakiroDraftConfig) -> str:
    """The name of a drafter's target. Raises `ValueError` if there is none, or one that means nothing elsewhere."""
    name = config.target_name_or_path
    remedy = (
        "Give the target's Hub id: `target_name_or_path` of the config, `target=` of `push_to_hub`, "
        "`--target org/name` of `jakiro push`, `--target_name` of `jakiro train`."
    )
    if not name:
        raise ValueError(f"The drafter's config does not say which target it is for. {remedy}")
    if Path(name).is_absolute() or Path(name).exists() or name.startswith((".", "~")):
        raise ValueError(
            f"The drafter's target is named by a folder of this machine, {name}, which says nothing to others. "
            + remedy
        )
    return name


def _license(given: str | None, target: str | None, revision: str | None, token: bool | str | None) -> dict[str, str]:
    """The licence that is given, else `license`, `license_name` and `license_link` of the target's card."""
    if given is not None or target is None:
        return {} if given is None else {"license": given}
    try:
        path = hf_hub_download(target, "README.md", revision=revision, token=token)
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, HFValidationError) as error:
        warnings.warn(
            f"The model card will name no licence, since the card of {target} could not be read "
            f"({type(error).__name__}). Give the licence: `license=...` or `--license ...`.",
            stacklevel=4,
        )
        return {}
    values = {name: card.data.get(name) for name in ("license", "license_name", "license_link")}
    return {name: value for name, value in values.items() if value is not None}


def _architecture(config: JakiroDraftConfig, num_parameters: int | None) -> dict[str, str]:
    layers = "1 decoder layer" if config.num_hidden_layers == 1 else f"{config.num_hidden_layers} decoder layers"
    experts = "one dense MLP"
    if config.num_experts > 1:
        kind = "gated" if config.gated_experts else "two-layer"
        experts = f"{config.num_experts} {kind} experts, {config.num_experts_per_tok} per token,"
    if config.static_tree is not None:
        trees = f"static, {len(config.static_tree)} nodes"
    else:
        trees = f"{config.tree_depth} levels, {config.num_draft_tokens} nodes at most, {config.tree_top_k} children"
        trees += f" of {config.tree_width or config.tree_top_k} nodes per level"
    rows = {
        "Parameters": f"{num_parameters:,}" if num_parameters is not None else None,
        "Architecture": f"{layers}, {experts} of width {config.expert_intermediate_size:,}, hidden size "
        f"{config.hidden_size:,}" + (", norm on the features" if config.final_norm else ""),
        "Reads besides": f"the target's hidden states {config.feature_layers}" if config.feature_layers else None,
        "Drafts": f"{config.draft_vocab_size:,} of the target's {config.vocab_size:,} tokens"
        if config.draft_vocab_size
        else None,
        "Trees by default": trees,
    }
    return {name: value for name, value in rows.items() if value is not None}


def _training_rows(training: Mapping[str, Any] | None) -> dict[str, str]:
    """What a table says of the training: everything but all arguments, which follow in full."""
    rows = {}
    for name, value in (training or {}).items():
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
        "It drafts for the target above and no other: of a fine-tuned or newer version of it, less is accepted.",
        "What is written is the target's own, with all of the target's limits. Far from the training data (other "
        "languages, other tasks) less is accepted; the text stays the same, the speed does not.",
        "How much faster it is depends on the machine, the precision and the number of prompts at a time; measure "
        "yours with `jakiro bench`, and let `jakiro tune` choose the trees.",
        "In float32 the output is that of plain `generate`. In half precision the target's own logits depend in their "
        "last bits on how many tokens a forward holds, and where two tokens are that close, another may be chosen.",
    ]
    if config.draft_vocab_size:
        limits.append("Tokens outside of the drafted part of the vocabulary are never drafted, only written.")
    if license is None:
        limits.append("No licence is stated here: that of the target and those of the training data apply.")
    return limits


# -- figures ---------------------------------------------------------------------------------------------------------


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a `results.json` of `jakiro bench`. Raises `ValueError` if it is none."""
    payload = _read_mapping(path)
    version, absent = payload.get("schema_version"), {"provenance", "summary"} - payload.keys()
    if version != report.SCHEMA_VERSION or absent:
        raise ValueError(
            f"{path} is no `results.json` of `jakiro bench` with `schema_version` {report.SCHEMA_VERSION}: it has "
            f"{version}, and lacks {sorted(absent) or 'nothing'}. Measure the drafter with `jakiro bench --output "
            "DIR` and give DIR/results.json."
        )
    return payload


def _read_mapping(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, got {type(content).__name__}.")
    return content


def _check_results(payload: Mapping[str, Any], config: JakiroDraftConfig) -> None:
    """Raises `ValueError` if the measured drafter cannot be the one with this config."""
    measured, own = payload["provenance"]["draft_config"], config.to_dict()
    fields = JakiroDraftConfig.__annotations__.keys() & measured.keys() & own.keys() - _FREE_FIELDS
    differing = sorted(name for name in fields if not name.startswith("tree_") and measured[name] != own[name])
    if differing:
        name = differing[0]
        raise ValueError(
            f"The results are those of another drafter: it has {name}={measured[name]}, this one {own[name]}. Measure "
            "this one with `jakiro bench`."
        )


def _drafted_rows(payload: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Those rows of the summary that are about the drafter's trees."""
    return (row for row in payload["summary"] if row["method"].partition("-")[0] in ("jakiro", "adaptive"))


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows if row["task"] != "mean"))


def _eval_results(payload: Mapping[str, Any]) -> Iterator[EvalResult]:
    """The figures for the card's `model-index`: the means of the tasks. The tables have them task by task."""
    rows, arguments = list(_drafted_rows(payload)), payload["provenance"]["arguments"]
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


def _tables(payload: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A table for each way to draft, with the settings it depends on."""
    rows = list(_drafted_rows(payload))
    tasks = _tasks(rows)
    arguments, config = payload["provenance"]["arguments"], payload["provenance"]["draft_config"]
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {(row["task"], row["temperature"]): row for row in rows if row["method"] == method}
        header = ["task", "prompts"]
        header += [f"{name}, T = {value:g}" for value in temperatures for name in ("tokens per forward", "speed-up")]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        for task in [*tasks, "mean"] if len(tasks) > 1 else tasks:
            cells = [own[task, value] for value in temperatures]
            lines.append([task, str(cells[0]["prompts"])])
            for cell in cells:
                speed, tau = cell["speed_up"], cell["tokens_per_forward"]
                lines[-1] += [
                    "–" if tau is None else f"{tau:.2f}",
                    f"{speed['median']:.2f} ({speed['q1']:.2f}–{speed['q3']:.2f})",
                ]
        tree = JakiroDraftConfig.from_dict(config).tree_fields(report.batch_size(payload))
        sizes = arguments["num_assistant_tokens"] or [tree["num_draft_tokens"]]
        nodes = method.partition("-")[2] or str(sizes[0])
        trees = f"trees of {tree['tree_depth']} levels and {nodes} nodes at most"
        if config.get("static_tree"):
            trees = f"the drafter's static tree of {len(config['static_tree'])} nodes"
        if method == "adaptive":
            trees += ", sized while generating"
        deepened = ""
        if arguments.get("deepen"):
            deepened = f"; target deepened to {arguments['deepen']} layers by identity layers"
        settings = f"**{trees[0].upper()}{trees[1:]}**; {arguments['dtype']}{deepened}. {report.conditions(payload)}"
        yield {"settings": settings, "text": "\n".join("| " + " | ".join(line) + " |" for line in lines)}


# -- the repository --------------------------------------------------------------------------------------------------


def save_remote_code(folder: str | Path) -> None:
    """
    Adds to a saved drafter the code that loads it with `trust_remote_code=True` where this package is not installed: a
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
    Writes what [`push_to_hub`] uploads: weights, config, model card and, if wanted, code.

    Args:
        folder (`str` or `Path`): to create; complete or not there.
        target, target_revision (`str`, *optional*): Hub id and commit of the target; default: what the drafter's
            config says.
        results (`Sequence`): files `results.json` of `jakiro bench`.
        training (`str` or `Path`, *optional*): the `training.json` that [`JakiroTrainer`] saved with the drafter.
        repo_id, license, tags, remote_code, token: see [`drafter_card`].

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: see [`drafter_card`]; also for a folder that is not empty, and for a drafter with an adapter.
        OSError: if a file cannot be read or written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not an empty folder. Choose another, or remove it.")
    if getattr(draft, "_hf_peft_config_loaded", False):
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
        repo_id (`str`): repository on the Hub, created if it is not there. A model card that it has is replaced; to
            edit the new one first, use [`write_repository`] and upload its folder.
        commit_message, commit_description, private, token, revision, create_pr: see
            [`~transformers.utils.PushToHubMixin.push_to_hub`].
        kwargs: see [`write_repository`].

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        ValueError, OSError: see [`write_repository`]; nothing is on the Hub then.
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
        output: write the folder that would be uploaded here, and upload nothing.
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
