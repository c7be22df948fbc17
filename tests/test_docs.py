# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""The documentation: it builds without a warning and a network, its links lead somewhere, and what it says holds."""

import argparse
import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

import jakiro_cli
from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.core import versions

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PACKAGE = ROOT / "src" / "transformers_jakiro"
NOT_SHOWN = {"core.compat", "hub.custom_generate.generate"}  # shims, and a script that travels with drafters
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in (*PACKAGE.rglob("[!_]*.py"), PACKAGE / "pair" / "__init__.py")
} - NOT_SHOWN


class Page(HTMLParser):
    """What a built page refers to, and what can be referred to in it."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []  # that a reader follows
        self.loaded: list[str] = []  # that the browser fetches by itself
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values.get("href") or "")
        elif values.get("src"):
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Page]:
    """The built pages by their path."""
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert not list(folder.rglob("*.py")), "scripts are no part of the site"
    return {
        path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.html"))
    } | {
        path.relative_to(folder).as_posix(): Page("")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".html"
    }


def inner(page: str, urls: list[str]) -> Iterator[tuple[str, str]]:
    """The paths and anchors of the links that stay on the site."""
    for url in urls:
        parts = urlsplit(url)
        if not parts.scheme and not parts.netloc:
            folder = Path("/", page).parent
            path = os.path.normpath(folder / unquote(parts.path)).lstrip("/") if parts.path else page
            yield path, unquote(parts.fragment)


def test_links_and_anchors_resolve(site):
    count = 0
    for name, page in site.items():
        if name == "404.html":  # its links are those of the root of a server
            continue
        for path, anchor in inner(name, page.links + page.loaded):
            path = path if path in site else f"{path}/index.html".lstrip("./")
            assert path in site, f"{name} links to {path}"
            markers = ("gh-light-mode-only", "gh-dark-mode-only")  # for which of the two themes a picture is
            assert not anchor or anchor in site[path].ids or anchor in markers, f"{name} links to {path}#{anchor}"
            count += bool(anchor)
    assert count > 500


def test_nothing_is_fetched_from_elsewhere(site):
    assert not [url for page in site.values() for url in page.loaded if urlsplit(url).netloc]


def test_every_module_is_on_one_page_of_the_reference(site):
    shown = [
        module
        for page in (DOCS / "api").glob("*.md")
        for module in re.findall(r"^::: transformers_jakiro\.([a-z0-9_.]+)$", page.read_text("utf-8"), re.MULTILINE)
    ]
    message = "each module is shown by one line `::: transformers_jakiro.MODULE` in docs/api"
    assert sorted(shown) == sorted(MODULES), message
    ids = set().union(*(page.ids for name, page in site.items() if name.startswith("api/")))
    assert "transformers_jakiro.core.loading.StrictModel.from_pretrained" in ids


def test_every_command_is_there(site):
    subparsers = argparse.ArgumentParser().add_subparsers()
    for add_command in jakiro_cli.COMMANDS:
        add_command(subparsers)
    assert {f"jakiro-{command}" for command in subparsers.choices} <= site["command_line.html"].ids


def test_supported_models_are_current(tmp_path, warm_python):
    page = tmp_path / "page.md"
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = warm_python.run(code, DOCS / "supported_models.py", "--output", page, folder=ROOT)
    assert done.returncode == 0, done.stderr
    current = (DOCS / "supported_models.md").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == current, "`make docs` writes docs/supported_models.md anew"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_python_is_python(page):
    for block in python_blocks(page):
        ast.parse(block)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_quick_start_runs(capsys):
    """With the pair that ships in place of the names of others."""
    blocks = python_blocks(DOCS / "index.md")
    (pair,) = (block for block in blocks if "transformers_jakiro.pair" in block)
    others = [block for block in blocks if block != pair]
    assert len(others) >= 5
    values = {"torch": torch}
    exec(pair, values)
    for block in others:
        lines = [line for line in block.splitlines() if "org/" not in line]
        exec("\n".join(lines), values)
        assert values["output"] is not None
    assert values["output"].accept_lengths
    assert capsys.readouterr().out.strip()


def test_tests_that_pages_name_are_there():
    named = 0
    for page in PAGES:
        for file, test in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", page.read_text(encoding="utf-8")):
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {test}" in text if test else text, f"{page.name}: {file}::{test}"
            named += 1
    assert named > 10


def test_the_memory_that_the_faq_tells():
    with torch.device("meta"):
        draft = JakiroDraftModel(JakiroDraftConfig(hidden_size=4096, num_attention_heads=32))
    count = sum(weight.numel() for weight in draft.parameters())
    assert count == pytest.approx(12 * 4096**2, rel=1e-3)
    assert f"{2 * count / 2**20:.0f} MiB" in (DOCS / "faq.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pictures_can_be_drawn_again(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.setattr(sys, "argv", ["how_it_works.py"])
    script = importlib.import_module("how_it_works")
    monkeypatch.setattr(script, "DOCS", tmp_path)
    script.main()
    drawn = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert drawn == {path.relative_to(DOCS) for path in (*DOCS.glob("pictures/*"), DOCS / "how_it_works.png")}


DOCSTRING = """
A tree. See [`DraftTree`] and [`~tree.DraftTree.depths`].

Args:
    tokens, scores (`[B, C]`): the candidates
        of all levels.
    width (`int`, *optional*),
    depth (`int`): as in [`~transformers.LlamaConfig`]: levels.

Returns:
    `int`: so many.
"""
MARKDOWN = """
A tree. See [`DraftTree`][package.tree.DraftTree] and [`depths`][package.tree.DraftTree].

**Args**

- **tokens**, **scores** (`[B, C]`): the candidates
    of all levels.
- **width** (`int`, *optional*), **depth** (`int`): as in `LlamaConfig`: levels.

**Returns**

`int`: so many.
"""


def test_docstrings_become_markdown(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(DOCS / "site")
    docstrings = importlib.import_module("docstrings")
    names = {"DraftTree": "package.tree.DraftTree", "tree.DraftTree": "package.tree.DraftTree"}
    assert docstrings.to_markdown(DOCSTRING.replace("~tree.", "~"), names, "package").strip() == MARKDOWN.strip()


def test_every_supported_version_was_tested():
    """`make test-matrix` has been run on each minor, and nothing failed."""
    results = json.loads((ROOT / "docs" / "versions.json").read_text())
    first, end = versions.SUPPORTED_PACKAGES["transformers"]
    minors = {f"{first[0]}.{minor}" for minor in range(first[1], end[1])}
    assert {each["row"] for each in results} >= {*minors, "oldest", "newest"}
    page = (ROOT / "docs" / "versions.md").read_text()
    for each in results:
        assert f"| {each['row']} | {each['transformers']} | {each['torch'].partition('+')[0]} |" in page
        assert each["failed"] == 0
