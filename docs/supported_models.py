# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Writes `docs/supported_models.md`, which lists the tested targets, drafters and options, from the tests that pytest
collects.

    python docs/supported_models.py
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from transformers_jakiro.files import write_text

ROOT = Path(__file__).parents[1]

# Columns: a capability of a target, and the tests that compare it with plain `generate`, token for token.
COLUMNS = {
    "trees": ["test_losslessness.py::test_greedy_full_context"],
    "sliding windows": ["test_losslessness.py::test_greedy_sliding_window"],
    "sampling": ["test_sampling.py::test_same_seed_with_sliding_windows_and_padding"],
    "batches": ["test_batch.py::test_same_tokens"],
    "static cache": ["test_static_cache.py::test_same_tokens"],
}
# Options and their tests, on the targets that the parameter `architecture` names, or else on Llama.
OPTIONS = {
    "left padding": ["test_losslessness.py::test_left_padding"],
    "`inputs_embeds`": ["test_losslessness.py::test_inputs_embeds_only"],
    "a prompt with a cache": ["test_losslessness.py::test_next_turn_on_an_existing_cache"],
    "`prefill_chunk_size`": ["test_losslessness.py::test_prefill_chunks"],
    "scores, logits, hidden states, attentions": ["test_generate.py::test_records"],
    "continuing with the returned cache": ["test_generate.py::test_the_returned_cache_continues"],
    "`flex_attention`": ["test_tree_attention.py::test_flex_attention"],
    "chains, where trees cannot be verified": ["test_generate.py::test_chain_fallback"],
    "batches with sliding windows": ["test_batch.py::test_sliding_windows"],
    "static cache with sliding windows": ["test_static_cache.py::test_sliding_windows"],
    "sampling in a batch": ["test_batch.py::test_sampling"],
    "`num_return_sequences`": ["test_batch.py::test_several_sequences_per_prompt"],
    "streamers": ["test_generate.py::test_streamers_are_called_as_by_plain_generate", "test_batch.py::test_streamers"],
    "stopping criteria": ["test_generate.py::test_criteria_are_called_as_by_plain_generate"],
    "stop strings": ["test_generate.py::test_stop_strings"],
    "adaptive trees": ["test_adaptive.py::test_the_text_is_the_same", "test_batch.py::test_adaptive_trees"],
    "PEFT around the target or the drafter": [
        "test_generate.py::test_peft_target",
        "test_generate.py::test_peft_drafter",
        "test_generate.py::test_peft_target_and_drafter_sampling",
    ],
    "offloaded targets": ["test_devices.py::test_offloaded_targets"],
    "tensor parallelism": ["test_devices.py::test_tensor_parallelism"],
    "`synced_gpus`": ["test_generate.py::test_a_finished_process_keeps_giving_forwards_to_the_others"],
}
PROCESSORS = "test_generate.py::test_logits_processors"
SAMPLING = "test_sampling.py::test_same_seed_same_tokens"
CHAINS = "test_generate.py::test_attention_that_counts_keys_gets_chains"
CACHES = "test_hook.py::test_kinds_of_caches"
# Kinds of drafters: a test, and the parameter that distinguishes them.
DRAFTERS = {
    "Jakiro, Jakiro\\* and EAGLE-1/2, and their trees": (
        "test_losslessness.py::test_kinds_of_drafters_and_trees",
        "name",
    ),
    "EAGLE-3 checkpoints": ("test_eagle3.py::test_generation_is_lossless", "name"),
    "drafters with a partial vocabulary": ("test_draft_vocabulary.py::test_lossless", "kind"),
    "drafters that read several layers, by target": (
        "test_feature_layers.py::test_generation_is_lossless",
        "architecture",
    ),
}


