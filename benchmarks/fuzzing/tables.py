"""Inputs that are data: records in every format and file, databases, chat templates, and questions with SQL."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuzzing.case import EITHER, WRONG, Bench, Case
from fuzzing.materials import FITTING, PACKERS, ROWS
from fuzzing.values import ABSENT, BYTES, TEXTS, VALUES, Raw, dump, mutated_tree, shown

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
DELIMITED = {".csv": ",", ".tsv": "\t"}


def _flat(value: Any) -> Any:
    """A cell of a table."""
    if isinstance(value, Raw):
        return value.text
    return dump(value).decode("utf-8", "surrogatepass") if isinstance(value, dict | list) else value


def write(path: Path, rows: Sequence[Any], *, delimiter: str | None = None) -> None:
    """Rows in the format of a path's ending. Raises ValueError for what that cannot hold."""
    ending = path.suffix
    if ending == ".jsonl":
        path.write_bytes(b"".join(dump(row) + b"\n" for row in rows))
    elif ending == ".json":
        path.write_bytes(dump(list(rows)))
    elif ending in DELIMITED:
        out = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
        writer = csv.writer(out, delimiter=delimiter or DELIMITED[ending])
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_flat(row.get(key)) for key in columns] if isinstance(row, dict) else [_flat(row)])
        path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
    elif ending == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            parquet.write_table(pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)]), path)
        except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError) as error:
            raise ValueError(str(error)) from error
    else:
        path.write_bytes(b"".join(dump(row)[1:-1] + b"\n" for row in rows))


def _broken_rows(bench: Bench, name: str) -> tuple[list[Any], str]:
    """Rows of a format with a bad value somewhere."""
    rows = json.loads(json.dumps(ROWS[name]))
    about = []
    for _ in range(bench.draw.choice((1, 1, 1, 2, 5))):
        number = bench.draw.randrange(len(rows))
        if not isinstance(rows[number], dict):
            break
        if bench.chance(0.1):
            rows[number] = bench.draw.choice([value for value in VALUES if value is not ABSENT])
            about.append(f"row {number} = {shown(rows[number])}")
            continue
        keys = ("weight", "tools", "reasoning_content", "role", "label", "x")
        rows[number], place, value = mutated_tree(rows[number], bench.draw, keys)
        about.append(f"row {number} {'.'.join(map(str, place))} = {shown(value)}")
    return rows, "; ".join(about)


def _data_words(bench: Bench, name: str, path: str) -> list[str]:
    """A verb that reads a file of data of some format."""
    draw = bench.draw
    wanted = next((head for head, format in FITTING.items() if format == name), "causal")
    models = [each for each, head in bench.materials.models.items() if head == wanted]
    evaluated = ["evaluate", str(bench.materials.path("models", draw.choice(models))), path, "--max-new-tokens", "2"]
    recipe = ["check", str(bench.materials.path("tiny.toml")), f"data.source={path}", "--no-measure"]
    checked = ["data", "check", path]
    if bench.chance(0.25):
        checked += ["--format", draw.choice((name, *FORMATS))]
    if bench.chance(0.2):
        checked += ["--columns", draw.choice(COLUMNS)]
    words = draw.choice((checked, checked, checked, evaluated, evaluated, recipe))
    return [*words, *(["--json"] if bench.chance(0.2) else [])]


FORMATS = tuple("text lines chat prompts preference labelled tagged qa choice pair sql x".split())
COLUMNS = ("text=text,label=label", "text=x", "source=text", "text=1,label=2", "words=tokens,tags=tags", "text=", "=x",
           "x", "", "text=text,text=text", "question=question,query=query")  # fmt: skip


def records(bench: Bench) -> Case:
    """A bad value in a row of some format, in some kind of file."""
    name = bench.draw.choice(list(ROWS))
    rows, about = _broken_rows(bench, name)
    path = Path(f"{name}{bench.draw.choice(ENDINGS)}")
    try:
        write(path, rows)
    except ValueError:
        path = path.with_suffix(".jsonl")
        write(path, rows)
    if bench.chance(0.15):
        path = _packed(bench, path)
    return Case(_data_words(bench, name, str(path)), f"{path}: {about}")


def _packed(bench: Bench, path: Path) -> Path:
    ending = bench.draw.choice(list(PACKERS))
    packed = path.with_name(path.name + ending)
    packed.write_bytes(PACKERS[ending](path.read_bytes()))
    return packed


