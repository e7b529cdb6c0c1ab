"""Questions whose answer is one value of a database: the model calls the tool `sql`, reads its result and answers.

The questions are those of the text-to-SQL generator whose statement returns one value. The reference is a conversation:
the question, a call with the statement, the tool's result, the value. A completion is judged by its last turn alone: no
reward asks how the value was found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.wording import text_table
from quatrain.data.settings import DataSettings
from quatrain.tasks.task import GenerateSettings, Score, Task
from quatrain.tasks.text2sql.dataset import Text2SQL
from quatrain.tasks.text2sql.examples import Example
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.shop import create_shop

TOOL = "sql"
"""The name of the tool, and of its one argument `query`."""
SINGLE_SHARE = 0.4
"""At least this share of the generator's questions have one value as their answer."""
PRACTICE = 3_000
"""The most questions of the split "practice"."""
DEVELOPMENT = 200
LONGEST_ANSWER = 24
"""Characters of the longest value that is asked for."""


@dataclass(frozen=True, slots=True)
class ValueQuestion:
    """A question, the statement that answers it, the tool's result, and the value in it."""

    question: str
    sql: str
    result: str
    answer: str


class DatabaseAnswers(Task[ValueQuestion]):
    """Questions to one database; the score of a completion is 1 if its last turn is the value and nothing else.

    The split "train" has `examples` questions with calls, "practice" others, "development" and the held-out sets
    questions with combinations, values or phrasings that no other split has.
    """

    name = "database-answers"
    baseline_name = "the commonest answer"

    def __init__(self, path: Path, *, seed: int = 0, examples: int = 20_000, held_out: int = 200):
        super().__init__()
        self.path = path
        wanted = round((examples + min(examples, PRACTICE)) / SINGLE_SHARE)
        self.dataset = Text2SQL.build(
            path,
            seed=seed,
            examples=max(wanted // 10, 1),  # Questions as people ask them, whose prompts hold invented values: unused.
            practice=wanted,
            development=round(DEVELOPMENT / SINGLE_SHARE),
            held_out=round(held_out / SINGLE_SHARE),
            made_up=0.0,
        )
        with Connection(path) as connection:
            every = list(_answered(connection, self.dataset.practice))
            development = list(_answered(connection, self.dataset.development))[:DEVELOPMENT]
            self.held_out = {
                name: list(_answered(connection, questions))[:held_out]
                for name, questions in self.dataset.held_out.items()
            }
        if len(every) < 2:
            raise InputError(f"{path}: no question can be asked of this database whose answer is one value")
        count = min(examples, len(every) - 1)
        self.splits = {"train": every[:count], "practice": every[count:], "development": development}
        if count < examples:
            self.notes.append(f"train: {count:,} questions instead of {examples:,}, all that this database gives")

    def messages(self, example: ValueQuestion) -> list[dict[str, Any]]:
        call = {"name": TOOL, "arguments": {"query": example.sql}}
        return [
            {"role": "user", "content": example.question},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": TOOL, "content": example.result},
            {"role": "assistant", "content": example.answer},
        ]

    def prompt(self, example: ValueQuestion) -> list[dict[str, Any]]:
        return self.messages(example)[:1]

    def text_prompt(self, example: ValueQuestion) -> str:
        return f"{example.question}\n"

    def score(self, example: ValueQuestion, completion: str) -> Score:
        is_right = self.answer(example, completion) == example.answer
        return Score({"accuracy": float(is_right)}, "" if is_right else f"the answer is {example.answer}")

    def baseline(self, examples: Sequence[ValueQuestion]) -> list[str]:
        (common, _), *_ = Counter(each.answer for each in self.splits["train"]).most_common(1)
        return [common] * len(examples)

    def documents(self) -> Iterator[str]:
        """Questions, statements, what the rows hold, calls, results with their values; no question with its call."""
        yield from self.dataset.documents(len(self.splits["train"]))
        for example in self.splits["train"]:
            call = json.dumps({"name": TOOL, "arguments": {"query": example.sql}}, ensure_ascii=False)
            yield f"<tool_call>{call}</tool_call>"
            yield f"{example.result}\n{example.answer}"


def _answered(connection: Connection, examples: Iterable[Example]) -> Iterator[ValueQuestion]:
    """The questions whose statement returns one value that is not long."""
    for example in examples:
        found = connection.execute(example.sql)
        if found.error is not None or len(found.rows) != 1 or len(found.rows[0]) != 1 or found.rows[0][0] is None:
            continue
        result = text_table(found.columns, found.rows)
        answer = result.splitlines()[-1].strip()
        if answer and len(answer) <= LONGEST_ANSWER:
            yield ValueQuestion(example.question, example.sql, result, answer)


def database_answers(data: DataSettings, settings: GenerateSettings) -> DatabaseAnswers:
    """The questions to `data.databases`, a SQLite file; by default to the shop, created in `settings.folder`."""
    path = settings.folder / "shop.sqlite"
    if data.databases is not None:
        path = user_path(data.databases, "data.databases")
    elif not path.exists():
        create_shop(path)
    return DatabaseAnswers(path, seed=settings.seed, examples=data.examples, held_out=settings.held_out)
