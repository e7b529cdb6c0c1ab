"""Questions to many databases: the records of a source, with the schema of their database in the prompt.

For example, all questions of Spider's development set:

    with SQLQuestions(Databases("spider-databases"), Corpus("spider-dev", format="sql")) as task:
        for question in task.read():
            print(task.prompt(question), task.reference(question))
        print(task.notes)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import cast

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data import catalog
from quatrain.data.corpus import Corpus
from quatrain.data.records import SQLQuestion
from quatrain.data.sources import source_names
from quatrain.tasks.task import Score, SourceFault, SourceTask
from quatrain.tasks.text2sql.databases import Databases, tables_of
from quatrain.tasks.text2sql.judge import Verdict, execution_match, is_empty, reference_error
from quatrain.tasks.text2sql.naming import quote
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.statements import plain, statement_of

NAMED = 3
"""Skipped questions that a note names; it counts the others."""


@dataclass(frozen=True, slots=True)
class SchemaQuestion:
    """A question to a database, the text of its schema, and the SQL that answers it in its canonical form."""

    question: str
    schema: str
    sql: str
    database: str
    place: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question and its answer as a chat."""
        return [
            {"role": "user", "content": prompt(self.schema, self.question)},
            {"role": "assistant", "content": self.sql},
        ]

    @property
    def text(self) -> str:
        """Question and SQL without the schema, as a document for pre-training."""
        return f"Question: {self.question}\nSQL: {self.sql}"


def prompt(schema: str, question: str) -> str:
    """The prompt: how to answer, the schema of the database, and the question."""
    return f"Answer with one SQLite statement.\n{schema}\nQuestion: {question}"


def databases_of(source: str, databases: str | None = None) -> Databases:
    """The databases that the questions of a source are about: the named ones, or the catalog's for this source.

    Raises InputError where neither is given or a database is missing.
    """
    if databases is None:
        names = [entry.databases for name in source_names(source) if (entry := catalog.find(name)) and entry.databases]
        if len(names) < len(source_names(source)):
            raise InputError(
                f"{source}: questions with SQL are asked of databases, and none are named. Name a folder, a .zip or a "
                "file of SQLite databases (data.databases; --databases for quatrain evaluate)"
            )
        databases = " + ".join(dict.fromkeys(names))
    return Databases(databases)


