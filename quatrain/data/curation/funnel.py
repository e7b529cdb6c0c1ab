"""The funnel: how many documents and tokens enter each step, how many leave it, why, and samples on either side.

Each unit of work counts for itself; counts of all units add up to the same funnel in any order. The samples of a step
are the documents with the smallest keys: a uniform sample that does not depend on units and processes either. Their
measures show what another threshold would keep.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Limit

SAMPLES = 400
"""Documents of a step that are measured, over all units."""
LEAST_SAMPLES = 24
"""Documents of a step that are measured in each of many units."""
SNIPPET = 400
"""Characters of a sample that are kept."""


@dataclass
class Amount:
    """An amount of text. `tokens` are words, unless the recipe names a tokenizer."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0

    def add(self, tokens: int, characters: int) -> None:
        """Counts one document."""
        self.documents += 1
        self.tokens += tokens
        self.characters += characters

    def merge(self, other: Amount) -> None:
        """Adds another amount."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.characters += other.characters


@dataclass
class Sample:
    """A document at a step: its key, its tokens, its measures, and why it was removed (None: it was kept)."""

    key: int
    place: str
    tokens: int
    measures: dict[str, float]
    removed: str | None
    detail: str
    snippet: str


@dataclass
class StepCounts:
    """What one step did: to all documents, and to the sampled ones."""

    entered: Amount = field(default_factory=Amount)
    left: Amount = field(default_factory=Amount)
    changed: int = 0
    reasons: dict[str, Amount] = field(default_factory=dict)
    details: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    most: int = SAMPLES
    bound: int | None = None

    def wants(self, key: int) -> bool:
        """Whether a document of this key is among the samples so far."""
        return self.bound is None or key < self.bound

    def add_sample(self, sample: Sample) -> None:
        """Adds a sample that is wanted."""
        self.samples.append(sample)
        if len(self.samples) >= 2 * self.most:
            self.trim()

    def trim(self) -> None:
        """Leaves the samples with the smallest keys."""
        self.samples = heapq.nsmallest(self.most, self.samples, key=lambda sample: (sample.key, sample.place))
        if len(self.samples) == self.most:
            self.bound = self.samples[-1].key

    def remove(self, removal: Removal, document: SourceDocument, tokens: int) -> None:
        """Counts a document that is removed."""
        self.reasons.setdefault(removal.reason, Amount()).add(tokens, len(document.text))
        if removal.detail and (removal.detail in self.details or len(self.details) < 1000):
            self.details[removal.detail] = self.details.get(removal.detail, 0) + 1

    def merge(self, other: StepCounts) -> None:
        """Adds the counts of another unit."""
        self.entered.merge(other.entered)
        self.left.merge(other.left)
        self.changed += other.changed
        for reason, amount in other.reasons.items():
            self.reasons.setdefault(reason, Amount()).merge(amount)
        for detail, count in other.details.items():
            self.details[detail] = self.details.get(detail, 0) + count
        self.samples += other.samples
        self.trim()


@dataclass
class UnitCounts:
    """What happened to one unit in one pass: faults of its files, its steps by number, and what is written."""

    read: Amount = field(default_factory=Amount)
    faults: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[int, StepCounts] = field(default_factory=dict)
    outputs: dict[str, Amount] = field(default_factory=dict)
    sources: dict[str, Amount] = field(default_factory=dict)

    def fault(self, place: str, reason: str) -> None:
        """Counts a fault; the first places are kept."""
        self.faults[reason] = self.faults.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < 5:
            places.append(place)

    def merge(self, other: UnitCounts) -> None:
        """Adds the counts of another unit."""
        self.read.merge(other.read)
        for reason, count in other.faults.items():
            self.faults[reason] = self.faults.get(reason, 0) + count
            self.places[reason] = (self.places.get(reason, []) + other.places[reason])[:5]
        for number, counts in other.steps.items():
            self.steps.setdefault(number, StepCounts()).merge(counts)
        for own, others in ((self.outputs, other.outputs), (self.sources, other.sources)):
            for name, amount in others.items():
                own.setdefault(name, Amount()).merge(amount)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        for counts in self.steps.values():
            counts.trim()
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> UnitCounts:
        """From what `to_dict` gave."""
        return cls(
            read=Amount(**value["read"]),
            faults=dict(value["faults"]),
            places=dict(value["places"]),
            steps={int(number): _step_of(counts) for number, counts in value["steps"].items()},
            outputs=_amounts(value["outputs"]),
            sources=_amounts(value["sources"]),
        )


def _amounts(value: Mapping[str, Any]) -> dict[str, Amount]:
    return {name: Amount(**amount) for name, amount in value.items()}


def _step_of(value: Mapping[str, Any]) -> StepCounts:
    return StepCounts(
        entered=Amount(**value["entered"]),
        left=Amount(**value["left"]),
        changed=value["changed"],
        reasons=_amounts(value["reasons"]),
        details=dict(value["details"]),
        samples=[Sample(**sample) for sample in value["samples"]],
    )


@dataclass(frozen=True)
class FunnelStep:
    """One step of the funnel: its kind, what it does, where its rules come from, its thresholds and its counts."""

    kind: str
    about: str
    source: str
    limits: tuple[Limit, ...]
    counts: StepCounts


@dataclass(frozen=True)
class Funnel:
    """All steps in order. `unit` is what `tokens` count."""

    name: str
    unit: str
    read: Amount
    faults: dict[str, int]
    places: dict[str, list[str]]
    steps: tuple[FunnelStep, ...]
    outputs: dict[str, Amount]
    sources: dict[str, Amount]

    @property
    def kept(self) -> Amount:
        """What is written, over all splits."""
        total = Amount()
        for amount in self.outputs.values():
            total.merge(amount)
        return total

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of `rows`."""
        return ("step", "documents", self.unit, "of all", "change", "why")

    def rows(self) -> list[list[object]]:
        """The table: step, documents and tokens left, the share of the tokens read, what the step lost, and why."""
        rows: list[list[object]] = [["read", self.read.documents, self.read.tokens, share(1), "", ""]]
        for step in self.steps:
            entered, left = step.counts.entered, step.counts.left
            lost = entered.tokens - left.tokens
            rows.append(
                [
                    step.kind,
                    left.documents,
                    left.tokens,
                    share(left.tokens / max(1, self.read.tokens)),
                    share(-lost / entered.tokens) if lost and entered.tokens else "",
                    reasons_of(step.counts),
                ]
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """The counts without samples, for programs."""
        steps = []
        for step in self.steps:
            counts = step.counts
            steps.append(
                {
                    "step": step.kind,
                    "entered": asdict(counts.entered),
                    "left": asdict(counts.left),
                    "changed": counts.changed,
                    "reasons": {reason: amount.documents for reason, amount in sorted(counts.reasons.items())},
                }
            )
        outputs = {name: asdict(amount) for name, amount in sorted(self.outputs.items())}
        return {"read": asdict(self.read), "faults": self.faults, "steps": steps, "outputs": outputs}

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; samples included."""
        return asdict(self)


def share(value: float) -> str:
    """`62.4 %`."""
    return f"{100 * value:.1f} %"


def reasons_of(counts: StepCounts, most: int = 3) -> str:
    """The most frequent reasons with their documents; how many documents were changed."""
    ordered = sorted(counts.reasons.items(), key=lambda item: (-item[1].documents, item[0]))
    parts = [f"{reason}: {amount.documents:,}" for reason, amount in ordered[:most]]
    if len(ordered) > most:
        parts.append(f"{len(ordered) - most} more reasons: {sum(amount.documents for _, amount in ordered[most:]):,}")
    if counts.changed:
        parts.append(f"changed: {counts.changed:,}")
    return "; ".join(parts)


def samples_of_unit(units: int) -> int:
    """How many documents of a step are measured in each unit."""
    return max(LEAST_SAMPLES, min(SAMPLES, 8 * SAMPLES // max(1, units)))


def merged(units: Iterable[UnitCounts]) -> UnitCounts:
    """The counts of all units."""
    total = UnitCounts()
    for unit in units:
        total.merge(unit)
    return total


def funnel_of(value: Mapping[str, Any]) -> Funnel:
    """From what `Funnel.to_dict` gave."""
    return Funnel(
        name=value["name"],
        unit=value["unit"],
        read=Amount(**value["read"]),
        faults=dict(value["faults"]),
        places=dict(value["places"]),
        steps=tuple(
            FunnelStep(
                step["kind"],
                step["about"],
                step["source"],
                tuple(Limit(**limit) for limit in step["limits"]),
                _step_of(step["counts"]),
            )
            for step in value["steps"]
        ),
        outputs=_amounts(value["outputs"]),
        sources=_amounts(value["sources"]),
    )


def borderline(step: FunnelStep, limit: Limit, most: int = 3) -> tuple[list[Sample], list[Sample]]:
    """The samples nearest to a threshold: kept, and removed by it."""
    edges = [edge for edge in (limit.least, limit.most) if edge is not None]
    if not edges:
        return [], []

    def distance(sample: Sample) -> float:
        return min(abs(sample.measures[limit.measure] - edge) for edge in edges)

    measured = [sample for sample in step.counts.samples if limit.measure in sample.measures]
    kept = sorted((sample for sample in measured if sample.removed is None), key=distance)
    removed = [sample for sample in measured if (sample.removed or "").startswith(f"{limit.measure} ")]
    return kept[:most], sorted(removed, key=distance)[:most]
