"""The Task protocol: examples with references, the prompt of each, a score for a completion, and a dumb baseline.

Evaluation, preference sampling and reinforcement learning use a task through this protocol alone. A task lives in
`quatrain/tasks/NAME`. A task that recipes and verbs can open by its data also has a `TaskSpec`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from quatrain.data.settings import DataSettings

if TYPE_CHECKING:
    from quatrain.data.batches import TokenExample
    from quatrain.data.corpus import Corpus
    from quatrain.tokenizers.tokenizer import Tokenizer

Example = TypeVar("Example")


@dataclass(frozen=True, slots=True)
class Score:
    """The metrics of one completion, the main one first; `detail` says in words why it is right or wrong.

    `valid` is False where the reference itself cannot be judged: `detail` says why, and the example is not counted.
    """

    metrics: Mapping[str, float]
    detail: str = ""
    valid: bool = True

    @property
    def main(self) -> float:
        """The main metric."""
        return next(iter(self.metrics.values()), 0.0)

    @property
    def correct(self) -> bool:
        """Whether the completion counts as right."""
        return self.main >= 1


class Task(ABC, Generic[Example]):
    """Examples in named splits, and how a completion of each is judged.

    A task may hold open files, such as databases: use it as a context manager, or call `close`. A closed task opens
    them again when it needs them.
    """

    name: str
    baseline_name: str
    """What the dumb baseline answers, in a few words."""
    reference_name = "reference"
    """What messages call an example's reference."""
    objective: Any = None
    """The training objective of a task that a model's head answers; None where the model answers with text."""
    measures_loss = False
    """Whether evaluation measures the loss of the references too (`encode`)."""

    def __init__(self) -> None:
        self.splits: dict[str, Sequence[Example]] = {}
        """Examples to learn from and to choose by, such as "train" and "development"."""
        self.held_out: dict[str, Sequence[Example]] = {}
        """Examples that only evaluation sees, by the name of the set."""
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what the task holds open."""

    @abstractmethod
    def messages(self, example: Example) -> list[dict[str, Any]]:
        """The example as a chat that ends with the reference answer."""

    def prompt(self, example: Example) -> list[dict[str, Any]]:
        """The chat that the model completes."""
        return self.messages(example)[:-1]

    def question(self, example: Example) -> str:
        """The prompt as people read it in samples."""
        return str(self.prompt(example)[-1]["content"])

    def text_prompt(self, example: Example) -> str:
        """The prompt for a model that has only been pre-trained; its completion ends at the first line break."""
        raise NotImplementedError(f"{self.name} has no prompt for a model that only continues texts")

    def reference(self, example: Example) -> str:
        """The right answer."""
        return str(self.messages(example)[-1]["content"])

    def answer(self, completion: str) -> str:
        """The answer in a completion, without what a model may write around it."""
        return completion.strip()

    @abstractmethod
    def score(self, example: Example, completion: str) -> Score:
        """Judge one completion."""

    def answered(self, example: Example) -> bool:
        """Whether the example has a reference."""
        return True

    def comparable(self, examples: Sequence[Example]) -> bool:
        """Whether completions of these examples can be scored; where they cannot, evaluation only shows samples."""
        return True

    def encode(
        self, tokenizer: Tokenizer, examples: Sequence[Example], limit: int
    ) -> tuple[list[TokenExample], list[str]]:
        """The examples of at most `limit` tokens with the reference's tokens marked, and notes on the others.

        Raises InputError where no example is left.
        """
        raise NotImplementedError(f"{self.name} has no token examples")

    def reward(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """The main metric of each completion."""
        pairs = zip(examples, completions, strict=True)
        return [self.score(example, completion).main for example, completion in pairs]

    def reference_error(self, example: Example) -> str | None:
        """Why this example cannot be judged; None where it can."""
        return None

    def judgeable(self, examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
        """The examples whose reference can be judged, and a note on the others."""
        errors = [self.reference_error(example) for example in examples]
        pairs = list(zip(examples, errors, strict=True))
        failed = [f"{self.reference(example)}: {error}" for example, error in pairs if error is not None]
        if not failed:
            return list(examples), []
        note = f"{len(failed):,} examples left out: their own {self.reference_name} fails, such as {failed[0]}"
        return [example for example, error in pairs if error is None], [note]

    @abstractmethod
    def baseline(self, examples: Sequence[Example]) -> list[str]:
        """The completions of the dumb baseline, the least that a trained model has to beat."""

    def documents(self) -> Iterator[str]:
        """Texts for pre-training, where the task has some."""
        return iter(())


class Table(Protocol):
    """The rows that a statement of the model returned, or the error."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    truncated: bool
    seconds: float
    error: str | None


