# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The `jakiro` command: parsing and error messages only.

Each subcommand is a function that adds its parser and sets `run`. Importing the package takes seconds, because it
imports torch and transformers. This module is therefore not part of it and imports it only inside `run`, so that
`jakiro --help` is instant.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "float16", "bfloat16")
BENCH_METHODS = (
    "plain",
    "static",
    "jakiro",
    "jakiro_static",
    "published",
    "adaptive",
    "chain",
    "eagle2",
    "prompt_lookup",
    "prompt_lookup_static",
    "assistant",
    "assistant_static",
    "early_exit",
    "mtp",
)


def add_convert(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro convert SRC DST`"""
    parser = subparsers.add_parser(
        "convert",
        help="convert a published Jakiro, Jakiro* or EAGLE-1/2/3 drafter",
        description="Convert a published Jakiro, Jakiro* or EAGLE-1/2/3 drafter to a folder that "
        "JakiroDraftModel.from_pretrained loads, or convert a drafter back.",
    )
    parser.add_argument("src", metavar="SRC", help="folder or Hub id of the original checkpoint")
    parser.add_argument("dst", metavar="DST", help="folder to create")
    parser.add_argument(
        "--target", metavar="T", help="folder or Hub id of its target: checked, and recorded in the config"
    )
    parser.add_argument(
        "--dtype",
        metavar="D",
        default="auto",
        choices=DTYPES,
        help="precision to save in: auto (default, the checkpoint's), float32, float16 or bfloat16",
    )
    parser.add_argument(
        "--to",
        choices=("jakiro", "original"),
        default="jakiro",
        help="original: convert a saved drafter back to the layout of the published Jakiro and EAGLE-1/2 code",
    )

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro import JakiroDraftModel
        from transformers_jakiro.hub.conversion import convert_original, export_original

        if args.to == "original":
            if args.target is not None:
                raise ValueError("`--target` is for converting from an original checkpoint: leave it out.")
            path = export_original(JakiroDraftModel.from_pretrained(args.src, dtype=args.dtype), args.dst)
        else:
            path = convert_original(args.src, args.dst, target=args.target, dtype=args.dtype)
        print(f"Saved {path}")

    parser.set_defaults(run=run)


def add_demo(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro demo [PROMPT ...]`"""
    parser = subparsers.add_parser(
        "demo",
        help="answer prompts with the pair that ships, and compare with plain generate",
        description="Answer prompts with the small pair that ships with the package, or with another one. Show which "
        "tokens were drafted and accepted, and compare with plain generate in the same process.",
    )
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="questions (default: held-out GSM8K questions)")
    parser.add_argument("--target", metavar="T", help="another target: folder or Hub id")
    parser.add_argument("--draft", metavar="D", help="its drafter: folder or Hub id")
    parser.add_argument("--num-prompts", type=int, default=3, metavar="N", help="number of GSM8K questions (3)")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="token limit per answer (200)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for sampling (0)")
    parser.add_argument("--dtype", default="float32", metavar="D", help="precision of both models (float32)")
    parser.add_argument("--show-tree", action="store_true", help="draw the tree of each answer's best step")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.apps.demo import run_demo

        run_demo(
            args.prompts,
            target=args.target,
            draft=args.draft,
            num_prompts=args.num_prompts,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            dtype=args.dtype,
            show_tree=args.show_tree,
            seed=args.seed,
        )

    parser.set_defaults(run=run)


def _add_shown_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", metavar="T", help="folder or Hub id (the small pair that ships)")
    parser.add_argument("--draft", metavar="D", help="its drafter: folder or Hub id")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="D",
        help="precision of both models (float32 for the pair that ships, else auto)",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy (default: the target's generation config)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="token limit per answer (256)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for sampling (0)")


def add_chat(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro chat`"""
    parser = subparsers.add_parser(
        "chat",
        help="chat with a target and its drafter in the terminal",
        description="Chat with a target and its drafter in the terminal. Answers appear as they are written, with "
        "accepted drafts in colour. The commands are those of `transformers chat`: !help lists them.",
    )
    _add_shown_pair(parser)
    parser.add_argument("--system-prompt", metavar="TEXT", help="system message of every conversation (none)")
    parser.add_argument("--no-draft", action="store_true", help="use plain generate, for comparison")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.apps.chat import run_chat

        run_chat(**_arguments(args))

    parser.set_defaults(run=run)


def add_ui(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro ui`"""
    parser = subparsers.add_parser(
        "ui",
        help="watch a drafter at work in the browser",
        description="Serve a page on this machine that shows an answer being written, what was drafted in it, the "
        "tree of every step, and the same answer from plain generate. Needs "
        "`pip install 'transformers-jakiro[ui]'`.",
    )
    _add_shown_pair(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on (7860 or the next free one)")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.apps.ui import run_ui

        run_ui(**_arguments(args))

    parser.set_defaults(run=run)


def _add_pair_and_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="prompts: JSON lines with `id`, `task`, `turns`, or a Hub id (default: a small set that ships)",
    )
    parser.add_argument("--target", required=True, metavar="T", help="folder or Hub id")
    parser.add_argument("--draft", required=True, metavar="D", help="folder or Hub id")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks of the prompts to take (all)")


def add_bench(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro bench --target T --draft D [FILE ...]`"""
    parser = subparsers.add_parser(
        "bench",
        help="measure the speed-up of a drafter on this machine",
        description="Let several ways to generate answer the same prompts, taking turns in one process, and report "
        "speed-up, tokens per target forward, acceptance and where a step's time goes. With --output, it continues if "
        "interrupted and run again.",
    )
    _add_pair_and_prompts(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="prompts per task (all)")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0], metavar="T", help="0 is greedy (0)")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="per turn (200)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=BENCH_METHODS,
        metavar="M",
        help=f"of {', '.join(BENCH_METHODS)} (plain, jakiro, chain, "
        "prompt_lookup; eagle2, assistant and early_exit where their model is given)",
    )
    parser.add_argument("--control", metavar="D", help="another drafter, for the method eagle2: folder or Hub id")
    parser.add_argument("--assistant", metavar="M", help="small model for the method assistant: folder or Hub id")
    parser.add_argument(
        "--assistant-early-exit", type=int, metavar="N", help="layers of the target to draft with: method early_exit"
    )
    parser.add_argument(
        "--num-assistant-tokens",
        type=int,
        nargs="+",
        metavar="N",
        help="nodes per tree (the drafter's); several are compared",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="prompts of a task answered at a time (1); with more than one, each prompt's first turn",
    )
    parser.add_argument(
        "--profile", type=int, default=1, metavar="N", help="prompts per task to run again with timers (1)"
    )
    parser.add_argument(
        "--deepen",
        type=int,
        metavar="N",
        help="insert identity layers into the target, up to N: the same tokens at the layer ratio of a larger model",
    )
    parser.add_argument("--dtype", default="bfloat16", help="precision of all models (bfloat16)")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for results.json, results.md, results.html and plots (none)"
    )
    parser.add_argument(
        "--context", type=int, nargs="+", metavar="LENGTH", help="also measure a step's time at these context lengths"
    )

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.measuring.bench import BenchOptions, run_bench

        arguments = _arguments(args)
        output = arguments.pop("output")
        run_bench(BenchOptions(**arguments), output)

    parser.set_defaults(run=run)


def add_tune(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro tune --target T --draft D [FILE ...]`"""
    parser = subparsers.add_parser(
        "tune",
        help="find the tree that is fastest on this machine, and write it to the drafter's config",
        description="Let the target answer sample prompts, replay trees of many depths, widths and sizes on the "
        "answers, time the two models, and let the most promising trees, the published one and the drafter's own "
        "answer the prompts. The fastest is written to the drafter's config.json.",
    )
    _add_pair_and_prompts(parser)
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="prompts per task (1)")
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[0.0, 1.0], metavar="T", help="to tune for; 0 is greedy (0 1)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="per prompt (48)")
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="sequences generated at a time (1); with several, a tree for each",
    )
    parser.add_argument("--deepen", type=int, metavar="N", help="insert identity layers into the target, up to N")
    parser.add_argument("--dtype", default="bfloat16", help="precision of both models (bfloat16)")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for the drafter with its tree (changes --draft's config)"
    )
    parser.add_argument("--report", metavar="JSON", help="file for all figures (none)")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.measuring.tune import TuneOptions, run_tune

        arguments = _arguments(args)
        output = arguments.pop("output")
        report = arguments.pop("report")
        run_tune(TuneOptions(**arguments), output, report)

    parser.set_defaults(run=run)


