# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""How the package's files may import one another; see docs/code_layout.md."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import transformers_jakiro

PACKAGE = Path(transformers_jakiro.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# what the files of each folder may import besides one another; "" stands for the files beside the folders
ALLOWED = {
    "core": set(),
    "pair": set(),
    "measuring": {"", "core"},
    "hub": {"", "core", "measuring"},
    "training": {"", "core", "measuring", "hub"},
    "apps": {"", "core", "measuring", "pair"},
    "": {"core", "hub", "training"},
}


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def folder_of(module: str) -> str:
    return module.rpartition(".")[0]


def imports_of(file: Path) -> set[str]:
    """The package's modules that a file imports, wherever in it."""
    found = set()
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "transformers_jakiro" for name in names), f"{file}: {names}"
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
        base = [part for part in base if part]
        for alias in node.names:
            for candidate in ([*base, alias.name], base):
                path = PACKAGE.joinpath(*candidate)
                if path.with_suffix(".py").is_file() or ((path / "__init__.py").is_file() and candidate):
                    found.add(".".join(candidate) + (".__init__" if path.is_dir() else ""))
                    break
    return found


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_run_one_way(file):
    module = module_of(file)
    here = folder_of(module)
    for other in imports_of(file):
        there = folder_of(other)
        assert there == here or there in ALLOWED[here], f"{module} imports {other}"


def test_no_circle():
    graph = {module_of(file): imports_of(file) for file in FILES}
    assert list(TopologicalSorter(graph).static_order())


def test_core_is_flat_and_imports_no_package_of_ours():
    assert not [path for path in (PACKAGE / "core").iterdir() if path.is_dir() and path.name != "__pycache__"]
    known = {"torch", "transformers", "huggingface_hub", "safetensors", "peft"} | sys.stdlib_module_names
    for file in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{file.name}: remote code lies in one folder"
                assert node.level == 1 or node.module.split(".")[0] in known, f"{file.name}: {node.module}"


def test_no_name_is_handed_on():
    """Each public name has one home: no module but the package itself lists what it has imported."""
    for file in FILES:
        tree = ast.parse(file.read_text())
        exported: set[str] = set()
        imported: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                imported |= {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
                exported |= set(ast.literal_eval(node.value))
        if file.relative_to(PACKAGE) not in (Path("__init__.py"), Path("core/remote_code.py")):
            assert not exported & imported, f"{module_of(file)}: {sorted(exported & imported)}"


def test_test_files_share_helpers_only():
    """No test file imports another one or conftest.py: what they share is in tests/helpers."""
    tests = Path(__file__).parent
    files = {file.stem for file in tests.glob("*.py")}
    for file in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            else:
                imported = {node.module} if isinstance(node, ast.ImportFrom) else set()
            assert not imported & files, f"{file.name} imports {sorted(imported & files)}"
