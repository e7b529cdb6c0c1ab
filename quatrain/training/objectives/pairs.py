"""Pairs of sentences for next-sentence prediction (Devlin et al. 2018, arXiv 1810.04805, sections 3.1 and A.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.records import Problems, Row
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.texts import EncodedText, FieldReader, frame, plain

FOLLOWS, RANDOM = 0, 1
"""The labels, as in BERT."""

SHORT = 0.1
"""Fraction of pairs that get a random shorter length, so that the model sees short texts too."""

_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=\S)|\n\s*\n")


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, at a stop followed by white space and at empty lines.

    Abbreviations split sentences too.
    """
    return [part for part in (piece.strip() for piece in _END.split(text)) if part]


def sentence_pairs(
    tokenizer: Tokenizer, records: Iterable[Any], *, max_length: int, seed: int = 0
) -> tuple[list[EncodedText], list[str]]:
    """Pairs of segments and notes; half of the pairs are consecutive, half come from different documents.

    A document is a record with `text` or `sentences`. Every sentence is used once as a first or consecutive second
    segment; sentences displaced by a random second segment go into the next pair, as in BERT. Raises InputError for
    wrong records, fewer than two documents, or a `max_length` too small for text.
    """
    documents = _documents(tokenizer, records)
    around = tokenizer.backend.num_special_tokens_to_add(True)
    if max_length < around + 4:
        raise InputError(f"max_length: {max_length}; pairs with their special tokens need at least {around + 4}.")
    if len(documents) < 2:
        raise InputError(
            f"Next-sentence prediction needs at least 2 documents to draw random sentences from; there are "
            f"{len(documents)}."
        )
    generator = np.random.default_rng((seed, len(documents)))
    pairs = [
        pair
        for number in range(len(documents))
        for pair in _of_document(tokenizer, documents, number, max_length - around, generator)
    ]
    if not pairs:
        raise InputError("No pair of sentences could be built: no document has more than one sentence.")
    cut = [pair for pair in pairs if pair.cut]
    follow = sum(pair.label == FOLLOWS for pair in pairs)
    notes = [f"{len(pairs):,} pairs from {len(documents):,} documents, {follow / len(pairs):.0%} of them consecutive"]
    if cut:
        notes.append(f"{len(cut):,} pairs were longer than {max_length} tokens and were cut at random ends")
    return pairs, notes


def _documents(tokenizer: Tokenizer, records: Iterable[Any]) -> list[list[list[int]]]:
    problems, documents = Problems(), []
    for number, record in enumerate(records, 1):
        place, value = f"example {number}", record
        if isinstance(record, Row):
            place, value = record.place, record.value
        value = plain(value)
        fields = FieldReader(value, place)
        if isinstance(value, Mapping) and value.get("sentences") is not None:
            sentences = fields.texts("sentences")
        else:
            sentences = split_sentences(fields.text("text"))
        for problem in fields.problems:
            problems.add(problem)
        ids = [row for sentence in sentences if (row := tokenizer.encode(sentence))]
        if ids:
            documents.append(ids)
    if problems:
        raise problems.error("These documents cannot be used")
    return documents


def _of_document(
    tokenizer: Tokenizer,
    documents: Sequence[Sequence[list[int]]],
    number: int,
    room: int,
    generator: np.random.Generator,
) -> Iterable[EncodedText]:
    """The pairs of one document: sentences are collected up to the target length and split at a random sentence."""
    document, place = documents[number], 0
    while place < len(document):
        target = int(generator.integers(2, room + 1)) if generator.random() < SHORT else room
        chunk: list[list[int]] = []
        while place < len(document) and sum(map(len, chunk)) < target:
            chunk.append(document[place])
            place += 1
        split = 1 if len(chunk) < 2 else int(generator.integers(1, len(chunk)))
        first = [token for row in chunk[:split] for token in row]
        if len(chunk) == 1 or generator.random() < 0.5:
            second, label = _elsewhere(documents, number, target - len(first), generator), RANDOM
            place -= len(chunk) - split
        else:
            second, label = [token for row in chunk[split:] for token in row], FOLLOWS
        yield _pair(tokenizer, first, second, label, room, generator)


def _elsewhere(
    documents: Sequence[Sequence[list[int]]], number: int, length: int, generator: np.random.Generator
) -> list[int]:
    """Consecutive sentences of another document from a random start, up to `length` tokens; at least one sentence."""
    other = int(generator.integers(0, len(documents) - 1))
    document = documents[other + (other >= number)]
    ids: list[int] = []
    for row in document[int(generator.integers(0, len(document))) :]:
        ids.extend(row)
        if len(ids) >= length:
            break
    return ids


def _pair(
    tokenizer: Tokenizer, first: list[int], second: list[int], label: int, room: int, generator: np.random.Generator
) -> EncodedText:
    """Both segments with special tokens; the longer one is shortened at a random end until they fit."""
    first, second, cut = list(first), list(second), max(0, len(first) + len(second) - room)
    for _ in range(cut):
        longer = first if len(first) > len(second) else second
        longer.pop(0 if generator.random() < 0.5 else -1)
    before, between, after, types = _around(tokenizer)
    ids = [*before, *first, *between, *second, *after]
    kinds = [0] * (len(before) + len(first)) + types + [1] * (len(second) + len(after))
    return EncodedText(ids, kinds, label, cut)


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int], list[int]]:
    """The special tokens before, between and after two texts, and the token types of those between."""
    before, after = frame(tokenizer)
    if not tokenizer.backend.num_special_tokens_to_add(True):
        return [], [], [], []
    probe = tokenizer.encode_pair("a", "a")
    own = [place for place, part in enumerate(probe.parts) if part is not None]
    if not own:
        return before, after, after, [0] * len(after)
    gap = next(place for place in own if probe.parts[place] == 1)
    last = max(place for place in own if probe.parts[place] == 0) + 1
    return probe.ids[: own[0]], probe.ids[last:gap], probe.ids[own[-1] + 1 :], probe.token_types[last:gap]
