"""What a curation takes, said before it starts: documents, memory of each process and of each comparison, disk.

The number of documents and words is estimated from the first documents of each source; memory follows from them by the
figures that each step declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from quatrain.core.atomic import free_bytes
from quatrain.core.errors import QuatrainError
from quatrain.core.wording import format_bytes
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.settings import CurationRecipe
from quatrain.data.curation.step import CorpusStep
from quatrain.data.curation.steps import steps
from quatrain.data.curation.units import Unit, plan_units, read_unit
from quatrain.data.curation.words import TABLE_BYTES
from quatrain.data.decoding import is_packed

FIRST = 200
"""Documents of a source that are read for the estimate."""
PACKED = 4
"""Bytes of text in a byte of a compressed file."""
PROCESS = 120_000_000
"""Bytes of a process with Python, NumPy and the package."""
COPIES = 6
"""A document is held as bytes, as text, and in the words of a step, at its largest."""


@dataclass(frozen=True)
class Comparison:
    """What one corpus step takes while it compares: bytes of memory and of disk."""

    step: str
    memory: int
    disk: int


@dataclass(frozen=True)
class Estimate:
    """Figures of a curation before it starts. `documents`, `words` and `text_bytes` are estimates."""

    input_bytes: int
    documents: int
    words: int
    text_bytes: int
    units: int
    processes: int
    process_memory: int
    comparisons: tuple[Comparison, ...]
    disk: int

    @property
    def memory(self) -> int:
        """The most memory at one time: all processes, or the main process while it compares."""
        return max(
            self.process_memory * self.processes, PROCESS + max((each.memory for each in self.comparisons), default=0)
        )

    def lines(self) -> list[str]:
        """The estimate for people."""
        found = [
            f"input: {format_bytes(self.input_bytes)}, about {self.documents:,} documents and {self.words:,} words, in "
            f"{self.units:,} units",
            f"memory: at most {format_bytes(self.process_memory)} for each of {self.processes} "
            + ("process" if self.processes == 1 else "processes"),
        ]
        found += [f"memory of {each.step}: about {format_bytes(each.memory)}" for each in self.comparisons]
        return [*found, f"disk while it works: about {format_bytes(self.disk)}"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"memory": self.memory}

    def check(self, folder: Path) -> None:
        """Raises QuatrainError where memory or disk are too small."""
        free = free_bytes(folder)
        if free is not None and self.disk > free:
            raise QuatrainError(
                f"this takes about {format_bytes(self.disk)} of disk, and {folder} has {format_bytes(free)}. Choose "
                "another disk with --output, or curate the sources one by one"
            )
        if self.memory < 1_000_000_000:
            return
        from quatrain.planning.machine import available_memory

        room = available_memory()
        if room is not None and self.memory > room:
            raise QuatrainError(
                f"this takes about {format_bytes(self.memory)} of memory, and {format_bytes(room)} are free. Use fewer "
                "--processes, or curate parts of the sources and then their results"
            )


def estimate(recipe: CurationRecipe, processes: int = 1) -> Estimate:
    """Estimates a curation from its settings and the first documents of each source."""
    units = plan_units(recipe)
    documents = words = size = 0.0
    for source in range(len(recipe.source)):
        own = [unit for unit in units if unit.parts[0].source == source]
        total = sum(_text_bytes(unit) for unit in own)
        first = list(islice(_documents(own, recipe), FIRST))
        letters = sum(len(text.encode("utf-8", "surrogatepass")) for text in first)
        if not first or not letters:
            continue
        count = len(first) if len(first) < FIRST else max(len(first), total / (letters / len(first)))
        documents += count
        words += count * sum(len(text.split()) for text in first) / len(first)
        size += count * letters / len(first)
    classes = [steps()[settings.kind] for settings in recipe.step]
    comparisons = tuple(
        Comparison(
            settings.kind,
            int(cls.bytes_per_document * documents + cls.bytes_per_word * words),
            int(cls.disk_per_word * words + 40 * documents),
        )
        for settings, cls in zip(recipe.step, classes, strict=True)
        if issubclass(cls, CorpusStep)
    )
    tables = {table for cls in classes for table in cls.word_tables}
    held = COPIES * 4 * recipe.max_characters
    rows = 1.3 * size * (1 + len(comparisons))
    return Estimate(
        input_bytes=sum(unit.size for unit in units),
        documents=round(documents),
        words=round(words),
        text_bytes=round(size),
        units=len(units),
        processes=processes,
        process_memory=PROCESS + held + sum(cls.memory for cls in set(classes)) + TABLE_BYTES * len(tables),
        comparisons=comparisons,
        disk=int(rows + sum(each.disk for each in comparisons)),
    )


def _text_bytes(unit: Unit) -> float:
    return sum(
        ((part.size if part.end is None else part.end) - part.start) * (PACKED if is_packed(Path(part.path)) else 1)
        for part in unit.parts
    )


def _documents(units: list[Unit], recipe: CurationRecipe) -> Iterator[str]:
    for unit in units:
        for item in read_unit(unit, recipe):
            if isinstance(item, SourceDocument):
                yield item.text
