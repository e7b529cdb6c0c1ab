"""Documents out of every kind of file, and one clear message for every kind of bad one."""

from __future__ import annotations

import builtins
import codecs
import csv
import gzip
import io
import json
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data import decoding, sources
from quatrain.data.decoding import read_text
from quatrain.data.documents import DocumentChunk, detect, read_chunks, read_documents

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
TEXTS = ["Naïve ☃ 👩‍👩‍👧", "two\nlines, and a comma", ' "quoted" ', "end"]


def write(path: Path, texts: list[str]) -> None:
    """`texts` as a file of the format that the ending of `path` says."""
    plain = Path(path.stem) if path.suffix == ".gz" else path
    if plain.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
        parquet.write_table(table, path, row_group_size=2)
        return
    out = io.StringIO()
    if plain.suffix in (".jsonl", ".ndjson"):
        out.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    elif plain.suffix == ".json":
        json.dump([{"id": i, "text": text} for i, text in enumerate(texts)], out, indent=1)
    elif plain.suffix == ".csv":
        csv.writer(out).writerows([["id", "text"], *enumerate(texts)])
    elif plain.suffix == ".tsv":
        out.writelines(["id\ttext\n", *(f"{i}\t{text}\n" for i, text in enumerate(texts))])
    else:
        out.write("".join(texts))
    data = out.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_each_record_is_a_document(tmp_path: Path, suffix: str, packed: str) -> None:
    if suffix == ".parquet" and packed:
        pytest.skip("Parquet is compressed inside")
    texts = [text.replace("\n", " ") for text in TEXTS] if suffix == ".tsv" else TEXTS
    path = tmp_path / f"a{suffix}{packed}"
    write(path, texts)
    assert list(read_documents(path)) == texts
    assert list(read_chunks(str(path))) == [DocumentChunk(text, True) for text in texts]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.TXT", "a", "a.tex"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, TEXTS)
    assert list(read_documents(tmp_path / name)) == ["".join(TEXTS)]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), block=st.integers(1, 9), encoding=st.sampled_from(range(6)))
