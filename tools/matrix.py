# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Runs the tests marked `compat` with every supported minor version of transformers, and writes docs/versions.md.

Each row of the table has an environment of its own in build/matrix: `5.15` to the newest minor with the PyTorch of the
lock; `oldest` and `newest`, with the oldest and newest versions of everything that pyproject.toml allows; `python3.12`
and the like, with the lock. Drafters that bring their code are written in the oldest environment and loaded in the
newest, and the other way round.
"""

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from environment import ROOT, SetUpError, install, python_of

sys.path.insert(0, str(ROOT / "src" / "transformers_jakiro"))
from versions import SUPPORTED_PACKAGES  # the package itself would need an environment

FOLDER = ROOT / "build" / "matrix"
LOCK = ROOT / "requirements.lock"
RESULTS = ROOT / "docs" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
_BEGIN, _END = "<!-- table: written by tools/matrix.py -->\n\n", "\n<!-- end of table -->"
_VERSIONS = """
import json, platform
from importlib.metadata import version
names = ("transformers", "torch", "peft", "accelerate", "huggingface-hub")
print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in names}}))
"""


def minors() -> list[str]:
    """The supported minor versions of transformers, the oldest first."""
    first, end = SUPPORTED_PACKAGES["transformers"]
    return [f"{first[0]}.{minor}" for minor in range(first[1], end[1])]


def make_environment(row: str) -> Path:
    """The interpreter of a row's environment."""
    folder, requirements = FOLDER / row, ["--editable", ".[test]"]
    if row == "oldest":
        install(folder, requirements, resolution="lowest-direct")
    elif row == "newest":
        install(folder, requirements)
    elif row.startswith("python"):
        interpreter = shutil.which(row)
        if interpreter is None:
            raise SetUpError(f"{row} is not on the PATH. Install it, or leave this row out.")
        install(folder, requirements, LOCK, python=interpreter)
    else:  # all but PyTorch as new as this minor allows
        FOLDER.mkdir(parents=True, exist_ok=True)
        torch = FOLDER / "torch.txt"
        pins = LOCK.read_text(encoding="utf-8").splitlines()
        torch.write_text("\n".join(pin for pin in pins if pin.startswith("torch==")) + "\n")
        install(folder, [*requirements, f"transformers=={row}.*"], torch)
    return python_of(folder)


def run_tests(python: Path, arguments: list[str]) -> dict[str, Any]:
    """Runs pytest and counts its results; what fails is printed as it is."""
    report = python.parents[1] / "results.xml"
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *arguments], cwd=ROOT, check=False
    )
    seconds = time.perf_counter() - start
    if not report.exists():
        return {"failed": 1, "passed": 0, "skipped": 0, "seconds": round(seconds)}
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"] or int(done.returncode != 0)
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return {"failed": failed, "passed": passed, "skipped": counts["skipped"], "seconds": round(seconds)}


def test(rows: list[str]) -> Iterator[dict[str, Any]]:
    """One result for each row, as it comes."""
    others = {"oldest": "newest", "newest": "oldest"}  # each loads what the other writes
    for row in rows:
        print(f"\n== {row}", flush=True)
        python = make_environment(row)
        arguments = ["--compat"]
        if row in others:
            arguments.append(f"--other-python={make_environment(others[row])}")
        versions = json.loads(subprocess.check_output([python, "-c", _VERSIONS], text=True))
        yield {"row": row, **versions, **run_tests(python, arguments), "date": datetime.date.today().isoformat()}


def table(results: list[dict[str, Any]]) -> str:
    """The rows as Markdown, the newest versions first."""

    def release(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]

    lines = [
        "| environment | transformers | PyTorch | Python | result | minutes | date |",
        "| --- | --- | --- | --- | --- | ---: | --- |",
    ]
    for result in sorted(
        results, key=lambda each: [release(each[name]) for name in ("transformers", "torch", "python")], reverse=True
    ):
        outcome = f"**{result['failed']} failed**, " if result["failed"] else ""
        outcome += f"{result['passed']} passed, {result['skipped']} skipped"
        versions = [result["row"], result["transformers"], result["torch"].partition("+")[0], result["python"]]
        lines.append(f"| {' | '.join(versions)} | {outcome} | {result['seconds'] / 60:.1f} | {result['date']} |")
    return "\n".join(lines) + "\n"


def write_table(results: list[dict[str, Any]]) -> None:
    """Puts the table into the page, in place of the one that is there."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    PAGE.write_text(before + _BEGIN + table(results) + _END + after, encoding="utf-8")


def main() -> None:
    default = ["oldest", *minors(), "newest"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"5.15, oldest, newest, python3.12, ... (default: {' '.join(default)})"
    )
    args = parser.parse_args()

    def is_known(row: str) -> bool:
        return row in default or re.fullmatch(r"python3\.\d+", row) is not None

    rows = args.rows or default
    unknown = [row for row in rows if not is_known(row)]
    if unknown:
        parser.error(f"rows must be of {default} or interpreters such as python3.12, got {unknown}.")
    failed = []
    try:
        for result in test(rows):
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            kept = [each for each in known if is_known(each["row"]) and each["row"] != result["row"]]
            results = [*kept, result]
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            write_table(results)
            failed += [result["row"]] if result["failed"] else []
    except SetUpError as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: tests fail with {', '.join(failed)}.")


if __name__ == "__main__":
    main()
