"""The contents of an index: folders `content-N` beside `index.json`, which names the one that is read.

A build writes the next one, from a copy of the last, and names it when it is whole. Until then, and if the build is
killed, the old one answers. The next build continues what a killed one has left.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from quatrain.core.atomic import disk_errors, remove_leftovers, temporary_name
from quatrain.retrieval.readers import CONTENT, MARKER
from quatrain.retrieval.settings import IndexSettings, content_folder, read_settings, write_settings


def number_of(path: Path) -> int | None:
    """The number of a content; None for another file."""
    found = CONTENT.fullmatch(path.name)
    return int(found[1]) if found else None


def known_settings(folder: Path) -> IndexSettings | None:
    """The settings of an index, or of the build of it that was killed; None where there is neither."""
    is_index = (folder / MARKER).is_file()
    begun = next_content(content_folder(folder) if is_index else None, folder)
    if (begun / MARKER).is_file():
        return read_settings(begun)[0]
    return read_settings(folder)[0] if is_index else None


def next_content(current: Path | None, folder: Path) -> Path:
    """The path of the content that follows the current one."""
    return folder / f"content-{(0 if current is None else number_of(current) or 0) + 1}"


class Draft:
    """The next content of an index, in a folder that this process has locked.

    `current` is the content that is read, None in a new index. `path` is the next one: None until `open` makes it,
    unless a killed build has left one.
    """

    def __init__(self, folder: Path, settings: IndexSettings, source: str):
        self.folder, self.settings, self.source = folder, settings, source
        remove_leftovers(folder)
        self.current = content_folder(folder) if (folder / MARKER).is_file() else None
        path = next_content(self.current, folder)
        self.path = path if path.is_dir() else None

    def open(self) -> Path:
        """The folder to write to: a copy of the current content, or what a killed build has left."""
        if self.path is None:
            path = next_content(self.current, self.folder)
            with disk_errors(path):
                if self.current is None:
                    path.mkdir()
                else:
                    copy = temporary_name(path)
                    shutil.copytree(self.current, copy)
                    copy.rename(path)
            self.path = path
        write_settings(self.path, self.settings, self.source, self.path.name)  # for a call that continues it
        return self.path

    def finish(self) -> None:
        """Make the draft, if there is one, the content that is read, and remove the others."""
        kept = self.path or self.current
        if kept is None:
            raise RuntimeError("an index without content")
        write_settings(self.folder, self.settings, self.source, kept.name)
        for path in self.folder.iterdir():
            if path != kept and number_of(path) is not None:
                shutil.rmtree(path, ignore_errors=True)

    def discard(self) -> None:
        """Remove the draft: the current content, if any, stays the one that is read."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
