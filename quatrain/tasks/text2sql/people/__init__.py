"""Questions that people ask a database. They are only scored: no stage trains on them.

A record has the `question`, the SQL statements that are `accepted` as its answer, a `kind` (count, top, join3, ...) and
the `asker` in whose words it is written. Where a question has several fair readings, each has a statement and `note`
says so. A record without accepted statements is a question that must be refused: an instruction, another language, a
question about what the database does not hold.

What counts as right: a statement whose rows are those of an accepted one. The order of columns never matters. The order
of rows matters only with `ordered`, where the question asks for an order. Further columns are wrong, except with
`extra`, where the question asks which things there are, so that more about these things does no harm.

The package has questions to its own shop, to Chinook and to two databases of Spider (Yu et al. 2018, arXiv 1809.08887),
each in a development half (`dev`) and a half that is never looked at (`test`). They were written from the schemas and
the data, without sight of the question generator.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.tasks.task import Score
from quatrain.tasks.text2sql.judge import accepted_match, has_rows, reference_error
from quatrain.tasks.text2sql.sandbox import Connection

PEOPLE = "questions by people"
"""The headline set: the half that is only ever scored, or all questions of the user's file."""
DEVELOPMENT = "questions by people, development half"
REFUSE = "questions to refuse"

_IGNORED = string.punctuation + " "
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


@dataclass(frozen=True, slots=True)
class PersonQuestion:
    """A question with the statements that answer it, the first of which stands for all; none: it must be refused."""

    question: str
    accepted: tuple[str, ...]
    kind: str = ""
    asker: str = ""
    ordered: bool = False
    extra: bool = False
    note: str = ""

    @property
    def sql(self) -> str:
        """The first accepted statement; "" for a question to refuse."""
        return self.accepted[0] if self.accepted else ""

    def score(self, connection: Connection, statement: str) -> Score:
        """Judge a statement by its rows; "" is a refusal."""
        if not self.accepted:
            return Score({"refusal_accuracy": float(not statement)}, "answered" if statement else "refused")
        if not statement:
            return Score({"execution_accuracy": 0.0}, "refused")
        verdict = accepted_match(connection, self.accepted, statement, ordered=self.ordered, extra=self.extra)
        return Score({"execution_accuracy": float(verdict.correct)}, verdict.detail, verdict.judged)

    def error(self, connection: Connection) -> str | None:
        """Why the question cannot be judged on this database; None where it can."""
        errors = [reference_error(connection, sql) for sql in self.accepted]
        return next(iter(errors), None) if all(errors) else None


def read_questions(path: Path) -> list[PersonQuestion]:
    """The questions of a JSONL file. A record has `accepted`, or one statement in `query` or `sql`.

    Raises InputError, with all problems, for records that are none.
    """
    problems: list[str] = []
    questions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the questions in {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line)))
            except (ValueError, TypeError) as error:
                problems.append(f"{path}:{number}: {error}")
    if problems or not questions:
        problems = problems or [f"{path}: no question; each line must be an object with question and query"]
        raise InputError("Cannot read questions by people", problems)
    return questions


def packaged(name: str, half: str) -> list[PersonQuestion]:
    """The package's questions to a database, such as "shop", of the half "dev" or "test"; [] where it has none."""
    path = Path(str(files(__name__) / f"{name}.{half}.jsonl"))
    return read_questions(path) if path.is_file() else []


def sets_for(
    path: Path, connection: Connection, source: str | None = None, limit: int | None = None
) -> tuple[dict[str, list[PersonQuestion]], list[str]]:
    """The sets of questions by people about a database, and notes on questions that were left out.

    `source` is the user's own file. Otherwise the package's questions to a database of this file name are taken, if
    all their statements run on it. Questions whose statements fail or return no rows are left out. `limit` is the most
    questions of a set.
    """
    if source is not None:
        questions = read_questions(user_path(source, "evaluate.questions"))
        sets = {PEOPLE: questions, REFUSE: [each for each in questions if not each.accepted]}
    else:
        name = path.stem.lower()
        sets = {PEOPLE: packaged(name, "test"), DEVELOPMENT: packaged(name, "dev")}
        if any(question.error(connection) for questions in sets.values() for question in questions):
            return {}, []  # another database of the same name
        if name == "shop" and sets[PEOPLE]:
            sets[REFUSE] = [*packaged("refuse", "test"), *packaged("refuse", "dev")]
    notes = []
    for name in (PEOPLE, DEVELOPMENT):
        asked = [each for each in sets.get(name, ()) if each.accepted]
        sets[name] = [each for each in asked if has_rows(connection, each.accepted)]
        if left := len(asked) - len(sets[name]):
            notes.append(f"{name}: {left:,} of {len(asked):,} left out: their own SQL fails or returns no rows")
    return {name: _spread(sets[name], limit) for name in (PEOPLE, DEVELOPMENT, REFUSE) if sets.get(name)}, notes


def words(question: str) -> str:
    """The words of a question, without capitals and punctuation: what makes two questions the same."""
    return " ".join(question.lower().translate(_PUNCTUATION).split())


def last_word(question: str) -> str:
    """The last of the `words`."""
    end = question.rstrip(_IGNORED).rpartition(" ")[2]
    return words(end).rpartition(" ")[2]


def _spread(questions: Sequence[PersonQuestion], limit: int | None) -> list[PersonQuestion]:
    """At most `limit` questions, evenly spread over the set."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return [questions[place * len(questions) // limit] for place in range(limit)]


def _question(record: Any) -> PersonQuestion:
    """One record as a question. Raises ValueError."""
    if not isinstance(record, dict) or not isinstance(record.get("question"), str):
        raise ValueError("must be an object with a question")
    single = record.get("query", record.get("sql"))
    accepted = record.get("accepted", [] if single is None else [single])
    if not isinstance(accepted, list) or not all(isinstance(sql, str) and sql.strip() for sql in accepted):
        raise ValueError("accepted must be a list of SQL statements, or query one of them")
    ordered, extra = (bool(record.get(flag, False)) for flag in ("ordered", "extra"))
    texts = {key: str(record.get(key, "")) for key in ("kind", "asker", "note")}
    question = record["question"] * int(record.get("times", 1))
    return PersonQuestion(question, tuple(accepted), ordered=ordered, extra=extra, **texts)
