"""Answers from an index: sentences with citations that are spans, each compared with its document.

    found = answer(index, "How are embeddings pooled?")
    print(found.text)               # The vectors of the tokens are averaged. [1]
    found.citations[0].quote        # that span of that document, verbatim

Without a model the answer quotes the sentences that fit the question best. With one, the model writes and each of its
sentences is checked (`quatrain.retrieval.generated`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.core.errors import InputError
from quatrain.retrieval.evidence import Sentence, Weights, sentences_of
from quatrain.retrieval.index import Hit, Index

NOT_FOUND = "Not in the documents."
THRESHOLD = 0.5
"""The evidence that the best passage must give (`Weights.evidence`)."""
QUOTED = 3
"""The most sentences of an extractive answer."""
_HEADING = re.compile(r"\s*(#{1,6}\s|[-=*_|]{3,}|```)")


@dataclass(frozen=True)
class Citation:
    """A span of a document: `index.document(document).text[start:end] == quote`. `number` is that of the hit."""

    number: int
    source: str
    name: str
    document: int
    start: int
    end: int
    quote: str

    def holds(self, index: Index) -> bool:
        """Whether the document has the quote where the citation says."""
        return index.document(self.document).text[self.start : self.end] == self.quote


@dataclass(frozen=True)
class AnswerSentence:
    """A sentence of an answer. `support` from 0 to 1; a sentence below the limit is not `supported`."""

    text: str
    citations: tuple[Citation, ...] = ()
    supported: bool = True
    support: float = 1.0


@dataclass(frozen=True)
class Answer:
    """An answer with all that led to it. `found` is False where the documents do not answer the question."""

    question: str
    searched: str
    """What was searched for: the question, or how a follow-up was rewritten."""
    found: bool
    sentences: tuple[AnswerSentence, ...] = ()
    hits: tuple[Hit, ...] = ()
    evidence: float = 0.0
    """How far the best passage speaks of what the question asks, from 0 to 1."""
    prompt: Any = None
    """What the model read: a text, or messages; None without a model."""
    completion: str | None = None
    """What the model wrote."""
    notes: tuple[str, ...] = ()
    pictures: tuple[Hit, ...] = ()
    """The pictures that fit the question, of an index with vectors of pictures."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The answer with its citations; sentences without support are marked."""
        if not self.found:
            return NOT_FOUND
        return " ".join(marked(sentence) for sentence in self.sentences)

    @property
    def citations(self) -> list[Citation]:
        """All citations, each span once."""
        return list(dict.fromkeys(each for sentence in self.sentences for each in sentence.citations))

    def record(self) -> dict[str, Any]:
        """The answer for programs."""
        return {
            **{"question": self.question, "searched": self.searched, "found": self.found, "text": self.text},
            "sentences": [
                {
                    "text": each.text,
                    "supported": each.supported,
                    "support": round(each.support, 4),
                    "citations": [vars(citation) for citation in each.citations],
                }
                for each in self.sentences
            ],
            "hits": [hit.record() for hit in self.hits],
            "pictures": [hit.record() for hit in self.pictures],
            "evidence": round(self.evidence, 4),
            **{"prompt": self.prompt, "completion": self.completion, "notes": list(self.notes)},
        }


def marked(sentence: AnswerSentence) -> str:
    """A sentence with the numbers of its citations, or the mark of a sentence without support."""
    numbers = "".join(f"[{number}]" for number in dict.fromkeys(each.number for each in sentence.citations))
    text = f"{sentence.text} {numbers}".rstrip()
    return text if sentence.supported else f"{text} [unsupported]"


def citation(hit: Hit, start: int, end: int, index: Index) -> Citation:
    """The citation of a span of a hit, read from the document. Raises InputError for a span outside of the hit."""
    if not hit.start <= start < end <= hit.end:
        raise InputError(f"citation {start}-{end}: outside of the passage {hit.start}-{hit.end} of {hit.name}")
    quote = index.document(hit.document).text[start:end]
    return Citation(hit.rank, hit.source, hit.name, hit.document, start, end, quote)


def evidence_of(weights: Weights, question: str, hits: Sequence[Hit]) -> float:
    """The most that one passage with its titles speaks of what a question asks, from 0 to 1."""
    return max((weights.evidence(question, passage_text(hit)) for hit in hits), default=0.0)


def turn_evidence(weights: Weights, searched: str, original: str, hits: Sequence[Hit]) -> float:
    """The evidence for a question that may have been rewritten.

    What was added to a follow-up cannot stand in for its own words: where the passages have next to none of these, the
    evidence is that of the question as it was asked.
    """
    if searched == original or not weights.asked(original):
        return evidence_of(weights, searched, hits)
    own = evidence_of(weights, original, hits)
    return own if own < THRESHOLD / 2 else max(own, evidence_of(weights, searched, hits))


def passage_text(hit: Hit) -> str:
    """A passage below its titles."""
    return "\n".join(dict.fromkeys((hit.title, *hit.path, hit.text)))


def extract(
    index: Index, question: str, hits: Sequence[Hit], *, threshold: float = THRESHOLD, original: str | None = None
) -> Answer:
    """The sentences of the hits that fit a question best, quoted verbatim.

    `original` is the question before it was rewritten.
    """
    weights = Weights(index)
    evidence = turn_evidence(weights, question, original or question, hits)
    if evidence < threshold:
        return Answer(question, question, False, hits=tuple(hits), evidence=evidence)
    chosen = chosen_sentences(weights, question, hits)
    sentences = tuple(
        AnswerSentence(each.text, (citation(hits[each.hit], each.start, each.end, index),)) for each in chosen
    )
    return Answer(question, question, bool(sentences), sentences, tuple(hits), evidence)


def chosen_sentences(weights: Weights, question: str, hits: Sequence[Hit]) -> list[Sentence]:
    """The best sentences, at most `QUOTED`, from the best passage first, in the order of their documents.

    A sentence counts what it covers of the question itself, and half of what the titles and the sentence before it do:
    answers follow headings and questions, and seldom repeat their words. Headings and questions are never quoted.
    """
    wanted = weights.asked(question)
    scored: list[tuple[float, int, Sentence]] = []
    before: Sentence | None = None
    for place, sentence in enumerate(sentences_of(hits)):
        hit = hits[sentence.hit]
        titles = (hit.title, *hit.path)
        is_heading = _HEADING.match(sentence.text) or sentence.text in titles
        if not is_heading and not sentence.text.rstrip().endswith("?"):
            above = "\n".join(titles)
            if before is not None and before.hit == sentence.hit:
                above = f"{above}\n{before.text}"
            own = weights.coverage(wanted, sentence.text)
            whole = weights.coverage(wanted, f"{above}\n{sentence.text}")
            scored.append((own + (whole - own) / 2 + 0.5 / hit.rank, place, sentence))
        before = sentence
    scored.sort(key=lambda each: (-each[0], each[1]))
    best = [each for each in scored[:QUOTED] if each[0] >= 0.7 * scored[0][0]]
    return [sentence for _, _, sentence in sorted(best, key=lambda each: each[1])]
