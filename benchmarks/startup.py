"""Start-up times of the command line, beside Python's own and those of the libraries that it could have imported.

Wall time of whole processes, in turns. The ratio is `import transformers` over `quatrain --help`.

    python benchmarks/startup.py [--repeat 10]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import finish, in_turns, parser, require, run_child, spread

RECIPE = """name = "finished"
[data]
source = "text.txt"
[tokenizer]
kind = "char"
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 32
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
evaluate = false
train = { steps = 2, batch_tokens = 64, warmup_steps = 0 }
"""
TEXT = "A quatrain has four lines.\n" * 200
HELP, PEER = "quatrain --help", "python -c 'import transformers'"
GOALS = {HELP: 0.4}


def finished_run(folder: Path) -> list[str]:
    """Makes a small finished run; returns the command that runs it again."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    recipe = folder / "finished.toml"
    recipe.write_text(RECIPE.replace("text.txt", (folder / "text.txt").as_posix()), encoding="utf-8")
    command = ["-m", "quatrain", "run", str(recipe), "--runs-dir", str(folder)]
    run_child([sys.executable, *command])
    return command


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeat", type=int, default=10)
    chosen = arguments.parse_args()
    require("transformers")
    with tempfile.TemporaryDirectory() as temporary:
        commands = {
            "python -c pass": ["-c", "pass"],
            HELP: ["-m", "quatrain", "--help"],
            "python -c 'import quatrain'": ["-c", "import quatrain"],
            "quatrain run (finished before)": finished_run(Path(temporary)),
            "quatrain check --toml quickstart": ["-m", "quatrain", "check", "--toml", "quickstart"],
            PEER: ["-c", "import transformers"],
        }
        for statement in () if chosen.quick else ("import torch", "from transformers import AutoModelForCausalLM"):
            commands[f"python -c '{statement}'"] = ["-c", statement]
        calls = {
            name: lambda command=command: run_child([sys.executable, *command])[0] for name, command in commands.items()
        }
        repeat = 1 if chosen.quick else chosen.repeat
        if not chosen.quick:
            in_turns(calls, 1)  # the first of each reads files that the others find in the system's cache
        found = {name: spread(values) for name, values in in_turns(calls, repeat).items()}
    for name, seconds in found.items():
        median, least, most = (1000 * seconds[key] for key in ("median", "min", "max"))
        print(f"{name:<60} {median:>7.0f} ms ({least:.0f} to {most:.0f})")
    goals = {f"{name} < {limit} s": found[name]["median"] < limit for name, limit in GOALS.items()}
    for goal, holds in goals.items():
        print(f"{'holds' if holds else 'FAILS'}  {goal}")
    finish(
        "startup",
        found[PEER]["median"] / found[HELP]["median"],
        f"{PEER} / {HELP}",
        quick=chosen.quick,
        seconds=found,
        goals=goals,
    )


if __name__ == "__main__":
    main()
