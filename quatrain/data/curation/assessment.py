"""Precision and recall of each step on a generated crawl, whose truth is known (`crawl`)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import parse_json, read_text
from quatrain.data.curation.crawl import WORTH
from quatrain.data.curation.runner import read_shards

TARGETS: Mapping[str, frozenset[str]] = {
    "url": frozenset({"spam"}),
    "language": frozenset({"foreign"}),
    "length": frozenset({"fragment"}),
    "gopher_quality": frozenset({"list", "boilerplate", "fragment", "spam"}),
    "gopher_repetition": frozenset({"spam", "boilerplate", "list"}),
    "fineweb_quality": frozenset({"boilerplate", "list", "spam", "fragment"}),
    "c4_quality": frozenset({"boilerplate", "list", "spam", "fragment"}),
    "decontaminate": frozenset({"evaluation item"}),
    "exact_duplicates": frozenset({"exact copy"}),
    "near_duplicates": frozenset({"near copy", "exact copy"}),
}
"""The kinds of pages that a step is there to remove."""


@dataclass(frozen=True)
class StepScore:
    """Of the junk that reached a step (`there`) it `found` some; of what it `acted` on, some was `right`."""

    step: str
    target: str
    found: int
    there: int
    right: int
    acted: int

    @property
    def recall(self) -> float | None:
        """The share of the junk that was found."""
        return self.found / self.there if self.there else None

    @property
    def precision(self) -> float | None:
        """The share of what was removed that was junk."""
        return self.right / self.acted if self.acted else None


@dataclass(frozen=True)
class Assessment:
    """Scores by step, and how many pages of each kind are left."""

    scores: tuple[StepScore, ...]
    left: Mapping[str, tuple[int, int]]

    def rows(self) -> list[list[object]]:
        """The table of scores."""
        return [
            [score.step, score.target, score.found, score.there, percent(score.recall), score.acted,
             percent(score.precision)]
            for score in self.scores
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        scores = [score.__dict__ | {"recall": score.recall, "precision": score.precision} for score in self.scores]
        return {"scores": scores, "left": {kind: list(counts) for kind, counts in self.left.items()}}


COLUMNS = ("step", "junk", "found", "of", "recall", "acted on", "precision")


def percent(value: float | None) -> str:
    """`98.3 %`; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f} %"


TRUTH: Mapping[str, type[Any] | UnionType] = {
    **{"id": int, "kind": str, "group": int | None, "secrets": list, "numbers": list, "passage": str},
}
"""What a row of a crawl's truth has."""


def read_truth(path: Path) -> dict[int, dict[str, Any]]:
    """The truth about each page of a crawl, by its id. Raises InputError for a file that `crawl` did not write."""
    pages = {}
    for number, line in enumerate(read_text(path, 1 << 30).rstrip("\n").split("\n"), 1):
        row = parse_json(line, f"{path}, line {number}")
        wrong = [name for name, kind in TRUTH.items() if name not in row or not isinstance(row[name], kind)]
        if wrong:
            raise InputError(
                f"{path}, line {number}: {', '.join(wrong)}: missing or of the wrong type; give the truth.jsonl that "
                "`quatrain data crawl` wrote"
            )
        pages[row["id"]] = row
    return pages