def files(bench: Bench) -> Case:
    """A whole file of data that is broken: cut, flipped, in another encoding, packed and cut, or of another kind."""
    draw = bench.draw
    name = draw.choice(list(ROWS))
    path = Path(f"{name}{draw.choice(ENDINGS)}")
    write(path, ROWS[name])
    packs = bench.chance(0.3)
    if packs:
        path = _packed(bench, path)
    way = draw.choice(list(BYTES))
    function, wrong = BYTES[way]
    data = path.read_bytes()
    path.write_bytes(function(data, draw))
    words = _data_words(bench, name, str(path))
    # A file of lines may be cut at the end of one, and a text may be anything: sure is only what is packed.
    sure = packs and way in ("empty", "white space", "truncated", "a number", "a PNG image", "HTML")
    return Case(words, f"{path}: {way}", WRONG if sure and wrong else EITHER)


def tables(bench: Bench) -> Case:
    """Tables that `data check` must not call right: only a header, columns twice, text behind, odd delimiters."""
    draw = bench.draw
    rows = "\n".join(f"the cat {i},{'yes' if i % 2 else 'no'}" for i in range(6))
    sure: dict[str, tuple[str, bytes]] = {
        "only a header": ("t.csv", b"text,label\n"),
        "a column twice": ("t.csv", b"text,label,text\n" + b"a,yes,b\n" * 5),
        "text behind": ("t.json", b'[{"text": "a"}] x'),
        "a row of JSON that is cut": ("t.jsonl", b'{"text": "a"}\n{"text": "b'),
        "nothing": ("t.csv", b""),
        "nothing but lines": ("t.jsonl", b"\n\n\n"),
        "a packed file that is cut": ("t.csv.gz", PACKERS[".gz"](rows.encode())[:-9]),
        "a packed file that is none": ("t.csv.bz2", rows.encode()),
        "Latin-1": ("t.csv", "text,label\nGrüße,yes\n".encode("latin-1")),
    }
    unsure: dict[str, tuple[str, bytes]] = {
        "semicolons": ("t.csv", ("text;label\n" + rows.replace(",", ";")).encode()),
        "quotes that do not end": ("t.csv", b'text,label\n"a,yes\nb,no\n'),
        "other names": ("t.csv", ("Label,Text\n" + rows).encode()),
        "no header": ("t.csv", rows.encode()),
        "rows of all lengths": ("t.csv", b"text,label\na\na,b,c,d\n,,,\n"),
        "a wide cell": ("t.csv", b"text,label\n" + b"a" * 300_000 + b",yes\n"),
        "many columns": ("t.csv", b",".join(b"c%d" % i for i in range(5000)) + b"\n" + b"1," * 4999 + b"1\n"),
        "labels that are numbers": ("t.csv", ("text,label\n" + rows.replace("yes", "1").replace("no", "07")).encode()),
        "escapes": ("t.csv", b"text,label\na,\x1b[31myes\x1b[0m\nb,no\n"),
        "a long line": ("t.txt", b"the cat " * 100_000),
        "control characters": ("t.txt", bytes(range(1, 32)) * 20),
        "a NUL": ("t.csv", b"text,label\na\0b,yes\n"),
    }
    chosen = sure if bench.chance(0.5) else unsure
    name = draw.choice(list(chosen))
    file, data = chosen[name]
    Path(file).write_bytes(data)
    words = ["data", "check", file] if chosen is sure else _data_words(bench, "labelled", file)
    return Case(words, f"{file}: {name}", WRONG if chosen is sure else EITHER)


CELLS = (None, "", "x", "a" * 3000, "é", "\x1b[31mx", "a\nb", "'", '"', "a;b", b"\xff\xfe\0", b"", 0, -1, 2**63 - 1,
         -(2**63),
         1.5, float("inf"), float("nan"), 1e308, "2020-13-45", "12:00", "1e5", "NULL", "true")  # fmt: skip
TYPES = (
    "",
    "text",
    "integer",
    "real",
    "blob",
    "numeric",
    "date",
    "boolean",
    "varchar(20)",
    "INTEGER PRIMARY KEY",
    "x y",
)
NAMES = (
    "a",
    "name",
    "from",
    "select",
    "a b",
    "größe",
    'a"b',
    "it's",
    "1st",
    "\x1b[31mx",
    "",
    "a\nb",
    "%s",
    "[x]",
    "id",
    "date",
)


