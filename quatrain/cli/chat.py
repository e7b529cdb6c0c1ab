"""`quatrain chat`: a conversation with a model, or questions to a database that a model answers with SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.tasks.task import Database

MOST_COLUMNS = 40
"""Columns of an answer, or of a table, that are shown."""

MOST_TABLES = 100

ANSWER_BYTES = 4_000_000
"""The most bytes of one answer."""

COMMANDS = ("/help", "/quit", "/reset", "/schema")


def chat(
    model: str,
    *,
    db: Path | None = None,
    schema: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float | None = None,
    seed: int | None = None,
    rows: int = 20,
    adapter: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Talk to a model, or question a SQLite database in English. Reads a line at a time; /help shows more.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or an id of the Hugging Face hub.
    db
        A SQLite file: the model answers with SQL, which is run read-only, and its rows are shown.
    schema
        Show the model the tables of the database before each question. One that has learned this database alone
        does not need it; a model of many databases does.
    max_new_tokens
        The most tokens of one answer.
    temperature
        0 always takes the likeliest token; 1 samples from the model's distribution.
    top_p
        Sample from the likeliest tokens that together have this probability.
    seed
        Makes sampling repeatable.
    rows
        The most rows to show of one answer.
    adapter
        The adapter to use, for a model with several.
    json_lines
        Write one JSON object per answer, for programs.
    """
    if schema and db is None:
        from quatrain.core.errors import InputError

        raise InputError("--schema: there is no database whose tables could be shown; give one with --db FILE")
    with contextlib.ExitStack() as stack:
        database = None
        if db is not None:
            from quatrain.tasks.task import spec_of_database

            opened = spec_of_database().database(db, rows=rows, size=ANSWER_BYTES, show_schema=schema)
            database = stack.enter_context(opened)  # a file that is no database is refused before the model is loaded
        from quatrain.generation.engine import Engine, SamplingParams

        params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        engine = Engine.load(model, adapter=adapter)
        # An unusable chat template is one error before the first line, not one at each line.
        engine.check_chat(adapter)
        talk: Talk
        if database is not None:
            talk = DatabaseTalk(engine, params, database, json_lines)
        else:
            talk = PlainTalk(engine, params, json_lines)
        return converse(talk)


class Talk(Protocol):
    """One kind of conversation."""

    prompt: str

    def answer(self, question: str) -> None:
        """Answer a line from the user."""

    def reset(self) -> None:
        """Start a new conversation."""

    def schema(self) -> str:
        """What can be asked about, as text."""


def converse(talk: Talk) -> int:
    """Read and answer lines until the input ends or the user leaves. An error does not end the conversation."""
    from quatrain.cli.output import show, show_error
    from quatrain.cli.process import OutputError, input_is_terminal
    from quatrain.core.errors import QuatrainError

    if input_is_terminal():
        show("Ask away; /help shows what else there is, /quit or Ctrl-D leaves.")
    for line in _lines(talk.prompt):
        question = line.strip()
        if not question:
            continue
        if question.startswith("/"):
            if not _command(question, talk):
                break
            continue
        try:
            talk.answer(question)
        except OutputError:
            raise
        except QuatrainError as error:
            show_error(str(error))
        except KeyboardInterrupt:
            show("\n(stopped)")
    return 0


def _lines(prompt: str) -> Iterator[str]:
    """Lines of a terminal with a prompt and a history, or of a pipe as they are."""
    from quatrain.cli.output import show
    from quatrain.cli.process import input_is_terminal, input_lines

    if not input_is_terminal():
        yield from input_lines()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() its history and editing)
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            show()
            return


def _command(text: str, talk: Talk) -> bool:
    """Do a command; False leaves the conversation."""
    from quatrain.cli.output import show
    from quatrain.core.settings import did_you_mean

    word = text.split()[0]
    if word in ("/quit", "/exit"):
        return False
    if word == "/reset":
        talk.reset()
        show("(a new conversation)")
    elif word == "/schema":
        show(talk.schema())
    elif word == "/help":
        show("/schema  what can be asked about\n/reset   start a new conversation\n/quit    leave (also Ctrl-D)")
    else:
        show(f"{word}: no such command{did_you_mean(word, COMMANDS)} (/help lists them)")
    return True


