"""Records docs/images/demo.svg: real commands, run in a real terminal, drawn by rich.

    python tools/record_demo.py FOLDER [OUT]      (default: docs/images/demo.svg)

The commands run in FOLDER, in which `quatrain run quickstart` has run before. Needs a system with pseudo-terminals
(Linux, macOS). The lines of the picture appear one after the other; a reader who prefers reduced motion sees them all
at once. The picture loads nothing.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "images" / "demo.svg"
WIDTH = 104
BAR = re.compile(r"━{9}(?!.*[┓┩])")
"""A bar of progress, whose last state is the line below it; the edges of tables are none."""
PROMPTS = ("] ", "? ", "> ")
"""What the output ends with where an answer is awaited."""

THEME = TerminalTheme(
    (17, 24, 39),
    (229, 231, 235),
    [(75, 85, 99), (248, 113, 113), (74, 222, 128), (250, 204, 21), (96, 165, 250), (216, 180, 254), (103, 232, 249),
     (229, 231, 235)],
    [(107, 114, 128), (252, 165, 165), (134, 239, 172), (253, 224, 71), (147, 197, 253), (233, 213, 255),
     (165, 243, 252), (255, 255, 255)],
)  # fmt: skip

CHAT = "quatrain chat runs/quickstart/model --db runs/quickstart/shop.sqlite"
SETTINGS = "stage.pretrain.train.steps=200 evaluate.temperatures=[0.8] evaluate.max_new_tokens=20"
QUESTIONS = (
    "Which country has the most customers?",
    "How many orders are there for each payment method?",
    "Will it rain tomorrow?",
    "/quit",
)
SESSION: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (CHAT, QUESTIONS, "\nquestion> /quit"),
    ("quatrain new", ("text", "", "small"), ""),
    (f"quatrain run my-text.toml {SETTINGS}", (), "\nWhat to try next"),
)
"""Each command, the answers that are typed into it, and the text before which its output is cut."""


def typed(command: str, answers: Sequence[str], folder: Path) -> str:
    """What a terminal shows of a command while these answers are typed into it."""
    words = [sys.executable, "-m", *command.split()]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "COLUMNS": str(WIDTH), "LINES": "60", "TERM": "xterm-256color",
        "QUATRAIN_OFFLINE": "1", "QUATRAIN_CACHE": str(folder / "cache"),
    }  # fmt: skip
    environment.pop("NO_COLOR", None)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe(words[0], words, environment)
    shown, left, quiet_since = b"", list(answers), time.monotonic()
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if ready:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # Linux: the child has closed its side
                piece = b""
            if not piece:
                break
            shown, quiet_since = shown + piece, time.monotonic()
        elif left and time.monotonic() - quiet_since > 0.5 and plain(shown.decode()).endswith(PROMPTS):
            os.write(terminal, f"{left.pop(0)}\n".encode())
            quiet_since = time.monotonic()
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    text = shown.decode("utf-8")
    if os.waitstatus_to_exitcode(status) or left:
        raise SystemExit(f"{command} failed, or did not ask for {left}:\n{text[-3000:]}")
    return text


def plain(text: str) -> str:
    """The text without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def last_state(text: str) -> str:
    """The lines as the terminal shows them at the end, with colours: of each line what was written last.

    Bars of progress are left out: the line below one says how it ended.
    """
    text = re.sub(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", "", text).replace("\r\n", "\n")  # all but colours
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    kept = (line.rstrip() for line in lines if not BAR.search(plain(line)))
    return "\n".join(kept).strip("\n")


def session(folder: Path) -> list[tuple[str, str]]:
    """Each command with its output."""
    shown = []
    for command, answers, end in SESSION:
        if command.split()[1] == "new":
            for file in folder.glob("my-*.toml"):
                file.unlink()
            for run in (folder / "runs").glob("my-*"):
                shutil.rmtree(run)
        output = last_state(typed(command, answers, folder))
        if end:
            output = output[: output.index(end)].rstrip()
        shown.append((command, output))
    return shown


def picture(shown: Sequence[tuple[str, str]]) -> str:
    """The SVG, whose lines appear in turn."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        commands, line = set(), 0
        for command, output in shown:
            commands.add(line)
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=False)
            text = Text.from_ansi(output)
            console.print(text, overflow="fold")
            console.print()
            line += 2 + sum(max(1, -(-each.cell_len // WIDTH)) for each in text.split("\n", allow_blank=True))
    svg = console.export_svg(title="quatrain", theme=THEME, unique_id="demo")
    return animated(offline(svg), commands)


def offline(svg: str) -> str:
    """The picture with fonts of the reader's system only."""
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)
    return svg.replace("font-family: Fira Code, monospace", "font-family: ui-monospace, Menlo, Consolas, monospace")


def animated(svg: str, commands: set[int]) -> str:
    """The picture with a time for each line: a pause before each command, then line after line."""
    seconds, times = 0.0, {}
    for line in range(1 + max(int(number) for number in re.findall(r"demo-line-(\d+)", svg))):
        if line in commands:
            seconds += 1.2
        times[line] = seconds
        seconds += 0.8 if line in commands else 0.12
    svg = re.sub(
        r'(<text class="[^"]*")([^>]*clip-path="url\(#demo-line-(\d+)\)")',
        lambda found: f'{found[1]} style="animation-delay:{times[int(found[3])]:.2f}s"{found[2]}',
        svg,
    )
    rule = (
        "@media (prefers-reduced-motion: no-preference) { .demo-matrix text "
        "{ animation: demo-appear 0.01s backwards } }\n    @keyframes demo-appear { from { opacity: 0 } }\n    "
    )
    return svg.replace("</style>", f"{rule}</style>", 1)


def main() -> None:
    folder = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    folder.mkdir(parents=True, exist_ok=True)
    out.write_text(picture(session(folder)), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
