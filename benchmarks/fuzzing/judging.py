"""What is a fault: how an input ended, by its exit code, its output, its time and its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAULTS = ("internal_errors", "tracebacks", "hangs", "wrong_exit_codes", "over_2gb", "escapes")
SAYING = ("generate", "chat")
"""Verbs whose output is what a model says, as it says it."""
PEAK = 2 * 1024**3
TAIL = 30_000


@dataclass
class Outcome:
    """How an input ended."""

    number: int
    kind: str
    words: list[str]
    about: str
    faults: dict[str, str]
    """The fault, and a word about it."""
    output: str
    seconds: float
    """Of the processors."""
    peak: int

    @property
    def group(self) -> str:
        """What faults of the same cause have in common: the last line of the error, without numbers."""
        lines = [line for line in self.output.splitlines() if "rror" in line] or self.output.splitlines() or [""]
        line = next((line for line in lines if "internal error" in line), lines[-1])
        return f"{'+'.join(self.faults)} {self.words[:1]} {''.join(c for c in line[:150] if not c.isdigit())}"


@dataclass(frozen=True)
class Ending:
    """What the system says about the process of an input: its exit code, negative for a signal, and what it used."""

    code: int
    seconds: float
    peak: int
    is_killed: bool = False


def outcome(number: int, folder: Path, described: dict[str, Any], ending: Ending) -> Outcome:
    """How an input ended whose streams were written into files of a folder."""
    words: list[str] = described["words"]
    out, err = (_tail(folder / name) for name in ("out", "err"))
    faults = dict(_judged(ending, described["codes"], out + err, _is_debug(words)))
    if not faults and not described["odd"]:
        faults = dict(_judged_words(ending.code, out, err, words))
    return Outcome(number, described["kind"], words, described["about"], faults, out + err, ending.seconds, ending.peak)


def unmade(number: int, told: str, ending: Ending) -> Outcome:
    """An input that could not be made, which is a fault of this program."""
    lines = told.splitlines()[-12:]
    return Outcome(number, "unmade", [], "", {"unmade": lines[-1]}, "\n".join(lines), ending.seconds, ending.peak)


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return file.read().decode("utf-8", "replace")


def _is_debug(words: list[str]) -> bool:
    """Whether a traceback is what was asked for."""
    return "--debug" in (words[: words.index("--")] if "--" in words else words)


def _judged(ending: Ending, right: list[int], output: str, debug: bool) -> Iterator[tuple[str, str]]:
    """The faults of an input that ended so."""
    code = ending.code
    if ending.peak > PEAK:
        yield "over_2gb", f"{ending.peak / 1024**3:.1f} GB"
    if ending.is_killed:
        yield "hangs", "killed"
        return
    if "internal error:" in output or "This is a bug in quatrain" in output:
        yield "internal_errors", "a bug, as it says itself"
        return
    if "Traceback (most recent call last)" in output and not debug:
        yield "tracebacks", "a traceback"
        return
    if code in (130, *right):
        return
    if code == 1 and ("forbids the network" in output or "cannot be reached" in output):
        return  # a name that may be that of a model on the hub
    said = f"ended with {code}; right: {' or '.join(map(str, sorted(right)))}"
    yield ("internal_errors" if code < 0 else "wrong_exit_codes"), said


def _judged_words(code: int, out: str, err: str, words: list[str]) -> Iterator[tuple[str, str]]:
    """Faults of what was printed by an input whose streams are as usual."""
    if code > 0 and not out.strip() and not err.strip():
        yield "wrong_exit_codes", f"ended with {code} without a word"
    if "\x1b" in err or ("\x1b" in out and words[:1] not in [[verb] for verb in SAYING]):
        yield "escapes", "a terminal would obey what a file says"
