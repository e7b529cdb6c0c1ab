"""Removes documents that hold an item of an evaluation set, and names the item (GPT-3, arXiv 2005.14165, appendix C).

A document is contaminated if it shares a run of `ngram` words with an item; an item with fewer words counts as a whole.
Runs that more than `common` items share, such as a phrase of instruction, do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.core.settings import Listing, Settings
from quatrain.data.curation.arrays import Array, named_array, write_array
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Step, StepContext, StepSettings
from quatrain.data.curation.words import window_hashes, word_hashes
from quatrain.data.decoding import lines_of, read_text
from quatrain.data.rows import read_records
from quatrain.data.sources import find_files, is_record_file

MOST_JSON = 1 << 28


class EvaluationSet(Settings):
    """A file, a folder or a catalog name. `columns` are those with texts; by default all columns that hold text.

    Every line of a plain text file is an item.
    """

    path: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    columns: Listing[str] = ()


class DecontaminateSettings(StepSettings):
    """`sets` are the evaluation sets. Items with fewer than `min_words` words are too common to look for."""

    kind: Literal["decontaminate"] = "decontaminate"
    sets: Listing[EvaluationSet] = Field(min_length=1)
    ngram: int = Field(default=13, ge=3, le=100)
    min_words: int = Field(default=8, ge=3)
    common: int = Field(default=10, ge=1)


class Decontaminate(Step):
    """Compares the runs of words of each document with those of all items."""

    Settings = DecontaminateSettings
    about = "texts without items of evaluation sets"
    source = "GPT-3, arXiv 2005.14165, C"
    word_tables = ("hashes",)

    @classmethod
    def prepare(cls, settings: DecontaminateSettings, context: StepContext) -> None:
        """Writes the sorted runs of all items by their size, with the item that each belongs to."""
        hashes, items = word_hashes(), list[str]()
        found: dict[int, list[Array]] = {}
        owners: dict[int, list[Array]] = {}
        for place, text in texts_of(settings):
            words = hashes.of(text)
            if len(words) < min(settings.min_words, settings.ngram):
                continue
            size = min(len(words), settings.ngram)
            runs = np.unique(window_hashes(words, size))
            found.setdefault(size, []).append(runs)
            owners.setdefault(size, []).append(np.full(len(runs), len(items), dtype=np.int64))
            items.append(place)
        if not items:
            raise InputError(f"decontaminate: no item of the sets has {settings.min_words} words")
        for size in found:
            runs, owner = np.concatenate(found[size]), np.concatenate(owners[size])
            unique, first, counts = np.unique(runs, return_index=True, return_counts=True)
            rare = counts <= settings.common
            write_array(context.folder, f"runs-{size}", unique[rare])
            write_array(context.folder, f"items-{size}", owner[first][rare])
        write_json(context.folder / "items.json", items, indent=None)

    def __init__(self, settings: DecontaminateSettings, context: StepContext):
        super().__init__(settings, context)
        self.hashes = word_hashes()
        self._tables: dict[int, tuple[Array, Array]] | None = None
        self._items: list[str] = []

    def apply(self, document: SourceDocument) -> Removal | None:
        if self._tables is None:
            self._load()
        words = self.hashes.of(document.text)
        for size, (runs, items) in (self._tables or {}).items():
            own = window_hashes(words, size)
            if not len(own) or not len(runs):
                continue
            places = np.minimum(np.searchsorted(runs, own), len(runs) - 1)
            same = runs[places] == own
            if same.any():
                counts = Counter(items[places[same]].tolist())
                item = min(counts, key=lambda each: (-counts[each], each))
                return Removal("an evaluation item", self._items[item])
        return None

    def _load(self) -> None:
        folder = self.context.folder
        sizes = sorted((int(path.name[5:].partition(".")[0]) for path in folder.glob("runs-*.bin")), reverse=True)
        self._tables = {
            size: (named_array(folder, f"runs-{size}"), named_array(folder, f"items-{size}")) for size in sizes
        }
        self._items = read_json(folder / "items.json", list, max_bytes=MOST_JSON)


def texts_of(settings: DecontaminateSettings) -> Iterator[tuple[str, str]]:
    """The name and the text of each item: "gsm8k_test.jsonl:12" and its question with its answer."""
    for each in settings.sets:
        for path in find_files(each.path):
            name = each.name or path.name
            if not is_record_file(path):
                for number, line in enumerate(lines_of(read_text(path), path), 1):
                    yield f"{name}:{number}", line
                continue
            for row in read_records(path):
                if isinstance(row.value, dict):
                    place = f"{name}:{row.place.rpartition(':')[2]}"
                    yield place, " ".join(strings(row.value, each.columns))


def strings(row: dict[str, Any], columns: tuple[str, ...]) -> Iterator[str]:
    """The texts of a row, those in lists included."""
    for key, value in row.items():
        if columns and key not in columns:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield item


STEP = Decontaminate
