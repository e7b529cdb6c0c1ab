"""Reads the structure of a database: the role of each column and the foreign keys between tables."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql.naming import PLACES, label, named, quote, singular
from quatrain.tasks.text2sql.opening import ERRORS, columns_of, connect, explain, fatal, few, table_names
from quatrain.tasks.text2sql.schema import DATE, Column, ForeignKey, Schema, Table

SAMPLE = 2000

MOST_COLUMNS = 100
"""Limit on the columns of a table that questions use; pairs and triples of more would be millions."""

MOST_TABLES = 300

_NUMERIC = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*\Z")
_MONEY = frozenset("price prices cost costs amount total salary revenue budget fee payment wage income profit".split())
_NOT_MEASURED = frozenset(
    """year id code zip postal phone fax number no num rank ranking position latitude longitude lat long lng version
    number isbn ssn season month day hour order index key uid""".split()
)
_NOT_ASKED = frozenset(
    """email mail url website web link phone fax address password hash image picture photo file path comment comments
    description details notes note uuid guid""".split()
)
_NAMES = ("name", "full name", "label")
_GENERIC = frozenset(
    ["id", "name", "title", "code", "type", "date", "year", "description", "value", "status", "number"]
)
_BOOLEANS = (
    {0, 1},
    {"Y", "N"},
    {"y", "n"},
    {"T", "F"},
    {"t", "f"},
    {"true", "false"},
    {"True", "False"},
    {"yes", "no"},
)


def introspect(path: str | Path) -> Schema:
    """Describe the database at `path`, opened read-only.

    Raises InputError, with every problem found, when the file is missing, is no SQLite database, is encrypted, corrupt
    or locked, or has no table with rows.
    """
    path = Path(path)
    connection = connect(path)
    try:
        return _describe(connection, path)
    except ERRORS as error:
        raise InputError(f"Cannot read {path}", [explain(path, error)]) from error
    finally:
        connection.close()


def _counted(connection: sqlite3.Connection, path: Path, notes: list[str]) -> dict[str, int]:
    """The tables with rows and how many they have. Raises InputError where there are none."""
    names = table_names(connection)
    notes += [
        f"table {named(name)} left out: it is virtual, and answers are not run on those"
        for name in table_names(connection, virtual=True)
    ]
    problems: list[str] = []
    counts: dict[str, int] = {}
    failed = 0
    for name in names:
        try:
            count = connection.execute(f"SELECT count(*) FROM {quote(name)}").fetchone()[0]
        except ERRORS as error:
            failed += 1
            if fatal(error):
                problems.append(explain(path, error) + f" (table {named(name)})")
            else:
                notes.append(f"table {named(name)} left out: {error}")
            continue
        if count:
            counts[name] = count
        else:
            notes.append(f"table {named(name)} left out: it has no rows")
    if problems:
        raise InputError(f"Cannot read {path}", few(problems))
    if not names:
        raise InputError(
            f"{path} has no tables", [f"database: {path}; no tables; give a database with tables and rows"]
        )
    if not counts and failed:
        raise InputError(f"{path} has no table that can be read", few(notes))
    if not counts:
        raise InputError(
            f"{path} has no rows",
            few(
                f"table {named(name)}: no rows; questions need values to ask for; fill at least one table"
                for name in names
            ),
        )
    return counts


def _describe(connection: sqlite3.Connection, path: Path) -> Schema:
    notes: list[str] = []
    counts = _counted(connection, path, notes)
    if len(counts) > MOST_TABLES:
        notes.append(f"{len(counts) - MOST_TABLES:,} tables left out: questions are made of the first {MOST_TABLES}")
        counts = dict(list(counts.items())[:MOST_TABLES])
    declared = _declared_keys(connection, counts, notes)
    tables: dict[str, Table] = {}
    for name, count in counts.items():
        references = {key.column for key in declared if key.table == name}
        try:
            tables[name] = _table(connection, name, count, references, notes)
        except ERRORS as error:
            if fatal(error):
                raise
            notes.append(f"table {named(name)} left out: {error}")
    if not tables:
        raise InputError(f"{path} has no table that can be read", few(notes))
    declared = [key for key in declared if _resolves(key, tables)]
    keys = declared + _inferred_keys(connection, tables, {key.table for key in declared})
    things = {table.one for table in tables.values()} | PLACES
    final = []
    for table in tables.values():
        references = {key.column for key in keys if key.table == table.name}
        final.append(_finished(table, references, things))
    return Schema(path, tuple(final), tuple(keys), tuple(notes))


def _declared_keys(connection: sqlite3.Connection, counts: dict[str, int], notes: list[str]) -> list[ForeignKey]:
    by_lower = {name.lower(): name for name in counts}
    keys: list[ForeignKey] = []
    for name in counts:
        rows = connection.execute(f"PRAGMA foreign_key_list({quote(name)})").fetchall()
        several = {number for number, count in Counter(row[0] for row in rows).items() if count > 1}
        columns = {column.lower(): column for column, _, _ in columns_of(connection, name)}
        for number, _, parent, source, target, *_ in sorted(rows):
            real = by_lower.get(parent.lower())
            if number in several or real is None:
                if number in several:
                    notes.append(f"foreign key {named(name)} -> {named(parent)} left out: it spans several columns")
                continue
            info = columns_of(connection, real)
            if target is None:
                keyed = [column for column, _, place in info if place]
                target = keyed[0] if len(keyed) == 1 else ""
            parent_columns = {column.lower(): column for column, _, _ in info}
            if source.lower() not in columns or target.lower() not in parent_columns:
                key_text = f"{named(name)}.{named(source)} -> {named(parent)}.{named(target)}"
                notes.append(f"foreign key {key_text} left out: no such column")
                continue
            key = ForeignKey(name, columns[source.lower()], real, parent_columns[target.lower()], "")
            if not any((other.table, other.column) == (key.table, key.column) for other in keys):
                keys.append(_labelled(key))
    return keys


def _labelled(key: ForeignKey) -> ForeignKey:
    words = [word for word in label(key.column).split() if word not in ("id", "key", "code", "no", "fk", "ref", "name")]
    text = singular(" ".join(words)) if words else ""
    if len(text) < 3 or (text.endswith("id") and " " not in text):  # "stuid", "i id"
        text = singular(label(key.parent))
    return ForeignKey(key.table, key.column, key.parent, key.parent_column, text, key.declared)


def _resolves(key: ForeignKey, tables: dict[str, Table]) -> bool:
    # SQLite accepts a reference to a column that repeats; joining through it would multiply rows.
    child, parent = tables.get(key.table), tables.get(key.parent)
    if child is None or all(column.name != key.column for column in child.columns):
        return False
    return parent is not None and any(column.name == key.parent_column and column.unique for column in parent.columns)


def _table(connection: sqlite3.Connection, name: str, count: int, references: set[str], notes: list[str]) -> Table:
    info = columns_of(connection, name)
    keyed = [column for column, _, place in info if place]
    if len(info) > MOST_COLUMNS:
        notes.append(
            f"table {named(name)}: {len(info) - MOST_COLUMNS:,} columns left out; questions are made of the first "
            f"{MOST_COLUMNS}"
        )
        info = info[:MOST_COLUMNS]
    # Blobs and long texts are not read; only their type matters.
    shortened = ", ".join(
        f"CASE typeof({sql}) WHEN 'blob' THEN x'' WHEN 'text' THEN substr({sql}, 1, 60) ELSE {sql} END"
        for sql in (quote(column) for column, _, _ in info)
    )
    rows = connection.execute(f"SELECT {shortened} FROM {quote(name)} LIMIT {SAMPLE}").fetchall()
    one = singular(label(name))
    labels = [label(column) for column, _, _ in info]
    columns = []
    for position, (column, declared, _) in enumerate(info):
        text = labels[position]
        if text.startswith(one + " ") and text[len(one) + 1 :] not in labels and not re.search(r"\b(id|date)$", text):
            text = text[len(one) + 1 :]
        cells = [row[position] for row in rows]
        key = keyed == [column]
        if text == "total" and "amount" not in labels:
            text = "amount"  # "the total total" is no English
        columns.append(_column(connection, name, column, text, declared, cells, count, key, column in references))
    key_column = next((column for column in columns if keyed == [column.name]), None)
    if key_column is None:
        key_column = next((column for column in columns if column.unique and column.role == "key"), None)
    return Table(name, label(name), tuple(columns), count, _identity(columns, key_column, one), key_column)


def _column(
    connection: sqlite3.Connection,
    table: str,
    name: str,
    text: str,
    declared: str,
    cells: list[object],
    count: int,
    key: bool,
    reference: bool,
) -> Column:
    column, source = quote(name), quote(table)
    distinct, filled, low, high = connection.execute(
        f"SELECT count(DISTINCT {column}), count({column}), min({column}), max({column}) FROM {source}"
    ).fetchone()
    known = [cell for cell in cells if cell is not None]
    unique = distinct == count
    words = text.split()
    stamp = False
    usable = not _NOT_ASKED & set(words)
    if key and (not known or not all(isinstance(cell, str) for cell in known)):
        role = "key"
    elif not known:
        role = "other"
    elif set(known) in _BOOLEANS:
        role = "boolean"
    elif all(isinstance(cell, (int, float)) for cell in known):
        if unique and words[-1] == "id":
            role = "key"
        else:
            role = "money" if _MONEY & set(words) else "number"
    elif all(isinstance(cell, str) for cell in known):
        dated = [cell for cell in known if DATE.match(str(cell))]
        if len(dated) >= 0.98 * len(known):
            role, stamp = "date", any(len(str(cell)) > 10 for cell in dated)
        else:
            role = "category" if distinct <= 25 and distinct * 2 <= count else "text"
            numeric = sum(bool(_NUMERIC.match(str(cell))) for cell in known)
            usable = usable and numeric < 0.5 * len(known)
    else:
        role = "other"
    if reference and role in ("number", "key"):
        role = "reference"
    measure = role == "money" or (role == "number" and not _NOT_MEASURED & set(words))
    if measure and all(isinstance(bound, int) for bound in (low, high)):
        measure = max(abs(low), abs(high)) * count < 2**62  # a sum of more overflows in SQLite
    return Column(
        table, name, role, text, declared or "", distinct, count - filled, unique, stamp, measure, usable, low, high
    )


def _identity(columns: list[Column], key: Column | None, one: str) -> tuple[Column, ...]:
    texts = [column for column in columns if column.role in ("text", "category")]
    by_label = {column.label: column for column in texts}
    for name in (*_NAMES, f"{one} name", "first name", one, "title", f"{one} title"):
        if name == "first name" and {name, "last name"} <= by_label.keys():
            return by_label["first name"], by_label["last name"]
        if name != "first name" and name in by_label and by_label[name].values > 1:
            return (by_label[name],)
    named = [column for column in texts if column.label.split()[-1] in ("name", "title") and column.unique]
    if named:
        return (named[0],)
    if key is not None:
        return (key,)
    telling = [column for column in texts if column.unique and column.asked]
    return (telling[0],) if telling else ()


def _inferred_keys(connection: sqlite3.Connection, tables: dict[str, Table], declaring: set[str]) -> list[ForeignKey]:
    keys: list[ForeignKey] = []
    by_name: dict[str, list[Column]] = defaultdict(list)
    for table in tables.values():
        for column in table.columns:
            by_name[column.name.lower()].append(column)
            if column.label == "id" and column.role == "key" and column.name.lower() != f"{singular(table.label)} id":
                by_name[f"{singular(table.label)} id"].append(column)
    for table in tables.values():
        if table.name in declaring:
            continue
        for column in table.columns:
            if column.role in ("date", "boolean", "other", "money"):
                continue
            near = dict.fromkeys([*by_name[column.name.lower()], *by_name[label(column.name)]])
            target = _target(connection, column, tables, list(near))
            if target is not None:
                keys.append(
                    _labelled(ForeignKey(table.name, column.name, target.table, target.name, "", declared=False))
                )
    return keys + _keys_by_values(connection, tables, declaring, {(key.table, key.column) for key in keys})


def _keys_by_values(
    connection: sqlite3.Connection, tables: dict[str, Table], declaring: set[str], known: set[tuple[str, str]]
) -> list[ForeignKey]:
    """References by name: a text column all whose values are names of the rows of one other table ("border")."""
    keys = []
    names = [table.title for table in tables.values() if table.title is not None and table.title.unique]
    titles = [title for title in names if (title.table, title.name) not in known]  # not names of another table's rows
    for table in tables.values():
        for column in table.columns:
            if table.name in declaring or (table.name, column.name) in known or column in table.identity:
                continue
            if column.role not in ("text", "category") or column.values < LEAST_VALUES or not column.asked:
                continue
            held = [
                title
                for title in titles
                if title.table != table.name
                and not title.nulls
                and column.values <= title.values
                and connection.execute(
                    f"SELECT 1 FROM {quote(column.table)} WHERE {column.full} IS NOT NULL AND {column.full} NOT IN "
                    f"(SELECT {title.full} FROM {quote(title.table)}) LIMIT 1"
                ).fetchone()
                is None
            ]
            if len(held) == 1:
                title = held[0]
                keys.append(ForeignKey(table.name, column.name, title.table, title.name, column.label, declared=False))
    return keys


LEAST_VALUES = 8
"""Different values that a column needs so that they cannot be another table's names by chance."""