def test_any_text_in_any_blocks(tmp_path_factory: pytest.TempPathFactory, text: str, block: int, encoding: int) -> None:
    plain = "words enough that control characters do not make it a binary file; " * 10
    text = "é☃" + text.replace("\x00", "") + plain
    mark, name = [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ][encoding]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(mark + text.encode(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK", max(block, len(mark)))
        # Python's own reading with its universal line ends
        assert "".join(read_text(path)) == io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8").read()


def test_long_files_take_constant_memory(tmp_path: Path) -> None:
    line = b"A line of a long book, with a number 12345.\n"
    for name, opened in (("a.txt", open), ("b.txt.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as handle:
            for _ in range(400):
                handle.write(line * 1000)
        tracemalloc.start()
        characters = sum(len(piece.text) for piece in read_chunks(tmp_path / name))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert characters == 400_000 * len(line)  # 17.6 MB
        assert peak < 8_000_000
    pieces = list(read_chunks(tmp_path / "a.txt"))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True] and len(pieces) > 10


def test_a_folder_in_order_and_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / "b" / "2.txt", ["second"])
    write(tmp_path / "b" / "10.jsonl", ["first a", "first b"])
    write(tmp_path / "z.md.gz", ["third"])
    write(tmp_path / ".git" / "hidden.txt", ["hidden"])
    write(tmp_path / ".hidden.txt", ["hidden"])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty.txt").write_bytes(b"")
    skipped: list[tuple[str, str]] = []
    found = list(read_documents(tmp_path, skipped=lambda path, reason: skipped.append((path.name, reason))))
    assert found == ["third", "first a", "first b", "second"]
    assert skipped == [("empty.txt", "it is empty"), ("picture.png", "its ending .png is not a text format")]


def test_blank_documents_are_none(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["", "a", " \n", "b"])
    (tmp_path / "b.jsonl").write_text('\n{"text": null}\n\n"plain"\n')
    (tmp_path / "c.txt").write_text(" \n ")
    assert list(read_documents(tmp_path)) == ["a", "b", "plain"]


@needs_data
def test_real_files() -> None:
    assert [len(book) > 100_000 for book in read_documents("british-novels")] == [True] * 24
    (sherlock,) = read_documents("gutenberg:1661")
    assert sherlock.startswith("THE ADVENTURES OF SHERLOCK HOLMES") and "Gutenberg" not in sherlock
    (shakespeare,) = read_documents("tinyshakespeare")
    assert shakespeare.encode() == (DATA / "text/tinyshakespeare.txt").read_bytes()
    assert len(list(read_documents(DATA / "sentiment/movie_reviews.jsonl.gz"))) == 1600
    assert len(list(read_documents(DATA / "retrieval/medquad_sample.jsonl.gz", column="answer"))) == 2502


# Bad input


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", ["a.txt is empty"]),
        ("a.txt.gz", gzip.compress(b""), ["is empty"]),
        ("a.txt", b" \n\t\n", ["only white space"]),
        ("a.jsonl", b"\n\n", ["there is no text in"]),
        ("a.txt", b"%PDF-1.7 ...", ["PDF document"]),
        ("a.txt", gzip.compress(b"hello"), ["gzip file", ".gz"]),
        ("a.txt", b"SQLite format 3\x00" + bytes(80), ["SQLite database", "data.database"]),
        ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(60), ["PNG"]),
        ("a.bin", bytes(range(256)) * 40, ["binary"]),
        ("a.txt", b"plain then" + b"x" * 100_000 + b"\x00\x01", ["binary, not text", "zero bytes"]),
        ("a.txt", bytes(range(1, 32)) * 20, ["binary"]),
        ("a.txt", "naïve and long enough\n".encode("utf-16-le"), ["UTF-16LE without a byte order mark", "iconv"]),
        ("a.txt", "naïve and long enough\n".encode("utf-16-be"), ["UTF-16BE without a byte order mark"]),
        ("a.txt", "one\ntwo\nna\u00efve".encode("latin-1"), ["a.txt:3", "0xef", "offset 10", "…one two naïve…"]),
        ("a.txt", "x “quoted” € y".encode("cp1252"), ["a.txt:1", "offset 2", "cp1252", "iconv -f WINDOWS-1252"]),
        ("a.txt", "ends in a snowman ☃".encode()[:-1], ["middle of a character"]),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\x00b", ["UTF-16-LE"]),
        ("a.txt.gz", b"no gzip at all", ["not a valid gzip file"]),
        ("a.txt.gz", gzip.compress(b"hello" * 10_000)[:-20], ["not a valid gzip file"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', ["a.jsonl:2: not valid JSON"]),
        ("a.jsonl", b'{"txt": "a"}\n', ["a.jsonl:1: no field 'text'", "'txt'"]),
        ("a.jsonl", b'{"messages": []}\n', ["looks like chats"]),
        ("a.jsonl", b'{"text": 3}\n', ["field 'text' is a whole number, must be text"]),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', ["half of a character"]),
        ("a.jsonl", b"[" * 100_000 + b"\n", ["a.jsonl:1", "nested too deeply"]),
        ("a.json", b'[\n{"text": "a"},\n{"text": "b"\n', ["a.json:3: not valid JSON"]),
        ("a.json", b'[\n{"text": "a"}\n{"text": "b"}]', ["a.json:3", "comma is missing"]),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', [".jsonl"]),
        ("a.csv", b"id,text\n1,a\n2,b,c\n", ["a.csv:3: 3 fields, the header has 2"]),
        ("a.csv", b'id,text\n1,"a\n', ["a.csv:2: not valid CSV"]),
        ("a.csv", b"id,body\n1,a\n", ["a.csv:2: no field 'text'", "'body'"]),
        ("a.parquet", b"PAR1 not really", ["not a valid Parquet file"]),
    ],
)  # fmt: skip
def test_one_clear_message(tmp_path: Path, name: str, data: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(read_documents(path))
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message


def test_the_place_of_a_wrong_byte_is_exact_far_into_a_file(tmp_path: Path) -> None:
    before = ("é" * 40 + "\r\n") * 30_000  # 2.5 MB: the byte is in the third block
    data = before.encode() + b"ab\xe9c\n" + b"more\n" * 10
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(read_documents(path))
    assert f"{path}:30001: byte 0xe9 at offset {data.index(b'ab') + 2:,}" in str(caught.value)


@pytest.mark.parametrize("block", range(1, 9))
def test_the_place_of_a_wrong_byte_is_exact_at_the_edge_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    data = "☃é\n👩x\n".encode() + b"\xe2\x98z"  # two bytes of a snowman, then no third
    (tmp_path / "a.txt").write_bytes(data)
    monkeypatch.setattr(decoding, "BLOCK", block)
    with pytest.raises(InputError) as caught:
        list(read_text(tmp_path / "a.txt"))
    assert f"a.txt:3: byte 0xe2 at offset {len(data) - 3}" in str(caught.value)


def test_all_files_of_a_folder_at_once(tmp_path: Path) -> None:
    for number, data in enumerate([b"good", b"bad \xe9", b"%PDF-1", b"good", b"x" * 200_000 + b"\xff"]):
        (tmp_path / f"{number}.txt").write_bytes(data)
    (tmp_path / "2.txt").write_bytes(b"fine")
    (tmp_path / "5.jsonl").write_bytes(b'{"text": 1}\n{"text": 2}\n')
    with pytest.raises(InputError) as caught:
        list(read_documents(tmp_path))
    message = str(caught.value)
    assert "3 files cannot be read" in message
    for place in ("1.txt:1", "4.txt:1", "5.jsonl:1", "5.jsonl:2"):
        assert place in message
    (tmp_path / "2.txt").write_bytes(b"%PDF-1")
    (tmp_path / "3.txt").write_bytes(bytes(100))
    with pytest.raises(InputError, match="2 files of") as caught:
        read_documents(tmp_path).__next__()
    assert "2.txt" in str(caught.value) and "3.txt" in str(caught.value)


def test_the_first_twenty_and_the_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + '{"txt": 1}\n' * 120)
    with pytest.raises(InputError, match="120 problems") as caught:
        list(read_documents(tmp_path / "a.jsonl"))
    assert len(caught.value.problems) == 21 and caught.value.problems[-1] == "… and 100 more"
    assert "a.jsonl:2:" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no-such-thing", "is not a file, a folder or a name of the catalog"),
        ("tinyshakespere", "Did you mean tinyshakespeare"),
        ("{tmp}/bok.txt", "Did you mean {tmp}/book.txt"),
        ("{tmp}/no/such/book.txt", "there is no folder {tmp}/no/such"),
        ("{tmp}/folder", "has no text"),
    ],
)
def test_nothing_there(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "book.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError) as caught:
        read_documents(source.replace("{tmp}", str(tmp_path))).__next__()
    assert words.replace("{tmp}", str(tmp_path)) in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        list(read_documents(tmp_path / "a.txt"))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", ["a"])
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'quatrain\[data\]'"):
        list(read_documents(tmp_path / "a.parquet"))


def test_a_gzip_bomb_of_one_document_streams(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=31)
    line = b"a line of text\n" * 70_000
    data = b"".join(packer.compress(line) for _ in range(50)) + packer.flush()
    (tmp_path / "a.txt.gz").write_bytes(data)
    assert len(data) < 200_000
    tracemalloc.start()
    total = sum(len(piece.text) for piece in read_chunks(tmp_path / "a.txt.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 50 * len(line) and peak < 8_000_000


def test_detect_and_links_do_not_loop(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", ["a"])
    if os.name == "posix":
        (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [each.name for each in sources.find_files(tmp_path)] == ["a.txt"]
    assert detect(tmp_path) == "text"
