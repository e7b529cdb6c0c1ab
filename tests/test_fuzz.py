"""The fuzzer finds no fault in a few inputs, and finds every kind of fault that is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("this system has no fork", allow_module_level=True)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PLANTED = """
import sys, time
sys.path.insert(0, {benchmarks!r})
import fuzz
from quatrain.cli import app

def bug(): raise RuntimeError('planted')
def traceback(): raise SystemExit(print('Traceback (most recent call last):', file=sys.stderr) or 1)
def hang(): return 0 if time.sleep(60) else 0
def exit_code(): return 7
def memory(): return len(b'x' * 1_200_000_000) * 0

fuzz.PEAK = 1024**3
for body, inputs in ((bug, 4), (traceback, 4), (hang, 1), (exit_code, 4), (memory, 3)):
    def tokenize(model: str, text: str, *, pair: str | None = None) -> int:
        return body()
    app.tokenize = tokenize
    code = fuzz.main(["--kind", "tokenizer", "--inputs", str(inputs), "--limit", "4", "--jobs", "1"])
    print("ended with", code)
"""
"""The fuzzer with a verb that has a fault, one after another."""


def ended(*command: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the last line and everything that was printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, text=True, capture_output=True, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.slow
def test_a_short_run_ends_with_its_line() -> None:
    code, line, text = ended(str(BENCHMARKS / "fuzz.py"), "--inputs", "24", "--seed", "1", "--limit", "120")
    assert line["inputs"] == 24 == sum(line["kinds"].values()) and line["seed"] == 1 and line["seconds"] > 0
    faults = {
        name: line[name]
        for name in ("internal_errors", "tracebacks", "hangs", "wrong_exit_codes", "over_2gb", "escapes")
    }
    assert not any(faults.values()) and "unmade" not in line and code == 0, text


@pytest.mark.slow
def test_planted_faults_are_found(tmp_path: Path) -> None:
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(benchmarks=str(BENCHMARKS)), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    *runs, rest = done.stdout.split("ended with 1\n")
    faults = ["internal_errors", "tracebacks", "hangs", "wrong_exit_codes", "over_2gb"]
    assert not rest and len(runs) == len(faults), done.stdout
    for fault, text in zip(faults, runs, strict=True):
        line = json.loads(text.splitlines()[-1])
        assert line[fault] > 0, text
        assert "--seed 0 --kind 'tokenizer' --only " in text
