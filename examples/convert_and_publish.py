# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Converts a drafter from the layout of the published Jakiro, Jakiro* or EAGLE-1/2/3 code and writes a Hub repository:
weights, config, model card, and the code that loads it without this package. Then it checks that the target generates
the same tokens with the drafter as without. With `--repo-id`, the repository is pushed to the Hub.

    python examples/convert_and_publish.py                        # the pair that ships, no network
    python examples/convert_and_publish.py --checkpoint org/EAGLE-drafter --target org/target --license apache-2.0 \\
        --repo-id me/my-drafter

Hardware: one thread of a busy 2-core x86 server CPU (AMD EPYC), no GPU. Time: 8 seconds. Result: a folder of 20 files,
1.9 MB; the same tokens as plain `generate`, 2.42 per forward of the target. (The drafter that ships reaches 5.9 here.
It was trained with a final norm, for which the original layout has no place.)

For a 7B model (not run here): `--dtype bfloat16 --device-map auto`; the checkpoint has 0.5 to 1 GB. Measure the pair
with `jakiro bench --output report` first, and pass `--results report/results.json`: the model card takes its figures
from there only. Log in with `hf auth login`. For a licence that differs from the target's, ask whoever trained the
drafter.
"""

import argparse
import re
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.hub.conversion import convert_original, export_original
from transformers_jakiro.hub.publishing import write_repository
from transformers_jakiro.measuring.acceptance import tokens_per_forward
from transformers_jakiro.pair import DRAFT, TARGET

QUESTION = "A pen costs 3 dollars and a book costs 4 times as much. How much do 2 pens and 3 books cost?"


def original_checkpoint(folder: Path) -> Path:
    """Writes the drafter that ships in the original layout, which has neither multipliers nor a final norm."""
    draft = JakiroDraftModel.from_pretrained(DRAFT, dtype=torch.float32)
    draft.fold_multipliers()
    draft.norm, draft.config.final_norm = torch.nn.Identity(), False  # without it, it drafts worse
    return export_original(draft, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", help="folder or Hub id in an original layout (default: the drafter that ships)"
    )
    parser.add_argument("--target", default=str(TARGET), help="folder or Hub id (default: the one that ships)")
    parser.add_argument("--target-id", help="Hub id of the target, if --target is a folder")
    parser.add_argument("--output", type=Path, default=Path("drafter-repository"), help="folder to write")
    parser.add_argument("--repo-id", help="Hub id to push it to (default: nothing is pushed)")
    parser.add_argument("--license", default="apache-2.0", help="licence of the drafter (apache-2.0)")
    parser.add_argument("--results", nargs="*", default=[], help="results.json of `jakiro bench`, for the model card")
    parser.add_argument("--dtype", default="float32", help="precision of the comparison (float32)")
    parser.add_argument("--device-map", help='device map of the target, such as "auto" (CPU)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = args.checkpoint or original_checkpoint(Path(temporary) / "original")
        converted = convert_original(checkpoint, Path(temporary) / "converted", target=args.target)
        draft = JakiroDraftModel.from_pretrained(converted)
    # the card and the config name the target for other people
    target_id = args.target_id or ("gsm8k-3.6m" if args.target == str(TARGET) else args.target)
    publication = {
        "target": target_id,
        "license": args.license,
        "results": args.results,
        "remote_code": True,  # users do not need this package
    }
    folder = write_repository(draft, args.output, args.repo_id or "me/my-drafter", **publication)
    print("\n".join(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())))
    print(re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.S)[1])

    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = AutoModelForCausalLM.from_pretrained(args.target, dtype=args.dtype, device_map=args.device_map)
    draft = AutoModel.from_pretrained(folder, dtype=target.dtype).to(target.device)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(target.device)
    options = {**inputs, "do_sample": False, "max_new_tokens": 64}
    output = target.generate(**options, assistant_model=draft, return_dict_in_generate=True)
    print(f"same tokens as plain generate: {torch.equal(output.sequences, target.generate(**options))}")
    print(f"tokens per forward of the target: {tokens_per_forward(output.accept_lengths[0]):.2f}")
    if args.repo_id is not None:
        print(f"Published: {draft.push_to_hub(args.repo_id, **publication)}")


if __name__ == "__main__":
    main()