def _target(
    connection: sqlite3.Connection, column: Column, tables: dict[str, Table], near: Sequence[Column]
) -> Column | None:
    """The unique column of another table that holds every value of this one and shares its name, or None if unclear.

    `near` are those whose name could fit.
    """
    candidates = []
    name = label(column.name)
    for target in near:
        if target.table == column.table:
            continue
        one = singular(tables[target.table].label)
        begins = name.startswith(one)
        same = target.name.lower() == column.name.lower() and name not in _GENERIC
        by_convention = name == f"{one} id" and target.label == "id" and target.role == "key"
        if target.unique and not target.nulls and (same or by_convention) and (begins or not column.unique):
            candidates.append((begins, target))
    if any(begins for begins, _ in candidates):
        candidates = [candidate for candidate in candidates if candidate[0]]
    if name.startswith(tables[column.table].one) and column.unique:
        return None
    if len(candidates) != 1:
        return None
    target = candidates[0][1]
    missing = connection.execute(
        f"SELECT 1 FROM {quote(column.table)} WHERE {column.full} IS NOT NULL AND {column.full} NOT IN "
        f"(SELECT {target.full} FROM {quote(target.table)}) LIMIT 1"
    ).fetchone()
    return None if missing else target


def _finished(table: Table, references: set[str], things: set[str] | frozenset[str]) -> Table:
    """The table with references marked, and "state name" called "state" where it names another thing."""
    labels = {column.label for column in table.columns}

    def finish(column: Column) -> Column:
        if column.name in references and column.role in ("number", "key", "money"):
            return replace(column, role="reference", measure=False, asked=False)
        short = column.label.removesuffix(" name")
        text = column.role in ("text", "category") and column not in table.identity
        if text and short != column.label and short not in labels and (column.name in references or short in things):
            return replace(column, label=short)
        return column

    done = {column.name: finish(column) for column in table.columns}
    identity = tuple(done[column.name] for column in table.identity)
    return replace(
        table, columns=tuple(done.values()), identity=identity, key=done[table.key.name] if table.key else None
    )
