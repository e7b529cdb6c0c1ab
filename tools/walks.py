"""Traces the two walks of docs/architecture.md: which files of the package a line of data and a prompt pass through.

    python tools/walks.py [--files]

A file counts if one of its functions runs. Imports do not count, nor do other threads. The first walk is a finetune
stage on 12 lines of instructions: the calls inside `chat_examples` and the collation and loss of the objective. The
second is `quatrain generate MODEL Hello --max-new-tokens 2` in the same process. `--files` lists the files, each with
the functions that ran first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "quatrain"
TRAINING = frozenset(("chat_examples", "Causal.collate", "Causal.loss"))
"""The calls of the first walk, by qualified name."""
GENERATING = frozenset(("main",))
"""The call of the second walk."""
RECIPE = """
name = "walk"
data = { source = "text.txt" }
tokenizer = { vocab_size = 300, chat_template = "chatml" }
[model]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 64
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = { steps = 2, batch_tokens = 128, warmup_steps = 1 }
evaluate = false
[[stage]]
kind = "finetune"
data = { source = "instructions.jsonl" }
train = { steps = 2, batch_tokens = 128, warmup_steps = 1 }
evaluate = false
"""


class Trace:
    """The functions of the package that run inside the calls of `roots`, by file, as `sys.setprofile` reports them."""

    def __init__(self, roots: Collection[str]):
        self.roots = roots
        self.functions: dict[str, list[str]] = {}
        self._inside = self._importing = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        code, step = frame.f_code, 1 if event == "call" else -1
        if code.co_name == "<module>":
            self._importing += step
        elif code.co_filename.startswith(str(PACKAGE)):
            if code.co_qualname in self.roots:
                self._inside += step
            if event == "call" and self._inside and not self._importing:
                self._record(code)

    def _record(self, code: CodeType) -> None:
        functions = self.functions.setdefault(Path(code.co_filename).relative_to(PACKAGE).as_posix(), [])
        name = code.co_qualname.replace(".<locals>", "")
        if not code.co_name.startswith("<") and name not in functions:
            functions.append(name)


@contextmanager
def traced(roots: Collection[str]) -> Iterator[Trace]:
    """Traces the body."""
    trace = Trace(roots)
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(None)


def walks(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The functions of both walks by file; `folder` receives a tiny run."""
    import quatrain
    from quatrain.core.progress import SilentReporter
    from quatrain.runs.recipe import loads
    from quatrain.runs.stages import _finetune

    (folder / "text.txt").write_text("the cat sat on a mat and saw no dog.\n" * 100, encoding="utf-8")
    pairs = [{"instruction": f"say {word}", "input": "", "output": word} for word in "a b c d e f g h i j k l".split()]
    (folder / "instructions.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    recipe = re.sub(r'"(\w+\.(txt|jsonl))"', lambda match: json.dumps(str(folder / match[1])), RECIPE)
    run_stage = _finetune.run
    found: dict[str, dict[str, list[str]]] = {}

    def run_traced(*arguments: Any) -> Any:
        with traced(TRAINING) as trace:
            result = run_stage(*arguments)
        found["training"] = trace.functions
        return result

    _finetune.run = run_traced
    try:
        done = quatrain.run(loads(recipe), runs_dir=folder / "runs", reporter=SilentReporter())
    finally:
        _finetune.run = run_stage
    from quatrain.cli import main

    with contextlib.redirect_stdout(io.StringIO()), traced(GENERATING) as trace:
        main(["generate", str(done.model), "Hello", "--max-new-tokens", "2"])
    return found | {"generation": trace.functions}


def measured() -> dict[str, dict[str, list[str]]]:
    """Both walks, in a temporary folder and with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="quatrain-walks-") as place:
        before = os.environ.get("QUATRAIN_CACHE")
        os.environ["QUATRAIN_CACHE"] = f"{place}/cache"
        try:
            return walks(Path(place))
        finally:
            os.environ.pop("QUATRAIN_CACHE")
            if before is not None:
                os.environ["QUATRAIN_CACHE"] = before


def main() -> None:
    """Prints the number of files of each walk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", action="store_true", help="list the files and their functions")
    options = parser.parse_args()
    for name, functions in measured().items():
        print(f"{name}: {len(functions)} files")
        for path, names in functions.items() if options.files else ():
            print(f"  {path}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}")


if __name__ == "__main__":
    main()