def add_features(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro features --target T --data DATA --output DIR`"""
    parser = subparsers.add_parser(
        "features",
        help="write a target's hidden states for a dataset, to train drafters on",
        description="Run the target once over a dataset, and write the hidden states that a drafter reads to a folder "
        "of safetensors. Announces the disk space needed before it starts. Continues if interrupted and run again.",
    )
    parser.add_argument("--target", required=True, metavar="T", help="folder or Hub id")
    parser.add_argument("--data", required=True, metavar="DATA", help="conversations: JSON-lines file or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--max-length", type=int, default=2048, metavar="N", help="rows are cut to N tokens (2048)")
    parser.add_argument("--packing", action="store_true", help="join conversations into rows of about --max-length")
    parser.add_argument("--all-tokens", action="store_true", help="let all tokens count, not only the answers'")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="precision of the target and its features (auto)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows per forward (8)")
    parser.add_argument(
        "--feature-layers", type=int, nargs="+", default=[], metavar="I", help="further hidden states to write (none)"
    )
    parser.add_argument("--shard-size", default="1GB", metavar="S", help="size of a file, held in memory (1GB)")
    parser.add_argument("--num-samples", type=int, metavar="N", help="conversations to use (all)")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.training.features import run_features

        run_features(**_arguments(args))

    parser.set_defaults(run=run)


def add_regenerate(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro regenerate --target T --data DATA --output FILE`"""
    parser = subparsers.add_parser(
        "regenerate",
        help="let a target answer a dataset's prompts: the best data to train its drafter on",
        description="Replace the answers of a dataset by the target's own, turn by turn, and write them as JSON "
        "lines. Continues if interrupted and run again.",
    )
    parser.add_argument("--target", required=True, metavar="T", help="folder or Hub id")
    parser.add_argument("--data", required=True, metavar="DATA", help="conversations: JSON-lines file or Hub id")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON-lines file to write")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 decodes greedily (0)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="tokens per answer (512)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts answered together (16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (0)")
    parser.add_argument("--num-samples", type=int, metavar="N", help="conversations to use (all)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="precision of the target (auto)")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.training.regeneration import run_regenerate

        run_regenerate(**_arguments(args))

    parser.set_defaults(run=run)


def _arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a subcommand as keyword arguments of the function that runs it."""
    return {name: value for name, value in vars(args).items() if name not in ("run", "debug")}


def add_push(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro push DRAFT REPO`"""
    parser = subparsers.add_parser(
        "push",
        help="publish a drafter on the Hub, with a model card",
        description="Publish a drafter on the Hub: weights, config with its target, a model card with the figures of "
        "`jakiro bench` and the training (from the training.json beside a trained drafter), and optionally the code. "
        "With --output, write that folder and upload nothing.",
    )
    parser.add_argument("draft", metavar="DRAFT", help="folder or Hub id of the drafter")
    parser.add_argument("repo_id", metavar="REPO", help="Hub id to publish it as, org/name")
    parser.add_argument("--output", metavar="DIR", help="folder to write instead of uploading")
    parser.add_argument("--target", metavar="T", help="Hub id of its target (the one in the drafter's config)")
    parser.add_argument("--target-revision", metavar="R", help="commit of the target that it was trained for")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="JSON",
        help="results.json of `jakiro bench`, one or several (none)",
    )
    parser.add_argument("--training", metavar="JSON", help="record of its training (training.json beside the drafter)")
    parser.add_argument("--license", metavar="L", help="licence, as the Hub names it (the target's)")
    parser.add_argument("--tags", nargs="+", default=[], metavar="TAG", help="additional tags (none)")
    parser.add_argument(
        "--remote-code", action="store_true", help="also publish the code, for users without this package"
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")

    def run(args: argparse.Namespace) -> None:
        from transformers_jakiro.hub.publishing import run_push

        run_push(**_arguments(args))

    parser.set_defaults(run=run)


def add_train(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro train [CONFIG.yaml] --target T --data D`; `training.command` parses what follows `train`"""
    parser = subparsers.add_parser("train", help="train a drafter for a target")

    def run(args: argparse.Namespace) -> None:
        if {"-h", "--help"} & set(args.rest):
            print(_train_help(parser.prog))
            return
        from transformers_jakiro.training.command import main

        main(args.rest, prog=parser.prog)

    parser.set_defaults(run=run)


def _train_help(prog: str) -> str:
    """The help of `jakiro train`, with our own training arguments but not those of transformers."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [CONFIG.yaml] --target T --data D [options]",
        description="Train a drafter for a target. The options may be given in a YAML or JSON file; those on the "
        "command line override it. All of transformers' TrainingArguments are accepted, too, such as --output_dir, "
        "--learning_rate or --max_steps: --help-all lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action="store_true", help="list transformers' arguments, too, and exit")
    for file, name in (("command.py", "ScriptArguments"), ("arguments.py", "JakiroTrainingArguments")):
        group = parser.add_argument_group(name)
        for option, kind, text in _dataclass_options(Path("training", file), name):
            group.add_argument(option, metavar=kind, help=text.replace("%", "%%"))
    return parser.format_help()


def _dataclass_options(file: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """
    The options, types and help texts of a dataclass in a file of the package. They are read from the source, because
    an import of the package takes seconds and a help text must not.
    """
    spec = find_spec("transformers_jakiro")  # does not import it
    assert spec is not None
    assert spec.origin is not None
    module = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    (definition,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(node.value, ast.Call)
            arguments = {argument.arg: argument.value for argument in node.value.keywords}  # of `field(...)`
            default = arguments.get("default") or getattr(arguments.get("default_factory"), "body", None)
            text = ast.literal_eval(arguments["metadata"])["help"]
            if default is not None and ast.unparse(default) != "None":
                text += f" ({ast.unparse(default)})"
            yield f"--{node.target.id}", ast.unparse(node.annotation).removesuffix(" | None"), text


def add_serve(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`jakiro serve TARGET DRAFT`"""
    parser = subparsers.add_parser(
        "serve",
        help="serve a target with its drafter to OpenAI clients",
        description="Serve a target with its drafter. This is transformers' own OpenAI-compatible server "
        "(/v1/chat/completions, /v1/completions, /v1/responses, /v1/models). It answers one request at a time, in the "
        "order of arrival. `transformers chat TARGET http://localhost:8000` talks to it. Needs "
        "`pip install 'transformers-jakiro[serve]'`.",
    )
    parser.add_argument("target", metavar="TARGET", help="folder or Hub id; requests must use the same name")
    parser.add_argument("draft", metavar="DRAFT", help="folder or Hub id of its drafter")
    parser.add_argument("--host", default="localhost", help="address to listen on (localhost)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on (8000)")
    parser.add_argument(
        "--num-assistant-tokens", type=int, metavar="N", help="nodes per tree (default: the drafter's config)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="device of both models: cpu, cuda:0, ... (auto)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="precision of both models (auto)")
    parser.add_argument(
        "--attn-implementation", metavar="A", help="the target's attention: sdpa, eager, ... (default: its config)"
    )
    parser.add_argument(
        "--quantization", choices=("bnb-4bit", "bnb-8bit"), help="quantization of the target's weights (none)"
    )
    parser.add_argument("--compile", action="store_true", help="use static caches and compiled forwards")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the models")
    parser.add_argument(
        "--default-seed", type=int, metavar="N", help="seed set once at the start (none); a request may set its own"
    )
    parser.add_argument("--enable-cors", action="store_true", help="allow requests from all web pages")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="detail of the log; info, the default, has a line with the speed of each answer",
    )

    def run(args: argparse.Namespace) -> None:
        try:
            from transformers_jakiro.apps.serving import run_serve

            run_serve(**_arguments(args))
        except KeyboardInterrupt:  # Ctrl-C is how to end it
            pass

    parser.set_defaults(run=run)


COMMANDS = (
    add_train,
    add_demo,
    add_chat,
    add_ui,
    add_serve,
    add_bench,
    add_tune,
    add_regenerate,
    add_features,
    add_convert,
    add_push,
)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command line.

    Args:
        argv (`Sequence[str]`, *optional*): arguments without the program's name; default `sys.argv`.

    Returns:
        `int`: exit code. It is 1 after an error that the user can mend, such as wrong input or a missing file or
            package. Such an error is printed as one message.

    Raises:
        SystemExit: after `--help` and `--version` (code 0), and for unknown arguments (code 2).
    """
    parser = argparse.ArgumentParser(prog="jakiro", description="Jakiro drafters for Hugging Face Transformers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('transformers-jakiro')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    for subparser in subparsers.choices.values():  # the flag may also follow the command
        subparser.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,  # if it is absent there, it keeps its value from before the command
            help="show the traceback of an error",
        )
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((index for index, argument in enumerate(argv) if not argument.startswith("-")), None)
    if command is not None and argv[command] == "train":
        args = parser.parse_args(argv[: command + 1])
        args.rest = argv[command + 1 :]
    else:
        args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        if args.debug:
            raise
        print(f"jakiro: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["main"]