class Database(Protocol):
    """A database that a person questions through a model (`quatrain chat --db`)."""

    def prompt(self, question: str) -> str:
        """What the model reads."""

    def statement(self, completion: str) -> str:
        """The statement in the model's answer."""

    def run(self, statement: str) -> Table:
        """Run a statement read-only."""

    def tables(self) -> list[tuple[str, list[str]]]:
        """The tables and their columns, as they may be shown."""


@dataclass(frozen=True)
class SourceFault:
    """An example of a source that the task cannot use."""

    place: str
    field: str
    text: str


class SourceTask(Task[Example]):
    """A task whose examples are the records of a source. `take` reads them; `notes` then say what was left out."""

    @abstractmethod
    def read(self) -> Iterator[Example]:
        """The usable examples in order. `notes` are complete once the iterator ends or is closed."""

    @abstractmethod
    def take(self, count: int | None = None) -> list[Example]:
        """The first `count` examples, or all. Raises InputError where none is usable."""

    @abstractmethod
    def place(self, example: Example) -> str:
        """Where the example stands: file and line."""

    @abstractmethod
    def faults(self) -> Iterator[SourceFault]:
        """Every example that cannot be used."""

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """What identifies the content, for caches; None where only reading it could tell."""


@dataclass(frozen=True)
class GenerateSettings:
    """How a task generates its examples. `folder` receives files that the task makes."""

    folder: Path
    seed: int = 0
    held_out: int = 200
    """Examples of each held-out set."""


class TaskSpec(Protocol):
    """How recipes and verbs open a task. The object `SPEC` in `quatrain/tasks/NAME/task.py`."""

    name: str

    def reads(self, data: DataSettings, part: str) -> bool:
        """Whether `data.source`, `data.dev` or `data.test` (the `part`) holds examples of this task."""

    def open(self, data: DataSettings, part: str, corpus: Corpus) -> SourceTask[Any]:
        """The task over the records of a corpus."""

    def generates(self, data: DataSettings) -> bool:
        """Whether the task can generate its examples from these data."""

    def generate(self, data: DataSettings, settings: GenerateSettings) -> Task[Any]:
        """The task with generated examples."""

    def database(
        self, path: Path, *, rows: int, size: int, show_schema: bool
    ) -> AbstractContextManager[Database]:
        """A database for a conversation; at most `rows` rows and `size` bytes of an answer are read."""


def specs() -> list[TaskSpec]:
    """The spec of every task that has one, found by its place in `quatrain/tasks`."""
    names = [module.name for module in iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    return [import_module(f"quatrain.tasks.{name}.task").SPEC for name in names]


def spec_of_source(data: DataSettings, part: str = "source") -> TaskSpec | None:
    """The task whose examples a part of the data holds; None where no task claims it."""
    return next((spec for spec in specs() if getattr(data, part) is not None and spec.reads(data, part)), None)


def spec_of_database() -> TaskSpec:
    """The task that answers questions to a database."""
    return next(spec for spec in specs() if hasattr(spec, "database"))


def generated(data: DataSettings, settings: GenerateSettings) -> Task[Any] | None:
    """The task that generates its examples from the data; None where there is none."""
    spec = next((spec for spec in specs() if spec.generates(data)), None)
    return None if spec is None else spec.generate(data, settings)


