"""Questions to many databases: the records of a source as chats that show the schema, and as questions to be judged.

    with Databases("spider-databases") as databases:
        reader = Questions(databases)
        for asked in reader.read(Corpus("spider-dev", format="sql")):
            print(asked.messages[0]["content"], asked.sql)
        print(reader.notes)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from quatrain.core.errors import InputError
from quatrain.core.reading import shown
from quatrain.data import catalog
from quatrain.data.corpus import Corpus
from quatrain.data.huggingface import is_dataset
from quatrain.data.records import SQLQuestion
from quatrain.data.sources import parts
from quatrain.generation.engine import Completion, Engine, SamplingParams
from quatrain.tasks.text2sql.databases import Databases
from quatrain.tasks.text2sql.judge import Verdict, execution_match, is_empty
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.statements import plain, statement_of

NAMED = 3
"""Places of questions left out that are named; the others are counted."""

SHOWN = 12
"""Samples of each set that are kept, evenly spread."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to a database and the SQL that answers it, as it is taught."""

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
        """Question and answer as a text, without the schema: what one reads before one is asked."""
        return f"Question: {self.question}\nSQL: {self.sql}"


def prompt(schema: str, question: str) -> str:
    """What a model reads of a database that it has not seen: how to answer, what there is, and the question."""
    return f"Answer with one SQLite statement.\n{schema}\nQuestion: {question}"


def asks_sql(source: str | None, *, format: str | None = None, databases: str | None = None) -> bool:
    """Whether a source holds questions with SQL: it is said to, databases are named, or its columns say so."""
    if source is None or format not in (None, "sql"):
        return False
    if format == "sql" or databases is not None:
        return True
    entries = [catalog.find(name) for name in parts(source)]
    if all(entries):
        return all(entry is not None and entry.format == "sql" for entry in entries)
    try:
        return not is_dataset(source) and Corpus(source).format == "sql"
    except InputError:
        return False


def databases_of(source: str, databases: str | None = None) -> Databases:
    """The databases of a source's questions: those that are named, or those that the catalog has for it.

    Raises InputError where neither says which, or they are not there.
    """
    if databases is None:
        found = [entry.databases for name in parts(source) if (entry := catalog.find(name)) and entry.databases]
        if len(found) < len(parts(source)):
            raise InputError(
                f"{source}: questions with SQL are asked of databases, and none are named. Name a folder, a .zip or a "
                "file of SQLite databases (data.databases; --databases for quatrain evaluate)"
            )
        databases = " + ".join(dict.fromkeys(found))
    return Databases(databases)


class Questions:
    """Reads the questions that can be answered; what is left out, and why, stands in `notes` in the end."""

    def __init__(self, databases: Databases):
        self.databases = databases
        self.notes: list[str] = []

    def read(self, corpus: Corpus) -> Generator[Asked, None, None]:
        """The questions of a corpus in order. Those without their database, or whose own SQL fails, are left out.

        `notes` say so once the iterator ends or is closed. Raises InputError where none is left.
        """
        missing: Counter[str] = Counter()
        failed: list[str] = []
        count = 0
        empty = 0
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
                yield Asked(record.question, schema, sql, record.database, place)
        finally:
            self._note(missing, failed)
            if empty and empty == count:
                self.notes.append(
                    f"none of the {count:,} questions has an answer in {self.databases.source} (no rows, NULL or 0): "
                    "only the same statement counts as right; are these the databases that the questions are about?"
                )
        if not count:
            raise InputError(f"No question of {corpus.source} can be asked of {self.databases.source}", self.notes)

    def faults(self, corpus: Corpus) -> Iterator[tuple[str, str, str]]:
        """Place, field and reason of each question that cannot be asked: no such database, or SQL that fails on it."""
        for place, found in corpus.placed():
            record = cast(SQLQuestion, found)
            if record.database not in self.databases:
                name = shown(record.database) if record.database else "(without a name)"
                text = f"there is no database {name} in {self.databases.source}; add it, or name another"
                yield place, "database", text
                continue
            error = self.databases.connection(record.database).execute(record.query).error
            if error is not None:
                yield place, "query", f"its own SQL fails on the database {record.database}: {error}; mend it"

    def take(self, corpus: Corpus, count: int | None) -> list[Asked]:
        """The first `count` questions, or all; `notes` are complete then."""
        with closing(self.read(corpus)) as questions:
            return list(islice(questions, count))

    def _note(self, missing: Counter[str], failed: Sequence[str]) -> None:
        if missing:
            named = [f"{name} ({number:,})" for name, number in missing.most_common(8)]
            more = ", …" if len(missing) > len(named) else ""
            self.notes.append(
                f"{missing.total():,} questions left out, whose database is not there: {', '.join(named)}{more}"
            )
        if failed:
            more = "; …" if len(failed) > NAMED else ""
            self.notes.append(
                f"{len(failed):,} questions left out, whose own SQL fails: {'; '.join(failed[:NAMED])}{more}"
            )


