# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Runs a script in two processes, with the environment that a launcher gives them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(script: Path, values: dict, tmp_path: Path, **variables: str) -> None:
    """Runs `script` with the path of a file that holds `values`. Both processes must end well."""
    (tmp_path / "values.json").write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "values.json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, **variables, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-4000:]
    finally:
        for process in processes:
            process.kill()