class PlainTalk:
    """A conversation in turns; the oldest turns are forgotten when the context is full."""

    prompt = "you> "

    def __init__(self, engine: Engine, params: SamplingParams, json_lines: bool):
        self.engine, self.params, self.json_lines = engine, params, json_lines
        self.messages: list[dict[str, Any]] = []
        self.noted = False

    def answer(self, question: str) -> None:
        from quatrain.cli.output import shortened, show_error, show_json, show_text

        messages = self._fitting([*self.messages, {"role": "user", "content": question}])
        text = ""
        note = None if self.noted else shortened(self.engine, self.engine.render(messages), self.params)
        if note is not None:
            self.noted = True
            show_error(note)
        for piece in self.engine.stream_chat(messages, self.params):
            text += piece
            if not self.json_lines:
                show_text(piece, end="")
        if self.json_lines:
            show_json({"question": question, "answer": text})
        else:
            show_text("")
        self.messages = [*messages, {"role": "assistant", "content": text}]

    def _fitting(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The last turns that leave room for an answer, or the last one alone."""
        longest: int = self.engine.model.config.max_position_embeddings
        room = max(longest - self.params.max_new_tokens, longest // 2)
        while len(messages) > 1 and len(self.engine.render(messages)) > room:
            messages = messages[2:]
        return messages

    def reset(self) -> None:
        self.messages = []

    def schema(self) -> str:
        return "There is no database in this conversation; give one with --db FILE."


class DatabaseTalk:
    """Each question stands alone: the model writes SQL, the sandbox runs it, the rows are shown."""

    prompt = "question> "

    def __init__(self, engine: Engine, params: SamplingParams, database: Database, json_lines: bool):
        self.engine, self.params, self.database, self.json_lines = engine, params, database, json_lines

    def answer(self, question: str) -> None:
        from quatrain.cli.output import shorten, show, show_error, show_json, show_table
        from quatrain.core.wording import printable

        turn = {"role": "user", "content": self.database.prompt(question)}
        (completion,) = self.engine.chat([[turn]], self.params)
        if completion.finish_reason == "length" and 0 < len(completion.ids) < self.params.max_new_tokens:
            show_error(
                f"Note: the answer was cut after {len(completion.ids):,} tokens, where the model's context is full "
                f"(max_new_tokens is {self.params.max_new_tokens:,})."
            )
        sql = self.database.statement(completion.text)
        result = self.database.run(sql)
        if self.json_lines:
            table = {"columns": result.columns, "rows": result.rows, "truncated": result.truncated}
            show_json({"question": question, "sql": sql, "error": result.error} | table)
            return
        show(sql or "(the model wrote nothing)")
        if result.error is not None:
            show(f"This SQL failed: {result.error}. Try to put the question in other words.\n")
            return
        if result.rows:
            columns = [printable(str(shorten(name))) for name in result.columns[:MOST_COLUMNS]]
            show_table(columns, [[_cell(cell) for cell in row[:MOST_COLUMNS]] for row in result.rows])
            if len(result.columns) > MOST_COLUMNS:
                show(f"({MOST_COLUMNS} of {len(result.columns):,} columns)")
        more = f" (the first {len(result.rows)}; there are more)" if result.truncated else ""
        count = "no rows" if not result.rows else "1 row" if len(result.rows) == 1 else f"{len(result.rows)} rows"
        show(f"{count}{more}, {result.seconds * 1000:.1f} ms\n")

    def reset(self) -> None:
        """Nothing to forget: questions do not depend on each other."""

    def schema(self) -> str:
        tables = self.database.tables()
        lines = [_listed(name, columns) for name, columns in tables[:MOST_TABLES]]
        if len(tables) > MOST_TABLES:
            lines.append(f"… and {len(tables) - MOST_TABLES:,} more tables")
        return "\n".join(lines) or "This database has no tables."


def _cell(value: object) -> object:
    """A cell on one line, no longer than a table allows, with control characters as text."""
    from quatrain.cli.output import shorten
    from quatrain.core.wording import printable

    short = shorten(value)
    return printable(short) if isinstance(short, str) else short


def _listed(table: str, columns: list[str]) -> str:
    more = f", … and {len(columns) - MOST_COLUMNS:,} more" if len(columns) > MOST_COLUMNS else ""
    return f"{table}: {', '.join(columns[:MOST_COLUMNS])}{more}"
