# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The only file that touches what transformers does not promise to keep: private methods of `GenerationMixin`, private
attributes of `GenerationConfig`, how pipelines load assistants, how `from_pretrained` finds adapters and ends loading,
its attention functions, the insides of its cache layers, and what differs between the versions of `versions.py`.
(`serving.py` does so for `transformers serve`.) `make test-matrix` runs it on every one of them, and a test pins the
signatures.
"""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    Cache,
    CompileConfig,
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StaticCache,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    cache_utils,
)
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.integrations.peft import maybe_load_adapters
from transformers.integrations.sdpa_attention import use_gqa_in_sdpa
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pipelines import base as pipelines

from .device import send
from .versions import IncompatibleTransformersError, minor_version

# -- versions of transformers ----------------------------------------------------------------------------------------

TRANSFORMERS = minor_version(transformers.__version__)
# The name of the key/value cache in arguments of models, in their outputs and in `model_kwargs`.
CACHE = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"


def cache_of(outputs: Any) -> Cache | None:
    """The key/value cache in a model's outputs."""
    return getattr(outputs, CACHE, None)


def select_hidden_states(layers: Sequence[int]) -> bool | list[int]:
    """
    The `output_hidden_states` argument of a model's forward that gives at least these hidden states, counted as in its
    outputs: 0 is the embedding, -1 what the head reads. Others may be None.
    """
    # before 5.17 any true value gave all; until 5.22 a list named layers instead of hidden states
    return list(layers) if TRANSFORMERS >= (5, 23) else True


# -- the generate hook -----------------------------------------------------------------------------------------------

_HOOKED = {
    "_assisted_decoding": (
        "self",
        "input_ids",
        "logits_processor",
        "stopping_criteria",
        "generation_config",
        "synced_gpus",
        "streamer",
        "assistant_model",
        "model_kwargs",
    ),
    "_validate_generation_mode": ("self", "generation_mode", "generation_config", "generation_mode_kwargs"),
    "_prepare_generation_config": ("self", "generation_config", "kwargs"),
}
_CALLED = {
    "_prefill": ("self", "input_ids", "generation_config", "model_kwargs"),
    "_optimize_model_for_decode": ("self",),
}
_HOOKED_IN_PIPELINES = {"load_assistant_model": ("model", "assistant_model", "assistant_tokenizer")}
_HOOKED_ATTENTION = ("module", "query", "key", "value", "attention_mask")
_ORIGINAL = "_transformers_jakiro_original"
_LOOPS = "_transformers_jakiro_loops"
_EXPLICIT = "_explicit_num_assistant_tokens"
_COMPILED = "_transformers_jakiro_compiled"  # of models: the forward that was compiled, and how


def check_signatures():
    """Raises [`IncompatibleTransformersError`] if a method this package relies on is gone or changed."""
    functions = [
        (f"{owner.__name__}.{name}", getattr(owner, name, lambda: None), expected)
        for owner, names in ((GenerationMixin, {**_HOOKED, **_CALLED}), (pipelines, _HOOKED_IN_PIPELINES))
        for name, expected in names.items()
    ]
    functions.append(("ALL_ATTENTION_FUNCTIONS['sdpa']", ALL_ATTENTION_FUNCTIONS["sdpa"], _HOOKED_ATTENTION))
    for name, function, expected in functions:
        parameters = inspect.signature(inspect.unwrap(function)).parameters
        missing = [parameter for parameter in expected if parameter not in parameters]
        if missing:
            raise IncompatibleTransformersError(
                f"`{name}` of transformers {transformers.__version__} lacks the parameters {missing} "
                "that `generate(assistant_model=<Jakiro drafter>)` relies on. Another package may have replaced it: "
                "import transformers_jakiro before that package."
            )


