"""SQLite databases: one document with the tables, and each row of each table as a document; read-only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from quatrain.core.errors import InputError
from quatrain.retrieval.documents import IndexDocument, cleaned
from quatrain.retrieval.readers import Columns
from quatrain.retrieval.readers.tables import document_of

SUFFIXES = (".sqlite", ".sqlite3", ".db")


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The documents of a database. Raises InputError for a file that is no SQLite database."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            tables = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
            ).fetchall()
            if tables:
                schema = "\n\n".join(statement or name for name, statement in tables)
                yield IndexDocument(cleaned(schema), f"Tables of {path.name}", "tables")
            for table, _ in tables:
                yield from _rows(connection, table, columns, path)
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read as a SQLite database: {error}") from error


def _rows(connection: sqlite3.Connection, table: str, columns: Columns, path: Path) -> Iterator[IndexDocument]:
    escaped = table.replace('"', '""')
    cursor = connection.execute(f'SELECT * FROM "{escaped}"')
    names = [column[0] for column in cursor.description]
    own = {role: name for role, name in columns.items() if name in names}
    for number, cells in enumerate(cursor, 1):
        row = {name: cell for name, cell in zip(names, cells, strict=True) if not isinstance(cell, bytes)}
        found = document_of({"table": table, **row}, "", own, f"{path}:{table}")
        yield IndexDocument(
            found.text, found.title, f"{table} row {number}", metadata={**found.metadata, "table": table}
        )
