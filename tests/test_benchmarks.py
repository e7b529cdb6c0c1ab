"""The benchmarks run, at a tiny size, and end with their line of JSON. Times are not judged here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import forks
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
QUICK = {
    "quickstart.py": [],
    "shakespeare.py": ["--peer", "--settings", "short", "--source", "{text}"],
    "training_throughput.py": [],
    "generation_speed.py": [],
    "choosing.py": [],
    "engine.py": [],
    "quantized_error.py": [],
    "passes.py": [],
    "startup.py": [],
    "recurrence.py": ["--families", "mamba2"],
    "experts.py": ["--families", "qwen3_moe"],
    "families.py": ["--families", "llama", "--dtypes", "bfloat16"],
    "modalities.py": ["--models", "vit", "whisper"],
    "load_memory.py": [],
    "trainer.py": [],
    "grpo.py": [],
    "adapters.py": [],
    "methods.py": [],
    "quantized_linear.py": [],
    "predictions.py": [],
    "plan_memory.py": [],
    "serving.py": [],
    "reward.py": [],
    "preferences.py": ["--train", "{pairs}", "--test", "{pairs}"],
    "serving_speed.py": [],
    "dpo.py": [],
    "recurrent.py": [],
    "classic.py": [],
    "retrieval.py": [],
    "lm_eval_speed.py": [],
    "pipelines.py": [],
    "curate.py": [],
    "agents.py": [],
    "kills.py": ["--seed", "1"],
}
PEERLESS = {"quickstart.py", "passes.py", "predictions.py", "plan_memory.py", "serving.py", "serving_speed.py",
            "preferences.py", "recurrent.py", "classic.py", "retrieval.py", "curate.py",
            "agents.py", "kills.py"}  # fmt: skip
"""Those that need no transformers."""


@pytest.fixture(scope="module")
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_common", BENCHMARKS / "common.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    words = random.Random(0).choices("the cat sat on a mat and saw no dog at all".split(), k=4000)
    path.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path, words = tmp_path / "pairs.jsonl", random.Random(0)
    rows = ({"prompt": str(number), "chosen": "good " * words.randint(1, 4), "rejected": "bad " * words.randint(1, 4)}
            for number in range(40))  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("script", QUICK)
def test_a_quick_run_ends_with_its_line(script: str, text: Path, pairs: Path) -> None:
    if script not in PEERLESS:
        pytest.importorskip("transformers")
    arguments = [argument.format(text=text, pairs=pairs) for argument in QUICK[script]]
    words = [str(BENCHMARKS / script), "--quick", *arguments]
    done = forks.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, modules=(*forks.QUATRAIN, *forks.PEERS))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["benchmark"] == script.removesuffix(".py") and line["quick"] is True
    assert math.isfinite(line["ratio"]) and line["ratio"] > 0 and line["ratio_of"]
    assert line["versions"]["torch"] and line["device"] and line["date"] and line["threads"] == 1


def test_every_benchmark_is_run_here_and_described() -> None:
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"common.py"}
    assert scripts - {"all.py", "token_file_memory.py", "fuzz.py"} == set(QUICK)  # with sizes of their own
    for page in ("README.md", "RESULTS.md"):
        described = set(re.findall(r"python benchmarks/(\w+\.py)", (BENCHMARKS / page).read_text(encoding="utf-8")))
        assert described == scripts


def test_all_benchmarks_in_turn_keep_their_lines_and_make_a_page(tmp_path: Path, monkeypatch: Any) -> None:
    """One that runs, and one that fails; again, only the second runs again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    every = importlib.import_module("all")
    assert set(every.names()) == {path.stem for path in BENCHMARKS.glob("*.py")} - {"all", "common"}
    assert set(every.ARGUMENTS) | set(every.WITHOUT_QUICK) | set(every.BRIEF) <= set(every.names())
    for name, words in every.BRIEF.items():
        options = [word for word in words.split() if word.startswith("--")]
        assert all(f'"{option}"' in (BENCHMARKS / f"{name}.py").read_text() for option in options), name
        assert every.command_of(name, "brief") == [f"benchmarks/{name}.py", *words.split()]
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    line = (
        'import sys; print("words"); print(\'{"benchmark": "good", "ratio": 2.5, "quick": true}\'); assert sys.argv[1:]'
    )
    (folder / "good.py").write_text(line)
    (folder / "poor.py").write_text("raise SystemExit('no peer here')")
    monkeypatch.setattr(every, "BENCHMARKS", folder)
    for count in (1, 2):
        assert every.main(["--quick", "--folder", str(folder)]) == 1
        lines = every.read_lines(folder / "results.jsonl")
        assert [each["benchmark"] for each in lines] == ["good", *["poor"] * count]
    assert lines[0]["ratio"] == 2.5 and lines[0]["command"] == "python benchmarks/good.py --quick"
    assert lines[1]["failed"] == "no peer here" and "| `" not in (folder / "RATIOS.md").read_text()
    ahead, behind = ({"benchmark": name, "ratio": ratio, "ratio_of": "a | b", "command": name, "seconds": 90}
                     for name, ratio in (("x", 1.5), ("y", 0.5)))  # fmt: skip
    counted = {"benchmark": "fuzz", "command": "z", "inputs": 10, "seed": 0}
    rows = [row for row in every.page([behind, ahead, {**behind, "ratio": 0.75}, counted]).splitlines() if "| `" in row]
    assert rows[0].startswith("| `y` | **0.75** | a / b |") and rows[1].startswith("| `x` | 1.50 |")
    assert rows[2].startswith("| `z` | inputs 10, seed 0 |") and len(rows) == 3