def install_hook(is_ours: Callable[[Any], bool], validate: Callable[..., None], decode: Callable[..., Any]) -> None:
    """
    Lets `generate(assistant_model=...)` of every model use `decode` for the assistants that `is_ours`, and only for
    them, and `pipeline(..., assistant_model=...)` take them or their folder or Hub id; the "sdpa" attention learns to
    read packed tree masks (see [`num_packed_heads`]). Idempotent; [`remove_hook`] takes it back. Copies of this code
    in one process (the package, and what was loaded with checkpoints) share the hook: the first one installs it, each
    adds its loop for its own drafters.

    Args:
        is_ours: tells our assistants.
        validate: called with (target, assistant, generation_config) before anything is prepared.
        decode: the decoding loop, called with the arguments of `GenerationMixin._assisted_decoding`.

    Raises:
        IncompatibleTransformersError: if the signatures changed; nothing is installed then.
    """
    check_signatures()
    loop = (is_ours, validate, decode)
    if is_hook_installed():
        loops = getattr(GenerationMixin._assisted_decoding, _LOOPS)
        if loop not in loops:
            loops.append(loop)
        return
    loops = [loop]

    def assisted_decoding(original, self, *args, **kwargs):
        for is_ours, _, decode in loops:
            if is_ours(kwargs.get("assistant_model")):
                return decode(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    def validate_generation_mode(original, self, generation_mode, generation_config, generation_mode_kwargs):
        assistant_model = generation_mode_kwargs.get("assistant_model")
        for is_ours, validate, _ in loops:
            if is_ours(assistant_model):
                validate(self, assistant_model, generation_config)
                generation_config = copy.copy(generation_config)
                generation_config.num_return_sequences = 1  # other assistants cannot do more
        return original(self, generation_mode, generation_config, generation_mode_kwargs)

    def prepare_generation_config(original, self, generation_config, *args, **kwargs):
        # `generate` fills in a default of 20: remember whether the number was asked for
        explicit = kwargs.get("num_assistant_tokens")
        for config in (generation_config, self.generation_config):
            if explicit is None and config is not None:  # pipelines of 5.15 prepare theirs themselves, before
                explicit = getattr(config, _EXPLICIT, config.num_assistant_tokens)
        prepared, model_kwargs = original(self, generation_config, *args, **kwargs)
        setattr(prepared, _EXPLICIT, explicit)
        if isinstance(model_kwargs.get(CACHE), Cache):  # as transformers marks it itself since 5.17
            model_kwargs[CACHE]._is_user_defined = True
        return prepared, model_kwargs

    def load_assistant_model(original, model, assistant_model, assistant_tokenizer):
        # the original wants a tokenizer beside each assistant, or the same special tokens: a drafter needs neither
        drafter = assistant_model
        if isinstance(drafter, str | os.PathLike):
            config = AutoConfig.from_pretrained(drafter)
            if any(is_ours(SimpleNamespace(config=config)) for is_ours, _, _ in loops):
                drafter = AutoModel.from_pretrained(drafter, dtype=model.dtype).to(model.device)
        if any(is_ours(drafter) for is_ours, _, _ in loops):
            return drafter, None
        return original(model, assistant_model, assistant_tokenizer)

    for owner, name, wrapper in (
        (GenerationMixin, "_assisted_decoding", assisted_decoding),
        (GenerationMixin, "_validate_generation_mode", validate_generation_mode),
        (GenerationMixin, "_prepare_generation_config", prepare_generation_config),
        (pipelines, "load_assistant_model", load_assistant_model),
    ):
        setattr(owner, name, _bind(wrapper, getattr(owner, name)))
    setattr(GenerationMixin._assisted_decoding, _LOOPS, loops)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", _bind(_packed_attention, ALL_ATTENTION_FUNCTIONS["sdpa"]))


def _bind(wrapper: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def hooked(*args, **kwargs):
        return wrapper(original, *args, **kwargs)

    setattr(hooked, _ORIGINAL, original)
    return hooked


def is_hook_installed() -> bool:
    return hasattr(GenerationMixin._assisted_decoding, _ORIGINAL)


def remove_hook(is_ours: Callable[[Any], bool]) -> None:
    """
    Takes back the loop that was installed with `is_ours`, and with the last one the hook: `GenerationMixin`, the
    pipelines and the attention get their own functions back. Does nothing if it is not installed.
    """
    if not is_hook_installed():
        return
    loops = getattr(GenerationMixin._assisted_decoding, _LOOPS)
    loops[:] = [loop for loop in loops if loop[0] is not is_ours]
    if not loops:
        for owner, names in ((GenerationMixin, _HOOKED), (pipelines, _HOOKED_IN_PIPELINES)):
            for name in names:
                setattr(owner, name, getattr(getattr(owner, name), _ORIGINAL))
        if hasattr(ALL_ATTENTION_FUNCTIONS["sdpa"], _ORIGINAL):
            ALL_ATTENTION_FUNCTIONS.register("sdpa", getattr(ALL_ATTENTION_FUNCTIONS["sdpa"], _ORIGINAL))


# -- attention -------------------------------------------------------------------------------------------------------

_UNGROUPED = SimpleNamespace(num_key_value_groups=1, is_causal=False, training=False)


def num_packed_heads(model: PreTrainedModel) -> int:
    """
    How many rows of a tree mask each node is to have: one per query head of a key/value head where the "sdpa"
    attention would otherwise copy all keys and values for each of them, which costs more the longer the context is;
    else 1. transformers packs the heads of plain generation's single token likewise.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return 1
    if not type(model).__module__.startswith("transformers.") or config.model_type == "doge":
        return 1  # may do something of its own with the mask, as Doge does
    if not hasattr(ALL_ATTENTION_FUNCTIONS["sdpa"], _ORIGINAL):  # replaced after ours
        return 1
    mask = torch.empty(1, 1, 1, 1, device=model.device)
    if use_gqa_in_sdpa(mask, mask, mask):  # the device's attention takes groups of query heads with a mask
        return 1
    modules = [module for module in model.get_decoder().modules() if hasattr(module, "num_key_value_groups")]
    groups = {module.num_key_value_groups for module in modules}
    return groups.pop() if len(groups) == 1 else 1


def _packed_attention(
    original: Callable[..., tuple[torch.Tensor, None]],
    module: nn.Module,
    query: torch.Tensor,  # [B, key/value heads * G, n, D]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    The "sdpa" attention, which also takes masks with [`num_packed_heads`] rows per query token, `[B, 1, n * G, keys]`:
    the G query heads of a key/value head then become rows of one head. Other masks never have as many rows.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1 or attention_mask is None or attention_mask.shape[-2] != groups * query.shape[2]:
        return original(module, query, key, value, attention_mask, *args, **kwargs)
    batch_size, num_heads, num_nodes, _ = query.shape
    query = query.unflatten(1, (num_heads // groups, groups)).transpose(2, 3).flatten(2, 3)
    output, _ = original(_UNGROUPED, query, key, value, attention_mask, *args, **kwargs)
    output = output.view(batch_size, num_nodes, groups, num_heads // groups, -1)
    return output.transpose(2, 3).flatten(2, 3), None


# -- generation ------------------------------------------------------------------------------------------------------


def explicit_num_assistant_tokens(generation_config: GenerationConfig) -> int | None:
    """`num_assistant_tokens` if the caller or the target's generation config set it, else None."""
    return getattr(generation_config, _EXPLICIT, None)


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
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> Iterator[tuple[Any, int]]:
    """
    Runs the target over the prompt as plain `generate` does, chunk by chunk if the generation config says so.

    Yields:
        (outputs, number of tokens processed) per chunk.
    """
    cache = model_kwargs[CACHE]
    chunk_size = generation_config.prefill_chunk_size
    if chunk_size is None or model_kwargs.get("inputs_embeds") is not None:
        generation_config = copy.copy(generation_config)
        generation_config.prefill_chunk_size = None
        past_length = int(cache.get_seq_length())
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        if cache_of(outputs) is not cache:
            raise NotImplementedError(
                f"{type(model).__name__} does not fill the key/value cache it is given, and drafting needs one. Leave "
                "out `assistant_model`."
            )
        yield outputs, int(cache.get_seq_length()) - past_length
        return
    attention_mask, position_ids = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    total_length = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
    total_length = max(total_length, getattr(generation_config, "_mask_length", 0) or 0)
    past_length = int(cache.get_seq_length())
    new_ids = input_ids[:, -(total_length - past_length) :]
    for chunk in new_ids.split(chunk_size, dim=1):
        end = past_length + chunk.shape[1]
        chunk_kwargs = dict(model_kwargs)
        if attention_mask is not None:
            chunk_kwargs["attention_mask"] = attention_mask[:, :end]
        if position_ids is not None:
            chunk_kwargs["position_ids"] = position_ids[..., past_length:end]
        model_inputs = model.prepare_inputs_for_generation(chunk, is_first_iteration=True, **chunk_kwargs)
        yield model(**model_inputs, return_dict=True), chunk.shape[1]
        past_length = end


def optimized_for_decoding(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Switches experts to the implementation for decoding, as plain `generate` does after the prefill."""
    return model._optimize_model_for_decode()


def has_unfinished_sequences(model: PreTrainedModel, finished: bool, synced_gpus: bool, device: torch.device) -> bool:
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
    """Whether rows that have ended get padding; without end tokens `generate` goes on with all until the last ends."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)


def row_processors(processors: LogitsProcessorList, row: int, batch_size: int) -> LogitsProcessorList:
    """
    The processors for one row of a batch, called with that row alone.

    Raises:
        NotImplementedError: for classifier-free guidance, which runs the target on the whole batch.
    """
    if batch_size == 1:
        return processors
    ours = LogitsProcessorList()
    for processor in processors:
        if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise NotImplementedError(
                "`guidance_scale` runs the target on the whole batch, but with a drafter its rows differ in length. "
                "Pass one prompt at a time, or leave out `assistant_model`."
            )
        if isinstance(processor, PrefixConstrainedLogitsProcessor):
            processor = copy.copy(processor)
            allowed = processor._prefix_allowed_tokens_fn
            processor._prefix_allowed_tokens_fn = lambda _, ids, allowed=allowed: allowed(row, ids)
        elif isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
            processor = copy.copy(processor)
            processor.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
        elif isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
            processor = copy.copy(processor)
            processor.batch_size, processor.generated_ngrams = 1, processor.generated_ngrams[row : row + 1]
        elif isinstance(getattr(processor, "prompt_ignore_length", None), torch.Tensor):  # repetition penalty
            processor = copy.copy(processor)
            processor.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
        ours.append(processor)
    return ours


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether the model carries a recurrent state that cannot be rolled back."""
    return bool(getattr(model, "_is_stateful", False))


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes. Offloaded weights are elsewhere until then."""
    hook = getattr(module, "_hf_hook", None)  # of accelerate, where the model is dispatched to devices
    for part in getattr(hook, "hooks", (hook,)):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return module.weight.device


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
    adapter, base, _ = maybe_load_adapters(path, dict(download_options), **adapter_options)
    adapter_options.pop("_adapter_model_path", None)
    return base, adapter, {**download_options, **adapter_options}


def discard_adapter(model: PreTrainedModel, adapter_name: str) -> None:
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
    def _finalize_model_loading(model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        incomplete = loading_info.missing_keys or loading_info.mismatched_keys
        if incomplete and load_config.hf_quantizer is None:  # quantizers leave out keys that they make themselves
            model.check_loaded(
                load_config.pretrained_model_name_or_path,
                loading_info.missing_keys,
                loading_info.unexpected_keys,
                loading_info.mismatched_keys,
            )
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)


# -- caches ----------------------------------------------------------------------------------------------------------


def check_cache(cache: Any, generation_config: GenerationConfig) -> str | None:
    """
    Whether rejected tokens can be taken out of a cache again.

    Returns:
        None if any tree can be, else the reason why only a chain can.

    Raises:
        NotImplementedError: if not even a chain can.
    """
    remedy = (
        f"Use the default dynamic cache (leave out `cache_implementation` and `{CACHE}`), or "
        "`cache_implementation='static'`."
    )
    if cache is None:
        raise NotImplementedError(
            "A drafter needs a key/value cache, and `generate` has none for this target. Leave out `assistant_model`."
        )
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise NotImplementedError(f"A drafter needs a decoder's key/value cache, got {type(cache).__name__}. {remedy}")
    if getattr(cache, "offloading", False):
        raise NotImplementedError(f"Offloaded caches are not supported with a Jakiro drafter yet. {remedy}")
    if any(isinstance(layer, _QUANTIZED_LAYER) for layer in cache.layers):
        raise NotImplementedError(
            f"Quantized caches cannot drop rejected tokens: quantized states are not kept per token. {remedy}"
        )
    if not is_user_defined(cache, generation_config):  # it is the default one
        remedy = "Leave out `assistant_model`."
    if _says_no(cache):
        raise NotImplementedError(f"A {type(cache).__name__} cannot drop rejected tokens, as drafting needs. {remedy}")
    others = [layer for layer in cache.layers if type(layer) not in (*_KEEP_NODES, *_STATIC_LAYERS)]
    unknown = {type(layer).__name__ for layer in others if not _is_croppable(layer, is_filled=False)}
    if unknown:
        raise NotImplementedError(
            f"Cache layers of the kinds {sorted(unknown)} cannot drop rejected tokens, as drafting needs. {remedy}"
        )
    chain_only = sorted({type(layer).__name__ for layer in others})
    return f"the cache has layers of kind {', '.join(chain_only)}" if chain_only else None


def check_croppable(model: PreTrainedModel, cache: Cache) -> None:
    """
    Checks the cache again after the prompt: only then do linear attention layers know whether they hold a recurrent
    state.

    Raises:
        NotImplementedError: if they do.
    """
    kinds = sorted({type(layer).__name__ for layer in cache.layers if not _is_croppable(layer, is_filled=True)})
    if kinds:
        raise NotImplementedError(
            f"{type(model).__name__} keeps a recurrent state in its cache (layers of kind {', '.join(kinds)}) that "
            "cannot be rolled back to the last accepted token, so nothing can be drafted for it. Leave out "
            "`assistant_model`."
        )


def _is_croppable(layer: Any, is_filled: bool) -> bool:
    if type(layer) in (*_KEEP_NODES, *_STATIC_LAYERS):
        return True
    # Before 5.17, layers have no `is_croppable`. Of the layers of that time, only this one can be cropped.
    says = getattr(layer, "is_croppable", type(layer).__name__ == "DynamicIndexedLayer")
    # Linear attention does not know before it is filled; see `check_croppable`.
    return says or (not is_filled and hasattr(layer, "is_croppable") and hasattr(layer, "conv_states"))


def _says_no(cache: Cache) -> bool:
    """Whether a kind of cache overrides what its layers say of cropping."""
    own = getattr(type(cache), "is_croppable", None)
    return own is not getattr(Cache, "is_croppable", None) and not cache.is_croppable


def attention_windows(cache: Cache) -> list[int | None]:
    """The sliding windows of the layers that a model returns attentions of, which linear attention has none of."""
    layers = [
        layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) or not hasattr(layer, "conv_states")
    ]
    return [getattr(layer, "sliding_window", None) for layer in layers]


def is_static(cache: Cache) -> bool:
    """Whether a cache has a fixed capacity that all of its forwards see."""
    return any(isinstance(layer, _STATIC_LAYERS) for layer in cache.layers)


def static_capacity(cache: Cache) -> int:
    """Tokens that a static cache holds, in the layer that holds least."""
    return min(layer.max_cache_len for layer in cache.layers if isinstance(layer, _STATIC_LAYERS))


def fit_static_cache(
    model: PreTrainedModel, cache: Cache, generation_config: GenerationConfig, num_draft_tokens: int
) -> Cache:
    """
    A static cache for the text and a drafted tree. The one that `generate` has made has no room for the tree; its
    layers with a sliding window forget what a rejected token needs again: ours hold all. As its capacity is that of
    the longest generation of this model so far, ours stays the same too, and compiled forwards fit again.

    Raises:
        ValueError: if the cache is the caller's and has too little room.
    """
    max_length = generation_config.max_length
    num_tokens = max_length + num_draft_tokens
    if is_user_defined(cache, generation_config):
        capacity = static_capacity(cache)
        if capacity < num_tokens:
            raise ValueError(
                f"The static cache holds {capacity} tokens, but the prompt, `max_new_tokens` and a drafted tree take "
                f"up to {num_tokens} (in layers with a sliding window, too, which have no more room than it). Pass "
                f"`StaticCache(config, max_cache_len={num_tokens})` or more to a target without sliding windows, or "
                "`cache_implementation='static'` to have one made."
            )
        return cache
    made = max(layer.max_cache_len for layer in cache.layers if isinstance(layer, _STATIC_LAYERS))
    capacity = -(-(max(max_length, made + 1) + num_draft_tokens) // 64) * 64
    cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=capacity)
    cache.layers = [
        StaticLayer(capacity) if type(layer) is StaticSlidingWindowLayer else layer for layer in cache.layers
    ]
    return cache


def compile_config_of(
    model: PreTrainedModel, model_kwargs: dict[str, Any], generation_config: GenerationConfig
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


def start_recording(cache: Cache, is_batch: bool) -> list[Any]:
    """
    Makes layers with a sliding window keep what falls out of it until [`keep_nodes`], [`keep_rows`] or `crop` is
    called, so that rejected tokens can be taken back. Returns what [`stop_recording`] needs.
    """
    before = [(layer, getattr(layer, "record_past", None)) for layer in cache.layers]
    cache.activate_past_recording()
    if is_batch:
        cache.layers = [
            _RaggedSlidingLayer(layer) if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers
        ]
    return before


def stop_recording(cache: Cache, before: list[Any]) -> None:
    """Takes [`start_recording`] back: plain `generate`, which never crops, may continue with the cache."""
    for index, (layer, record_past) in enumerate(before):
        ours = cache.layers[index]
        if ours is not layer:  # the layer as it was, with the states of ours
            layer.__dict__.update(vars(ours))
            layer.keys = layer.keys[..., 1 - layer.sliding_window :, :]
            layer.values = layer.values[..., 1 - layer.sliding_window :, :]
            cache.layers[index] = layer
        if record_past is not None:
            layer.record_past = record_past


class _RaggedSlidingLayer(DynamicSlidingWindowLayer):
    """For a batch whose rows are of different lengths: keeps the window of the shortest, and hands out all it has."""

    def __init__(self, layer: DynamicSlidingWindowLayer):
        self.__dict__.update(vars(layer))

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.cumulative_length += key_states.shape[-2]
        return DynamicLayer.update(self, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        length = self.keys.shape[-2]
        return length + query_length, self.cumulative_length - length


def keep_rows(
    cache: Cache, num_nodes: int, nodes: torch.LongTensor, lengths: list[int], new_lengths: list[int]
) -> None:
    """
    [`keep_nodes`] for a batch: the kept tokens of each row are moved to the end of its own, so that token t of a row
    stands in column t. Rows shorter than the longest have columns behind their end that mean nothing.

    Args:
        num_nodes (`int`): tokens of the last forward.
        nodes (`[B, k]`): indices among them of those to keep, increasing; what a row has less than k is arbitrary.
        lengths, new_lengths (`B` integers): tokens of each row before the forward, and with those it keeps.
    """
    columns = send(lengths, nodes.device)[:, None] + torch.arange(nodes.shape[1], device=nodes.device)
    rows = torch.arange(nodes.shape[0], device=nodes.device)[:, None]
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, _RaggedSlidingLayer, *_STATIC_LAYERS) or not layer.is_initialized:
            continue  # layers that share another layer's states
        is_static = isinstance(layer, _STATIC_LAYERS)
        size = max(lengths) + num_nodes if is_static else layer.keys.shape[-2]
        first = max(lengths) + num_nodes - size  # column of the first key in the layer
        start, end = 0, max(new_lengths) - first
        if isinstance(layer, _RaggedSlidingLayer):
            layer.cumulative_length = max(new_lengths)
            start = max(0, min(new_lengths) - layer.sliding_window + 1 - first)
        rows, nodes, columns = (index.to(layer.keys.device) for index in (rows, nodes, columns))
        source, target = nodes + (size - num_nodes), columns - first
        for name in ("keys", "values"):
            states = getattr(layer, name)
            by_column = states.transpose(1, 2)
            by_column[rows, target] = by_column[rows, source]  # `scatter_` would copy all of them
            if not is_static:
                setattr(layer, name, states[..., start:end, :])
        if is_static:
            _shorten_static(layer, max(lengths) + num_nodes - max(new_lengths))


def _shorten_static(layer: StaticLayer, num_tokens: int) -> None:
    if TRANSFORMERS >= (5, 24):
        layer.crop(-num_tokens)
        return
    layer.cumulative_length.sub_(num_tokens)
    if isinstance(layer, StaticSlidingWindowLayer):
        layer.cumulative_length_int -= num_tokens


def select_rows(cache: Cache, rows: torch.LongTensor, num_columns: int) -> None:
    """Goes on with these rows of the batch, the longest of which is `num_columns` shorter than the longest of all."""
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, _RaggedSlidingLayer) or not layer.is_initialized:
            continue  # layers that share another layer's states
        end = layer.keys.shape[-2] - num_columns
        layer.keys = layer.keys[rows.to(layer.keys.device), :, :end]
        layer.values = layer.values[rows.to(layer.values.device), :, :end]
        if isinstance(layer, _RaggedSlidingLayer):
            layer.cumulative_length -= num_columns


def is_user_defined(cache: Cache, generation_config: GenerationConfig) -> bool:
    """Whether the caller of `generate` passed this cache, and so will see what becomes of it."""
    if TRANSFORMERS < (5, 17) and not is_hook_installed():
        # Nothing marks the caller's cache here, so a dynamic cache counts as the caller's.
        return generation_config.cache_implementation is None
    return bool(getattr(cache, "_is_user_defined", False))


def keep_nodes(cache: Cache, num_nodes: int, nodes: torch.LongTensor, is_prefix: bool) -> None:
    """
    Drops all but some of the tokens that the last forward appended to the cache. What was there before is not copied.

    Args:
        cache ([`~transformers.Cache`]): one that [`check_cache`] found fit for trees.
        num_nodes (`int`): tokens of the last forward.
        nodes (`[k]`): indices among them of those to keep, increasing.
        is_prefix (`bool`): whether `nodes` is 0 … k - 1, so that nothing has to move.
    """
    for layer in cache.layers:
        _KEEP_NODES[type(layer)](layer, num_nodes, nodes, is_prefix)


def _keep_dynamic(layer: DynamicLayer, num_nodes: int, nodes: torch.LongTensor, is_prefix: bool) -> None:
    if not layer.is_initialized or num_nodes == nodes.shape[0]:
        return
    base = layer.keys.shape[-2] - num_nodes
    end = base + nodes.shape[0]
    if not is_prefix:
        index = nodes.to(layer.keys.device) + base
        layer.keys[..., base:end, :] = layer.keys.index_select(-2, index)
        layer.values[..., base:end, :] = layer.values.index_select(-2, index)
    layer.keys, layer.values = layer.keys[..., :end, :], layer.values[..., :end, :]


def _keep_sliding(layer: DynamicSlidingWindowLayer, num_nodes: int, nodes: torch.LongTensor, is_prefix: bool) -> None:
    if not layer.is_initialized:
        return
    _keep_dynamic(layer, num_nodes, nodes, is_prefix)
    layer.cumulative_length -= num_nodes - nodes.shape[0]
    if layer.cumulative_length >= layer.sliding_window:
        layer.keys = layer.keys[..., 1 - layer.sliding_window :, :]
        layer.values = layer.values[..., 1 - layer.sliding_window :, :]


def _keep_nothing(layer: Any, num_nodes: int, nodes: torch.LongTensor, is_prefix: bool) -> None:
    """Layers that share another layer's states have none of their own."""


_KEEP_NODES: dict[type, Callable[..., None]] = {
    DynamicLayer: _keep_dynamic,
    DynamicSlidingWindowLayer: _keep_sliding,
}
try:  # since transformers 5.21
    from transformers.cache_utils import DummyLayer

    _KEEP_NODES[DummyLayer] = _keep_nothing
except ImportError:
    pass
_STATIC_LAYERS = (StaticLayer, StaticSlidingWindowLayer)
# The common base class since 5.21. Up to 5.23, quantized layers wrongly report that they are croppable.
_QUANTIZED_LAYER: type = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)


def compile_everywhere() -> CompileConfig:
    """Lets `generate(cache_implementation="static")` compile on CPUs too, where transformers does not by itself."""
    config = CompileConfig()
    config._compile_all_devices = True
    return config
