"""Which sentence follows? Passages of novels, each with its next sentence and three others of the same book.

The text is real; the wrong choices are sentences from elsewhere in the book, of about the same length, so that neither
the book's words nor the length gives the answer away. The books of two authors, none of whose are in the training, are
the test.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quatrain.data.rows import read_records

PASSAGES = 600
"""Passages of a book."""
CONTEXT = 2
"""Sentences before the choices."""
TEST_AUTHORS = 2
_END = re.compile(r"(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)(?<=[.!?])[\"'”’]?\s+(?=[A-Z\"'“‘])")


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"question": passage, "choices": four sentences, "label": index of the next one} of "train" or "test"."""
    books = [record.value for path in paths for record in read_records(path)]
    authors = sorted({str(book.get("author", book["id"])) for book in books})
    test = set(authors[-TEST_AUTHORS:])
    for book in books:
        if (str(book.get("author", book["id"])) in test) == (part == "test"):
            yield from _of_book(str(book["id"]), str(book["text"]))


def _of_book(name: str, text: str) -> Iterator[dict[str, Any]]:
    sentences = [" ".join(sentence.split()) for sentence in _END.split(text)]
    numbers = [number for number, sentence in enumerate(sentences) if 6 <= len(sentence.split()) <= 30]
    by_length: dict[int, list[int]] = {}
    for number in numbers:
        by_length.setdefault(len(sentences[number].split()) // 3, []).append(number)
    draw = random.Random(name)
    starts = [number for number in numbers if number >= CONTEXT]
    for number in sorted(draw.sample(starts, min(PASSAGES, len(starts)))):
        near = by_length[len(sentences[number].split()) // 3]
        others = [each for each in draw.sample(near, min(8, len(near))) if abs(each - number) > CONTEXT][:3]
        if len(others) < 3:
            continue
        choices = [number, *others]
        draw.shuffle(choices)
        passage = " ".join(sentences[number - CONTEXT : number])
        yield {
            "question": passage,
            "choices": [sentences[each] for each in choices],
            "label": choices.index(number),
        }
