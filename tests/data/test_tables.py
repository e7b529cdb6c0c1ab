"""Tables of strangers: any delimiter, quotes, encoding and header is read as it was meant, or refused by name."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data import decoding
from quatrain.data.checking import check
from quatrain.data.corpus import Corpus
from quatrain.data.decoding import read_text
from quatrain.data.rows import read_records
from quatrain.data.sources import skipped_files

words = st.sampled_from("a film, that; moves | slow 5 Straße 映画 don't «quoted» it's".split(" "))
texts = st.lists(words, min_size=1, max_size=8).map(" ".join) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1, max_size=12
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    """A header that people write, and rows of labels and texts."""
    names = draw(st.sampled_from([["text", "label"], ["Label", "Text"], ["id", "Review", "Sentiment"]]))
    labels = st.sampled_from(["pos", "neg", "so-so"])
    columns = {"label": labels, "sentiment": labels, "id": st.integers(0, 999).map(str)}
    row = st.tuples(*(columns.get(name.casefold(), texts) for name in names)).map(list)
    return names, draw(st.lists(row, min_size=2, max_size=12))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=tables(),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    ends=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    pack=st.sampled_from(["", ".gz", ".bz2", ".xz"]),
)
def test_any_table_is_read_back(
    tmp_path: Path,
    table: tuple[list[str], list[list[str]]],
    delimiter: str,
    quoting: int,
    ends: str,
    encoding: str,
    pack: str,
) -> None:
    names, rows = table
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=ends).writerows([names, *rows])
    compress: Callable[[bytes], bytes] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[
        pack
    ]
    path = tmp_path / f"table.csv{pack}"
    path.write_bytes(compress(out.getvalue().encode(encoding)))
    assert [record.value for record in read_records(path)] == [dict(zip(names, row, strict=True)) for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.text(max_size=8), min_size=1, max_size=12), data=st.data())
def test_each_damaged_line_is_named(tmp_path: Path, rows: list[str], data: st.DataObject) -> None:
    damages: list[Callable[[str], str]] = [
        lambda line: line[:-1],
        lambda line: "[" * 5000,
        lambda line: '{"text": ' + "9" * 5000 + "}",
        lambda line: line + "}",
        lambda line: "null",
        lambda line: '{"label": "x"}',
        lambda line: '{"text": "\\ud800", "label": "x"}',
    ]
    damaged = data.draw(st.sets(st.integers(1, len(rows))))
    lines = [json.dumps({"text": f"{number} {row}", "label": "x"}) for number, row in enumerate(rows, 1)]
    for number in damaged:
        lines[number - 1] = data.draw(st.sampled_from(damages))(lines[number - 1])
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    report = check(path, format="labelled", columns={"text": "text", "label": "label"})
    assert {finding.place for finding in report.faults} == {f"{path}:{number}" for number in damaged}
    assert report.records == len(rows) - len(damaged)


@pytest.mark.parametrize(
    "header", ["Label,Text", " label , text ", "LABEL,Review Text", "\ufeffLabel,text", "Category,body"]
)
def test_headers_in_other_words(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\npos,A good film. Really!\nneg,bad\npos,fine\nneg,dull\n", encoding="utf-8")
    corpus = Corpus(path)
    assert corpus.format == "labelled" and corpus.labels() == ["neg", "pos"]
    assert [record.text for record in corpus] == ["A good film. Really!", "bad", "fine", "dull"]


@pytest.mark.parametrize("header", ["y,x", "title,body", "Klasse,Rezension", "name,message"])
def test_unknown_headers_are_refused_by_name(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\npos,good\nneg,bad\npos,fine film indeed\nneg,dull\n", encoding="utf-8")
    with pytest.raises(InputError, match="Name them") as caught:
        Corpus(path)
    assert all(repr(name) in str(caught.value) for name in header.split(","))
    label, text = header.split(",")
    assert Corpus(path, columns={"text": text, "label": label}).labels() == ["neg", "pos"]


def test_other_formats_in_other_words(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for row, format in [
        ({"Prompt": "hi", "Completion": "hello"}, "chat"),
        ({"Question": "hi", "Answer": "hello"}, "chat"),
        ({"Instruction": "say", "Input": "", "Output": "hello"}, "chat"),
        ({"Prompt": "a", "Chosen": "b", "Rejected": "c"}, "preference"),
        ({"Premise": "a", "Hypothesis": "b", "Label": "entailment"}, "labelled"),
        ({"Sentence 1": "a", "Sentence 2": "b", "Score": 1.5}, "labelled"),
        ({"Tokens": ["a"], "NER Tags": ["O"]}, "tagged"),
        ({"Article": "a", "Highlights": "b"}, "pair"),
        ({"Context": "a b", "Question": "c", "Answers": {"text": ["b"], "answer_start": [2]}}, "qa"),
        ({"Question": "a", "Choices": ["b", "c"], "AnswerKey": "A"}, "choice"),
        ({"TEXT": "a"}, "text"),
    ]:
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        corpus = Corpus(path)
        assert corpus.format == format and len(list(corpus)) == 1


def test_tables_without_a_header_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("great film,positive\nbad film,negative\nfine one,positive\nawful,negative\n", encoding="utf-8")
    assert len(list(Corpus(path))) == 4
    path.write_text("house,Haus\ndog,Hund\ncat,Katze\n", encoding="utf-8")
    assert len(list(Corpus(path))) == 3


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("only a header", "text,label\n", "it has no rows"),
        ("only a header in other words", "Label,Text\n", "it has no rows"),
        ("a column twice", "text,text,label\na,b,x\nc,d,y\n", "'text' more than once"),
        ("an unknown column twice", "name,name\na b.,x\nc d!,y\n", "'name' more than once"),
        ("text behind a list", '[{"text": "a", "label": "x"}] more', "text after it"),
        ("a value behind a list", '[{"text": "a", "label": "x"}]\n[]', "more than one JSON value"),
        ("text behind an object", '{"text": "a", "label": "x"} more', "text after it"),
    ],
)
def test_data_check_finds(tmp_path: Path, name: str, content: str, fault: str) -> None:
    path = tmp_path / ("a.csv" if content[0] not in "[{" else "a.json")
    path.write_text(content, encoding="utf-8")
    report = check(path)
    assert not report.ok and any(fault in finding.text for finding in report.faults)


def test_shapes_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    expected = [("Good, nice", "pos"), ("Bad", "neg"), ("ok", "pos")]
    for content in (
        "sep=;\ntext;label\nGood, nice;pos\nBad;neg\nok;pos\n",
        "text;label\nGood, nice;pos\nBad;neg\nok;pos\n",
        "'text','label'\n'Good, nice','pos'\n'Bad','neg'\n'ok','pos'\n",
        'text|label|\n"Good, nice"|pos|\nBad|neg|\nok|pos|\n',
    ):
        path.write_text(content, encoding="utf-8")
        assert [(record.text, record.label) for record in Corpus(path)] == expected
    path.write_text('text,label\n"He said \\"hi, you\\"",pos\n"b",neg\n', encoding="utf-8")
    assert next(iter(Corpus(path))).text == 'He said "hi, you"'
    # a comma stays the delimiter where the texts have semicolons, and one bad row is one fault
    path.write_text("text,label\na; b,pos\nc; d,neg\ne; f, g,neg\n", encoding="utf-8")
    assert [finding.place for finding in check(path).faults] == [f"{path}:4"]


def test_tabs_with_quotes_and_without(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Hello" he said\tpos\n"Quoted."\tneg\n', encoding="utf-8")
    assert [record.text for record in Corpus(path)] == ['"Hello" he said', '"Quoted."']
    path.write_text('text\tlabel\n"a ""b"" c"\tpos\n"tab\there"\tneg\n', encoding="utf-8")
    assert [record.text for record in Corpus(path)] == ['a "b" c', "tab\there"]


@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "socket", "device", "loop", "dead link", "long name", "home", "NUL"]
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)
        socket.socket(socket.AF_UNIX).bind("a.jsonl")
    elif kind in ("loop", "dead link"):
        path.symlink_to(path if kind == "loop" else tmp_path / "nothing")
    source = {"device": "/dev/zero", "long name": "x" * 300, "home": "~nosuch/a.jsonl", "NUL": "a\0b"}.get(
        kind, str(path)
    )
    for read in (check, Corpus):
        with pytest.raises(InputError):
            list(read(source))  # type: ignore[call-overload]


def test_bombs_are_refused_before_they_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FREE", 1 << 20)
    for suffix, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(compress(b"a b\n" * (4 << 20)))
        with pytest.raises(InputError, match="unpacks to more than 250 times its size"):
            for _ in read_text(path):
                pass


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    suffix=st.sampled_from([".gz", ".bz2", ".xz"]),
    cut=st.integers(1, 30),
    parts=st.integers(1, 3),
)
def test_archives_are_whole_or_refused(tmp_path: Path, data: bytes, suffix: str, cut: int, parts: int) -> None:
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    text = data.hex() + "."
    whole = compress(text.encode()) * parts
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(whole + b"\0" * (4 if suffix != ".bz2" else 0))
    assert "".join(read_text(path)) == text * parts
    path.write_bytes(whole[:-cut])
    assume(parts == 1)
    with pytest.raises(InputError, match="not a valid"):
        list(read_text(path))


def test_what_a_folder_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.cli import main

    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "empty.txt").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    for name in ("1.png", "2.png", "3.png", "4.png"):
        (tmp_path / name).write_bytes(b"x")
    found = skipped_files(tmp_path)
    assert found.count == 6 and found.read == 1
    assert found.lines(tmp_path)[0] == "left out (its ending .png is not a text format): 4: 1.png, 2.png, 3.png, …"
    assert main(["data", "check", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "6 files are left out and 1 are read" in said and "left out (a link to a folder): 1: link" in said
    for name in ("1.png", "2.png", "3.png", "4.png", "empty.txt"):
        (tmp_path / name).unlink()
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "No faults in the files that are read." in capsys.readouterr().out
