"""What `kills.py` kills: a file for each work, found by its place, with a `WORK`.

A work is one command of a user's. It is killed at a random moment and given again, from two copies of what it left; it
must end as the command that nobody killed, and leave no other files. What a reader sees before it is given again must
be the state before the command or the one after it, or nothing at all where there was none before.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

Note = Callable[[str], None]
"""Tells what the command is at."""


class Work:
    """A command that is killed. `variants` are ways to give it, which take turns."""

    name: ClassVar[str]
    after_kill: ClassVar[str]
    """What the same command does after a kill: "resumes", or "begins again"."""
    variants: tuple[str, ...] = ("",)
    phases: ClassVar[Mapping[str, str]] = {}
    """What the command is at once it opens, moves or removes a file: patterns of paths in the target, and names."""

    def make(self, place: Path) -> None:
        """Makes what the command needs, and imports what it uses, so that no child has to."""

    def start(self, folder: Path, variant: str) -> None:
        """Puts into `folder`, which is absent, what is there before the command."""

    def run(self, folder: Path, variant: str, note: Note) -> None:
        """Gives the command; `folder` is its target."""
        raise NotImplementedError

    def outcome(self, folder: Path, variant: str) -> Any:
        """What must be equal in the end, as JSON has it."""
        raise NotImplementedError

    def read(self, folder: Path, variant: str) -> Any:
        """What a reader gets of the target now; None for nothing. Raises for what no user should meet."""
        return None

    def phase_of(self, path: str) -> str | None:
        """The phase that a path of the target belongs to."""
        return next((name for pattern, name in self.phases.items() if re.search(pattern, path)), None)


def works() -> dict[str, Work]:
    """All works by their names."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.WORK.name: module.WORK for module in modules if hasattr(module, "WORK")}


def files_of(folder: Path) -> list[str]:
    """The names of all files in a folder, those that a kill should not leave included. Random names become X."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(re.sub(r"\b[0-9a-f]{8,}\b", "X", name) for name in names)


def command(*words: str) -> None:
    """Gives a command of the command line in this process. Raises RuntimeError where it fails."""
    from quatrain.cli import main

    code = main(list(words))
    if code:
        raise RuntimeError(f"quatrain {' '.join(words)} ended with {code}")
