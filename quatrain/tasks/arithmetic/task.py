"""The arithmetic task: sums of two numbers with two digits, whose answer a program verifies.

All 8,100 sums exist once. Held-out and development sums are drawn as unordered pairs: where 12+34 is held out, no stage
learns 34+12 either. Everything is drawn from the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quatrain.core.errors import InputError
from quatrain.data.corpus import DataParts
from quatrain.data.settings import DataSettings
from quatrain.tasks.task import GenerateSettings, Score, SourceTask, Task

LOWEST, HIGHEST = 10, 99
MOST_HELD_OUT = 1000
"""The most pairs of the held-out set, and of the development set."""


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of two numbers."""

    left: int
    right: int

    @property
    def question(self) -> str:
        """The sum as the model reads it."""
        return f"{self.left}+{self.right}="

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(self.left + self.right)


class Arithmetic(Task[Sum]):
    """Sums of two-digit numbers; the score of a completion is 1 if it is the sum and nothing else.

    The split "practice" has all sums that are not held out, in random order, "train" the first `examples` of them;
    "development" and the held-out set "sums" share no sum with them.
    """

    name = "arithmetic"
    baseline_name = "the commonest sum"

    def __init__(self, *, seed: int = 0, examples: int = 20_000, held_out: int = 200):
        super().__init__()
        generator = random.Random(seed)
        pairs = [(left, right) for left in range(LOWEST, HIGHEST + 1) for right in range(left, HIGHEST + 1)]
        generator.shuffle(pairs)
        count = min(held_out, MOST_HELD_OUT)
        held, development, rest = pairs[:count], pairs[count : 2 * count], pairs[2 * count :]
        learned = [Sum(*each) for pair in rest for each in {pair, pair[::-1]}]
        learned.sort(key=lambda each: (each.left, each.right))
        generator.shuffle(learned)
        self.splits = {
            "train": learned[:examples],
            "practice": learned,
            "development": [self._turned(pair, generator) for pair in development],
        }
        self.held_out = {"sums": [self._turned(pair, generator) for pair in held]}

    @staticmethod
    def _turned(pair: tuple[int, int], generator: random.Random) -> Sum:
        left, right = generator.sample(pair, 2)
        return Sum(left, right)

    def messages(self, example: Sum) -> list[dict[str, str]]:
        return [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]

    def text_prompt(self, example: Sum) -> str:
        return example.question

    def score(self, example: Sum, completion: str) -> Score:
        answer = self.answer(example, completion)
        is_right = answer == example.answer
        return Score({"accuracy": float(is_right)}, "" if is_right else f"{example.question}{example.answer}")

    def baseline(self, examples: Sequence[Sum]) -> list[str]:
        (common, _), *_ = Counter(each.answer for each in self.splits["train"]).most_common(1)
        return [common] * len(examples)

    def documents(self) -> Iterator[str]:
        return (f"{each.question}{each.answer}" for each in self.splits["train"])


class ArithmeticSpec:
    """Opens the arithmetic task (`quatrain.tasks.task.TaskSpec`)."""

    name = "arithmetic"
    keys: tuple[str, ...] = ()
    tasks = ("arithmetic",)

    def open(self, data: DataParts, part: str) -> SourceTask[Sum]:
        """Raises InputError: no source holds sums."""
        raise InputError('data.format: "arithmetic"; its sums are generated: set data.task = "arithmetic" instead.')

    def generates(self, data: DataSettings) -> bool:
        """Whether the data names this task."""
        return data.task == self.name

    def generate(self, data: DataSettings, settings: GenerateSettings) -> Arithmetic:
        """The sums of a seed; `data.examples` is the number of those that are learned with their answers."""
        return Arithmetic(seed=settings.seed, examples=data.examples, held_out=settings.held_out)


SPEC = ArithmeticSpec()
