# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The versions of Python, PyTorch and transformers that this package runs on. Reads their metadata and imports neither,
so that an unsupported version ends in one message instead of an error somewhere inside.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Final

# The first minor version that is supported, and the first that is not. `pyproject.toml` says the same.
SUPPORTED_PYTHON: Final = ((3, 11), None)
SUPPORTED_PACKAGES: Final = {"torch": ((2, 7), None), "transformers": ((5, 15), (5, 25))}


class UnsupportedVersionError(ImportError):
    """The installed version of Python, PyTorch or transformers is outside the range this package was tested with."""


class IncompatibleTransformersError(RuntimeError):
    """The installed transformers lacks a method or parameter that the generate hook relies on."""


def check_versions(upgrade: str = "upgrade transformers-jakiro") -> None:
    """
    Compares what is installed with what is supported.

    Args:
        upgrade: what else helps where something is too new.

    Raises:
        UnsupportedVersionError: says what is installed, what is supported, and what to do.
    """
    python = sys.version_info[:3]
    if not _is_within(python[:2], SUPPORTED_PYTHON):
        raise UnsupportedVersionError(
            f"transformers-jakiro needs Python{version_range(SUPPORTED_PYTHON)}, got {'.'.join(map(str, python))}. "
            "Create a new environment with a supported Python and install the package there."
        )
    wrong, too_new = {}, False
    for name, supported in SUPPORTED_PACKAGES.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong[f"{name}{version_range(supported)}"] = f"no {name}"
            continue
        minor = minor_version(installed)
        if not _is_within(minor, supported):
            wrong[f"{name}{version_range(supported)}"] = f"{name} {installed}"
            too_new |= minor >= supported[0]
    if wrong:
        command = " ".join(f"'{requirement}'" for requirement in wrong)
        raise UnsupportedVersionError(
            f"transformers-jakiro needs {' and '.join(wrong)}, got {' and '.join(wrong.values())}. Run "
            f"`pip install {command}`{f', or {upgrade}' if too_new else ''}."
        )


def minor_version(text: str | None) -> tuple[int, int]:
    """`(5, 24)` for `"5.24.0.dev0"`; `(0, 0)` for anything that is not a version."""
    found = re.match(r"(?:\d+!)?(\d+)(?:\.(\d+))?", text or "")
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def _is_within(got: tuple[int, int], supported: tuple[tuple[int, int], tuple[int, int] | None]) -> bool:
    first, end = supported
    return first <= got and (end is None or got < end)


def version_range(supported: tuple[tuple[int, int], tuple[int, int] | None]) -> str:
    """`>=5.15,<5.25`, as pip writes it."""
    first, end = (None if bound is None else ".".join(map(str, bound)) for bound in supported)
    return f">={first}" if end is None else f">={first},<{end}"


__all__ = [
    "SUPPORTED_PACKAGES",
    "SUPPORTED_PYTHON",
    "IncompatibleTransformersError",
    "UnsupportedVersionError",
    "check_versions",
    "minor_version",
    "version_range",
]
