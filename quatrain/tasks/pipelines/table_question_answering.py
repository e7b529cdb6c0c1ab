"""Questions to a table or a database, which a model answers with SQL that is run read-only."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field as Key

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.settings import Settings
from quatrain.core.wording import format_value
from quatrain.data.rows import read_records
from quatrain.generation.candidates import completions_of
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.params import SamplingParams
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.tasks.pipelines.subject import engine_of
from quatrain.tasks.task import ANSWER_BYTES, Database, DatabaseAnswer, spec_of_database

NAME = "data"
"""The table that a given table becomes."""
AGGREGATORS = {"COUNT": "COUNT", "SUM": "SUM", "AVG": "AVERAGE", "MIN": "MIN", "MAX": "MAX"}
"""Functions of SQL, and their names in the output; transformers has the first three."""
_AGGREGATE = re.compile(r"\s*SELECT\s+(?:DISTINCT\s+)?(COUNT|SUM|AVG|MIN|MAX)\s*\(", re.IGNORECASE)


class TableOptions(Settings):
    """What is asked, and how much of the answer is read."""

    db: str | Path | None = None
    """A SQLite database; the inputs are questions."""
    table: Any = None
    """A table for all questions, in the forms that an input's `table` has."""
    schema_prompt: bool | None = None
    """Show the model the tables before each question; None: unless `db` is given, whose tables it may have learned."""
    rows: int = Key(100, ge=1)
    """The most rows of an answer."""
    max_new_tokens: int = Key(128, ge=1)
    """The most tokens of a statement."""
    sequential: bool | None = None
    """Accepted for transformers' sake: every question is answered by itself."""
    padding: bool | str | None = None
    """Accepted for transformers' sake."""
    truncation: bool | str | None = None
    """Accepted for transformers' sake: a schema that exceeds the model's context is shortened by its tables."""


class TableQuestionAnswering(Pipeline):
    """The answer as {"answer", "coordinates", "cells", "aggregator", "sql", "columns", "rows"}.

    A `table` is an object of columns, a list of rows, a pandas.DataFrame, or a file of records (.csv, .jsonl, …); or
    `db` names a SQLite database. `cells` are the values of the answer as texts, `coordinates` their row and column in
    the given table where they stand in it, and `aggregator` the function that computed them. Where the model or the
    checks refuse a question, `answer` is empty and `reason` says why.
    """

    task = "table-question-answering"
    heads = ("causal",)
    recipes = ("sql-finetune", "quickstart")
    fields = (
        Field("question", empty=False),
        Field("table", optional=True, kind="any"),
        Field("db", optional=True, kind="any"),
    )
    Options = TableOptions

    def __call__(
        self,
        inputs: Any = None,
        query: str | Sequence[str] | None = None,
        *,
        table: Any = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """The answers to questions, or to `query`, one or several, about a `table`; see `Pipeline.__call__`."""
        if query is not None:
            table = inputs if table is None else table
            inputs = query if isinstance(query, str) else list(query)
        return super().__call__(inputs, batch_size=batch_size, table=table, **options)

    @cached_property
    def engine(self) -> Engine:
        """The engine of the model."""
        return engine_of(self.subject)

    def refusal(self, inputs: Any, parameters: Mapping[str, Any]) -> str:
        given = [parameters, *(inputs if isinstance(inputs, list) else [inputs])]
        files = [each for each in given if isinstance(each, Mapping) and _names_file(each)]
        return "table: a server reads no files; send the table itself, as an object of columns" if files else ""

    def read(self, given: Any, place: str) -> dict[str, Any]:
        """A question's fields; it may be called `query`, as in transformers."""
        if isinstance(given, Mapping) and "query" in given and "question" not in given:
            given = {**given, "question": given["query"]}
        return super().read(given, place)

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: TableOptions) -> list[Prediction]:
        params = SamplingParams(max_new_tokens=options.max_new_tokens)

        def generate(prompts: Sequence[str], candidates: int) -> list[Completion]:
            ids = [self.engine.render([{"role": "user", "content": prompt}]) for prompt in prompts]
            return completions_of(self.engine, ids, params, candidates)

        predictions = []
        for each in inputs:
            table = each.get("table", options.table) if "db" not in each else None
            db = None if table is not None else each.get("db", options.db)
            if table is None and db is None:
                raise InputError(
                    f"question {format_value(each['question'])}: there is nothing to ask; give a table, or a SQLite "
                    "database as db"
                )
            columns, rows = ([], []) if table is None else table_of(table)
            with _database(db, columns, rows, options) as database:
                answer = database.answer(each["question"], generate)
            predictions.append(Prediction(_output(answer, columns, rows)))
        return predictions

    def line(self, text: str, value: Any) -> str:
        return f"{value['answer']}\t{value['sql']}" if value["sql"] else f"\t{value.get('reason', '')}"


