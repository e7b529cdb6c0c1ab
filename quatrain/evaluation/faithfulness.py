"""How well a check of support tells statements that a source implies from those that it does not.

    statements = altered_statements("medquad", limit=200)
    found = measure_support(statements, folder, {"nli": Entailment("runs/nli").probabilities})

Two kinds of labelled statements: pairs of a data set of entailment (Honovich et al. 2022, TRUE, arXiv 2204.04991), and
sentences of documents that a rule has changed, so that no judge is needed: a number, a negation, the topic, or a
sentence of another document.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.data.rows import read_records
from quatrain.retrieval.building import build_index, source_files
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.retrieval.evidence import Weights
from quatrain.retrieval.generated import SUPPORT
from quatrain.retrieval.index import Index
from quatrain.retrieval.settings import IndexSettings
from quatrain.retrieval.words import sentence_spans

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Sources and statements to how surely each source implies its statement, from 0 to 1."""
SHORTEST, LONGEST = 6, 40
"""Words of the sentences that are altered."""
_VERB = re.compile(r"\b(is|are|was|were|can|may|should|will|has|have)\b(?! not)")


@dataclass(frozen=True)
class Statement:
    """A statement about a source; `kind` says how it was made."""

    source: str
    text: str
    supported: bool
    kind: str


def labelled_statements(source: str, limit: int | None = None) -> list[Statement]:
    """The pairs of a data set with the columns `premise`, `hypothesis` and `label`; "entailment" is support.

    Raises InputError for a source without these columns.
    """
    rows = [row.value for row in islice(_rows(source), limit)]
    if not rows or not all({"premise", "hypothesis", "label"} <= row.keys() for row in rows):
        raise InputError(f"{source}: pairs are read from the columns premise, hypothesis and label; this has others")
    return [Statement(row["premise"], row["hypothesis"], row["label"] == "entailment", row["label"]) for row in rows]


def altered_statements(source: str, limit: int = 200, *, seed: int = 0) -> list[Statement]:
    """Sentences of `limit` documents of a file with the columns `question` and `answer` (and `focus`, the topic), as
    they are, shortened, and altered. Raises InputError where there are none.
    """
    generator = random.Random(seed)
    rows = [row.value for row in _rows(source) if isinstance(row.value.get("answer"), str)]
    generator.shuffle(rows)
    found: list[Statement] = []
    topics = [str(row.get("focus") or "") for row in rows]
    for number, row in enumerate(rows[:limit]):
        text = row["answer"]
        sentences = [text[start:end].strip() for start, end in sentence_spans(text)]
        sentences = [each for each in sentences if SHORTEST <= len(each.split()) <= LONGEST]
        if not sentences:
            continue
        other = rows[(number + 1) % len(rows)]["answer"]
        own = generator.choice(sentences)
        found += [
            Statement(text, statement, kind in ("verbatim", "shortened"), kind)
            for kind, statement in _versions(own, topics[number], topics[(number + 1) % len(rows)], generator)
        ]
        foreign = [other[start:end].strip() for start, end in sentence_spans(other)]
        found += [Statement(text, each, False, "of another document") for each in foreign[:1] if each not in text]
    if not found:
        raise InputError(f"{source}: has no answer with a sentence of {SHORTEST} to {LONGEST} words")
    return found


def _versions(sentence: str, topic: str, other: str, generator: random.Random) -> Iterator[tuple[str, str]]:
    """The versions of a sentence by their kind."""
    yield "verbatim", sentence
    parts = sentence.rstrip(".").split(", ")
    if len(parts) > 1 and len(parts[0].split()) >= SHORTEST:
        yield "shortened", parts[0] + "."
    if numbers := list(re.finditer(r"\d+", sentence)):
        chosen = generator.choice(numbers)
        changed = str(int(chosen[0]) + generator.randint(1, 9))
        yield "another number", sentence[: chosen.start()] + changed + sentence[chosen.end() :]
    if verb := _VERB.search(sentence):
        yield "negated", f"{sentence[: verb.end()]} not{sentence[verb.end() :]}"
    if topic and other and topic.casefold() in sentence.casefold():
        yield "another topic", re.sub(re.escape(topic), lambda _: other, sentence, flags=re.IGNORECASE)


def _rows(source: str) -> Iterator[Any]:
    for _, path in source_files(source)[1]:
        yield from (row for row in read_records(path) if isinstance(row.value, dict))


def measure_support(
    statements: Sequence[Statement], folder: Path, judges: Mapping[str, Judge] | None = None
) -> dict[str, dict[str, float]]:
    """The measures of each judge, and of the words of the source (`words`), which need no model.

    `accuracy` at the limit that answers use; `kept`: supported statements that count so; `caught`: others that do not;
    `separation`: how often a supported statement scores above another one (the area under the ROC curve); and for each
    kind of statement the share that is judged right. Weights of words come from an index of the sources in `folder`.
    """
    sources = list(dict.fromkeys(each.source for each in statements))
    path = folder / "sources.jsonl"
    with atomic_write(path) as file:
        for text in sources:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    build_index(path, folder / "sources", IndexSettings(chunks=ChunkSettings(kind="whole")))
    with Index.open(folder / "sources") as index:
        weights = Weights(index)

        def words(own: Sequence[str], texts: Sequence[str]) -> list[float]:
            return [weights.support(text, source) for source, text in zip(own, texts, strict=True)]

        pairs = [each.source for each in statements], [each.text for each in statements]
        return {
            name: _measures(statements, list(judge(*pairs)))
            for name, judge in {"words": words, **(judges or {})}.items()
        }


def _measures(statements: Sequence[Statement], scores: Sequence[float]) -> dict[str, float]:
    right = [(score >= SUPPORT) == each.supported for score, each in zip(scores, statements, strict=True)]
    kinds: dict[str, list[bool]] = {}
    for own, each in zip(right, statements, strict=True):
        kinds.setdefault(each.kind, []).append(own)
        kinds.setdefault("kept" if each.supported else "caught", []).append(own)
    above = [score for score, each in zip(scores, statements, strict=True) if each.supported]
    below = [score for score, each in zip(scores, statements, strict=True) if not each.supported]
    won = sum((one > other) + (one == other) / 2 for one in above for other in below)
    measures = {"accuracy": sum(right) / max(1, len(right)), "separation": won / max(1, len(above) * len(below))}
    return measures | {name: sum(own) / len(own) for name, own in sorted(kinds.items())}