def assess(folder: Path, truth: Path) -> Assessment:
    """Compares a curation that wrote its removed documents (`output.removed`) with the truth of its crawl.

    Raises InputError for the truth of another crawl.
    """
    pages = read_truth(truth)
    kept: dict[Any, Any] = {row.get("id"): row["text"] for row in read_shards(folder)}
    removed: dict[str, dict[Any, dict[str, Any]]] = defaultdict(dict)
    for row in removed_rows(folder):
        removed[row["step"]][row.get("id")] = row
    if any(number not in pages for rows in (kept, *removed.values()) for number in rows):
        raise InputError(f"{truth}: {folder} has documents of which it says nothing; give the truth of the same crawl")
    order = list(
        dict.fromkeys(step["kind"] for step in json.loads((folder / "manifest.json").read_text())["recipe"]["step"])
    )
    scores: list[StepScore] = []
    reached = set(pages)
    for step in order:
        gone = set(removed.get(step, {}))
        if step in ("exact_duplicates", "near_duplicates"):
            scores.append(_copies(step, pages, reached, gone))
        elif step in TARGETS:
            targets = {number for number in reached if pages[number]["kind"] in TARGETS[step]}
            target = ", ".join(sorted({pages[number]["kind"] for number in targets & gone} or TARGETS[step]))
            there = {number for number in targets if pages[number]["kind"] in target.split(", ")}
            scores.append(StepScore(step, target, len(targets & gone), len(there), len(targets & gone), len(gone)))
        reached -= gone
    scores += _contents(pages, kept, order)
    kinds = Counter(page["kind"] for page in pages.values())
    left = Counter(pages[number]["kind"] for number in kept)
    return Assessment(tuple(scores), {kind: (left[kind], count) for kind, count in sorted(kinds.items())})


def removed_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The removed documents, each with its step and reason."""
    for path in sorted((folder / "removed").glob("*.jsonl")):
        with open(path, encoding="utf-8") as handle:
            yield from map(json.loads, handle)


def _copies(step: str, pages: Mapping[int, Any], reached: set[int], gone: set[int]) -> StepScore:
    """Of each group of copies all but one should go, whichever stays. Pages with other text around a copy may stay."""
    kinds = {"exact copy"} if step == "exact_duplicates" else {"exact copy", "near copy"}
    groups: dict[int, set[int]] = defaultdict(set)
    sure: dict[int, set[int]] = defaultdict(set)
    for number in reached:
        page = pages[number]
        if page["group"] is not None:
            groups[page["group"]].add(number)
            if page["kind"] in {"good", "page", *kinds}:
                sure[page["group"]].add(number)
    there = sum(len(group) - 1 for group in sure.values())
    found = sum(min(len(gone & group), len(group) - 1) for group in sure.values())
    right = sum(min(len(gone & group), len(group) - 1) for group in groups.values())
    # Texts made of the same sentences of one language are copies too.
    right += sum(pages[number]["group"] is None for number in gone)
    return StepScore(
        step, "exact copies" if step == "exact_duplicates" else "near copies", found, there, right, len(gone)
    )


def _contents(pages: Mapping[int, Any], kept: Mapping[int, str], order: Sequence[str]) -> Iterator[StepScore]:
    """What steps changed inside texts that were kept."""
    if "unicode" in order:
        damaged = [number for number in kept if pages[number]["kind"] == "damaged encoding"]
        right = [number for number in damaged if "Ã" not in kept[number] and "â€" not in kept[number]]
        yield StepScore("unicode", "damaged encoding", len(right), len(damaged), len(right), len(damaged))
    if "html" in order:
        html = [number for number in kept if pages[number]["kind"] == "page"]
        clean = [number for number in html if _same_words(kept[number], pages[number]["passage"])]
        yield StepScore("html", "menus around the text", len(clean), len(html), len(clean), len(html))
    if "personal_data" in order:
        texts = [(kept[number], pages[number]) for number in kept if pages[number]["kind"] == "personal data"]
        secrets = [(secret, text) for text, page in texts for secret in page["secrets"]]
        numbers = [(number, text) for text, page in texts for number in page["numbers"]]
        masked = sum(secret not in text for secret, text in secrets)
        wrongly = sum(number not in text for number, text in numbers)
        yield StepScore("personal_data", "made-up personal data", masked, len(secrets), masked, masked + wrongly)


def _same_words(text: str, passage: str) -> bool:
    """Whether at least 95 % of the words are those of the passage, and the other way round."""
    mine, right = Counter(text.split()), Counter(passage.split())
    common = sum((mine & right).values())
    return common >= 0.95 * sum(mine.values()) and common >= 0.95 * sum(right.values())


__all__ = ["COLUMNS", "TARGETS", "WORTH", "Assessment", "StepScore", "assess"]
