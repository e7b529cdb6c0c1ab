"""One question and its SQL, and the writer that makes them from shapes, combinations, frames and values."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quatrain.tasks.task import Score
from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.frames import FRAMES
from quatrain.tasks.text2sql.judge import execution_match, normalise, reference_error
from quatrain.tasks.text2sql.naming import is_plural
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.shapes import Combination, Shape
from quatrain.tasks.text2sql.splits import identify

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the SQL that answers it.

    `split` is "train", "practice", "development" or the name of a held-out set; `phrasing` names the frame
    ("count/3", held-out frames "count/held out 1"); `combination` is shape, tables and columns; `values` are the values
    in the SQL as text.
    """

    question: str
    sql: str
    shape: str
    split: str
    phrasing: str
    combination: tuple[str, ...]
    values: tuple[str, ...]
    prompt: str = ""
    """The question as the model reads it (`linking`); "" for the question itself."""

    @property
    def kind(self) -> str:
        """No kind: the generator's questions are not counted by kind."""
        return ""

    def score(self, connection: Connection, statement: str) -> Score:
        """Judge a statement by its rows, and by its text."""
        verdict = execution_match(connection, self.sql, statement)
        exact = normalise(self.sql) == normalise(statement)
        metrics = {"execution_accuracy": float(verdict.correct), "exact_match": float(exact)}
        return Score(metrics, verdict.detail, verdict.judged)

    def error(self, connection: Connection) -> str | None:
        """Why the example cannot be judged; None where it can."""
        return reference_error(connection, self.sql)


class SQLExample(Protocol):
    """What the task asks of an example: those of the generator, and the questions of people."""

    @property
    def question(self) -> str:
        """The question in English."""

    @property
    def sql(self) -> str:
        """The statement that answers it."""

    @property
    def kind(self) -> str:
        """The kind of question, by which evaluation counts; "" for none."""

    def score(self, connection: Connection, statement: str) -> Score:
        """Judge a statement."""

    def error(self, connection: Connection) -> str | None:
        """Why the example cannot be judged; None where it can."""


def messages(example: Example) -> list[dict[str, str]]:
    """The example as a conversation of one turn each."""
    prompt = example.prompt or example.question
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": example.sql}]


def write(
    shape: Shape, combination: Combination, draw: Draw, split: str, *, held_out_frames: bool = False
) -> Example | None:
    """Fill the combination and write it with a frame of its family; None if no values were drawn."""
    filled = shape.fill(combination, draw)
    if filled is None:
        return None
    family = FRAMES[shape.family]
    frames: Sequence[str] = family.held_out if held_out_frames else family.train
    number = int(draw.wording.random() * len(frames))
    phrasing = f"{shape.family}/{'held out ' if held_out_frames else ''}{number + 1}"
    words = filled.words
    words["be"] = "are" if is_plural(words.get("col", "")) else "is"
    question = _SLOT.sub(lambda match: words[match.group(1)], frames[number])
    if question[0].islower():
        question = question[0].upper() + question[1:]
    return Example(
        _loosely(question, draw.wording), filled.sql, shape.name, split, phrasing, identify(combination), filled.values
    )


def _loosely(question: str, rng: random.Random) -> str:
    """The question as people type it: sometimes without question mark or capital letter."""
    chance = rng.random()
    if chance < 0.1:
        question = question[:-1]
    if 0.05 < chance < 0.15 and question[1:2].islower():
        question = question[0].lower() + question[1:]
    return question
