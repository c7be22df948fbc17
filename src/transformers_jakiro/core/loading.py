# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Strict loading and saving of drafters: a checkpoint is complete and right, or an error says what is wrong with it.
"""

from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from . import compat
from .checkpoint import check_folder


class StrictModel(compat.StrictLoading, PreTrainedModel):
    """
    A [`~transformers.PreTrainedModel`] that never loads a damaged or foreign checkpoint.

    Attributes:
        draft_token_ids (`torch.LongTensor` of shape `(D,)`, *optional*): the tokens that can be drafted.
    """

    draft_token_ids: torch.Tensor | None

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the options are the parent's
        cls, pretrained_model_name_or_path: str | Path | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """
        As [`~transformers.PreTrainedModel.from_pretrained`], but strict: a checkpoint that lacks a weight, holds one
        that does not belong there, or holds NaN is an error, never a drafter that silently drafts nonsense; so are
        tokens to draft that the target does not have. The folder of a PEFT adapter gives the drafter that it was
        trained on, with the adapter; both must be complete.

        Raises:
            ValueError: naming the missing, unexpected, mismatched or non-finite weights, or what is wrong with
                `draft_token_ids`.
        """
        base, adapter, adapter_options = compat.find_adapter(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            if adapter == base:
                raise ValueError(
                    f"{adapter} holds a whole drafter and an adapter. Move the adapter's two files to a folder of "
                    "their own and load that, or the drafter without them."
                )
            if not base:
                raise ValueError(
                    f"The adapter in {adapter} does not name its drafter (`base_model_name_or_path` is empty, as it "
                    "was trained on one that had not been saved). Load that drafter, then "
                    "`draft.load_adapter(...)`."
                )
            adapter_name = kwargs.pop("adapter_name", None)
            kwargs.pop("adapter_kwargs", None)
            loaded: Any = cls.from_pretrained(base, *model_args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(adapter, adapter_name, adapter_kwargs=adapter_options)
            return loaded
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # here they are reported with the rest, and never ignored
        kwargs.setdefault("use_safetensors", True)  # what drafters are saved as
        path = pretrained_model_name_or_path
        if path is not None and Path(path).is_dir():
            check_folder(Path(path, kwargs.get("subfolder") or ""), with_config=kwargs.get("config") is None)
        try:
            loaded = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"The weights in {path} are damaged: {error}. Download or save them again.") from error
        model, info = loaded
        # saving copies the code only where it is that of the checkpoint, and then notes it again
        vars(model.config).pop("auto_map", None)
        cls.check_loaded(path, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
        model.check_finite()
        model.check_draft_vocabulary()
        return (model, info) if wants_info else model

    def load_adapter(  # type: ignore[override]  # the options are the parent's
        self, peft_model_id: str | Path | None = None, adapter_name: str | None = None, **kwargs: Any
    ) -> Any:
        """
        As `load_adapter` of [`~transformers.PreTrainedModel`], but strict as [`~JakiroDraftModel.from_pretrained`] is,
        and by default in the drafter's dtype.

        Raises:
            ValueError: naming the missing, unexpected or non-finite weights. The adapter is not loaded then.
        """
        adapter_name = adapter_name or "default"
        folder = None if peft_model_id is None else str(peft_model_id)
        info = super().load_adapter(folder, adapter_name, **{"dtype": self.dtype, **kwargs})
        missing, unexpected = sorted(info.missing_keys), sorted(info.unexpected_keys)
        try:
            if missing or unexpected:
                raise ValueError(
                    f"{peft_model_id or 'the state dict'} does not hold an adapter of this {type(self).__name__}: "
                    f"missing {missing or 'none'}, unexpected {unexpected or 'none'}. Load the drafter that the "
                    "adapter was trained on first."
                )
            self.check_finite()
        except ValueError:
            compat.discard_adapter(self, adapter_name)
            raise
        return info

    def save_pretrained(  # type: ignore[override]  # the options are the parent's
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        As [`~transformers.PreTrainedModel.save_pretrained`]. `push_to_hub=True` also publishes the drafter with
        [`~JakiroDraftModel.push_to_hub`], by default under the folder's name.
        """
        saving = signature(PreTrainedModel.save_pretrained).parameters.keys() & kwargs.keys() - {"token"}
        options = {name: kwargs.pop(name) for name in kwargs.keys() - saving}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if push_to_hub and is_main_process:
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    @classmethod
    def check_loaded(
        cls,
        path: str | Path | None,
        missing: Iterable[str],
        unexpected: Iterable[str],
        mismatched: Iterable[tuple[str, torch.Size, torch.Size]],
    ):
        """Raises `ValueError` if a checkpoint lacks weights, or has others; see `output_loading_info`."""
        wrong = [f"`{name}` is {tuple(got)}, expected {tuple(right)}" for name, got, right in sorted(mismatched)]
        missing, unexpected = sorted(missing), sorted(unexpected)
        if missing or unexpected or wrong:
            raise ValueError(
                f"{path} does not hold the weights of a {cls.__name__} with its config: missing {missing or 'none'}, "
                f"unexpected {unexpected or 'none'}, mismatched {', '.join(wrong) or 'none'}. If it is a published "
                "Jakiro or EAGLE checkpoint, install transformers-jakiro and run `jakiro convert` first."
            )

    def check_finite(self):
        """Raises `ValueError` naming the weights that hold NaN or infinity (those on the meta device are skipped)."""
        bad = [
            name
            for name, weight in self.named_parameters()
            if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(weight).all()
        ]
        if bad:
            raise ValueError(
                f"The drafter's weights hold NaN or infinite values in {bad}: the checkpoint is damaged or its "
                "training diverged. Load another checkpoint."
            )

    def check_draft_vocabulary(self):
        """Raises `ValueError` unless `draft_token_ids` are `draft_vocab_size` tokens of the target, increasing."""
        size, token_ids = self.config.draft_vocab_size, self.draft_token_ids
        if size is None and token_ids is None:
            return
        if size is None or token_ids is None:
            wrong = "one is there without the other"
        elif token_ids.is_meta:
            return
        elif token_ids.dtype != torch.int64 or token_ids.shape != (size,):
            wrong = f"they are {token_ids.dtype} of shape {tuple(token_ids.shape)}"
        elif token_ids[0] < 0 or token_ids[-1] >= self.config.vocab_size:
            wrong = f"they go from {token_ids[0]} to {token_ids[-1]}"
        elif not (token_ids.diff() > 0).all():
            wrong = "they are not sorted, or hold a token twice"
        else:
            return
        raise ValueError(
            f"With `draft_vocab_size={size}` and `vocab_size={self.config.vocab_size}`, the drafter's "
            f"`draft_token_ids` must be that many increasing token ids of the target (int64): {wrong}. A new drafter "
            "gets them from `new_drafter(target, draft_token_ids=frequent_tokens(...))`; a checkpoint with others is "
            "damaged, or its config.json belongs to another."
        )


__all__ = ["StrictModel"]