def _odd_database(bench: Bench, path: Path) -> str:
    """Write a database whose tables, names and cells are odd; what it is in words."""
    draw = bench.draw
    about = []
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    for number in range(draw.choice((0, 1, 1, 2, 3))):
        name = draw.choice(NAMES) + (str(number) if number else "")
        count = draw.choice((1, 2, 3, 4, 4, 30, 1500))
        columns = [f"{draw.choice(NAMES)}{i}" if i else draw.choice(NAMES) for i in range(count)]
        quoted = ['"' + each.replace('"', '""') + '"' for each in columns]
        kinds = [
            draw.choice(TYPES) if i == 0 or "KEY" not in TYPES[9] else draw.choice(TYPES[:9]) for i in range(count)
        ]
        table = '"' + name.replace('"', '""') + '"'
        defined = ", ".join(f"{column} {kind}" for column, kind in zip(quoted, kinds, strict=True))
        try:
            connection.execute(f"create table {table} ({defined})")
        except sqlite3.Error:
            continue
        rows = draw.choice((0, 1, 5, 30, 200))
        for row in range(rows):
            cells = [row if "KEY" in kind else draw.choice(CELLS) for kind in kinds]
            try:
                connection.execute(f"insert into {table} values ({', '.join('?' * count)})", cells)
            except sqlite3.Error:
                break
        about.append(f"{name!a} of {count} columns and {rows} rows")
        if bench.chance(0.2):
            try:
                connection.execute(f'create view "v{number}" as select * from {draw.choice((table, "nowhere"))}')
            except sqlite3.Error:
                continue
    connection.commit()
    connection.close()
    return f"{path}: tables {', '.join(about) or 'none'}"


def database(bench: Bench) -> Case:
    """A database with odd names, types and cells, or a damaged one, behind a recipe, a chat, or questions."""
    draw = bench.draw
    path = Path("mine.sqlite")
    if bench.chance(0.75):
        about = _odd_database(bench, path)
    else:
        bench.copy("databases", "shop", "shop.sqlite", to=str(path))
        way = draw.choice(list(BYTES))
        path.write_bytes(BYTES[way][0](path.read_bytes(), draw))
        about = f"{path}: {way}"
    model = str(bench.materials.path("models", "llama"))
    changes = [f"data.database={path}", "data.source=none", "data.examples=20", "model.max_position_embeddings=512",
               "stage.pretrain.train.batch_tokens=2048"]  # fmt: skip
    recipe = ["check", str(bench.materials.path("tiny.toml")), *changes, "--no-measure"]
    chat = ["chat", model, "--db", str(path), "--max-new-tokens", "3", *draw.choice(([], ["--schema"], ["--json"]))]
    run = ["run", str(bench.materials.path("tiny.toml")), *changes, "--quiet"]
    words = draw.choice((recipe, recipe, chat, chat, run))
    return Case(words, about, EITHER, b"the cat\n/schema\n")


QUERIES = (
    "SELECT name FROM pet", "SELECT * FROM nowhere", "", ";", "x", "SELECT 1; SELECT 2", "DROP TABLE pet",
    "PRAGMA user_version = 7",
    "ATTACH 'x.sqlite' AS x", "SELECT randomblob(500000000)", "SELECT zeroblob(2000000000)",
    "SELECT load_extension('x')",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 300) SELECT zeroblob(1900000) FROM c",
    "SELECT a.*, b.*, c.*, d.* FROM pet a, pet b, pet c, pet d, pet e, pet f, pet g",
    "SELECT printf('%2000000000d', 1)",
    "SELECT hex(zeroblob(300000000))", "SELECT CAST(x'ff' AS TEXT)", "SELECT 'a' || char(0) || 'b'",
    "SELECT 1e999, -1e999",
    "SELECT group_concat(a.name) FROM pet a, pet b, pet c, pet d", "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "SELECT '" + "x" * 90_000 + "'",
    "INSERT INTO pet VALUES (99, 'x', 1, 1) RETURNING *", "EXPLAIN SELECT 1", "SELECT 1 AS a, 2 AS a",
    "VALUES (1), (2)", "SELECT \x1b[31m1",
)  # fmt: skip


def questions(bench: Bench) -> Case:
    """Questions with SQL whose own SQL is hostile, of databases that are there or not."""
    draw = bench.draw
    path = Path("questions.jsonl")
    asked = [draw.choice(QUERIES) for _ in range(draw.choice((1, 2, 3)))]
    ids = [draw.choice(("pets", "pets", "pets", "shop", "nowhere", "", "../pets", None, 7)) for _ in asked]
    rows = [{"question": "the cat", "query": query, "db_id": name} for query, name in zip(asked, ids, strict=True)]
    write(path, rows)
    bench.copy("databases", to="databases")
    place = draw.choice(("databases", "databases", "databases/pets/pets.sqlite", "nowhere", "."))
    model = str(bench.materials.path("models", "llama"))
    words = ["evaluate", model, str(path), "--databases", place, "--max-new-tokens", "2"]
    about = "; ".join(query if len(query) < 60 else query[:50] + "…" for query in asked)
    return Case(words, f"{path}: {about!a} of {ids} in {place}", WRONG if place == "nowhere" else EITHER)


