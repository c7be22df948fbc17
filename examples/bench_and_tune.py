# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Finds the draft tree that is fastest on this machine, writes it to a copy of the drafter, and measures that drafter
against plain `generate`, the published tree and prompt lookup. Ends with pictures and a report.

    python examples/bench_and_tune.py                             # the pair and some prompts that ship, no network
    python examples/bench_and_tune.py prompts.jsonl --target org/target --draft org/drafter-for-target \\
        --dtype bfloat16 --limit 10 --max-new-tokens 256 --batch-size 1 4

The same as `jakiro tune --output` and `jakiro bench --output`, whose `--help` tells what else can be chosen.

Hardware: one thread of a busy 2-core x86 server CPU (AMD EPYC), no GPU. Time: 2 to 3 minutes. Result: of three prompts
the tuned tree (6 levels, 2 nodes wide, 11 or 22 nodes) makes 1.6 to 1.8 times the speed of plain `generate` at T = 0
and 1.3 to 1.4 times at T = 1; the published tree of 59 nodes 1.1 to 1.5 times and 1.0 times. Three prompts are few and
the machine was busy: two runs differ by this much, and may choose different trees.

For a 7B model (not run here): `--dtype bfloat16 --limit 10 --max-new-tokens 256`, prompts of the kind your users ask,
on the very machine and GPU that will serve, with nothing else on it; the models are put on the GPU by themselves.
Expect larger trees: a GPU checks 60 nodes in about the time of one.
"""

import argparse
from pathlib import Path

from transformers import AutoConfig

from transformers_jakiro.measuring.bench import BenchOptions, run_bench
from transformers_jakiro.measuring.tune import TuneOptions, run_tune
from transformers_jakiro.pair import DRAFT, PROMPTS, TARGET


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", help="JSON lines with id, task, turns or prompt (some that ship)")
    parser.add_argument("--target", default=str(TARGET), help="folder or Hub id (the one that ships)")
    parser.add_argument("--draft", default=str(DRAFT), help="its drafter: folder or Hub id")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder for the drafter and the report")
    parser.add_argument("--dtype", default="float32", help="precision of both models (float32)")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0], help="0 is greedy (0 1)")
    parser.add_argument("--limit", type=int, default=3, help="prompts per task (3)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="to tune for; measured is the first")
    args = parser.parse_args()
    settings = {
        "files": args.prompts or [str(PROMPTS)],
        "target": args.target,
        "temperature": args.temperature,
        "limit": args.limit,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
    }
    tuned = args.output / "draft"
    report = str(args.output / "tune.json")
    tuning = TuneOptions(draft=args.draft, batch_size=args.batch_size, **settings)
    run_tune(tuning, output=str(tuned), report=report)
    before, after = (AutoConfig.from_pretrained(folder) for folder in (args.draft, tuned))
    for name in ("tree_depth", "tree_width", "tree_top_k", "num_draft_tokens", "batch_trees"):
        print(f"{name}: {getattr(before, name)} before, {getattr(after, name)} after")

    methods = ["jakiro", "published", "prompt_lookup"]
    options = BenchOptions(draft=str(tuned), methods=methods, batch_size=args.batch_size[0], **settings)
    results = run_bench(options, output=str(args.output))
    for row in results["summary"]:
        if row["task"] == "mean" and row["method"] != "plain":
            print(f"T = {row['temperature']:g}, {row['method']}: {row['speed_up']['median']:.2f} times plain generate")
    print("\n".join(map(str, [*sorted(args.output.glob("*.png")), args.output / "results.html"])))


if __name__ == "__main__":
    main()
