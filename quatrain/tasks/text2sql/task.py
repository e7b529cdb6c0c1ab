"""The text-to-SQL task: generated questions to one database, or the questions of a source to many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.data.corpus import DataParts
from quatrain.data.settings import DataSettings
from quatrain.tasks.task import DatabaseAnswer, Generate, GenerateSettings, Score, Task
from quatrain.tasks.text2sql.answering import SUGGESTIONS, Answerer, probability
from quatrain.tasks.text2sql.databases import schema_text, tables_of
from quatrain.tasks.text2sql.dataset import QUESTION, Text2SQL
from quatrain.tasks.text2sql.examples import SQLExample
from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.linking import Linker, stem
from quatrain.tasks.text2sql.lookup import DatabaseAnswers, database_answers
from quatrain.tasks.text2sql.naming import named
from quatrain.tasks.text2sql.people import PEOPLE, last_word, sets_for, words
from quatrain.tasks.text2sql.questions import SQLQuestions, databases_of, prompt, score
from quatrain.tasks.text2sql.sandbox import Connection, Result
from quatrain.tasks.text2sql.shop import create_shop
from quatrain.tasks.text2sql.statements import statement_of

if TYPE_CHECKING:
    from quatrain.generation.engine import Completion

SHOP = "shop"
"""The value of `data.database` for the generated shop."""
GENERATED = "generated: "
"""Begins the names of held-out sets whose questions come from the generator that also writes the training questions."""
INVENTED_VALUES = 0.1
"""Share of training questions with invented values, which a model must copy and cannot memorize."""
REFUSED = "This database does not seem to hold an answer to that."
"""Why a question is refused that the model itself refuses."""


class GeneratedSQL(Task[SQLExample]):
    """Questions generated for one database (`Text2SQL`), and held-out sets: questions by people first, if any.

    The splits train, practice and development, and the documents, hold generated questions only. So do the held-out
    sets named "generated: ...". Of "questions by people" no sample is shown, so that nobody tunes a model to them.
    """

    name = "sql"
    baseline_name = "the statement asked most often in training"
    reference_name = "SQL"

    def __init__(
        self,
        path: Path,
        dataset: Text2SQL,
        questions: str | None = None,
        limit: int | None = None,
        *,
        answers: bool = False,
    ):
        """`questions` is a file of questions by people, of which at most `limit` are scored.

        With `answers` the documents hold questions with their SQL.
        """
        self.answers = answers
        super().__init__()
        self.path, self.dataset = path, dataset
        self._connection: Connection | None = None
        self._answerer: Answerer | None = None
        people, notes = sets_for(path, self.connection, questions, limit)
        asked = [each.question for examples in people.values() for each in examples]
        read = [dataset.linker.link(question).text for question in asked]
        self._asked = {words(text) for text in (*asked, *read)} - {""}
        self._last = {text.rpartition(" ")[2] for text in self._asked}
        splits = {"train": dataset.train, "practice": dataset.practice, "development": dataset.development}
        self.splits = {
            name: [each for each in split if self._is_new(each.question) and self._is_new(each.prompt)]
            for name, split in splits.items()
        }
        self.held_out = {**people, **{GENERATED + name: examples for name, examples in dataset.held_out.items()}}
        self.hidden = frozenset({PEOPLE})
        self.notes = [*dataset.notes, *notes]

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

    @property
    def answerer(self) -> Answerer:
        """Turns questions into prompts, and completions into statements."""
        if self._answerer is None or self._answerer.connection is not self.connection:
            self._answerer = Answerer(self.dataset.linker, self.connection)
        return self._answerer

    def messages(self, example: SQLExample) -> list[dict[str, str]]:
        prompt = getattr(example, "prompt", "") or self.answerer.prompt(example.question)
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": example.sql}]

    def question(self, example: SQLExample) -> str:
        return example.question

    def complete(
        self, examples: Sequence[SQLExample], generate: Callable[[Sequence[int], int], list[Completion]]
    ) -> list[Completion]:
        return self.answerer.complete([example.question for example in examples], generate)

    def kind(self, example: SQLExample) -> str:
        return example.kind

    def confidence(self, completion: Completion) -> float | None:
        """The model's probability of the whole statement; 0 for one that did not end."""
        return probability(completion)

    def text_prompt(self, example: SQLExample) -> str:
        return f"{self.messages(example)[0]['content']}\n"

    def answer(self, example: SQLExample, completion: str) -> str:
        return self.answerer.statement(example.question, completion)

    def score(self, example: SQLExample, completion: str) -> Score:
        return example.score(self.connection, self.answer(example, completion))

    def reference_error(self, example: SQLExample) -> str | None:
        return example.error(self.connection)

    def baseline(self, examples: Sequence[SQLExample]) -> list[str]:
        common = Counter(example.sql for example in self.splits["train"]).most_common(1)
        return [common[0][0] if common else ""] * len(examples)

    def documents(self) -> Iterator[str]:
        return filter(self._is_new, self.dataset.documents(answers=self.answers))

    def _is_new(self, text: str) -> bool:
        """Whether no person asks this question, as it is written or as a model reads it, whatever its values.

        The generator may write one by chance; it is then left out.
        """
        if text.startswith(QUESTION):
            text = text.removeprefix(QUESTION).partition("\n")[0]
        question = text.partition(" | ")[0]
        return last_word(question) not in self._last or words(question) not in self._asked


