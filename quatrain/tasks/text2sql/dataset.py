"""Questions for one database, divided for pretraining, finetuning, practice, development and judging.

Most training questions are asked as people ask (`asking`); the others have the sentences of `frames`. What is held out
of the latter, for one seed:

- **new combinations**: a shape with tables and columns that no question with these sentences has together, nor the same
  SQL with other values from another shape. The shape, every column in its use and every join occur in training.
- **new values**: at least one value of the question is a value of the database that stands in no text of any stage, the
  questions as people ask included. The combination and the phrasing occur in training.
- **new phrasings**: a sentence frame that no stage renders. The combination and every value occur in training.

A question as people ask may have the SQL of a new combination, or a frame's sentence by chance: so these sets say
whether the generator's own questions are learned, and nothing of people's.

Everything is drawn from `random.Random` instances of the seed, so one database and one seed give one dataset.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import cycle
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.core.reporter import ProgressTask, Reporter
from quatrain.tasks.text2sql import documents as texts
from quatrain.tasks.text2sql.asking.asker import Asker
from quatrain.tasks.text2sql.conditions import MONTHS, Draw
from quatrain.tasks.text2sql.examples import Example, messages, write
from quatrain.tasks.text2sql.frames import FRAMES
from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.judge import is_empty
from quatrain.tasks.text2sql.linking import Hint, Linker, disguised
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.naming import named
from quatrain.tasks.text2sql.opening import few
from quatrain.tasks.text2sql.phrases import Phrases
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.schema import Schema
from quatrain.tasks.text2sql.shapes import SHAPES, Combination
from quatrain.tasks.text2sql.splits import identify, split, usable_combinations
from quatrain.tasks.text2sql.values import HeldOut, made_up_text, made_up_word, usable

SETS = ("new combinations", "new values", "new phrasings")
ASKED_SHARE = 0.7
"""Share of the training questions that are asked as people ask (`asking`); the others have the frames' sentences."""
ASKED_UP_TO = 0.75
"""Share of the documents up to which they are drills, tellings, or of questions as people ask; the rest has frames."""
DISGUISED_SHARE = 0.6
"""Share of the training questions whose values are invented."""
HELD_OUT_VALUES, HELD_OUT_COMBINATIONS = 0.1, 0.12
"""Shares of the values and of the combinations that no training question has."""
QUESTION = "Question: "
"""Begins a document that holds a question with its SQL."""
MOST_MISSES = 50_000
"""Consecutive draws without a result after which a database counts as exhausted."""

_COMMON = frozenset(
    "with that have whose and the not over under above below from before after between other than".split()
)


