# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Hooks of mkdocs. They write the page of the command line from the `--help` of each command, fill in a table of
measured figures, and mend links to files of the repository that are not on the site.
"""

import argparse
import io
import json
import os
import posixpath
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

import jakiro_cli

PAGE = "command_line.md"
PACKAGE = "src/transformers_jakiro/"
IDENTICAL = "<!-- identical: see docs/site/hooks.py -->"
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the page of the command line."""
    files.append(File.generated(config, PAGE, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """
    Fills in the measured figures. Links to modules of the package go to the API reference; links to other files that
    are not on the site become plain text.
    """

    def link(match: re.Match[str]) -> str:
        text, path, _ = match.groups()
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
        source = place.removeprefix("../")
        if not os.path.exists(posixpath.join(config.docs_dir, place)):
            return match[0]  # mkdocs will report it
        if source.startswith(PACKAGE) and source.endswith(".py"):
            module = source.removeprefix("src/").removesuffix(".py").replace("/", ".")
            return f"[{text}][{module}]"
        if place.startswith("../") or place.endswith(".py"):
            return text
        return match[0]

    if IDENTICAL in markdown:
        markdown = markdown.replace(IDENTICAL, identical(Path(config.docs_dir, "results", "target_results.json")))
    return LINK.sub(link, markdown)


def identical(results: Path) -> str:
    """A table with the measured share of answers that equal those of plain `generate`, token for token."""
    payload = json.loads(results.read_text(encoding="utf-8"))
    about = {method["name"]: method["description"] for method in payload["methods"]}
    rows = [row for row in payload["summary"] if row["task"] == "mean" and row["method"] != "plain"]
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    shares = {(row["method"], row["temperature"]): f"{row['identical']:.0%}" for row in rows}
    lines = [["method", *(f"T = {value:g}" for value in temperatures)], ["---", *["---:"] * len(temperatures)]]
    for name in dict.fromkeys(row["method"] for row in rows):
        lines.append([about[name], *(shares[name, value] for value in temperatures)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n({payload['label']}; written from the [results](results.md))"


def command_line() -> str:
    """The page of the command line, from the parsers of `jakiro`."""
    subparsers = argparse.ArgumentParser(prog="jakiro").add_subparsers()
    for add_command in jakiro_cli.COMMANDS:
        add_command(subparsers)
    parts = [
        "# Command line",
        "The output of `--help` for each command. An error in the input gives one message and exit code 1; `--debug` "
        "shows the traceback.",
        block([]),
    ]
    for command in subparsers.choices:
        parts += [f"## jakiro {command}", block([command])]
    return "\n\n".join(parts) + "\n"


def block(arguments: list[str]) -> str:
    """The output of the command for these arguments and `--help`, as a block of code."""
    printed = io.StringIO()
    plain = {"COLUMNS": "90", "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, plain), redirect_stdout(printed), suppress(SystemExit):
        jakiro_cli.main([*arguments, "--help"])
    return f"```text\n{printed.getvalue().strip()}\n```"