def ask(engine: Engine, asked: Sequence[Asked], params: SamplingParams) -> tuple[list[Completion], list[str]]:
    """The model's answer to each question; nothing, and a note, for one that is longer than the model reads."""
    prompts = [engine.render(each.messages[:-1]) for each in asked]
    limit = engine.model.config.max_position_embeddings
    fits = [len(ids) < limit for ids in prompts]
    said = iter(engine.generate([ids for ids, fit in zip(prompts, fits, strict=True) if fit], params))
    answers = [next(said) if fit else Completion("", [], "length", []) for fit in fits]
    long = fits.count(False)
    notes = [f"{long:,} questions are longer than the {limit} tokens that the model reads, and count as wrong"]
    return answers, notes if long else []


@dataclass
class Judged:
    """Scores and samples of a set of questions; `notes` say which of them could not be judged."""

    scores: dict[str, float]
    samples: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def judge(
    name: str, asked: Sequence[Asked], answers: Sequence[str], connect: Callable[[str], Connection]
) -> Judged:
    """Runs every answer beside the question's own SQL, on the connection to its database.

    `execution_accuracy`: the share that gives what the question's own statement gives (`judge.execution_match`).
    `exact_match`: the share that is that statement letter by letter. The samples are the same ones each time.
    A question whose own statement fails is not counted; raises InputError where that is true of all.
    """
    said = [statement_of(answer) for answer in answers]
    pairs = list(zip(asked, said, strict=True))
    judged = [(pair, _verdict(connect(pair[0].database), pair[0].sql, pair[1])) for pair in pairs]
    failed = [(each.sql, verdict.detail) for (each, _), verdict in judged if not verdict.judged]
    if pairs and len(failed) == len(pairs):
        raise InputError(
            f"{name}: nothing can be judged, for none of the {len(pairs):,} questions' own statements runs",
            [f"{sql}: {detail}" for sql, detail in failed[:NAMED]],
        )
    notes = []
    if failed:
        sql, detail = failed[0]
        notes.append(f"{len(failed):,} questions are not counted, whose own SQL fails, such as {sql}: {detail}")
    pairs = [pair for pair, verdict in judged if verdict.judged]
    verdicts = [verdict for _, verdict in judged if verdict.judged]
    scores = {
        "execution_accuracy": sum(verdict.correct for verdict in verdicts) / max(1, len(pairs)),
        "exact_match": sum(sql == each.sql for each, sql in pairs) / max(1, len(pairs)),
        "count": len(pairs),
    }
    samples = [
        {
            "set": name,
            "prompt": each.question,
            "reference": each.sql,
            "output": sql,
            "correct": verdict.correct,
            "detail": verdict.detail,
        }
        for (each, sql), verdict in zip(pairs, verdicts, strict=True)
    ]
    return Judged(scores, samples[:: max(1, len(samples) // SHOWN)][:SHOWN], notes)


def _verdict(connection: Connection, gold: str, said: str) -> Verdict:
    """Whether a statement is right; where the answer says nothing, one that differs in its writing alone is."""
    verdict = execution_match(connection, gold, said)
    if verdict.judged and not verdict.correct and plain(connection, said) == gold:
        return Verdict(True, "the same statement in other words")
    return verdict