@dataclass
class Text2SQL:
    """The data of one text-to-SQL task. Made by `Text2SQL.build`."""

    schema: Schema
    seed: int
    train: list[Example]
    practice: list[Example]
    development: list[Example]
    held_out: dict[str, list[Example]]
    held_out_values: HeldOut
    notes: list[str]
    _material: Material = field(repr=False)
    _phrases: Phrases = field(repr=False)
    _open: dict[str, list[Combination]] = field(repr=False)
    _weights: list[float] = field(repr=False)
    linker: Linker = field(repr=False)
    _progress: ProgressTask = field(repr=False)

    messages = staticmethod(messages)

    @classmethod
    def build(
        cls,
        database: str | Path,
        *,
        seed: int = 0,
        examples: int = 20000,
        held_out: int = 200,
        practice: int = 2000,
        development: int = 200,
        made_up: float = 0.2,
        shapes: Sequence[str] | None = None,
        reporter: Reporter | None = None,
    ) -> Text2SQL:
        """Read the database; make `examples` training questions, `held_out` questions for each held-out set, and so on.

        `made_up` is the share of values in training and practice questions that are inventions (their answers are
        empty; they teach copying); `shapes` limits the questions to some shapes. Sets come out smaller where the
        database does not allow more; `notes` says so. `reporter` shows how many questions there are. Raises InputError
        for numbers out of range, unknown shapes, and a database nothing can be asked of.
        """
        _check(
            {"examples": examples, "held_out": held_out, "practice": practice, "development": development},
            {"made_up": made_up},
            shapes,
        )
        chosen = {name: shape for name, shape in SHAPES.items() if shapes is None or name in shapes}
        schema = introspect(database)
        held_out_set = HeldOut(seed, HELD_OUT_VALUES)
        material = Material(schema, held_out_set, _lexicon(schema))
        phrases = Phrases(schema)
        draw = Draw(random.Random(f"combinations {seed}"), material, phrases)
        combinations, skeletons, unfit = usable_combinations(chosen, schema, draw)
        if sum(map(len, combinations.values())) < 3:
            raise InputError(
                f"No questions can be asked of {schema.path}",
                few(
                    f"table {named(table.name)}: {len(table.columns)} columns; none with names, numbers or dates to "
                    "ask for; use a database with at least one text, number or date column"
                    for table in schema.tables
                ),
            )
        opened, closed = split(combinations, skeletons, random.Random(f"split {seed}"), HELD_OUT_COMBINATIONS)
        notes = [*schema.notes]
        if unfit:
            notes.append(f"{len(unfit)} of {len(chosen)} shapes do not fit this database: {', '.join(unfit)}")
        weights = [min(1.0, len(opened[name]) * 12 * len(opened) / max(examples, 1)) for name in opened]
        linker = Linker.of(schema)
        total = examples + practice + development + len(SETS) * held_out
        with (reporter or SilentReporter()).task("questions", total=total, unit="question") as task:
            data = cls(
                schema, seed, [], [], [], {}, held_out_set, notes, material, phrases, opened, weights, linker, task
            )
            questions: set[str] = set()
            asked = data.asked("asked", round(examples * ASKED_SHARE), questions)
            data.train = asked + data._open_examples("train", examples - len(asked), questions, made_up)
            random.Random(f"order {seed}").shuffle(data.train)
            data.practice = data._open_examples("practice", practice, questions, made_up)
            data.development = data._open_examples("development", development, questions, 0.0)
            data._fill_held_out(held_out, closed, questions)
        for name, count in (("train", examples), ("practice", practice), ("development", development)):
            got = len(getattr(data, name))
            if got < count:
                notes.append(f"{name}: {got} different questions instead of {count}, all this database gives")
        return data

    def documents(self, count: int | None = None, *, answers: bool = False) -> Iterator[str]:
        """Texts for pretraining, the same ones every time: `count` of them, or as many as training questions.

        None holds a question of `practice`, `development` or the held-out sets, and none a question with its SQL.
        They are questions, statements, the schema, what the rows hold, and values in words and in SQL.
        With `answers` each question stands with its SQL.
        """
        count = len(self.train) if count is None else count
        write_text = self._pair if answers else self._alone
        rng = random.Random(f"documents {self.seed}")
        draw = Draw(rng, self._material, self._phrases)
        asker = Asker(self.schema, self._material, rng)
        telling = texts.Telling(self._material, rng)
        drill = texts.Drill(Draw(rng, self._material, self._phrases, made_up=0.9))
        names = list(self._open)
        held = (self.practice, self.development, *self.held_out.values())
        reserved = {example.prompt for examples in held for example in examples}
        produced = misses = 0
        while produced < count and misses < MOST_MISSES:
            misses += 1
            chance, text = rng.random(), None
            if chance < texts.TELLING_SHARE:
                text = telling.text()
            elif chance < texts.TELLING_SHARE + texts.DRILL_SHARE:
                text = drill.text()
            elif chance < ASKED_UP_TO and asker.tables:
                if (asked := asker.ask()) is not None:
                    text = write_text(asked.question, asked.sql, rng, reserved)
            else:
                shape = rng.choices(names, self._weights)[0]
                example = write(SHAPES[shape], draw.choose(self._open[shape]), draw, "documents")
                if example is not None:
                    text = write_text(example.question, example.sql, rng, reserved)
            if text and self.held_out_values.found(text) is None:
                produced, misses = produced + 1, 0
                yield text

    def _alone(self, question: str, sql: str, rng: random.Random, reserved: set[str]) -> str | None:
        """A question or a statement, never both: what answers what is for fine-tuning to teach. None if reserved."""
        if rng.random() < 0.5:
            return sql
        prompt = self.linker.link(question).prompt
        return None if prompt in reserved else prompt

    def _pair(self, question: str, sql: str, rng: random.Random, reserved: set[str]) -> str | None:
        """A question with its SQL, often about invented values. None if reserved."""
        if self.linker.link(question).prompt in reserved:
            return None
        taught = self._taught(Example(question, sql, "", "documents", "", (), ()), rng)
        return f"{QUESTION}{taught.prompt}\nSQL: {taught.sql}"

    def combinations(self) -> dict[str, int]:
        """The number of open combinations of each usable shape."""
        return {name: len(combinations) for name, combinations in self._open.items()}

    def _open_examples(self, name: str, count: int, questions: set[str], made_up: float) -> list[Example]:
        rng = random.Random(f"{name} {self.seed}")
        draw = Draw(rng, self._material, self._phrases)
        names = list(self._open)

        def drawn() -> Example | None:
            chosen = rng.choices(names, self._weights)[0]
            draw.made_up = 0.8 if made_up and rng.random() < made_up / 0.8 else 0.0
            return write(SHAPES[chosen], draw.choose(self._open[chosen]), draw, name)

        return self._collected(count, questions, drawn, rng if name == "train" else None)

    def asked(self, name: str, count: int, questions: set[str]) -> list[Example]:
        """`count` questions as people ask them, none of them in `questions`, which they join."""
        asker = Asker(self.schema, self._material, random.Random(f"{name} {self.seed}"))

        def drawn() -> Example | None:
            one = asker.ask()
            if one is None:
                return None
            return Example(one.question, one.sql, one.kind, name, f"asked/{one.kind}", (), ())

        return self._collected(count if asker.tables else 0, questions, drawn, asker.rng)

    def _collected(
        self, count: int, questions: set[str], drawn: Callable[[], Example | None], taught: random.Random | None
    ) -> list[Example]:
        """At most `count` drawn examples with new questions, which join `questions`, and without held-out values.

        `taught` disguises the values of examples that are trained on; None links them only.
        """
        result: list[Example] = []
        misses = 0
        while len(result) < count and misses < 2000 + count // 4:
            misses += 1
            example = drawn()
            if example is None or example.question in questions or self.held_out_values.found(example.question):
                continue
            shown = self._linked(example) if taught is None else self._taught(example, taught)
            if self._is_held_out(shown):
                continue
            misses = 0
            questions.add(example.question)
            result.append(shown)
            self._progress.advance()
        return result

    def _is_held_out(self, example: Example) -> bool:
        """Whether a held-out value is in what a model reads of the example: linking may spell one right."""
        texts = (example.prompt, example.sql.replace("''", "'"))
        return any(self.held_out_values.found(text) is not None for text in texts)

    def _taught(self, example: Example, rng: random.Random) -> Example:
        """The example as it is trained: linked, and often with invented values, which teach copying."""
        linked = self.linker.link(example.question)
        if rng.random() > DISGUISED_SHARE:
            return replace(example, prompt=linked.prompt)

        def swap(hint: Hint) -> str | None:
            column = hint.columns[0]
            if column.values <= 6 and rng.random() < 0.6:
                return None
            pool = self._material.pool[column.table, column.name]
            new = made_up_text(rng, pool or [hint.value])
            return new if usable(new) else None

        prompt, sql = disguised(linked, example.sql, swap)
        quoted = re.search(r'"([^"]{3,})"', prompt)
        if quoted and (f"LIKE '%{quoted[1]}%'" in sql or f"LIKE '{quoted[1]}%'" in sql):
            new = made_up_word(rng, quoted[1])
            prompt, sql = prompt.replace(quoted[1], new), sql.replace(f"{quoted[1]}%'", f"{new}%'")
        return replace(example, prompt=prompt, sql=sql)

    def _linked(self, example: Example) -> Example:
        return replace(example, prompt=self.linker.link(example.question).prompt)

    def _fill_held_out(self, count: int, closed: dict[str, list[Combination]], questions: set[str]) -> None:
        seen_values = {value for example in self.train for value in example.values}
        seen = {example.combination for example in self.train}
        seen_frames = {(example.phrasing, example.shape) for example in self.train}
        known = {
            name: [combination for combination in combinations if identify(combination) in seen]
            for name, combinations in self._open.items()
        }

        def familiar(example: Example) -> bool:
            return seen_values.issuperset(example.values) and self.held_out_values.found(example.question) is None

        def unfamiliar(example: Example) -> bool:
            new = any(value in self.held_out_values for value in example.values)
            return new and (example.phrasing, example.shape) in seen_frames

        with Connection(self.schema.path, rows=3) as connection:
            for name, choices, accept in (
                ("new combinations", closed, familiar),
                ("new values", known, unfamiliar),
                ("new phrasings", known, familiar),
            ):  # fmt: skip
                examples = self._held_out_set(name, count, choices, accept, questions, connection)
                self.held_out[name] = examples
                if len(examples) < count:
                    self.notes.append(f"{name}: {len(examples)} questions instead of {count}, all this database gives")

    def _held_out_set(
        self,
        name: str,
        count: int,
        choices: dict[str, list[Combination]],
        accept: Callable[[Example], bool],
        questions: set[str],
        connection: Connection,
    ) -> list[Example]:
        """Questions with answers, from every shape in turn."""
        draw = Draw(random.Random(f"{name} {self.seed}"), self._material, self._phrases, held=name == "new values")
        names = sorted(shape for shape, combinations in choices.items() if combinations)
        draw.rng.shuffle(names)
        failures = dict.fromkeys(names, 0)
        result: list[Example] = []
        for shape in cycle(names):
            if len(result) >= count or all(number >= 60 for number in failures.values()):
                break
            if failures[shape] >= 60:
                continue
            example = write(
                SHAPES[shape], draw.choose(choices[shape]), draw, name, held_out_frames=name == "new phrasings"
            )
            if example is None or example.question in questions or not accept(example):
                failures[shape] += 1
                continue
            if is_empty(connection.execute(example.sql)):
                failures[shape] += 5
                continue
            questions.add(example.question)
            result.append(self._linked(example))
            self._progress.advance()
        return result


