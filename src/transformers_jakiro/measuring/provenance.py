# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What a figure depends on besides the models: versions, machine and arguments."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers


def provenance(**arguments: Any) -> dict[str, Any]:
    """Versions, machine and the given arguments, as reports record them."""
    return {
        "transformers_jakiro": version("transformers_jakiro"),
        "commit": _commit(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "arguments": arguments,
    }


def _commit() -> str | None:
    """The commit of this package's checkout, with `-dirty` if it was changed; None if there is no checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # git is not installed
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no", ".") else commit


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


__all__ = ["provenance"]