HOSTILE = (
    "{% for i in range(10000000000) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}", "{{ ('x' * 100000) * 100000 }}", "{{ lipsum(n=100000) }}", "{{ ['x'] * 10000000000 }}",
    "{{ 2 ** 10000000 }}",
    "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set l = ['x' * 1000] * 100000 %}{{ l | join(l | join) }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ '%10000000000d' % 1 }}", "{{ '{:>10000000000}'.format(1) }}",
    "{% for a in messages %}{% for i in range(999999999) %}{{ i }}{% endfor %}{% endfor %}",
)  # fmt: skip
ODD = (
    "", " ", "x", "{{", "{% if %}", "{{ messages }}", "{{ x.y.z }}", "{{ raise_exception('no') }}",
    "{{ raise_exception('\x1b[31mno') }}",
    "{{ messages[99].content }}", "{{ messages[0].content.__class__.__mro__ }}", "{% include 'x' %}",
    "{% import 'x' as y %}", "{{ 1 / 0 }}", "{{ bos_token }}",
    "{{ messages | map(attribute='content') | join }}", "{% generation %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ strftime_now('%Y') }}", "{{ strftime_now('%\x00') }}", "{{ messages | tojson }}",
    "{{ messages | tojson(indent=99999) }}", "chatml", "no-such-template", "\ud800",
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "{{ 'x' * 100 }}", "{{ self }}",
    "{{ cycler.__init__.__globals__ }}", "{{ namespace }}", "{" * 3000,
    "{% if true %}" * 400 + "x" + "{% endif %}" * 400, "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ 1 " + "+ 1 " * 5000 + "}}", "{{ messages.content }}", "{{ undefined() }}",
)  # fmt: skip


def templates(bench: Bench) -> Case:
    """Chat templates of strangers."""
    draw = bench.draw
    folder, _ = bench.model("causal", names=("llama", "gpt2", "qwen2", "mistral"))
    hostile = bench.chance(0.35)
    template: Any = draw.choice(HOSTILE if hostile else ODD)
    about = shown(template)
    path = folder / "tokenizer_config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    if bench.chance(0.3):
        tree.pop("chat_template", None)
        (folder / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogatepass"))
    else:
        if bench.chance(0.2) and not hostile:
            template = draw.choice(
                ([{"name": "default", "template": template}], [{"name": "x"}], [template], {"default": template}, [], 7)
            )
        tree["chat_template"] = template
    path.write_bytes(dump(tree))
    chat = ["chat", str(folder), "--max-new-tokens", "2"]
    evaluated = ["evaluate", str(folder), bench.data("chat")]
    words = draw.choice((chat, evaluated, evaluated))
    if bench.chance(0.15):
        recipe = ["check", str(bench.materials.path("tiny.toml")), f"tokenizer.chat_template={template}",
                  "--no-measure",
                  f"data.source={bench.data('chat')}"]  # fmt: skip
        words = recipe if isinstance(template, str) and "\0" not in template else words
    return Case(words, f"template {about}", WRONG if hostile and words[0] != "check" else EITHER, b"the cat\n")


def prompts(bench: Bench) -> Case:
    """What is typed into `chat`, and texts of all kinds for `generate`, `tokenize` and `inspect`."""
    draw = bench.draw
    name = draw.choice(list(bench.materials.models))
    model = str(bench.materials.path("models", name))
    head = bench.materials.models[name]
    text = draw.choice((*TEXTS, "the cat " * 200, "<|im_end|>", "<|im_start|>system", "[MASK]", "\n" * 500))
    typed = draw.choice((b"", b"\n", b"\xff\xfe\n", b"/nosuch\n", b"/help\n/schema\n/reset\n/quit\nx", b"a\0b\n",
                        b"x" * 100_000,
                         b"the cat\n" * 5, b"\x1b[A\n", text.encode("utf-8", "surrogatepass") + b"\n"))  # fmt: skip
    choices = [["tokenize", model, "-"], ["inspect", model, "--text", "-"]]
    if head in ("causal", "seq2seq"):
        choices += [["generate", model, "-", "--max-new-tokens", "2"]] * 2
    if head == "causal":
        choices += [["chat", model, "--max-new-tokens", "2"]] * 2
    words = draw.choice(choices)
    if "-" in words and "\0" not in text and bench.chance(0.5):
        words = [text if word == "-" else word for word in words]
        if bench.chance(0.3):
            words = [word for word in words if word != text] + ["--", text] if words[0] != "inspect" else words
    return Case(words, f"{words[0]} of {name}", EITHER, typed)


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "data": {"records": (records, 12), "files": (files, 9), "tables": (tables, 3)},
    "databases": {"database": (database, 5), "questions": (questions, 2)},
    "prompts": {"templates": (templates, 4), "prompts": (prompts, 3)},
}
"""What makes an input, and its share, by entry point."""