def _check(counts: dict[str, int], shares: dict[str, float], shapes: Sequence[str] | None) -> None:
    problems = [
        f"{name}: {value}; allowed are whole numbers from 0; raise it" for name, value in counts.items() if value < 0
    ]
    problems += [
        f"{name}: {value}; allowed are shares from 0 to 0.5; lower it"
        for name, value in shares.items()
        if not 0 <= value <= 0.5
    ]
    for name in shapes or ():
        if name not in SHAPES:
            near = ", ".join(get_close_matches(name, SHAPES, 3)) or "see quatrain.tasks.text2sql.shapes.SHAPES"
            problems.append(f"shapes: {name!r} is unknown; did you mean {near}?")
    if problems:
        raise InputError("The questions cannot be made", problems)


def _lexicon(schema: Schema) -> set[str]:
    """Words and labels that questions need, so that they cannot be held-out values."""
    words = set(_COMMON) | {month.lower() for month in MONTHS}
    for family in FRAMES.values():
        for frame in family.train + family.held_out:
            words.update(frame.lower().rstrip(".?").split())
    for table in schema.tables:
        for text in (
            table.one,
            table.many,
            *(text for column in table.columns for text in (column.label, column.labels)),
        ):
            words.add(text)
            words.update(text.split())
    return words
