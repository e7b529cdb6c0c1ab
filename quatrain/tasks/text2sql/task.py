"""The text-to-SQL task: generated questions to one database, or the questions of a source to many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.data.corpus import DataParts
from quatrain.data.settings import DataSettings
from quatrain.tasks.task import GenerateSettings, Score, Task
from quatrain.tasks.text2sql.databases import schema_text, tables_of
from quatrain.tasks.text2sql.dataset import Text2SQL
from quatrain.tasks.text2sql.examples import Example, messages
from quatrain.tasks.text2sql.judge import reference_error
from quatrain.tasks.text2sql.naming import named
from quatrain.tasks.text2sql.questions import SQLQuestions, databases_of, prompt, score
from quatrain.tasks.text2sql.sandbox import Connection, Result
from quatrain.tasks.text2sql.shop import create_shop
from quatrain.tasks.text2sql.statements import statement_of

SHOP = "shop"
"""The value of `data.database` for the generated shop."""
INVENTED_VALUES = 0.5
"""Share of training questions with invented values, which a model must copy and cannot memorize."""


class GeneratedSQL(Task[Example]):
    """Questions generated for one database (`Text2SQL`): train, practice, development, and three held-out sets."""

    name = "sql"
    baseline_name = "the statement asked most often in training"
    reference_name = "SQL"

    def __init__(self, path: Path, dataset: Text2SQL):
        super().__init__()
        self.path, self.dataset = path, dataset
        self.splits = {"train": dataset.train, "practice": dataset.practice, "development": dataset.development}
        self.held_out = {**dataset.held_out}
        self.notes = dataset.notes
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The read-only connection, opened at the first use."""
        if self._connection is None:
            self._connection = Connection(self.path)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def messages(self, example: Example) -> list[dict[str, str]]:
        return messages(example)

    def text_prompt(self, example: Example) -> str:
        return f"Question: {example.question}\nSQL:"

    def answer(self, completion: str) -> str:
        return statement_of(completion)

    def score(self, example: Example, completion: str) -> Score:
        return score(self.connection, example.sql, completion)

    def reference_error(self, example: Example) -> str | None:
        return reference_error(self.connection, example.sql)

    def baseline(self, examples: Sequence[Example]) -> list[str]:
        common = Counter(example.sql for example in self.splits["train"]).most_common(1)
        return [common[0][0] if common else ""] * len(examples)

    def documents(self) -> Iterator[str]:
        return self.dataset.documents()


class OpenDatabase:
    """A database in a conversation: the prompt, and the sandbox that runs the model's SQL."""

    def __init__(self, connection: Connection, show_schema: bool):
        self.connection = connection
        self.schema = schema_text(connection.path) if show_schema else None

    def prompt(self, question: str) -> str:
        """The question, after the schema if the model gets it."""
        return question if self.schema is None else prompt(self.schema, question)

    def statement(self, completion: str) -> str:
        """The SQL in a completion."""
        return statement_of(completion)

    def run(self, statement: str) -> Result:
        """Run a statement in the sandbox."""
        return self.connection.execute(statement)

    def tables(self) -> list[tuple[str, list[str]]]:
        """Tables and columns with control characters escaped."""
        tables = tables_of(self.connection.path)
        return [(named(table), [named(column) for column in columns]) for table, columns in tables]


class Text2SQLSpec:
    """Opens the text-to-SQL task (`quatrain.tasks.task.TaskSpec`)."""

    name = "sql"
    keys = ("databases",)

    def open(self, data: DataParts, part: str) -> SQLQuestions:
        """The questions of a part of the data to the databases that `data.databases` or the catalog names."""
        databases = databases_of(str(data.name(part)), data.settings.databases)
        return SQLQuestions(databases, data.corpus(part, format=self.name))

    def generates(self, data: DataSettings) -> bool:
        """Whether the data is a database."""
        return data.database is not None

    def generate(self, data: DataSettings, settings: GenerateSettings) -> GeneratedSQL:
        """The questions to a database; creates the shop in `settings.folder` where it is missing."""
        path = database_path(data, settings)
        dataset = Text2SQL.build(
            path,
            seed=settings.seed,
            examples=data.examples,
            held_out=settings.held_out,
            made_up=INVENTED_VALUES,
        )
        return GeneratedSQL(path, dataset)

    @contextmanager
    def database(self, path: Path, *, rows: int, size: int, show_schema: bool) -> Iterator[OpenDatabase]:
        """Open a database for a conversation. Raises InputError for a file that is no database."""
        if rows < 1:
            raise InputError(f"--rows {rows}: must be at least 1")
        with Connection(path, rows=rows, size=size) as connection:
            yield OpenDatabase(connection, show_schema)


def database_path(data: DataSettings, settings: GenerateSettings) -> Path:
    """The user's SQLite file, or the shop's in the run folder, created on the first call."""
    if data.database != SHOP:
        return user_path(str(data.database), "data.database")
    path = settings.folder / "shop.sqlite"
    if not path.exists():
        create_shop(path, seed=settings.seed)
    return path


SPEC = Text2SQLSpec()
