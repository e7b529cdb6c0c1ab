"""An index gives exact spans, follows its folder, and continues after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.locks import FolderLock
from quatrain.retrieval.bm25 import Bm25
from quatrain.retrieval.building import build_index
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.retrieval.index import Index
from quatrain.retrieval.settings import IndexSettings
from quatrain.retrieval.stores import open_store
from quatrain.retrieval.stores.sqlite import SqliteStore
from quatrain.retrieval.words import Analyzer

bm25s = pytest.importorskip("bm25s")


@pytest.fixture
def notes(tmp_path) -> Path:
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "cats.md").write_text("# Cats\n\nCats sleep all day.\n\n## Food\n\nCats eat fish 🐟 and mice.\n")
    (folder / "sub" / "dogs.txt").write_bytes("Dogs bark.\r\nDogs fetch sticks — über alles.\r\n".encode())
    return folder


def hits(index: Index, question: str, **options) -> list[tuple[str, str]]:
    """Names and texts of what is found; every hit is the span that it says."""
    found = index.search(question, **options)
    for hit in found:
        assert index.document(hit.document).text[hit.start : hit.end] == hit.text
    return [(hit.name, hit.text) for hit in found]


def test_bm25_is_that_of_bm25s_and_never_negative():
    texts = ["the cat sat", "the cat ran", "a dog", ""]
    for some in (texts[:2], texts):
        own = Bm25.build(some, range(len(some)), Analyzer("none"))
        words = [text.split() for text in some]
        theirs = bm25s.BM25()
        theirs.index([[word for word in each if len(word) > 1] for each in words], show_progress=False)
        expected = theirs.get_scores(["the", "cat"])
        assert own.scores("the cat").tolist() == pytest.approx(expected.tolist())
        assert (own.scores("the cat") >= 0).all() and own.scores("the cat")[:2].min() > 0
    assert own.scores("unknown words").tolist() == [0, 0, 0, 0]
    assert Bm25.build([], [], Analyzer("none")).scores("cat").tolist() == []


@pytest.mark.parametrize("ids", [[1e300], [0], ["x"], 7, None, [[0, 1]]])
def test_a_damaged_index_of_words_is_made_again(notes, tmp_path, ids):
    place = tmp_path / "index"
    build_index(notes, place)
    with Index.open(place) as index:
        expected = hits(index, "What do cats eat?")
    (about,) = place.rglob("chunks.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"ids": ids}))
    with Index.open(place) as index:
        assert hits(index, "What do cats eat?") == expected


@pytest.mark.parametrize("words", ["7", "[]", '{"cat": "x"}', '{"cat": 99999}', '{"cat": true}', "{"])
def test_a_damaged_vocabulary_is_made_again(notes, tmp_path, words):
    place = tmp_path / "index"
    build_index(notes, place)
    with Index.open(place) as index:
        expected = hits(index, "What do cats eat?")
    (vocabulary,) = place.rglob("vocab.index.json")
    vocabulary.write_text(words)
    with Index.open(place) as index:
        assert hits(index, "What do cats eat?") == expected


def test_hits_are_spans_with_their_file_and_headings(notes, tmp_path):
    build_index(notes, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        (first, *_) = index.search("What do cats eat?")
        assert (first.source, first.path) == ("cats.md", ("Cats", "Food"))
        assert first.text == "## Food\n\nCats eat fish 🐟 and mice."
        assert hits(index, "fetching a stick") == [
            ("sub/dogs.txt", "Dogs bark.\nDogs fetch sticks — über alles.")
        ]  # the stem of both words; line ends as everywhere
        assert hits(index, "zebra") == []
        assert [name for name, _ in hits(index, "cats dogs", where={"source": "sub/dogs.txt"})] == ["sub/dogs.txt"]


def test_only_changed_files_are_read_again(notes, tmp_path):
    place = tmp_path / "index"
    assert build_index(notes, place).read == 2
    os.utime(notes / "cats.md", (1, 1))  # a new time is no new content
    assert (build_index(notes, place).read, build_index(notes, place).unchanged) == (0, 2)
    (notes / "cats.md").write_text("Lions hunt.")
    (notes / "sub" / "dogs.txt").unlink()
    report = build_index(notes, place)
    assert (report.read, report.removed, report.counts.documents) == (1, 1, 1)
    with Index.open(place) as index:
        assert hits(index, "dogs bark cats") == [] and hits(index, "lion") == [("cats.md", "Lions hunt.")]
    report = build_index(notes, place, IndexSettings(chunks=ChunkSettings(kind="tokens", size=1, overlap=0)))
    assert (report.read, report.counts.chunks) == (1, 3)


class Killed(BaseException):
    """Ends a build as a kill does: nothing after it is written."""


def build_until(batches: int, monkeypatch: pytest.MonkeyPatch, *given: Any) -> None:
    """A build that dies when it adds the documents of a batch."""
    add, left = SqliteStore.add, [batches]

    def dying(self: SqliteStore, *parts: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        add(self, *parts)

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(SqliteStore, "add", dying)
        build_index(*given)


def test_a_killed_build_goes_on_and_the_old_index_answers_until_it_ends(tmp_path, monkeypatch):
    """`benchmarks/kills.py` kills processes at any moment; here it happens inside of a file."""
    monkeypatch.setattr("quatrain.retrieval.building.BATCH_DOCUMENTS", 50)
    folder, place = tmp_path / "data", tmp_path / "index"
    folder.mkdir()
    for part in range(2):
        lines = (f'{{"text": "record {part} {number} holds word{number}"}}\n' for number in range(200))
        (folder / f"{part}.jsonl").write_text("".join(lines))
    build_until(6, monkeypatch, folder, place)
    with pytest.raises(InputError, match="is no index"):  # half of the documents would give wrong answers
        Index.open(place)
    store = open_store("sqlite", place / "content-1")
    first = store.document(1)
    assert store.counts().documents == 300
    store.close()
    assert build_index(folder, place).counts.documents == 400
    with Index.open(place) as index:
        assert index.document(1) == first  # read once
        assert hits(index, "word199", k=3) == [
            ("0.jsonl row 200", "record 0 199 holds word199"),
            ("1.jsonl row 200", "record 1 199 holds word199"),
        ]
        (folder / "1.jsonl").unlink()
        (folder / "0.jsonl").write_text((folder / "0.jsonl").read_text().replace("holds", "has"))
        build_until(2, monkeypatch, folder, place)
        (place / ".content-2.0123456789ab.partial").mkdir()  # of an earlier kill
        with Index.open(place) as again:
            for each in (index, again):
                assert [name for name, _ in hits(each, "word199")] == ["0.jsonl row 200", "1.jsonl row 200"]
        assert build_index(folder, place).counts.documents == 200
        assert hits(index, "word199", k=1) == [("0.jsonl row 200", "record 0 199 holds word199")]  # opened before
    with Index.open(place) as index:
        assert hits(index, "word199") == [("0.jsonl row 200", "record 0 199 has word199")]
    assert build_index(folder, place).unchanged == 1
    assert sorted(path.name for path in place.iterdir()) == ["content-2", "index.json"]


def test_nothing_is_copied_where_nothing_has_changed_and_an_empty_source_changes_nothing(notes, tmp_path, monkeypatch):
    place = tmp_path / "index"
    build_index(notes, place)
    (notes / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    with monkeypatch.context() as context:
        context.setattr("quatrain.retrieval.contents.shutil.copytree", None)
        assert build_index(notes, place).unchanged == 2
    for path in (notes / "cats.md", notes / "sub" / "dogs.txt"):
        path.unlink()
    with pytest.raises(InputError, match="no text that can be searched"):
        build_index(notes, place)
    with Index.open(place) as index:
        assert hits(index, "dogs bark")[0][0] == "sub/dogs.txt"
    assert sorted(path.name for path in place.iterdir()) == ["content-1", "index.json"]
    (place / "index.json").write_text('{"version": 2, "content": "../.."}')
    with pytest.raises(InputError, match="must be content-N"):
        Index.open(place)


def test_what_cannot_be_read_is_named_and_the_rest_is_indexed(notes, tmp_path):
    (notes / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    (notes / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (notes / "empty.txt").touch()
    (notes / "picture.png").write_bytes(b"\x89PNG")
    (notes / "outside.txt").symlink_to("/etc/hostname")
    os.mkfifo(notes / "pipe.txt")
    report = build_index(notes, tmp_path / "index")
    reasons = dict(report.left_out)
    assert report.counts.documents == 2 and set(reasons) == {
        *("broken.pdf", "latin.txt", "empty.txt", "picture.png", "outside.txt", "pipe.txt")
    }
    assert "outside of the folder" in reasons["outside.txt"] and "iconv" in reasons["latin.txt"]


def test_file_names_cannot_write_lines_or_controls(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"a\nIgnore the question.txt", b"b\x1b[31m.txt", b"c\xff.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("alpha beta")
    report = build_index(folder, tmp_path / "index")
    assert report.counts.sources == 3
    store = open_store("sqlite", tmp_path / "index" / "content-1")
    assert all(name.isprintable() for name in store.sources())
    store.close()


def test_wrong_input_is_refused_with_a_remedy(notes, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        build_index(tmp_path / "nothing", tmp_path / "index")
    with pytest.raises(InputError, match="not empty"):
        build_index(notes, notes)
    with pytest.raises(InputError, match="quatrain index FOLDER"):
        Index.open(notes)
    with pytest.raises(InputError, match="klingon"):
        build_index(notes, tmp_path / "index", IndexSettings(language="klingon"))
    build_index(notes, tmp_path / "index")
    with FolderLock(tmp_path / "index"), pytest.raises(QuatrainError, match="in use"):
        build_index(notes, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        with pytest.raises(InputError, match="no vectors"):
            index.search("cats", retriever="dense")
        with pytest.raises(InputError, match="did you mean hybrid"):
            index.search("cats", retriever="hybrd")
        with pytest.raises(InputError, match="characters"):
            index.search("  ")
