"""Chunks are exact spans, whatever the text; sizes and overlaps hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.retrieval.chunkers import ChunkSettings, chunkers, chunks_of, measure_of
from quatrain.retrieval.documents import Heading, IndexDocument
from quatrain.retrieval.readers.markdown import headings_of
from quatrain.retrieval.words import sentence_spans, token_spans
from quatrain.tokenizers.tokenizer import Tokenizer

TEXTS = st.text(st.sampled_from("ab .!?\n\t,éß漢字あ👩‍🚀e\u0301"), max_size=120)


def cut(text: str, kind: str, size: int, overlap: int) -> list[tuple[int, str]]:
    """The beginnings and texts of the chunks."""
    found = chunks_of(IndexDocument(text), ChunkSettings(kind=kind, size=size, overlap=overlap))
    return [(each.start, text[each.start : each.end]) for each in found]


def test_repeated_words_have_their_own_offsets():
    """A search for the text of a chunk would give 0, 0 and 0."""
    assert cut("chunk chunk", "characters", 5, 5) == [(0, "chunk"), (6, "chun"), (6, "chunk")]


@pytest.mark.parametrize("kind", ["tokens", "sentences", "headings", "characters", "whole"])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, size=st.integers(1, 9), overlap=st.integers(0, 8))
def test_chunks_are_ordered_spans_that_leave_no_word_out(kind, text, size, overlap):
    document = IndexDocument(text, headings=headings_of(text))
    own = ChunkSettings(kind=kind, size=size, overlap=min(overlap, size - 1))
    chunks = chunks_of(document, own)
    starts = [each.start for each in chunks]
    assert starts == sorted(starts) and all(0 <= each.start < each.end <= len(text) for each in chunks)
    covered = {place for each in chunks for place in range(each.start, each.end)}
    assert {place for place, letter in enumerate(text) if not letter.isspace()} <= covered
    for each in chunks:
        part = text[each.start : each.end]
        assert part == part.strip()
        counted = {"characters": len(part), "whole": 0}.get(kind, len(token_spans(part)))
        assert counted <= size


def test_windows_share_their_overlap_and_the_last_ends_with_the_text():
    assert cut("a b c d e f g", "tokens", 4, 2) == [(0, "a b c d"), (4, "c d e f"), (8, "e f g")]
    assert cut("a b c", "tokens", 5, 2) == [(0, "a b c")]


def test_sentences_stay_whole():
    text = "Dr. Smith pays 3.5 dollars. Who? He, e.g. today! One more here."
    spans = [text[start:end] for start, end in sentence_spans(text)]
    assert spans == ["Dr. Smith pays 3.5 dollars.", "Who?", "He, e.g. today!", "One more here."]
    assert cut(text, "sentences", 12, 2) == [(0, "Dr. Smith pays 3.5 dollars. Who?"), (28, "Who? He, e.g. today!"),
                                             (49, "One more here.")]  # fmt: skip


def test_sections_end_at_headings_and_know_their_path():
    text = "# Guide\n\n## Install\nRun it.\n\n```\n# no heading\n```\n\n## Use\nAsk.\n"
    document = IndexDocument(text, headings=headings_of(text))
    chunks = chunks_of(document, ChunkSettings(kind="headings"))
    assert [text[each.start : each.end].split("\n")[0] for each in chunks] == ["# Guide", "## Use"]
    assert chunks[1].path == ("Guide", "Use")
    assert "# no heading" in text[chunks[0].start : chunks[0].end]


def test_underlined_headings_and_levels():
    text = "Title\n=====\n\nText.\n\nPart\n----\nMore.\n"
    assert headings_of(text) == (Heading(0, 1, "Title"), Heading(20, 2, "Part"))


def test_a_tokenizer_counts_the_tokens(tmp_path):
    text = "naïve café 漢字 👩‍🚀 " * 20
    Tokenizer.train([text], vocab_size=300, kind="bpe").save(tmp_path)
    own = ChunkSettings(kind="tokens", size=7, overlap=2, tokenizer=str(tmp_path))
    measure = measure_of(own)
    chunks = chunks_of(IndexDocument(text), own, measure)
    assert len(chunks) > 5 and chunks[-1].end == len(text.rstrip())
    spans = measure(text)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_settings_are_checked_together():
    with pytest.raises(InputError) as error:
        parse(ChunkSettings, {"kind": "sentence", "size": 5, "overlap": 5})
    assert "did you mean sentences" in str(error.value) and "less than size" in str(error.value)
    assert set(chunkers()) == {"characters", "headings", "sentences", "tokens", "whole"}
