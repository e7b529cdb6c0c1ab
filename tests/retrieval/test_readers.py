"""Every format gives text, headings and metadata; offsets hold in what the reader gave."""

from __future__ import annotations

import gzip
import json
import sqlite3
import zlib

import pytest

from quatrain.core.errors import InputError
from quatrain.retrieval.chunkers import ChunkSettings, chunks_of
from quatrain.retrieval.readers import read_documents, readers


def only(path, columns=None):
    (document,) = read_documents(path, columns)
    return document


def test_the_formats_of_the_issue_have_readers():
    assert set(".txt .md .html .pdf .docx .csv .jsonl .sqlite".split()) <= set(readers())


def test_html_has_what_a_person_reads(tmp_path):
    path = tmp_path / "a.html"
    path.write_text(
        "<html><head><title>Guide &amp; more</title><style>p{}</style></head><body><nav>Home | About</nav><main>"
        "<h1>Cats</h1><p>Cats   <b>sleep</b>\n a lot&nbsp;🐱.</p><script>alert('no')</script><h2>Food</h2>"
        "<ul><li>fish<li>mice</ul><table><tr><td>a</td><td>b</td></tr></table><pre>x = 1\n  y</pre>"
        "<p hidden>secret</p></main><footer>imprint</footer>"
    )
    found = only(path)
    assert found.title == "Guide & more"
    assert found.text.startswith("Cats\n\nCats sleep a lot 🐱.\n\nFood\n\n- fish\n- mice\n\na\tb")
    assert "x = 1\n  y" in found.text
    for word in ("alert", "Home", "imprint", "secret", "p{}"):
        assert word not in found.text
    assert [(each.level, each.title) for each in found.headings] == [(1, "Cats"), (2, "Food")]
    assert all(found.text.startswith(each.title, each.start) for each in found.headings)
    (_, second) = chunks_of(found, ChunkSettings())
    assert second.path == ("Cats", "Food") and found.text[second.start : second.end].startswith("Food\n\n- fish")


def pdf(*pages: str) -> bytes:
    """A small PDF file with a line of text on each page."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        content = zlib.compress(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode("latin-1"))
        objects.append(b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(content), content))
        kids.append(len(objects) + 1)
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
            % len(objects)
        )
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(b"%d 0 R" % kid for kid in kids))
    out, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1, table, len(objects) + 1, len(out),
    )  # fmt: skip


def test_pdf_pages_are_sections(tmp_path):
    pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("Cats sleep.", "Dogs bark."))
    found = only(path)
    assert [found.text[each.start : each.end] for each in chunks_of(found, ChunkSettings())] == [
        *("Cats sleep.", "Dogs bark.")
    ]
    assert [each.title for each in found.headings] == ["page 1", "page 2"]
    for content in (b"%PDF-1.7 nothing", pdf("")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"PDF|pictures"):
            only(path)


def test_docx_has_headings_and_tables(tmp_path):
    docx = pytest.importorskip("docx")
    source = docx.Document()
    source.add_heading("Cats", 1)
    source.add_paragraph("Cats sleep.")
    table = source.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "fish", "mice"
    source.add_heading("Dogs", 2)
    source.add_paragraph("Dogs bark.")
    source.save(tmp_path / "a.docx")
    found = only(tmp_path / "a.docx")
    assert found.text == "Cats\n\nCats sleep.\n\nfish\tmice\n\nDogs\n\nDogs bark."
    assert [(each.start, each.level, each.title) for each in found.headings] == [(0, 1, "Cats"), (30, 2, "Dogs")]
    (tmp_path / "b.docx").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(InputError, match="DOCX"):
        only(tmp_path / "b.docx")


def test_rows_of_tables_are_documents(tmp_path):
    (tmp_path / "a.csv").write_text("title,text,year\nCats,They sleep.,1999\nDogs,They bark.,2001\n")
    first, second = read_documents(tmp_path / "a.csv")
    assert (first.text, first.title, dict(first.metadata)) == ("Cats\n\nThey sleep.", "Cats", {"year": "1999"})
    assert (first.part, second.part) == ("row 1", "row 2")
    rows = [{"id": "x", "animal": "cat", "legs": 4}, "plain", {"content": "half \ud83d pair\0"}]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    one, two, three = read_documents(tmp_path / "b.jsonl.gz")
    assert (one.text, one.part, two.text) == ("id: x\nanimal: cat\nlegs: 4", "x", "plain")
    assert three.text == "half � pair�"  # what no store could hold, character by character
    (named,) = list(read_documents(tmp_path / "b.jsonl.gz", {}))[:1]
    assert named.metadata == {"id": "x", "animal": "cat", "legs": 4}
    with pytest.raises(InputError, match="did you mean animal"):
        list(read_documents(tmp_path / "b.jsonl.gz", {"text": "animl"}))
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{broken\n')
    with pytest.raises(InputError, match=r"c\.jsonl:2"):
        list(read_documents(tmp_path / "c.jsonl"))


def test_databases_are_read_only_and_every_row_is_found(tmp_path):
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE "odd ""name" (name TEXT, picture BLOB, weight REAL)')
        connection.execute('INSERT INTO "odd ""name" VALUES (?, ?, ?)', ("Tom", b"\x00\x01", 4.5))
    connection.close()
    before = path.read_bytes()
    schema, row = read_documents(path)
    assert "CREATE TABLE" in schema.text and row.text == 'table: odd "name\nname: Tom\nweight: 4.5'
    assert row.metadata["table"] == 'odd "name' and path.read_bytes() == before
    (tmp_path / "b.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="SQLite"):
        list(read_documents(tmp_path / "b.db"))
