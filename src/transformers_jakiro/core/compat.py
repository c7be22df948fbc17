# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
What transformers does not promise to keep, and what differs between the versions of `versions.py`: private methods and
attributes of generation, how `from_pretrained` finds adapters and ends loading. The hook, the insides of caches and
attention functions have files of their own (`hook.py`, `target_cache.py`, `attention.py`). `make test-matrix` runs all
of them on every version, and a test pins the signatures.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import transformers
from transformers import Cache, CompileConfig, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import logits_process
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.integrations.peft import maybe_load_adapters

from .versions import minor_version

# -- versions of transformers ----------------------------------------------------------------------------------------

TRANSFORMERS = minor_version(transformers.__version__)
# The name of the key/value cache in arguments of models, in their outputs and in `model_kwargs`.
# Goes when 5.24 is the oldest version.
CACHE = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"
CACHES = ("cache", "past_key_values")


def cache_of(outputs: Any) -> Cache | None:
    """The key/value cache in a model's outputs."""
    return getattr(outputs, CACHE, None)


def select_hidden_states(layers: Sequence[int], config: Any) -> bool | list[int]:
    """
    The `output_hidden_states` argument of a model's forward that gives at least these hidden states, counted as in its
    outputs: 0 is the embedding, -1 what the head reads. Others may be None.
    """
    # Before 5.17 any true value gave all; until 5.22 a list named layers instead of hidden states.
    # Goes when 5.23 is the oldest version.
    if TRANSFORMERS < (5, 23):
        return True
    # Of the decoders of encoder-decoder models, -1 would be counted by the layers of the encoder.
    return True if hasattr(config, "decoder_layers") else list(layers)


# -- generation ------------------------------------------------------------------------------------------------------


def wants_adaptive_trees(generation_config: GenerationConfig) -> bool:
    """
    Whether `num_assistant_tokens_schedule` asks for trees sized while generating. Both heuristics of transformers do:
    what is learned of a drafter is forgotten after each generation.

    Raises:
        ValueError: for a schedule that transformers does not know.
    """
    schedule = generation_config.num_assistant_tokens_schedule or "constant"
    if schedule not in ("constant", "heuristic", "heuristic_transient"):
        raise ValueError(
            "`num_assistant_tokens_schedule` must be 'constant' (trees as in the drafter's config), 'heuristic' or "
            f"'heuristic_transient' (trees sized while generating), got {schedule!r}."
        )
    return schedule != "constant"


def prefill(
    model: Any,
    input_ids: torch.Tensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> Iterator[tuple[Any, int]]:
    """
    Runs the target over the prompt as plain `generate` does, chunk by chunk if the generation config says so.

    Yields:
        (outputs, number of tokens in the cache before it) per chunk.

    Raises:
        NotImplementedError: if the outputs hold no key/value cache.
    """
    cache: Cache = model_kwargs[CACHE]
    past_length = int(cache.get_seq_length())
    chunk_size = generation_config.prefill_chunk_size
    if chunk_size is None or model_kwargs.get("inputs_embeds") is not None:
        generation_config = copy.copy(generation_config)
        generation_config.prefill_chunk_size = None
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        if not isinstance(cache_of(outputs), Cache):
            raise NotImplementedError(
                f"{type(model).__name__} does not fill a key/value cache, and drafting needs one. Leave out "
                "`assistant_model`."
            )
        yield outputs, past_length if cache_of(outputs) is cache else 0  # some models begin a new one
        return
    attention_mask, position_ids = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    total_length = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
    total_length = max(total_length, getattr(generation_config, "_mask_length", 0) or 0)
    new_ids = input_ids[:, -(total_length - past_length) :]
    for chunk in new_ids.split(chunk_size, dim=1):
        end = past_length + chunk.shape[1]
        chunk_kwargs = dict(model_kwargs)
        if attention_mask is not None:
            chunk_kwargs["attention_mask"] = attention_mask[:, :end]
        if position_ids is not None:
            chunk_kwargs["position_ids"] = position_ids[..., past_length:end]
        model_inputs = model.prepare_inputs_for_generation(chunk, is_first_iteration=True, **chunk_kwargs)
        yield model(**model_inputs, return_dict=True), past_length
        past_length = end


def activates_adapters(model: Any) -> bool:
    """
    Whether PEFT switches adapters on within the text (activated LoRA): from a number of tokens before the end of each
    forward on, which a tree's nodes would count, too.
    """
    return any(
        getattr(hook, "keywords", {}).get("alora_offsets") is not None
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
    )


def dynamic_cache(model: Any) -> Cache:
    """An empty cache, as a model makes it itself."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def next_model_kwargs(model: Any, outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The `model_kwargs` of the next forward, after one that gave `outputs` and one new token. Changes them."""
    return model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)


def knows_rows(model: Any) -> bool:
    """
    Whether forward hooks of a model may count the rows of a batch, as those of PEFT for `adapter_names` do. Those of
    transformers and accelerate do not.
    """
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if getattr(hook, "func", hook).__module__.split(".")[0] not in ("transformers", "accelerate"):
                return True
    return False


def optimized_for_decoding(model: Any) -> AbstractContextManager[None]:
    """Switches experts to the implementation for decoding, as plain `generate` does after the prefill."""
    return model._optimize_model_for_decode()


def has_unfinished_sequences(model: Any, finished: bool, synced_gpus: bool, device: torch.device) -> bool:
    """Whether this process or, with `synced_gpus`, any other still generates."""
    return model._has_unfinished_sequences(finished, synced_gpus, device=device)


