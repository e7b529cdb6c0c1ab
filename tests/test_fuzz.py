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

def tokenize(model: str, text: str, *, pair: str | None = None) -> int:
    {body}

app.tokenize = tokenize
fuzz.PEAK = 1024**3
sys.exit(fuzz.main(["--kind", "tokenizer", "--inputs", "{inputs}", "--limit", "4", "--jobs", "1"]))
"""
"""The fuzzer with a verb that has a fault."""


def ended(*command: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the last line and everything that was printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, text=True, capture_output=True, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.slow
def test_a_short_run_ends_with_its_line() -> None:
    code, line, text = ended(str(BENCHMARKS / "fuzz.py"), "--inputs", "40", "--seed", "1", "--limit", "120")
    assert line["inputs"] == 40 == sum(line["kinds"].values()) and line["seed"] == 1 and line["seconds"] > 0
    faults = {
        name: line[name]
        for name in ("internal_errors", "tracebacks", "hangs", "wrong_exit_codes", "over_2gb", "escapes")
    }
    assert not any(faults.values()) and "unmade" not in line and code == 0, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "fault", "inputs"),
    [
        ("raise RuntimeError('planted')", "internal_errors", 4),
        ("raise SystemExit(print('Traceback (most recent call last):', file=sys.stderr) or 1)", "tracebacks", 4),
        ("return 0 if time.sleep(60) else 0", "hangs", 2),  # of which each waits for its limit
        ("return 7", "wrong_exit_codes", 4),
        ("return len(b'x' * 1_200_000_000) * 0", "over_2gb", 3),
    ],
    ids=["bug", "traceback", "hang", "exit code", "memory"],
)
def test_a_planted_fault_is_found(body: str, fault: str, inputs: int, tmp_path: Path) -> None:
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(benchmarks=str(BENCHMARKS), body=body, inputs=inputs), encoding="utf-8")
    code, line, text = ended(str(script))
    assert code == 1 and line[fault] > 0, text
    assert "--seed 0 --kind 'tokenizer' --only " in text
