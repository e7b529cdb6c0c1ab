"""The decisions of C4's, Gopher's and FineWeb's rules equal datatrove's, document by document."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("spacy", reason="the rules count spaCy's words: pip install 'quatrain[data]'")
pytest.importorskip("datatrove", reason="the peer is not installed: pip install 'quatrain[test]'")

from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.c4_filters import C4ParagraphFilter, C4QualityFilter

from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Step, StepContext
from quatrain.data.curation.steps import steps
from quatrain.data.curation.words import EnglishWords, english_words
from quatrain.data.documents import read_documents

DOCUMENTS = 1000
PEERS: dict[str, Callable[[], Any]] = {
    "gopher_quality": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "fineweb_quality": FineWebQualityFilter,
    "c4_quality": C4QualityFilter,
    "c4_paragraphs": C4ParagraphFilter,
}
EDGES = ["a", "a b", "{", "x " * 400, "\n\n \n", "Hello there.  How are you?\tFine. ok", "- \n- \n...", "é. " * 200]


@cache
def documents() -> tuple[str, ...]:
    """1,000 documents: short pieces of web pages, each as it is or damaged in one of many ways."""
    random_numbers = random.Random(7)
    pages = [text[:900] for text in read_documents("c4-sample")]
    found = [*EDGES, *pages]
    while len(found) < DOCUMENTS:
        text = random_numbers.choice(pages)[: random_numbers.randrange(40, 600)]
        found.append(DAMAGES[len(found) % len(DAMAGES)](text, random_numbers))
    return tuple(found)


DAMAGES: list[Callable[[str, random.Random], str]] = [
    lambda text, numbers: text,
    lambda text, numbers: text + "\n" + "\n".join([text[: numbers.randrange(20, 200)]] * numbers.randrange(2, 6)),
    lambda text, numbers: "\n".join("- " + word for word in text.split()[:80]),
    lambda text, numbers: text.replace(". ", "... ").replace(", ", "…\n"),
    lambda text, numbers: "\n\n".join(numbers.choices(text.split("."), k=12)),
    lambda text, numbers: " ".join(word + "#" * (numbers.random() < 0.15) for word in text.split()),
    lambda text, numbers: text.replace(". ", ".[3]\n") + "\nPlease enable Javascript.\nRead our privacy policy here.",
    lambda text, numbers: text.replace("the", numbers.choice(["the", "of the of the", "%%", "{", "Lorem ipsum"]), 3),
]


@pytest.mark.slow
def test_decisions_equal_datatroves() -> None:
    """All filters see one document after the other: datatrove splits each into words once."""
    context = StepContext(Path())
    pairs = [(name, steps()[name](steps()[name].Settings(), context), peer()) for name, peer in PEERS.items()]  # type: ignore[call-arg]
    counts: Counter[tuple[str, bool]] = Counter()
    for text in documents():
        for name, step, peer in pairs:
            assert isinstance(step, Step)
            ours, theirs = SourceDocument("0", text), Document(text=text, id="0")
            decision, removal = peer.filter(theirs), step.apply(ours)
            expected = decision if isinstance(decision, bool) else decision[0]
            assert (removal is None) == expected, (name, text, decision, removal)
            if expected:
                assert ours.text == theirs.text
            counts[name, expected] += 1
    assert min(counts[name, kept] for name in PEERS for kept in (True, False)) >= 30, counts


def test_limits_and_measures_belong_together() -> None:
    for name in PEERS:
        step = steps()[name](steps()[name].Settings(), StepContext(Path()))  # type: ignore[call-arg]
        assert isinstance(step, Step)
        measured = step.measures(SourceDocument("0", documents()[20]))
        assert set(measured) == {limit.measure for limit in step.limits()}


def test_words_are_spacys() -> None:
    import spacy

    tokenizer = spacy.blank("en").tokenizer
    words = english_words()
    for text in documents()[:60]:
        expected = [token.text.strip() for token in tokenizer(text) if token.text.strip()]
        assert [words.words[number] for number in words.ids(text)] == expected


def test_full_table_of_words_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quatrain.data.curation.words.MOST_CHUNKS", 5)
    words = EnglishWords()
    lengths = words.feature("length", len)
    for text in documents()[8:20]:
        ids = words.ids(text)
        assert lengths.of(ids).tolist() == [len(words.words[number]) for number in ids]
    assert len(words.words) < 500