def host_criteria(criteria: StoppingCriteriaList) -> tuple[int | None, frozenset[int], StoppingCriteriaList]:
    """
    Splits stopping criteria into those that are comparisons of integers, done on the host without a device
    synchronisation, and the rest.

    Returns:
        The length limit, the end tokens, and the other criteria.
    """
    max_length, end_tokens, others = None, set(), StoppingCriteriaList()
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = min(criterion.max_length, max_length or criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            end_tokens.update(criterion.eos_token_id.flatten().tolist())
        else:
            others.append(criterion)
    return max_length, frozenset(end_tokens), others


def padding_token(generation_config: GenerationConfig) -> int:
    """What `generate` fills rows up with that have ended before others; 0 where it has nothing, and none is needed."""
    token = getattr(generation_config, "_pad_token_tensor", None)
    return 0 if token is None else int(token)


def pads_ended_rows(criteria: StoppingCriteriaList) -> bool:
    """Whether rows that have ended get padding. Without end tokens, `generate` continues all until the last ends."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)


# Of the library's processors and criteria those that judge each row of a batch by its own tokens and logits, and keep
# nothing from one call to the next. What subclasses do is not known.
_JUDGES_OF_ROWS = (
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.MinPLogitsWarper,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.TemperatureLogitsWarper,
    logits_process.TopHLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.WatermarkLogitsProcessor,
    MaxTimeCriteria,
    StopStringCriteria,
)


def judges_rows_alone(judge: Any) -> bool:
    """
    Whether a logits processor or stopping criterion is known to say of a row in a batch what it says of the row alone,
    however the rows' calls follow one another.
    """
    by_prompt = isinstance(getattr(judge, "prompt_ignore_length", None), torch.Tensor)  # of a repetition penalty
    return type(judge) in _JUDGES_OF_ROWS and not by_prompt


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether the model carries a recurrent state that cannot be rolled back."""
    return bool(getattr(model, "_is_stateful", False))


def execution_device(module: Any) -> torch.device:
    """Where a module computes. Offloaded weights are elsewhere until then."""
    hook = getattr(module, "_hf_hook", None)  # of accelerate, where the model is dispatched to devices
    for part in getattr(hook, "hooks", (hook,)):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")  # dynamically quantized layers hold neither


# -- adapters --------------------------------------------------------------------------------------------------------

_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


def find_adapter(path: Any, kwargs: dict[str, Any]) -> tuple[Any, str | None, dict[str, Any]]:
    """
    Whether what `from_pretrained(path, **kwargs)` is given is a PEFT adapter; the Auto classes look before and pass
    the path of its drafter.

    Returns:
        The path of the model, the path of the adapter or None, and the options for downloading the adapter.
    """
    download_options = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if kwargs.get(name) is not None}
    adapter_options = dict(kwargs.get("adapter_kwargs") or {})
    adapter, base, _ = maybe_load_adapters(path, cast(Any, dict(download_options)), **adapter_options)
    adapter_options.pop("_adapter_model_path", None)
    return base, adapter, {**download_options, **adapter_options}


def has_adapter(model: Any) -> bool:
    """Whether an adapter is loaded into a model itself, by `load_adapter`."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def commit_of(config: Any) -> str | None:
    """The commit of the Hub repository that a config comes from."""
    return getattr(config, "_commit_hash", None)


def set_commit(config: Any, commit: str | None) -> None:
    """Notes the commit that a config comes from."""
    config._commit_hash = commit


def discard_adapter(model: Any, adapter_name: str) -> None:
    """Removes an adapter. Unlike `model.delete_adapter`, it works with every PEFT that can load one."""
    from peft.functional import delete_adapter

    delete_adapter(model, adapter_name, prefix=f"{model.peft_config[adapter_name].peft_type.value.lower()}_")
    del model.peft_config[adapter_name]
    if not model.peft_config:
        del model.peft_config
        model._hf_peft_config_loaded = False


class StrictLoading:
    """
    Mixin of models whose `check_loaded(path, missing, unexpected, mismatched)` refuses an incomplete checkpoint before
    memory is taken for what it lacks, which its config says the size of.
    """

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        incomplete = loading_info.missing_keys or loading_info.mismatched_keys
        if incomplete and load_config.hf_quantizer is None:  # quantizers leave out keys that they make themselves
            model.check_loaded(
                load_config.pretrained_model_name_or_path,
                loading_info.missing_keys,
                loading_info.unexpected_keys,
                loading_info.mismatched_keys,
            )
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)


# -- compilation -----------------------------------------------------------------------------------------------------

_COMPILED = "_transformers_jakiro_compiled"  # attribute of models: their compiled forward, and its options


def compile_config_of(
    model: Any, model_kwargs: dict[str, Any], generation_config: GenerationConfig
) -> CompileConfig | None:
    """How plain `generate` compiles a target's forwards; None where it does not."""
    if model._valid_auto_compile_criteria(model_kwargs, generation_config):
        return generation_config.compile_config or model._default_compile_config()
    return None


def compiled_call(model: Any, compile_config: CompileConfig) -> Callable[..., Any]:
    """
    A model's forward, compiled for the few shapes it is called with. Kept with the model, as transformers keeps its
    own, which is for other shapes.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    options = compile_config.to_dict()
    if options["dynamic"] is None:
        options["dynamic"] = False
    kept = getattr(model, _COMPILED, None)
    if kept is None or kept[0] != options:
        kept = (options, torch.compile(model.__call__, **options))
        setattr(model, _COMPILED, kept)
    return kept[1]


def compile_everywhere() -> CompileConfig:
    """Lets `generate(cache_implementation="static")` compile on CPUs too, where transformers does not by itself."""
    config: Any = CompileConfig()
    config._compile_all_devices = True
    return config