class Collected:
    """Plugin of pytest that keeps the parameters of each test, by file and function."""

    def __init__(self):
        self.cases: dict[str, list[dict]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            callspec = getattr(item, "callspec", None)
            assert isinstance(item, pytest.Function)
            name = f"{item.path.name}::{item.originalname}"
            self.cases.setdefault(name, []).append(dict(callspec.params) if callspec else {})

    def values(self, test: str, parameter: str) -> list[str]:
        """A parameter's values, each once, in the order of the tests."""
        return list(dict.fromkeys(case[parameter] for case in self.cases[test] if parameter in case))


def collect(tests: Sequence[str]) -> Collected:
    """Lets pytest collect the files of these tests. A test that does not exist is an error."""
    collected = Collected()
    files = sorted({str(ROOT / "tests" / test.partition("::")[0]) for test in tests})
    with contextlib.redirect_stdout(io.StringIO()) as said:
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        code = pytest.main([*options, *files], [collected])
    if code != 0:
        sys.exit(f"pytest could not collect the tests:\n{said.getvalue()}")
    missing = sorted(set(tests) - collected.cases.keys())
    if missing:
        sys.exit(f"{Path(__file__).name} names tests that do not exist (renamed?): {', '.join(missing)}")
    return collected


def page() -> str:
    """The page's text."""
    tests = [test for group in (*COLUMNS.values(), *OPTIONS.values()) for test in group]
    collected = collect([*tests, PROCESSORS, SAMPLING, CHAINS, CACHES, *(test for test, _ in DRAFTERS.values())])
    from helpers.targets import ARCHITECTURES, CASES, SLIDING  # pytest has made the tests' folder importable

    names = {name: f"`{class_name.removesuffix('Config')}`" for name, (class_name, _) in ARCHITECTURES.items()}

    def tested(group: Sequence[str]) -> list[str]:
        """The architectures of a group of tests."""
        found = {name for test in group for name in collected.values(test, "architecture")}
        return [name for name in ARCHITECTURES if name in found] or ["llama"]

    parts = [
        "# Supported models and features",
        "Written by `docs/supported_models.py` from the parameters of the tests. Each test builds small random "
        "targets of an architecture and asserts that the drafter changes nothing: the tokens are those of plain "
        "`generate`, once with a random drafter and once with a drafter that knows the text, so that long paths are "
        "accepted. The tests run in float32; [half precision](faq.md#is-the-output-really-the-same) has near ties.",
        "## Targets",
        "The names are those of the classes: `Llama` stands for `LlamaForCausalLM`. Models of the same class are the "
        "same target.",
    ]
    rows = []
    for name in ARCHITECTURES:
        implementations = ", ".join(f"`{kind}`" for architecture, kind in CASES if architecture == name)
        marks = []
        for title, group in COLUMNS.items():
            fits = title != "sliding windows" or name in SLIDING
            marks.append(("✓" if name in tested(group) else "not tested") if fits else "–")
        rows.append([names[name], implementations, *marks])
    parts.append(table(["target", "attention", *COLUMNS], rows))
    parts += [
        "- *Trees*: a whole tree is verified in one forward pass. *Sliding windows*: – if the architecture has none. "
        "*Sampling*: the same tokens for the same seed, with left padding and with sliding windows if there are any.\n"
        "- A target that is not in the list may still work. It must be decoder-only, it must be possible to roll it "
        "back (no recurrent state), and its head must be a matrix with a known scale or soft cap. Anything else is "
        "refused with the reason before the generation starts.\n"
        "- **Chains instead of trees**, with a warning that says why: attention that takes no mask (such as flash "
        f"attention), layers with chunked attention (Llama 4), and {listed(collected.values(CHAINS, 'name'))}, whose "
        "attention counts keys in memory, and models whose forward is given no positions. Chains take dynamic caches; "
        "in a batch, all rows move on by as many tokens as the slowest one accepts.\n"
        "- **Refused**: recurrent states (Mamba and the like), encoder-decoder models, beam search, and caches of the "
        f"kinds {listed(collected.values(CACHES, 'name'))}.",
        "## Options of `generate`",
    ]
    rows = []
    for title, group in OPTIONS.items():
        count = sum(len(collected.cases[test]) for test in group)
        rows.append([title, ", ".join(names[name] for name in tested(group)), str(count)])
    parts.append(table(["option", "tested with", "cases"], rows, right=[2]))
    parts += [
        "Options do not depend on the architecture, so most are tested with a few only. Logits processors, greedy and "
        f"sampling: {listed(collected.values(PROCESSORS, 'name'))}. Sampling settings: "
        f"{listed(collected.values(SAMPLING, 'name'))}.",
        "## Drafters",
        table(
            ["kind", "cases"],
            [[title, listed(collected.values(*where))] for title, where in DRAFTERS.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def listed(values: Sequence[str]) -> str:
    return ", ".join(f"*{value}*" for value in values)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rules = ["---:" if index in right else "---" for index in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rules, *rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE", help="(beside this file)"
    )
    write_text(parser.parse_args(argv).output, page())


if __name__ == "__main__":
    main()
