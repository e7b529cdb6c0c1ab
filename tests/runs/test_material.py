"""How text reaches the stages: in pieces, cut at spaces, or as whole documents."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.data import token_file
from quatrain.data.documents import DocumentChunk
from quatrain.runs import material
from quatrain.runs.stages._pretrain import whole_documents
from quatrain.tokenizers.tokenizer import Tokenizer

DOCUMENTS = st.lists(st.text(alphabet="ab .\nü", min_size=1, max_size=30), min_size=1, max_size=8)


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """One with a separator, one without."""
    return Tokenizer.train(["ab ba. aab\nü " * 20], kind=request.param, vocab_size=270)


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, length=st.integers(2, 12))
def test_every_document_is_whole_between_separators(tokenizer: Tokenizer, documents: list[str], length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = token_file.build(documents, tokenizer, folder)
        examples = whole_documents(file, length)
        del file
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    rest = [each.ids for each in examples]
    for document in documents:
        wanted = [*end, *tokenizer.encode(document), *end]
        found = list(rest.pop(0))
        while len(found) < len(wanted):
            part = rest.pop(0)
            assert part[0] == found[-1], "a part begins with the token that the one before ended with"
            found += part[1:]
        assert found == wanted
    assert rest == []
    assert all(len(each.ids) <= length + 1 and list(each.mask) == [True] * len(each.ids) for each in examples)


@settings(max_examples=40, deadline=None)
@given(documents=DOCUMENTS, share=st.floats(0, 0.99))
def test_nothing_ends_where_the_held_out_text_begins(documents: list[str], share: float) -> None:
    tokenizer = Tokenizer.train(["ab ba. aab\nü " * 20], vocab_size=270)
    with tempfile.TemporaryDirectory() as folder:
        learned, _ = token_file.build(documents, tokenizer, folder).split(share)
        ids, examples = learned[:].tolist(), whole_documents(learned, 1000)
        whole = len(learned) == learned.about["tokens"]
        del learned
    together = [token for each in examples for token in each.ids[1:]]
    assert together == ids + [tokenizer.eos_id] * (whole and bool(ids) and ids[-1] != tokenizer.eos_id)


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.lists(st.text(alphabet="ab \n", max_size=9), min_size=1, max_size=5), max_size=4))
def test_texts_for_counting_lose_nothing_and_cut_no_word(documents: list[list[str]]) -> None:
    pieces = [
        DocumentChunk(text, number == len(document) - 1)
        for document in documents
        for number, text in enumerate(document)
    ]
    found = list(material.texts(pieces))
    assert "".join(found) == "".join(piece.text for piece in pieces)
    ends = {len("".join("".join(document) for document in documents[: i + 1])) for i in range(len(documents))}
    place = 0
    for text, following in zip(found, [*found[1:], ""], strict=False):
        place += len(text)
        assert place in ends or following.startswith(" ")


def test_a_text_without_a_space_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "MAX_HELD", 10)
    assert list(
        material.texts([DocumentChunk("abcdef", False), DocumentChunk("ghijkl", False), DocumentChunk("m", True)])
    ) == [
        "abcdefghijkl",
        "m",
    ]


def test_a_long_text_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("some words that go on. " * 200_000, encoding="utf-8")
    sizes = [len(text) for text in material.texts(material.read_chunks(str(path)))]
    assert sum(sizes) == path.stat().st_size and max(sizes) < path.stat().st_size / 2
