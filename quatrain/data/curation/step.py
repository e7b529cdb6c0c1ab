"""The contract of a curation step. A step is one file in `quatrain/data/curation/steps/` with one class `STEP`.

A `Step` decides about one document, from that document alone: steps run in several processes, and the result does not
depend on their number. A `CorpusStep` decides by comparing documents: each unit of work collects arrays, one process
compares those of all units and writes decisions, and the next pass applies them.

What `prepare` writes into a step's folder (a trained classifier, the n-grams of evaluation items) is written once,
before the first document; every process then loads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quatrain.core.settings import Settings
from quatrain.data.curation.document import Removal, SourceDocument

if TYPE_CHECKING:
    from quatrain.data.curation.arrays import Array


class StepSettings(Settings):
    """Base of the settings of a step; its `kind` is the name of its file."""

    kind: str

    def needs_weights(self, sources: Sequence[Any]) -> list[str]:
        """The sources that lack a weight which this step needs."""
        return []


@dataclass(frozen=True)
class Limit:
    """A threshold on a measure of a document: those below `least` or above `most` are removed."""

    measure: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class StepContext:
    """What a step may use: its own folder for what it prepares, the recipe's seed, and the sources' weights."""

    folder: Path
    seed: int = 0
    weights: Mapping[str, float] | None = None


class AnyStep:
    """What all steps share: `about` says what the step does, and `source` where its rules were published."""

    Settings: ClassVar[type[StepSettings]]
    about: ClassVar[str]
    source: ClassVar[str] = ""
    memory: ClassVar[int] = 0
    """Bytes that the step holds in each process, besides the tables of words."""
    word_tables: ClassVar[tuple[str, ...]] = ()
    """The tables of words that it uses (`words`), which all steps of a process share."""

    def __init__(self, settings: Any, context: StepContext):
        self.settings: Any = settings
        self.context = context

    @classmethod
    def prepare(cls, settings: Any, context: StepContext) -> None:
        """Writes what every process loads into `context.folder`, which exists. Called once."""

    def limits(self) -> Sequence[Limit]:
        """The thresholds of the settings."""
        return ()


class Step(AnyStep, ABC):
    """Decides about one document at a time; may change its text and fields."""

    @abstractmethod
    def apply(self, document: SourceDocument) -> Removal | None:
        """Changes the document, or says why it is removed."""

    def measures(self, document: SourceDocument) -> dict[str, float]:
        """The numbers that `limits` are about, for the funnel's samples."""
        return {}


class RuleStep(Step):
    """Removes documents by thresholds on measures. The reason is the measure and the threshold that it misses."""

    def __init__(self, settings: Any, context: StepContext):
        super().__init__(settings, context)
        self.by_measure = {limit.measure: limit for limit in self.limits()}

    @abstractmethod
    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        """The measures of a document in the order in which they are checked, each computed when it is asked for."""

    def apply(self, document: SourceDocument) -> Removal | None:
        for measure, value in self.values(document):
            limit = self.by_measure[measure]
            if limit.least is not None and value < limit.least:
                return Removal(f"{measure} below {limit.least:g}")
            if limit.most is not None and value > limit.most:
                return Removal(f"{measure} above {limit.most:g}")
        return None

    def measures(self, document: SourceDocument) -> dict[str, float]:
        return dict(self.values(document))


class CorpusStep(AnyStep, ABC):
    """Compares documents of all units.

    `bytes_per_document` and `bytes_per_word` bound the memory of `decide`, `disk_per_word` what is collected.
    """

    bytes_per_document: ClassVar[int] = 0
    bytes_per_word: ClassVar[float] = 0
    disk_per_word: ClassVar[float] = 0

    @abstractmethod
    def collect(self) -> Collector:
        """A collector for the documents of one unit."""

    @abstractmethod
    def decide(self, units: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """The decisions about the documents of each unit, from what was collected of all units, in order."""

    @abstractmethod
    def settle(self, document: SourceDocument, place: int, decisions: Mapping[str, Array]) -> Removal | None:
        """Applies the decisions of a unit to its document number `place`."""


class Collector(ABC):
    """Collects what a corpus step needs to know of the documents of one unit."""

    @abstractmethod
    def add(self, document: SourceDocument) -> None:
        """The next document of the unit."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """What was collected, by name."""
