# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The decoding loop: draft a tree, let the target process it in one forward, walk it with the target's own choices, keep
the accepted path.

Symbols in shape comments: B batch, T tokens of the prompt, R rows in the target's batch, n nodes of a tree, k nodes of
the longest accepted path.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from . import compat, hook
from .drafting import Observation, drafter_class_of
from .outputs import JakiroGenerateOutput
from .requests import check_request
from .session import Session
from .tree import DraftTree, gather_nodes


def decode(session: Session, synced_gpus: bool = False) -> JakiroGenerateOutput | torch.Tensor:
    """
    Generates. One loop for one row and many, dynamic and static caches, greedy decoding and sampling.

    Returns:
        What `generate` returns: the token ids `[B, T + new]`, or a [`JakiroGenerateOutput`].
    """
    rows, drafter, target = session.rows, session.drafter, session.target
    model, device = target.model, session.input_ids.device
    with ExitStack() as stack:
        if session.noise is not None:
            stack.callback(session.noise.finish, rows)
        # 1. Prefill: the target reads the prompt, the drafter observes it, and each row gets its first token.
        outputs = session.prefill()
        session.recorder.record_prompt(outputs)
        session.stream.put(session.chooser.choose_first(outputs.logits[:, -1]))
        del outputs
        forward = stack.enter_context(session.tree_forward())
        stack.enter_context(compat.optimized_for_decoding(model))
        while compat.has_unfinished_sequences(model, rows.finished, synced_gpus, device):
            if rows.finished:  # other processes still generate, and need this one's share of the forwards
                forward.run(DraftTree.root_only(rows.last_tokens))
                forward.keep()
                continue
            # 2. Rows that have ended leave the batch.
            if session.may_drop_rows and len(rows.unfinished) < len(rows.active):
                kept = rows.drop_finished()
                drafter.select(kept)
                forward.select(kept)
            # 3. Propose: the drafter grows a tree of next tokens below each row's last one.
            tree = session.propose()
            # 4. Verify: one forward of the target over all nodes.
            outputs = forward.run(tree)
            # 5. Accept: walk down each tree with the target's own choices, as far as it holds them.
            emitted = session.chooser.walk(tree, outputs.logits)
            session.recorder.record_step(tree, outputs, emitted)
            session.stream.put(emitted, tree)
            # 6. Keep: only the accepted paths stay in the target's cache.
            nodes = forward.keep()
            # 7. Observe: the drafter takes in what the target has made of them.
            drafter.observe(
                Observation(
                    num_tokens=[len(row.path) for row in rows.active],
                    tokens=tree.tokens.gather(1, nodes.to(tree.tokens.device)),
                    features=gather_nodes(target.read(outputs.hidden_states), nodes)
                    if target.reads_hidden_states
                    else None,
                )
            )
            session.schedule.record(tree, emitted)
        if session.shows_cache and not synced_gpus:  # other processes would have to give their share of the forward
            forward.catch_up()
    session.stream.end()
    return session.recorder.pack(forward.cache)


@torch.no_grad()
def jakiro_decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    assistant_model: Any,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    num_assistant_tokens: int | None = None,
    inputs_tensor: torch.Tensor | None = None,
    tokenizer: Any = None,
    **model_kwargs: Any,
) -> JakiroGenerateOutput | torch.Tensor:
    """
    What `generate(assistant_model=<one of our drafters>)` runs, with the arguments of transformers' own loops.

    Args:
        model ([`~transformers.PreTrainedModel`]): the target.
        input_ids (`[B, T]`): the prompts.
        logits_processor, stopping_criteria, generation_config: as `generate` has prepared them.
        assistant_model ([`JakiroDraftModel`], or another assistant with a registered config): the drafter.
        synced_gpus (`bool`): whether to go on until all processes have finished.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): gets the new tokens.
        num_assistant_tokens (`int`, *optional*): nodes per tree; default: the call's `num_assistant_tokens`, else the
            drafter's.
        inputs_tensor, tokenizer: what `generate` passes to every assisted loop; not needed here.
        model_kwargs: of the target's forward.

    Returns:
        The token ids `[B, T + new]`, or a [`JakiroGenerateOutput`] with `return_dict_in_generate=True`.

    Raises:
        ValueError: if the prompt is empty, the two models do not fit, or the drafter's features are not finite.
        NotImplementedError: for caches and heads that cannot be drafted for (yet), and for batches where trees cannot
            be verified.
    """
    session = Session.start(
        model,
        assistant_model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        streamer,
        num_assistant_tokens,
        model_kwargs,
    )
    return decode(session, synced_gpus)


def jakiro_generate(
    draft_model: PreTrainedModel,
    streamer: BaseStreamer | None = None,
    num_assistant_tokens: int | None = None,
    synced_gpus: bool = False,
) -> Callable[..., JakiroGenerateOutput | torch.Tensor]:
    """
    The decoding loop as a callable for transformers' public `custom_generate`, which needs no hook:

    ```python
    >>> target.generate(**inputs, custom_generate=jakiro_generate(draft))
    ```

    `generate` hands a callable neither `streamer` nor `synced_gpus`: pass them here. For stop strings pass a
    [`~transformers.StopStringCriteria`] in `stopping_criteria`, since the tokenizer does not get through either.

    Args:
        draft_model ([`JakiroDraftModel`]): the drafter.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): gets the prompt, then the tokens.
        num_assistant_tokens (`int`, *optional*): nodes per tree; default: the drafter's `num_draft_tokens`.
        synced_gpus (`bool`): whether to go on until all processes have finished.
    """

    def loop(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> JakiroGenerateOutput | torch.Tensor:
        check_request(model, draft_model, generation_config)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        return jakiro_decode(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            assistant_model=draft_model,
            synced_gpus=synced_gpus,
            streamer=streamer,
            num_assistant_tokens=num_assistant_tokens,
            **model_kwargs,
        )

    return loop


def install_generation_hook() -> None:
    """
    Lets `target.generate(assistant_model=draft)` of every causal language model use our loop when `draft` is one of
    our drafters, and `pipeline(..., assistant_model=draft)` take it, also as a folder or Hub id. "sdpa" attention
    learns to read the masks of our trees. Other assistants and masks are treated as before. Idempotent; importing the
    package does it.

    Raises:
        IncompatibleTransformersError: if the installed transformers lacks what the hook relies on.
    """
    hook.install_hook(is_drafter, check_request, jakiro_decode)


def remove_generation_hook() -> None:
    """Takes [`install_generation_hook`] back."""
    hook.remove_hook(is_drafter)


def is_drafter(model: Any) -> bool:
    """Whether a drafter is registered for an assistant, a [`JakiroDraftModel`] or one wrapped by PEFT for example."""
    return drafter_class_of(model) is not None


__all__ = [
    "decode",
    "install_generation_hook",
    "is_drafter",
    "jakiro_decode",
    "jakiro_generate",
    "remove_generation_hook",
]
