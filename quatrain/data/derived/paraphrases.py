"""English sentences that mean the same, since people translated them into the same French sentence (Tatoeba).

Sentences that several groups share join the groups; one family of groups in five, by a hash, is for the test.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from quatrain.data.decoding import lines_of, read_text


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"source": sentence, "target": a sentence of the same meaning} of the part "train" or "test"."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        for line in lines_of(read_text(path)):
            english, separator, french = line.strip().partition("\t")
            if separator and english not in groups.setdefault(french.split("\t")[0], []):
                groups[french.split("\t")[0]].append(english)
    families = _families(groups.values())
    for sentences in groups.values():
        if (zlib.crc32(families[sentences[0]].encode()) % 5 == 0) == (part == "test"):
            for one, other in pairwise(sentences):
                yield {"source": one, "target": other}


def _families(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """The first sentence of all that are joined by groups, for each sentence."""
    parent: dict[str, str] = {}

    def root(sentence: str) -> str:
        while parent.setdefault(sentence, sentence) != sentence:
            sentence = parent[sentence]
        return sentence

    for group in groups:
        for sentence in group:
            parent[root(sentence)] = root(group[0])
    return {sentence: root(sentence) for sentence in parent}
