"""The calculation task: products, sums and differences of numbers with three digits, answered with a calculator.

The reference is a conversation: the question, a call of the tool `calculator`, its result, the answer. A completion is
judged by its last turn alone, so that a model may also answer without the tool. Everything is drawn from the seed, and
no question that is held out is learned, in either order of its numbers.
"""

from __future__ import annotations

import json
import operator
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.corpus import DataParts
from quatrain.data.settings import DataSettings
from quatrain.tasks.task import GenerateSettings, Score, SourceTask, Task

LOWEST, HIGHEST = 100, 999
OPERATIONS = {"*": operator.mul, "+": operator.add, "-": operator.sub}
PRACTICE = 8_000
"""Questions of the split "practice"."""
MOST_HELD_OUT = 1000
"""The most questions of the held-out set, and of the development set."""


@dataclass(frozen=True, slots=True)
class Calculation:
    """Two numbers and what is done with them."""

    left: int
    operation: str
    right: int

    @property
    def expression(self) -> str:
        """The calculation as the calculator reads it."""
        return f"{self.left}{self.operation}{self.right}"

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(OPERATIONS[self.operation](self.left, self.right))


class Calculations(Task[Calculation]):
    """Questions to a calculator; the score of a completion is 1 if its last turn is the answer and nothing else.

    The split "train" has `examples` questions with calls, "practice" others; "development" and the held-out set
    "calculations" share none with them.
    """

    name = "calculation"
    baseline_name = "the commonest answer"

    def __init__(self, *, seed: int = 0, examples: int = 20_000, held_out: int = 200):
        super().__init__()
        generator = random.Random(seed)
        count = min(held_out, MOST_HELD_OUT)
        wanted = 2 * count + max(examples, PRACTICE)
        drawn: dict[tuple[int, str, int], Calculation] = {}
        while len(drawn) < wanted:
            left, right = generator.randint(LOWEST, HIGHEST), generator.randint(LOWEST, HIGHEST)
            operation = generator.choice(list(OPERATIONS))
            key = (min(left, right), operation, max(left, right))
            drawn.setdefault(key, Calculation(left, operation, right))
        every = list(drawn.values())
        held, development, rest = every[:count], every[count : 2 * count], every[2 * count :]
        self.splits = {"train": rest[:examples], "practice": rest, "development": development}
        self.held_out = {"calculations": held}

    def messages(self, example: Calculation) -> list[dict[str, Any]]:
        call = {"name": "calculator", "arguments": {"expression": example.expression}}
        return [
            *self.prompt(example),
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": "calculator", "content": example.answer},
            {"role": "assistant", "content": example.answer},
        ]

    def prompt(self, example: Calculation) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{example.expression}="}]

    def text_prompt(self, example: Calculation) -> str:
        return f"{example.expression}="

    def score(self, example: Calculation, completion: str) -> Score:
        is_right = self.answer(example, completion) == example.answer
        return Score({"accuracy": float(is_right)}, "" if is_right else f"{example.expression}={example.answer}")

    def baseline(self, examples: Sequence[Calculation]) -> list[str]:
        (common, _), *_ = Counter(each.answer for each in self.splits["train"]).most_common(1)
        return [common] * len(examples)

    def documents(self) -> Iterator[str]:
        for each in self.splits["train"]:
            call = json.dumps({"name": "calculator", "arguments": {"expression": each.expression}})
            yield f"{each.expression}=<tool_call>{call}</tool_call>{each.answer}={each.answer}"


class CalculationSpec:
    """Opens the calculation task (`quatrain.tasks.task.TaskSpec`)."""

    name = "calculation"
    keys: tuple[str, ...] = ()
    tasks = ("calculation",)

    def open(self, data: DataParts, part: str) -> SourceTask[Calculation]:
        """Raises InputError: no source holds calculations."""
        raise InputError('data.format: "calculation"; these are generated: set data.task = "calculation" instead.')

    def generates(self, data: DataSettings) -> bool:
        """Whether the data names this task."""
        return data.task == self.name

    def generate(self, data: DataSettings, settings: GenerateSettings) -> Calculations:
        """The calculations of a seed; `data.examples` is the number of those that are learned with their calls."""
        return Calculations(seed=settings.seed, examples=data.examples, held_out=settings.held_out)


SPEC = CalculationSpec()