def test_every_shape_of_training_throughput_can_be_made(monkeypatch: Any) -> None:
    """A quick run makes the tiny one only."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    throughput = importlib.import_module("training_throughput")
    cases = {name: throughput.Case(name) for name in throughput.MODELS}
    assert cases["gpt2"].model.family == "gpt2" and cases["gpt2"].length == 256 != cases["tiny"].length


def test_an_absent_peer_is_named_with_the_remedy(common: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no_such_peer.*not installed.*quatrain\[hf\]"):
        common.require("no_such_peer")


def test_turns_alternate_and_keep_every_value(common: ModuleType) -> None:
    order: list[str] = []
    values = iter(range(100))

    def turn(name: str) -> int:
        order.append(name)
        return next(values)

    found = common.in_turns({"ours": lambda: turn("ours"), "peer": lambda: turn("peer")}, 3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert found == {"ours": [0, 3, 4], "peer": [1, 2, 5]}


def test_summaries_of_runs(common: ModuleType) -> None:
    assert common.spread([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0, "runs": 3}
    assert common.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)


def test_a_child_that_fails_ends_the_benchmark_with_its_words(common: ModuleType) -> None:
    with pytest.raises(SystemExit, match="nothing doing"):
        common.run_child([sys.executable, "-c", "raise SystemExit('nothing doing')"])


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell the memory of a child")
def test_the_memory_of_a_child_is_its_own(common: ModuleType) -> None:
    """Whatever this process holds: a child that is started from a large process begins with its peak."""
    ballast = b"1" * 300_000_000
    small, large = (
        common.run_child([sys.executable, "-c", f"print(len(b'1' * {size}))"])[1] for size in (1, 150_000_000)
    )
    assert small < 100_000_000 and small + 145_000_000 < large < small + 155_000_000
    assert len(ballast) == 300_000_000


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell the memory of a child")
def test_a_command_that_is_not_there_ends_the_benchmark(common: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no-such-command"):
        common.run_child(["no-such-command"])


def test_the_nightly_job_throws_inputs_at_every_entry_point() -> None:
    job = (BENCHMARKS.parent / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8")
    named = re.findall(r"^ {10}- (.+)$", job.split("entry:\n")[1].split("steps:")[0], re.MULTILINE)
    code = "from fuzzing.entries import ENTRIES; print(*sorted(ENTRIES), sep='\\n')"
    done = forks.run(["-c", code], cwd=BENCHMARKS, env={**os.environ, "PYTHONPATH": str(BENCHMARKS)})
    assert done.returncode == 0, done.stderr
    assert named == done.stdout.splitlines()