def _names_file(given: Mapping[str, Any]) -> bool:
    return given.get("db") is not None or isinstance(given.get("table"), str)


def table_of(table: Any) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns and the rows of a table in any form. Raises InputError for another one."""
    if isinstance(table, str | Path):
        records = []
        for row in read_records(user_path(table)):
            if row.fault is not None or not isinstance(row.value, Mapping):
                raise InputError(f"{row.place}: {row.fault or 'must be a row with columns'}")
            records.append(row.value)
        table = records
    elif callable(getattr(table, "to_dict", None)):
        table = table.to_dict(orient="list")
    if isinstance(table, Mapping) and table:
        columns = [str(name) for name in table]
        values = [list(column) if not isinstance(column, str) else [column] for column in table.values()]
        if len({len(column) for column in values}) > 1:
            lengths = ", ".join(f"{name} {len(column)}" for name, column in zip(columns, values, strict=True))
            raise InputError(f"table: its columns have different lengths: {lengths}")
        return columns, [list(row) for row in zip(*values, strict=True)]
    is_rows = isinstance(table, Sequence) and not isinstance(table, str) and len(table) > 0
    if is_rows and all(isinstance(row, Mapping) for row in table):
        columns = list(dict.fromkeys(str(name) for row in table for name in row))
        return columns, [[row.get(name) for name in columns] for row in table]
    raise InputError(
        f"table: {format_value(table)}; must be an object of columns, a list of rows, a DataFrame, or a file of records"
    )


@contextmanager
def _database(
    path: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], options: TableOptions
) -> Iterator[Database]:
    """The database at a path, or one of the given table."""
    schema = path is None if options.schema_prompt is None else options.schema_prompt
    open_database = spec_of_database().database
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder) / "table.sqlite"
            _write(path, columns, rows)
        with open_database(Path(path), rows=options.rows, size=ANSWER_BYTES, show_schema=schema) as database:
            yield database


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A SQLite file with one table. Numbers that are written as text become numbers."""
    names = [_column_name(name, number) for number, name in enumerate(columns)]
    if twice := sorted({name for name in names if [each.lower() for each in names].count(name.lower()) > 1}):
        raise InputError(f"table: columns of one name: {', '.join(twice)}; give each its own")
    values = [[_plain(value) for value in row] for row in rows]
    kinds = [_kind([row[place] for row in values]) for place in range(len(names))]
    connection = sqlite3.connect(path)
    try:
        described = ", ".join(f'"{name}" {kind}' for name, kind in zip(names, kinds, strict=True))
        connection.execute(f'CREATE TABLE "{NAME}" ({described})')
        marks = ", ".join("?" * len(names))
        connection.executemany(f'INSERT INTO "{NAME}" VALUES ({marks})', values)
        connection.commit()
    finally:
        connection.close()


def _column_name(name: str, number: int) -> str:
    plain = re.sub(r"\W+", "_", name.strip()).strip("_")
    return plain if plain and not plain[0].isdigit() else f"column_{plain or number + 1}"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, int | float | bytes):
        return value
    text = str(value)
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _kind(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int) for value in known):
        return "INTEGER"
    return "REAL" if known and all(isinstance(value, int | float) for value in known) else "TEXT"


def _output(answer: DatabaseAnswer, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    result = answer.table
    if result is None or result.error is not None:
        reason = answer.reason if result is None else f"the SQL failed: {result.error}"
        return {
            "answer": "", "coordinates": [], "cells": [], "aggregator": "NONE", "sql": answer.statement, "columns": [],
            "rows": [], "reason": reason,
        }  # fmt: skip
    found = _AGGREGATE.match(answer.statement)
    cells = [_text(cell) for row in result.rows for cell in row]
    return {
        "answer": ", ".join(cells),
        "coordinates": [] if found else _coordinates(result.columns, result.rows, columns, rows),
        "cells": cells,
        "aggregator": AGGREGATORS[found[1].upper()] if found else "NONE",
        "sql": answer.statement,
        "columns": list(result.columns),
        "rows": [list(row) for row in result.rows],
    }


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _coordinates(
    found_columns: Sequence[str],
    found: Sequence[Sequence[Any]],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> list[tuple[int, int]]:
    """Row and column of the answer's cells in the given table; [] where a row or a column is not in it."""
    names = {_column_name(name, number).lower(): number for number, name in enumerate(columns)}
    places = [names.get(str(name).strip('"').lower()) for name in found_columns]
    if not places or any(place is None for place in places):
        return []
    used: set[int] = set()
    result = []
    for wanted in found:
        values = [_text(value) for value in wanted]
        match = next(
            (
                number
                for number, row in enumerate(rows)
                if number not in used and [_text(_plain(row[place])) for place in places if place is not None] == values
            ),
            None,
        )
        if match is None:
            return []
        used.add(match)
        result += [(match, place) for place in places if place is not None]
    return result