class SQLQuestions(SourceTask[SchemaQuestion]):
    """The questions of a corpus to their databases, judged by running the SQL.

    Skips questions whose database is missing or whose own SQL fails; `notes` count them and name the first.
    """

    name = "sql"
    baseline_name = "count the rows of a table"
    reference_name = "SQL"

    def __init__(self, databases: Databases, corpus: Corpus | None = None):
        super().__init__()
        self.databases = databases
        self.corpus = corpus
        self._tables: dict[str, list[str]] = {}

    def close(self) -> None:
        self.databases.close()

    def _corpus(self) -> Corpus:
        if self.corpus is None:
            raise InputError(f"{self.databases.source}: no source of questions is given")
        return self.corpus

    def read(self) -> Generator[SchemaQuestion, None, None]:
        """The usable questions in order. Raises InputError where there is none."""
        missing: Counter[str] = Counter()
        failed: list[str] = []
        count = 0
        empty = 0
        self.notes = []
        corpus = self._corpus()
        try:
            for place, found in corpus.placed():
                record = cast(SQLQuestion, found)
                if record.database not in self.databases:
                    missing[record.database or "(without a name)"] += 1
                    continue
                connection = self.databases.connection(record.database)
                result = connection.execute(record.query)
                if result.error is not None:
                    failed.append(f"{place}: {result.error}")
                    continue
                count += 1
                empty += is_empty(result)
                schema = self.databases.schema(record.database)
                sql = plain(connection, record.query)
                yield SchemaQuestion(record.question, schema, sql, record.database, place)
        finally:
            self._note(missing, failed)
            if empty and empty == count:
                self.notes.append(
                    f"none of the {count:,} questions has an answer in {self.databases.source} (no rows, NULL or 0): "
                    "only the same statement counts as right; are these the databases that the questions are about?"
                )
        if not count:
            raise InputError(f"No question of {corpus.source} can be asked of {self.databases.source}", self.notes)

    def take(self, count: int | None = None) -> list[SchemaQuestion]:
        with closing(self.read()) as questions:
            return list(islice(questions, count))

    def place(self, example: SchemaQuestion) -> str:
        return example.place

    def faults(self) -> Iterator[SourceFault]:
        for place, found in self._corpus().placed():
            record = cast(SQLQuestion, found)
            if record.database not in self.databases:
                name = format_value(record.database) if record.database else "(without a name)"
                text = f"there is no database {name} in {self.databases.source}; add it, or name another"
                yield SourceFault(place, "database", text)
                continue
            error = self.databases.connection(record.database).execute(record.query).error
            if error is not None:
                text = f"its own SQL fails on the database {record.database}: {error}; correct it"
                yield SourceFault(place, "query", text)

    @property
    def fingerprint(self) -> str | None:
        fingerprint = self._corpus().fingerprint
        return None if fingerprint is None else f"{fingerprint} {self.databases.fingerprint}"

    def messages(self, example: SchemaQuestion) -> list[dict[str, str]]:
        return example.messages

    def question(self, example: SchemaQuestion) -> str:
        return example.question

    def reference(self, example: SchemaQuestion) -> str:
        return example.sql

    def answer(self, example: SchemaQuestion, completion: str) -> str:
        return statement_of(completion)

    def score(self, example: SchemaQuestion, completion: str) -> Score:
        return score(self.databases.connection(example.database), example.sql, completion)

    def reference_error(self, example: SchemaQuestion) -> str | None:
        return reference_error(self.databases.connection(example.database), example.sql)

    def documents(self) -> Iterator[str]:
        return (question.text for question in self.read())

    def baseline(self, examples: Sequence[SchemaQuestion]) -> list[str]:
        """Counts the rows of the first table whose name is in the question, else of the database's first table."""
        return [self._count(example) for example in examples]

    def _count(self, example: SchemaQuestion) -> str:
        if example.database not in self._tables:
            path = self.databases.path(example.database)
            self._tables[example.database] = [name.lower() for name, _ in tables_of(path)]
        tables = self._tables[example.database]
        words = " ".join(re.findall(r"\w+", example.question.lower()))
        named = (table for table in tables if table.replace("_", " ").rstrip("s") in words)
        return f"select count(*) from {quote(next(named, tables[0]))}"

    def _note(self, missing: Counter[str], failed: Sequence[str]) -> None:
        if missing:
            named = [f"{name} ({number:,})" for name, number in missing.most_common(8)]
            more = ", …" if len(missing) > len(named) else ""
            self.notes.append(f"{missing.total():,} questions left out: no such database: {', '.join(named)}{more}")
        if failed:
            more = "; …" if len(failed) > NAMED else ""
            self.notes.append(
                f"{len(failed):,} questions left out: their own SQL fails: {'; '.join(failed[:NAMED])}{more}"
            )


def score(connection: Connection, reference: str, completion: str) -> Score:
    """Runs the SQL of a completion beside the reference.

    `execution_accuracy` is 1 where both give the same answer (`judge.execution_match`), or, where the reference gives
    an empty answer, both are the same statement in canonical form. `exact_match` is 1 where they are equal as texts.
    """
    sql = statement_of(completion)
    verdict = execution_match(connection, reference, sql)
    if verdict.judged and not verdict.correct and plain(connection, sql) == reference:
        verdict = Verdict(True, "the same statement in other words")
    metrics = {"execution_accuracy": float(verdict.correct), "exact_match": float(sql == reference)}
    return Score(metrics, verdict.detail, verdict.judged)
