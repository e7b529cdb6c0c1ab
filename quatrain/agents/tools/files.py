"""Files within one folder: list, read, and write where the user allows it. Nothing outside is reached.

A path is resolved, symbolic links included, and refused unless it is still within the folder; files are opened without
following a link that took their place in between.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from quatrain.agents.tool import Tool, ToolError, tool
from quatrain.agents.toolbox import ToolSpec
from quatrain.core.atomic import write_text
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.reading import open_regular, user_path

MAX_READ = 200_000
"""The most bytes of a file that are read."""
MAX_WRITE = 1_000_000
"""The most characters of a file that is written."""
MAX_NAMES = 200
"""The most names of a listing."""


def build(value: str, stack: ExitStack) -> list[Tool]:
    """Tools for the files of the folder `value`. Raises InputError where there is none."""
    folder = user_path(value, "the folder").resolve()
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder")

    def inside(name: str) -> Path:
        if "\0" in name:
            raise ToolError("path: has a null character")
        try:
            path = (folder / name).resolve()
        except (OSError, RuntimeError) as error:
            raise ToolError(f"path: {error}") from None
        if path != folder and folder not in path.parents:
            raise ToolError(f"path: {name!r} is outside the folder")
        return path

    def list_files(path: str = ".") -> list[str]:
        """List the files of a folder.

        path: a folder, relative to the one that is open
        """
        place = inside(path)
        if not place.is_dir():
            raise ToolError(f"path: {path!r} is no folder")
        names = sorted(f"{each.name}/" if each.is_dir() else each.name for each in place.iterdir())
        return names[:MAX_NAMES] + ([f"… and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else [])

    def read_file(path: str) -> str:
        """Read a text file.

        path: the file, relative to the folder that is open
        """
        place = inside(path)
        if not place.is_file():
            raise ToolError(f"path: there is no file {path!r}")
        try:
            with open_regular(place) as file:
                if not Path(os.path.realpath(place)).is_relative_to(folder):
                    raise ToolError(f"path: {path!r} is outside the folder")
                content = file.read(MAX_READ + 1)
        except (InputError, OSError) as error:
            raise ToolError(f"path: {error}") from None
        text = content[:MAX_READ].decode("utf-8", "replace")
        return text if len(content) <= MAX_READ else f"{text}\n[… the file is longer …]"

    def write_file(path: str, content: str) -> str:
        """Write a text file, in place of what it was.

        path: the file, relative to the folder that is open
        content: the whole text
        """
        place = inside(path)
        if len(content) > MAX_WRITE:
            raise ToolError(f"content: {len(content):,} characters; at most {MAX_WRITE:,}")
        if place == folder or place.is_dir():
            raise ToolError(f"path: {path!r} is a folder")
        try:
            write_text(place, content)
        except (QuatrainError, OSError) as error:
            raise ToolError(f"path: {error}") from None
        return f"{len(content):,} characters were written."

    return [
        tool(list_files, effect="read", untrusted=True),
        tool(read_file, effect="read", untrusted=True),
        tool(write_file, effect="act"),
    ]


SPEC = ToolSpec("files", build, "list, read and write the files of one folder", "a folder")
