"""Runs a recipe by two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forks


def two_forks(recipe: Path, *more: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished run, by two forks in the environment that torchrun gives to its processes."""
    words = ["-m", "quatrain", "run", str(recipe), "--runs-dir", str(folder), *more]
    return forks.run(words, env=_environment(), processes=2, seconds=900)


def torchrun(script: Path, recipe: Path, *more: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished run, by two processes of a script that torchrun starts and ends."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), "run",
               str(recipe), "--runs-dir", str(folder), *more]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=900, check=False)


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(forks.ROOT)}
