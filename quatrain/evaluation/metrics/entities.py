"""Entity F1 of tag sequences: a span is correct if its type, first and last word are.

Tjong Kim Sang & De Meulder 2003 (CoNLL-2003). Spans are read as by conlleval and seqeval's default mode, for tags in
IO, BIO, BIOES and BILOU: an I tag can also begin a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.evaluation.metrics.checks import check_lengths

Span = tuple[str, int, int]
"""The type of an entity, its first word and its last."""

PREFIXES = frozenset("BIOESLU")


def entities(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence's tags, such as ("PER", 0, 1) for B-PER I-PER O. Raises InputError for an invalid tag."""
    spans: list[Span] = []
    before, kind_before, start = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = _parts(tag, place)
        if _ends(before, prefix, kind_before, kind):
            spans.append((kind_before, start, place - 1))
        if _begins(before, prefix, kind_before, kind):
            start = place
        before, kind_before = prefix, kind
    return spans


def _parts(tag: str, place: int) -> tuple[str, str]:
    if not isinstance(tag, str) or not tag:
        raise InputError(f"entity F1: tag number {place + 1} is {tag!r}; must be a text such as B-PER or O.")
    prefix, _, kind = tag.partition("-")
    if prefix not in PREFIXES:
        raise InputError(
            f"entity F1: tag number {place + 1} is {tag!r}; must be O, or begin with B-, I-, E-, S-, L- or U-. For "
            "plain labels of words (parts of speech) take accuracy."
        )
    # BILOU's names for the last and only word.
    return {"L": "E", "U": "S"}.get(prefix, prefix), kind or "_"


def _ends(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    if before == "O":
        return False
    return before in "ES" or prefix in "BSO" or kind_before != kind


def _begins(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    if prefix == "O":
        return False
    return prefix in "BS" or before in "ESO" or kind_before != kind


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """{"precision", "recall", "f1"} over all spans of all sentences (micro), and "f1_TYPE" for each type, from 0 to 1.

    Raises InputError for lists that are empty or differ in length, naming the sentence, and for an invalid tag.
    """
    predicted, true = _spans(predictions, references)
    scores = _scores(predicted, true)
    for kind in sorted({span[0] for _, span in predicted | true}):
        scores[f"f1_{kind}"] = _scores(*_of_kind(kind, predicted, true))["f1"]
    return scores


def by_type(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """For each type of span {"label", "precision", "recall", "f1", "count"}; raises as `entity_f1` does."""
    predicted, true = _spans(predictions, references)
    rows: list[dict[str, Any]] = []
    for kind in sorted({span[0] for _, span in predicted | true}):
        sides = _of_kind(kind, predicted, true)
        rows.append({"label": kind} | _scores(*sides) | {"count": len(sides[1])})
    return rows


def _of_kind(kind: str, *sides: set[tuple[int, Span]]) -> list[set[tuple[int, Span]]]:
    return [{each for each in side if each[1][0] == kind} for side in sides]


def _spans(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[set[tuple[int, Span]], set[tuple[int, Span]]]:
    """The predicted and the true spans, each with its sentence."""
    check_lengths(predictions, references, "entity F1")
    predicted, true = set[tuple[int, Span]](), set[tuple[int, Span]]()
    for number, (one, other) in enumerate(zip(predictions, references, strict=True), 1):
        if len(one) != len(other):
            raise InputError(f"entity F1: sentence {number} has {len(one)} predicted tags for {len(other)} words.")
        try:
            predicted |= {(number, span) for span in entities(one)}
            true |= {(number, span) for span in entities(other)}
        except InputError as error:
            raise InputError(f"{error.message} It is in sentence {number}.") from error
    return predicted, true


def _scores(predicted: set[tuple[int, Span]], true: set[tuple[int, Span]]) -> dict[str, float]:
    both = len(predicted & true)
    return {
        "precision": both / len(predicted) if predicted else 0.0,
        "recall": both / len(true) if true else 0.0,
        "f1": 2 * both / (len(predicted) + len(true)) if predicted or true else 0.0,
    }
