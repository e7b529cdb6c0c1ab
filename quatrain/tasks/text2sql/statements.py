"""Statements in canonical form, and the statement within a model's answer.

Data sets write SQL in as many ways as they had authors. Trained on one form, models of all sizes answer better
(RESDSQL, Li et al. 2023, arXiv 2302.05965, does the same): small letters, one space, single quotes around texts, and no
other names for tables that are named once.
"""

from __future__ import annotations

import re

from quatrain.tasks.text2sql.judge import execution_match, is_empty
from quatrain.tasks.text2sql.sandbox import Connection

_PIECE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|[\w.]+|<>|[<>!=]=|\|\||\S")
_ALIAS = re.compile(r"(?<![\w.])(\w+) as (\w+)(?![\w(])")
_FENCE = re.compile(r"```(?:\w+\n|\n)?(.*?)(?:```|\Z)", re.DOTALL)


def plain(connection: Connection, sql: str) -> str:
    """The statement in canonical form: the first of some ways to write it that gives the same answer on the database.

    Where a table has two aliases, its own name may mean another query: so an empty answer proves nothing.
    A statement that fails, or whose answer no other way gives, comes back with its white space alone made one space.
    """
    statement = " ".join(sql.strip().rstrip("; \n\t").split())
    small = _joined([_small(piece) for piece in _PIECE.findall(statement)])
    quoted = _joined([_single(piece) for piece in _PIECE.findall(small)])
    result = connection.execute(statement, exact=True)
    if result.error is not None:
        return statement
    for text in (quoted, small.lower() if "'" not in small else small, small):
        for way, proven in ((_without_aliases(text), _named_once(text) or not is_empty(result)), (text, True)):
            if not proven:
                continue
            same = connection.execute(way, exact=True).rows == result.rows
            if same or execution_match(connection, statement, way).correct:
                return way
    return statement


def statement_of(answer: str) -> str:
    """The SQL in a model's answer: the text between its first ``` and the next, or all of it."""
    fenced = _FENCE.search(answer)
    return (fenced[1] if fenced else answer).strip()


def _small(piece: str) -> str:
    return piece if piece[0] in "'\"" else piece.lower()


def _single(piece: str) -> str:
    """The statement with text in single quotes instead of double quotes, which SQLite also accepts."""
    if piece[0] != '"':
        return piece
    return "'" + piece[1:-1].replace('""', '"').replace("'", "''") + "'"


def _joined(pieces: list[str]) -> str:
    text = " ".join(pieces)
    text = re.sub(r" ([,)])", r"\1", text)
    text = re.sub(r"\( ", "(", text)
    return re.sub(r"\b(count|sum|avg|min|max|abs|round|length|lower|upper|substr|distinct) \(", r"\1(", text)


def _named_once(sql: str) -> bool:
    """Whether each table has at most one alias."""
    pairs = set(_ALIAS.findall(sql))
    return len({table for table, _ in pairs}) == len(pairs)


def _without_aliases(sql: str) -> str:
    """The statement without table aliases: `t1.name` becomes `singer.name`."""
    known = {alias: table for table, alias in _ALIAS.findall(sql)}
    if len(known) < len(set(_ALIAS.findall(sql))):
        return sql
    pieces = []
    for piece in _PIECE.findall(_ALIAS.sub(r"\1", sql)):
        before, dot, after = piece.partition(".")
        pieces.append(f"{known[before]}.{after}" if dot and before in known else piece)
    return _joined(pieces)
