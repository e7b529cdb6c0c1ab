"""Runs a recipe by two processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(recipe: Path, *more: str, folder: Path, script: str | None = None) -> subprocess.CompletedProcess:
    """The finished run; `script` replaces the program."""
    program = ["-m", "quatrain"] if script is None else [script]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *program,
               "run", str(recipe), "--runs-dir", str(folder), *more]  # fmt: skip
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
