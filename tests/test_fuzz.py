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
FAULTS = ("internal_errors", "tracebacks", "hangs", "wrong_exit_codes", "over_2gb", "escapes")
SCRIPT = """
import importlib, sys, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import fuzz
from fuzzing import judging
from quatrain.core.process_memory import resident_memory

def thrown(*words):
    given = fuzz._parser().parse_args([*words, "--jobs", "1"])
    print("=== exit code", fuzz.thrown(given, valid, Path({place!r})), flush=True)

valid = fuzz.prepared(Path({place!r}, "materials"), ("llama", "bert", "t5"))
thrown("--inputs", "30", "--seed", "1", "--limit", "120")
thrown("--inputs", "12", "--limit", "120", "--entry", "requests", "--entry", "adapters", "--log", {log!r})
thrown("--inputs", "14", "--limit", "120", "--entry", "requests", "--entry", "adapters", "--log", {log!r})

def bug(): raise RuntimeError('planted')
def traceback(): raise SystemExit(print('Traceback (most recent call last):', file=sys.stderr) or 1)
def hang(): return 0 if time.sleep(60) else 0
def exit_code(): return 7
def memory(): return len(b'x' * 400_000_000) * 0
def escape(): return print('\\x1b[31m', file=sys.stderr) and 0

judging.PEAK = resident_memory() + 200_000_000
verb = importlib.import_module("quatrain.cli.tokenize")
for body, inputs in ((bug, 6), (traceback, 6), (hang, 1), (exit_code, 6), (memory, 4), (escape, 6)):
    def tokenize(model: str, text: str, *, pair: str | None = None) -> int:
        return body()
    verb.tokenize = tokenize
    thrown("--kind", "tokenizer", "--inputs", str(inputs), "--limit", "2" if body is hang else "60")
"""
"""Inputs as they are, in the same process with a verb that has one fault after another."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, Any], int]]:
    """What each run printed, its last line, and its exit code."""
    place = tmp_path_factory.mktemp("fuzz")
    script = place / "script.py"
    paths = {"benchmarks": str(BENCHMARKS), "place": str(place), "log": str(place / "log.jsonl")}
    script.write_text(SCRIPT.format(**paths), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    *texts, rest = done.stdout.split("=== exit code ")
    codes = [int(text[0]) for text in (*texts[1:], rest)]
    lines = [json.loads(text.rstrip().splitlines()[-1]) for text in texts]
    return list(zip(texts, lines, codes, strict=True))


@pytest.mark.slow
def test_a_short_run_ends_with_its_line(runs: list[tuple[str, dict[str, Any], int]]) -> None:
    for (text, line, code), inputs in zip(runs[:3], (30, 24, 4), strict=True):
        assert line["inputs"] == inputs == sum(line["kinds"].values()) and line["seconds"] > 0
        assert not any(line[name] for name in (*FAULTS, "fine_alone")) and "unmade" not in line and code == 0, text
    assert runs[0][1]["seed"] == 1 and runs[1][1]["entries"] == {"requests": 12, "adapters": 12}
    assert runs[2][1]["entries"] == {"requests": 2, "adapters": 2}, "those of the log are not thrown again"


@pytest.mark.slow
def test_planted_faults_are_found(runs: list[tuple[str, dict[str, Any], int]]) -> None:
    for fault, (text, line, code) in zip(FAULTS, runs[3:], strict=True):
        assert line[fault] > 0 and code == 1, text
        assert "--seed 0 --kind 'tokenizer' --only " in text