class OpenDatabase:
    """A database in a conversation: the prompt, and the sandbox that runs the model's SQL.

    A model of this database alone reads the question with its values named; one of many databases reads the schema.
    """

    def __init__(self, connection: Connection, show_schema: bool):
        self.connection = connection
        self.schema = schema_text(connection.path) if show_schema else None
        self.answerer = None if show_schema else Answerer(Linker.of(introspect(connection.path)), connection)
        self._suggestions: list[str] | None = None

    def answer(self, question: str, generate: Generate) -> DatabaseAnswer:
        """The model's statement and its rows, or a refusal with its reason."""
        if self.answerer is None:
            read = prompt(str(self.schema), question)
            (completion,) = generate([read], 1)
        else:
            if reason := self.answerer.objection(question):
                return DatabaseAnswer(reason=reason)
            read = self.answerer.prompt(question)
            (completion,) = self.answerer.complete([question], lambda _, candidates: generate([read], candidates))
        statement, confidence = self.statement(question, completion.text), probability(completion)
        if not statement:
            return DatabaseAnswer("", None, read, completion, confidence, REFUSED)
        return DatabaseAnswer(statement, self.run(statement), read, completion, confidence)

    def suggestions(self, question: str, generate: Generate) -> list[str]:
        """Up to three questions that the model surely answers, found once; none for a model of many databases."""
        if self.answerer is None:
            return []
        if self._suggestions is None:
            self._suggestions = list(self.answerer.suggestions(generate))
        asked = {stem(word) for word in question.split()}
        near = [-len(asked & {stem(word.strip("?")) for word in each.split()}) for each in self._suggestions]
        ranked = sorted(zip(near, range(len(near)), self._suggestions, strict=True))
        return [suggestion for *_, suggestion in ranked[:SUGGESTIONS]]

    def statement(self, question: str, completion: str) -> str:
        """The SQL in a completion; "" where the model refuses."""
        return statement_of(completion) if self.answerer is None else self.answerer.statement(question, completion)

    def run(self, statement: str) -> Result:
        """Run a statement in the sandbox."""
        return self.connection.execute(statement)

    def score(self, reference: str, completion: str) -> Score:
        """Both statements are run and their answers compared."""
        return score(self.connection, reference, completion)

    def tables(self) -> list[tuple[str, list[str]]]:
        """Tables and columns with control characters escaped."""
        tables = tables_of(self.connection.path)
        return [(named(table), [named(column) for column in columns]) for table, columns in tables]


class Text2SQLSpec:
    """Opens the text-to-SQL task (`quatrain.tasks.task.TaskSpec`)."""

    name = "sql"
    keys = ("databases",)
    tasks = (DatabaseAnswers.name,)

    def open(self, data: DataParts, part: str) -> SQLQuestions:
        """The questions of a part of the data to the databases that `data.databases` or the catalog names."""
        databases = databases_of(str(data.name(part)), data.settings.databases)
        return SQLQuestions(databases, data.corpus(part, format=self.name))

    def generates(self, data: DataSettings) -> bool:
        """Whether the data is a database, or values to look up in one."""
        return data.database is not None or data.task in self.tasks

    def generate(self, data: DataSettings, settings: GenerateSettings) -> Task[Any]:
        """The questions to a database; creates the shop in `settings.folder` where it is missing."""
        if data.task is not None:
            return database_answers(data, settings)
        path = database_path(data, settings)
        dataset = Text2SQL.build(
            path,
            seed=settings.seed,
            examples=data.examples,
            held_out=settings.held_out,
            made_up=INVENTED_VALUES,
            reporter=settings.reporter,
        )
        return GeneratedSQL(path, dataset, settings.questions, settings.people, answers=data.answers)

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
        create_shop(path)
    return path


SPEC = Text2SQLSpec()
