"""`quatrain chat`: a conversation with a model, or questions to a database that a model answers with SQL."""

from __future__ import annotations

import contextlib
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL, TextArgument
from quatrain.cli.generate import show_speed
from quatrain.cli.sampling import MODEL_DEFAULTS, SAMPLING_DEFAULTS, ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from quatrain.generation.engine import Completion, Engine, SamplingParams
    from quatrain.tasks.task import Database, DatabaseAnswer

MAX_NEW_TOKENS = 256
"""The most tokens of an answer where neither an option nor the model's settings say it."""

QUOTES = '"""'
"""A line of these begins and ends a question of several lines."""

HISTORY = 1000
"""Lines of the terminal's history that are kept."""

NOT_SETTABLE = frozenset({"json_schema", "grammar", "choice"})
"""Options that name files or several texts, which are given at the start."""

MOST_COLUMNS = 40
"""Columns of an answer, or of a table, that are shown."""

MOST_TABLES = 100


@dataclass(frozen=True)
class Command:
    """A command of a conversation: its argument, what it does in words, and the function that gets the argument."""

    argument: str
    effect: str
    run: Callable[[str], None]


def chat(
    model: Annotated[str, MODEL],
    *,
    db: Path | None = None,
    schema: bool = False,
    rows: int = 20,
    system: TextArgument = "",
    explain: bool = False,
    sampling: SamplingOptions = SAMPLING_DEFAULTS,
    loading: ModelOptions = MODEL_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Talk to a model, or question a SQLite database in English.

    Reads a line at a time; /help lists the commands: settings, several lines, save and load. Ctrl-C stops an answer.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or an id of the Hugging Face hub.
    db
        A SQLite file: the model answers with SQL, which is run read-only, and its rows are shown.
    schema
        Show the model the tables of the database before each question. One that has learned this database alone
        does not need it; a model of many databases does.
    rows
        The most rows to show of one answer.
    system
        Instructions for the model, before the first question.
    explain
        Show the probability of each token, and the most likely alternatives.
    json_lines
        Write one JSON object per answer, for programs.
    """
    if schema and db is None:
        from quatrain.core.errors import InputError

        raise InputError("--schema: there is no database whose tables could be shown; give one with --db FILE")
    with contextlib.ExitStack() as stack:
        database = None
        if db is not None:
            from quatrain.tasks.task import ANSWER_BYTES, spec_of_database

            opened = spec_of_database().database(db, rows=rows, size=ANSWER_BYTES, show_schema=schema)
            database = stack.enter_context(opened)  # a file that is no database is refused before the model is loaded
        engine = loading.load(model)
        # An unusable chat template is one error before the first line, not one at each line.
        engine.check_chat(loading.adapter)
        if database is not None:
            params = sampling.params(engine, max_new_tokens=MAX_NEW_TOKENS)
            return converse(DatabaseTalk(engine, params, database, json_lines))
        talk = PlainTalk(engine, sampling, json_lines=json_lines, adapter=loading.adapter, system=system)
        if explain:
            talk.commands["/explain"].run("")
        return converse(talk)


class Talk(Protocol):
    """One kind of conversation."""

    prompt: str

    @property
    def commands(self) -> Mapping[str, Command]:
        """What can be typed beside questions, by name."""

    def greet(self) -> None:
        """Begin the conversation at a terminal."""

    def answer(self, question: str) -> None:
        """Answer what the user typed."""


def converse(talk: Talk) -> int:
    """Read and answer until the input ends or the user leaves. An error does not end the conversation."""
    from quatrain.cli.output import show, show_error
    from quatrain.cli.process import OutputError, input_is_terminal
    from quatrain.core.errors import QuatrainError

    if input_is_terminal():
        show("Ask away; /help shows what else there is, /quit or Ctrl-D leaves.")
        talk.greet()
    for question in _questions(talk.prompt):
        try:
            if question.startswith("/"):
                if not _command(question, talk):
                    break
            else:
                talk.answer(question)
        except OutputError:
            raise
        except QuatrainError as error:
            show_error(str(error))
        except KeyboardInterrupt:
            show("\n(stopped)")
    return 0


def _questions(prompt: str) -> Iterator[str]:
    """What the user types: a line, or the lines between two lines of three quotation marks."""
    lines: list[str] | None = None
    prompts = [prompt]
    for line in _lines(prompts):
        mark = line.strip() == QUOTES
        if lines is not None and not mark:
            lines.append(line.rstrip("\n"))
            continue
        if mark and lines is None:
            lines, prompts[0] = [], "... "
            continue
        prompts[0] = prompt
        text = line.strip() if lines is None else "\n".join(lines).strip("\n")
        lines = None
        if text:
            yield text
    if lines:
        yield "\n".join(lines).strip("\n")


def _lines(prompt: list[str]) -> Iterator[str]:
    """Lines of a terminal with a prompt (the list's item) and a history, or of a pipe. Ctrl-C drops the line."""
    from quatrain.cli.output import show
    from quatrain.cli.process import input_is_terminal, input_lines

    if not input_is_terminal():
        yield from input_lines()
        return
    with _history():
        while True:
            try:
                yield input(prompt[0])
            except EOFError:
                show()
                return
            except KeyboardInterrupt:
                show("\n(Ctrl-D or /quit leaves)")


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Editing of lines, and a history of them that is kept in the cache folder, where the system has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    from quatrain.core.errors import QuatrainError
    from quatrain.data.catalog import cache_folder

    path: Path | None = None
    with contextlib.suppress(QuatrainError, OSError):
        path = cache_folder() / "chat_history"
        readline.read_history_file(path)
    readline.set_history_length(HISTORY)
    readline.set_auto_history(True)
    try:
        yield
    finally:
        if path is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(path)


def _command(text: str, talk: Talk) -> bool:
    """Do a command; False leaves the conversation."""
    from quatrain.cli.output import show
    from quatrain.core.settings import did_you_mean

    word, _, rest = text.partition(" ")
    if word in ("/quit", "/exit"):
        return False
    commands = {**talk.commands, "/help": Command("", "this list", lambda _: _help(talk))}
    if word in commands:
        commands[word].run(rest.strip())
    else:
        names = [*sorted(commands), "/quit"]
        show(f"{word}: no such command{did_you_mean(word, names)} (/help lists them)")
    return True


def _help(talk: Talk) -> None:
    from quatrain.cli.output import show, show_table

    rows = [[f"{name} {command.argument}".strip(), command.effect] for name, command in talk.commands.items()]
    rows += [[QUOTES, "begin and end a question of several lines"], ["/quit", "leave (also Ctrl-D)"]]
    show_table(["type", "to"], rows)
    show("Ctrl-C stops an answer.")


class PlainTalk:
    """A conversation in turns; the oldest turns are dropped when the context is full."""

    prompt = "you> "

    def __init__(self, engine: Engine, options: SamplingOptions, *, json_lines: bool, adapter: str | None, system: str):
        self.engine, self.options, self.json_lines, self.adapter = engine, options, json_lines, adapter
        self.explained, self.noted = False, False
        self.params = self._params(options)
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        """The pictures that the next question is about."""
        self.commands: dict[str, Command] = {
            "/system": Command("TEXT", "set the instructions of the model, or remove them", self._set_system),
            "/set": Command("NAME VALUE", "change a setting, such as temperature 0.7", self._set),
            "/settings": Command("", "show the settings", self._settings),
            "/explain": Command("", "show the probability of each token, or no longer", self._explain),
            "/image": Command("FILE", "show the model a picture with the next question", self._image),
            "/retry": Command("", "answer the last question again", self._retry),
            "/undo": Command("", "take the last question and its answer back", self._undo),
            "/history": Command("", "show the conversation", self._show),
            "/save": Command("FILE", "write the conversation and its settings to a file", self._save),
            "/load": Command("FILE", "continue a conversation of such a file", self._load),
            "/reset": Command("", "start a new conversation", self._reset),
            "/schema": Command("", "show the tables of a database", self._schema),
        }
        if system:
            self._set_system(system, silent=True)

    def greet(self) -> None:
        """A conversation begins with the user."""

    def answer(self, question: str) -> None:
        """Generates the assistant's turn; an answer that Ctrl-C stops stays as far as it got."""
        from quatrain.cli.output import shortened, show, show_error, show_json, show_text

        content = [*self.pictures, {"type": "text", "text": question}] if self.pictures else question
        self.pictures = []
        messages = self._fitting([*self.messages, {"role": "user", "content": content}])
        text, completion, started = "", None, time.perf_counter()
        ids = self.engine.render(messages, adapter=self.adapter)
        note = None if self.noted else shortened(self.engine, ids, self.params)
        if note is not None:
            self.noted = True
            show_error(note)
        pieces = self.engine.stream_chat(messages, self.params, adapter=self.adapter)
        try:
            for piece in pieces:
                text += piece
                completion = piece.completion
                if not self.json_lines and not self.explained:
                    show_text(piece, end="")
        except KeyboardInterrupt:
            show("\n(stopped; /undo takes the answer back)")
        seconds = time.perf_counter() - started
        self.messages = [*messages, {"role": "assistant", "content": text}]
        if self.json_lines:
            show_json({"question": question, "answer": text})
            return
        if completion is None:
            return
        if self.explained:
            from quatrain.cli.explain import show_explanation

            show_explanation(self.engine, completion)
        else:
            show_text("")
        show_speed(completion, seconds)

    def _fitting(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages without the oldest turns that leave no room for an answer. The instructions stay."""
        from quatrain.cli.output import show_error

        longest: int = self.engine.model.config.max_position_embeddings
        room = max(longest - self.params.max_new_tokens, longest // 2)
        first = 1 if messages[0]["role"] == "system" else 0
        count = len(messages)
        while len(messages) > first + 1 and len(self.engine.render(messages, adapter=self.adapter)) > room:
            messages = [*messages[:first], *messages[first + 2 :]]
        if len(messages) < count and not self.json_lines:
            show_error(f"Note: the context is full; the oldest {count - len(messages)} messages were dropped.")
        return messages

    @property
    def _system(self) -> list[dict[str, Any]]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def _set_system(self, text: str, silent: bool = False) -> None:
        from quatrain.cli.output import show

        self.messages = [
            *([{"role": "system", "content": text}] if text else []),
            *self.messages[len(self._system) :],
        ]
        if not silent:
            show("(the instructions are set)" if text else "(no instructions)")

    def _set(self, text: str) -> None:
        """`/set temperature 0.7`: one setting of SamplingParams, checked with all others; `none` resets it."""
        from quatrain.cli.output import show
        from quatrain.core.errors import InputError
        from quatrain.core.overrides import read_value
        from quatrain.core.settings import did_you_mean

        name, _, value = text.replace("=", " ", 1).partition(" ")
        types = typing.get_type_hints(type(self.options))
        known = [name for name in types if name not in NOT_SETTABLE]
        if name not in known:
            raise InputError(f"/set {name}: no such setting{did_you_mean(name, known)} (/settings lists them)")
        setting = None if value.strip().lower() in ("", "none") else read_value(value.strip(), types[name])
        if name == "stop" and isinstance(setting, str | type(None)):
            setting = () if setting is None else (setting,)
        changed: dict[str, Any] = {name: setting}
        options = replace(self.options, **changed)
        self.params = self._params(options)
        self.options = options
        show(f"({name}: {getattr(self.params, name)})")

    def _params(self, options: SamplingOptions) -> SamplingParams:
        from quatrain.cli.explain import ALTERNATIVES

        more = {"logprobs": ALTERNATIVES} if self.explained else {}
        return options.params(self.engine, max_new_tokens=MAX_NEW_TOKENS, num_return_sequences=1, **more)

    def _settings(self, _: str) -> None:
        from quatrain.cli.output import show_table

        docs = [field.name for field in fields(self.options) if field.name not in NOT_SETTABLE]
        show_table(["setting", "value"], [[name, _setting(getattr(self.params, name))] for name in docs])

    def _explain(self, _: str) -> None:
        from quatrain.cli.output import show

        self.explained = not self.explained
        self.params = self._params(self.options)
        show("(answers are explained)" if self.explained else "(answers are not explained)")

    def _image(self, name: str) -> None:
        """The picture is kept as a `data:` URI, so that a saved conversation has it."""
        import base64

        from quatrain.cli.output import show
        from quatrain.data.images import read_image, to_png
        from quatrain.generation.pictures import check_reads

        check_reads(self.engine.model.config)
        pixels = read_image(_file(name, "/image"))
        uri = "data:image/png;base64," + base64.b64encode(to_png(pixels)).decode()
        self.pictures.append({"type": "image_url", "image_url": {"url": uri}})
        show(f"({name}: {pixels.shape[1]}x{pixels.shape[0]} pixels; now ask about it)")

    def _retry(self, _: str) -> None:
        question = self._take_back()
        if question is not None:
            self.answer(question)

    def _undo(self, _: str) -> None:
        from quatrain.cli.output import show

        question = self._take_back()
        self.pictures = []
        if question is not None:
            show(f"(taken back: {printable_line(question)})")

    def _take_back(self) -> str | None:
        """Removes the last question and what follows it; returns the question, None if there is none."""
        from quatrain.cli.output import show
        from quatrain.data.messages import content_text
        from quatrain.generation.pictures import is_picture

        for place in range(len(self.messages) - 1, -1, -1):
            if (message := self.messages[place])["role"] == "user":
                content = message["content"]
                self.pictures = [part for part in content if is_picture(part)] if isinstance(content, list) else []
                self.messages = self.messages[:place]
                return content_text(message)
        show("(nothing was asked yet)")
        return None

    def _show(self, _: str) -> None:
        from quatrain.cli.output import show
        from quatrain.data.messages import content_text
        from quatrain.generation.pictures import split_pictures

        for message in self.messages:
            pictures = "(picture) " * len(split_pictures([message])[1])
            show(f"{message['role']}: {pictures}{content_text(message)}")
        if not self.messages:
            show("(nothing was said yet)")

    def _save(self, name: str) -> None:
        """One JSON line with the messages, which `quatrain` can also train on, and the settings."""
        from quatrain.cli.output import show
        from quatrain.core.atomic import write_json
        from quatrain.core.errors import InputError
        from quatrain.core.reading import user_path

        path = _file(name, "/save")
        if user_path(path).exists():
            try:
                _saved(path)
            except InputError as error:
                raise InputError(f"{path} exists and is no saved conversation; give another name") from error
        write_json(user_path(path), {"messages": self.messages, "settings": self.options.given()}, indent=None)
        show(f"(saved to {path})")

    def _load(self, name: str) -> None:
        from quatrain.cli.output import show
        from quatrain.cli.sampling import SamplingOptions

        messages, settings = _saved(_file(name, "/load"))
        self.engine.render(messages, adapter=self.adapter)
        known = {field.name for field in fields(SamplingOptions)} - NOT_SETTABLE
        settings = {name: value for name, value in settings.items() if name in known}
        options = SamplingOptions(**{**settings, "stop": tuple(settings.get("stop", ()))})
        self.params = self._params(options)
        self.messages, self.options = messages, options
        show(f"({len(messages)} messages of {name})")

    def _reset(self, _: str) -> None:
        from quatrain.cli.output import show

        self.messages = self._system
        show("(a new conversation)")

    def _schema(self, _: str) -> None:
        from quatrain.cli.output import show

        show("There is no database in this conversation; give one with --db FILE.")


def _file(name: str, command: str) -> Path:
    from quatrain.core.errors import InputError

    if not name:
        raise InputError(f"{command} needs the name of a file")
    return Path(name)


def _saved(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages and settings of a saved conversation. Raises InputError for another file."""
    from quatrain.core.errors import InputError
    from quatrain.core.reading import read_json

    value = read_json(path)
    messages, settings = value.get("messages"), value.get("settings", {})
    if not isinstance(messages, list) or not isinstance(settings, dict):
        raise InputError(f"{path}: not a saved conversation, which has messages and settings")
    return messages, settings


def printable_line(text: str) -> str:
    """A text on one line, shortened for a note."""
    from quatrain.cli.output import shorten

    return str(shorten(text))


def _setting(value: object) -> str:
    return "off" if value in (None, ()) else str(value)


class DatabaseTalk:
    """Each question stands alone: the model writes SQL, the sandbox runs it, the rows are shown."""

    prompt = "question> "

    def __init__(self, engine: Engine, params: SamplingParams, database: Database, json_lines: bool):
        self.engine, self.params, self.database, self.json_lines = engine, params, database, json_lines
        self.commands = {
            "/schema": Command("", "show the tables and columns of the database", self._show_schema),
            "/suggest": Command("", "show questions that the model surely answers", self._suggest),
        }

    def greet(self) -> None:
        """Shows what can be asked."""
        self._suggest()

    def answer(self, question: str) -> None:
        from quatrain.cli.output import shorten, show, show_error, show_table
        from quatrain.core.wording import printable

        answer = self.database.answer(question, self._generate)
        completion, result = answer.completion, answer.table
        if result is None:
            return self._refuse(question, answer)
        is_cut = completion is not None and completion.finish_reason == "length"
        length = len(completion.ids) if completion is not None else 0
        if is_cut and length < self.params.max_new_tokens:
            show_error(
                f"Note: the answer was cut after {length:,} tokens, where the model's context is full "
                f"(max_new_tokens is {self.params.max_new_tokens:,})."
            )
        if self.json_lines:
            self._show_json(question, answer, [])
            return
        show(answer.statement)
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
        show(f"{count}{more}, {result.seconds * 1000:.1f} ms; {answer.certainty} ({answer.confidence:.0%})\n")

    def _generate(self, prompts: Sequence[str], candidates: int) -> list[Completion]:
        from quatrain.generation.candidates import completions_of

        ids = [self.engine.render([{"role": "user", "content": prompt}]) for prompt in prompts]
        return completions_of(self.engine, ids, self.params, candidates, self.engine.adapter)

    def _refuse(self, question: str, answer: DatabaseAnswer) -> None:
        from quatrain.cli.output import show, show_text

        suggestions = self.database.suggestions(question, self._generate)
        if self.json_lines:
            self._show_json(question, answer, suggestions)
            return
        show(answer.reason)
        if answer.prompt:
            show_text(f"Read as: {printable_line(answer.prompt)}")
        self._show_suggestions(suggestions)
        show("/schema shows what the database holds.\n")

    def _suggest(self, _: str = "") -> None:
        self._show_suggestions(self.database.suggestions("", self._generate))

    def _show_suggestions(self, suggestions: Sequence[str]) -> None:
        from quatrain.cli.output import show, show_text

        if suggestions:
            show("Questions that this model surely answers:")
        for suggestion in suggestions:
            show_text(f"  {suggestion}")

    def _show_json(self, question: str, answer: DatabaseAnswer, suggestions: Sequence[str]) -> None:
        from quatrain.cli.output import show_json

        result = answer.table
        show_json(
            {
                "question": question,
                "sql": answer.statement or None,
                "error": None if result is None else result.error,
                "columns": [] if result is None else result.columns,
                "rows": [] if result is None else result.rows,
                "truncated": result is not None and result.truncated,
                "confidence": round(answer.confidence, 4),
                "refused": answer.reason or None,
                "suggestions": suggestions,
            }
        )

    def _show_schema(self, _: str) -> None:
        from quatrain.cli.output import show

        show(self._schema())

    def _schema(self) -> str:
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
