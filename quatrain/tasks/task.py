"""The Task protocol: examples with references, the prompt of each, a score for a completion, and a dumb baseline.

Evaluation, preference sampling and reinforcement learning use a task through this protocol alone. A task lives in
`quatrain/tasks/NAME`. A task that recipes and verbs can open by its data also has a `TaskSpec`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import islice
from operator import attrgetter
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from quatrain.core.progress import SilentReporter
from quatrain.core.reporter import Reporter
from quatrain.data.settings import DataSettings

if TYPE_CHECKING:
    from quatrain.data.batches import TokenExample
    from quatrain.data.corpus import DataParts
    from quatrain.generation.engine import Completion
    from quatrain.tokenizers.tokenizer import Tokenizer

Example = TypeVar("Example")

CERTAINTIES = ((0.8, "sure"), (0.5, "fairly sure"), (0.0, "not sure"))
"""Words for a confidence, from the least one that they stand for."""

ANSWER_BYTES = 4_000_000
"""The most bytes of a database's answer that are read."""


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


class ExampleSets(Mapping[str, Sequence[Example]], Generic[Example]):
    """Named sets of examples that are read when they are used. `readers` return the examples of a set."""

    def __init__(self, readers: Mapping[str, Callable[[], Sequence[Example]]]):
        self.readers = readers

    def __getitem__(self, name: str) -> Sequence[Example]:
        return self.readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


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
        self.splits: Mapping[str, Sequence[Example]] = {}
        """Examples to learn from and to choose by, such as "train" and "development"."""
        self.held_out: Mapping[str, Sequence[Example]] = {}
        """Examples that only evaluation sees, by the name of the set."""
        self.hidden: frozenset[str] = frozenset()
        """Names of held-out sets that are only ever scored: no sample of them is shown."""
        self.baseline_scores: dict[str, tuple[Sequence[Example], dict[str, float]]] = {}
        """The scores of the dumb baseline on the examples of a set, so that a run computes them once."""
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

    def place(self, example: Example) -> str:
        """Where the example stands, such as file and line."""
        return self.question(example)

    def question(self, example: Example) -> str:
        """The prompt as people read it in samples."""
        return str(self.prompt(example)[-1]["content"])

    def text_prompt(self, example: Example) -> str:
        """The prompt for a model that has only been pre-trained; its completion ends at the first line break."""
        raise NotImplementedError(f"{self.name} has no prompt for a model that only continues texts")

    def reference(self, example: Example) -> str:
        """The right answer."""
        return str(self.messages(example)[-1]["content"])

    def answer(self, example: Example, completion: str) -> str:
        """The answer in a completion, without what a model may write around it."""
        return completion.strip()

    def complete(
        self, examples: Sequence[Example], generate: Callable[[Sequence[int], int], list[Completion]]
    ) -> list[Completion]:
        """The completion of each example that counts.

        `generate` gives the likeliest completion of the examples of these numbers. With a second argument above 1 it
        searches for so many, and the others are its `alternatives`; it does not where the user asks for another
        decoding.
        """
        return generate(range(len(examples)), 1)

    @abstractmethod
    def score(self, example: Example, completion: str) -> Score:
        """Judge one completion."""

    def kind(self, example: Example) -> str:
        """The kind of example by which evaluation also counts what is right; "" for none."""
        return ""

    def confidence(self, completion: Completion) -> float | None:
        """How sure the model is of a completion, from 0 to 1; None where the task does not measure it."""
        return None

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

    def reward(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float | None]:
        """The main metric of each completion; None where the example's own reference cannot be judged."""
        scores = [self.score(example, completion) for example, completion in zip(examples, completions, strict=True)]
        return [score.main if score.valid else None for score in scores]

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
        """The completions of the dumb baseline, the least that a trained model has to beat.

        A baseline that counts, such as the most frequent class, counts in `counted(examples)`.
        """

    def counted(self, examples: Sequence[Example]) -> Sequence[Example]:
        """What a baseline is fitted on: the training examples, or, without these, the evaluated `examples`."""
        return self.splits.get("train", examples)

    def documents(self) -> Iterator[str]:
        """Texts for pre-training, where the task has some."""
        return iter(())


class DataTask(Task[Example]):
    """A task whose examples are the records of a recipe's data, in the sets of `data_sets`."""

    by_source = False
    """Whether each source of a joined `data.test` is a held-out set of its own."""
    group: Callable[[Any], Any] | None = None
    """The group of an example; of one group all or none are held out. None: each example is its own."""

    def __init__(self, data: DataParts | None = None, *, limit: int | None = None):
        """Without `data` only given examples can be evaluated. `limit` as for `data_sets`."""
        super().__init__()
        self.data = data
        if data is not None:
            sets = data_sets(self.name, data, self.read, by_source=self.by_source, limit=limit, group=self.group)
            self.splits, self.held_out = sets
            self.baseline_scores = data.cache.setdefault((self.name, "baselines"), {})

    @abstractmethod
    def read(self, data: DataParts, part: str) -> Iterator[Example]:
        """The examples of a part of the data, in order."""


def data_sets(
    name: str,
    data: DataParts,
    read: Callable[[DataParts, str], Iterable[Example]],
    *,
    by_source: bool = False,
    limit: int | None = None,
    group: Callable[[Example], Any] | None = None,
) -> tuple[ExampleSets[Example], ExampleSets[Example]]:
    """The splits and the held-out sets of a recipe's data.

    The split "train" is the source without the share held out, and is read anew at each use; "development" is
    `data.dev`, or the share. A stream has no splits. The held-out sets are those of `DataParts.held_out_sets`, with
    `limit` examples of `data.test`, `data.dev` or a stream. They are read once and kept for all tasks of this name.
    Examples of one `group` are all in the share or all not; so are the pieces of one text (`data.piece_words`).
    """
    if group is None and data.settings.piece_words is not None:
        group = attrgetter("place")

    def train() -> Sequence[Example]:
        examples = list(read(data, "source"))
        if data.name("dev") is not None:
            return examples
        learned, data.cache[name, "share"] = data.split(examples, group)
        return learned

    def development() -> Sequence[Example]:
        return held_out(data, "source" if data.name("dev") is None else "dev", None)

    def held_out(parts: DataParts, part: str, limit: int | None) -> Sequence[Example]:
        is_share = part == "source" and not parts.settings.streaming
        key = (name, "share") if is_share else (name, part, limit)
        if key not in parts.cache and is_share:
            train()
        elif key not in parts.cache:
            parts.cache[key] = list(islice(read(parts, part), limit))
        examples: Sequence[Example] = parts.cache[key]
        return examples

    sets = data.held_out_sets(by_source=by_source)
    scored = ExampleSets({set_name: partial(held_out, *place, limit) for set_name, place in sets.items()})
    is_whole = data.settings.source is not None and not data.settings.streaming
    return ExampleSets({"train": train, "development": development} if is_whole else {}), scored


class Table(Protocol):
    """The rows that a statement of the model returned, or the error."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    @property
    def rows(self) -> Sequence[Sequence[Any]]:
        """The first rows."""

    @property
    def truncated(self) -> bool:
        """Whether there are more rows."""

    @property
    def seconds(self) -> float:
        """How long the statement ran."""

    @property
    def error(self) -> str | None:
        """Why the statement failed; None if it ran."""


@dataclass(frozen=True)
class DatabaseAnswer:
    """A statement of the model with its rows, or a refusal."""

    statement: str = ""
    """The SQL; "" for a refusal."""
    table: Table | None = None
    """The rows; None for a refusal."""
    prompt: str = ""
    """What the model read: the question with its spelling repaired and its values named."""
    completion: Completion | None = None
    """The completion that was taken; None where the model was not asked."""
    confidence: float = 0.0
    """The model's probability of the completion."""
    reason: str = ""
    """Why the question is refused, in words."""

    @property
    def certainty(self) -> str:
        """The confidence in words."""
        return next(words for least, words in CERTAINTIES if self.confidence >= least)


Generate = Callable[[Sequence[str], int], "list[Completion]"]
"""The likeliest completion of each prompt; with a number above 1, found by a search for so many (`Task.complete`)."""


class Database(Protocol):
    """A database that a person questions through a model (`quatrain chat --db`)."""

    def answer(self, question: str, generate: Generate) -> DatabaseAnswer:
        """Answer a question, or refuse it. `generate` is not called for a question that needs no model."""

    def suggestions(self, question: str, generate: Generate) -> list[str]:
        """Up to three questions that the model surely answers, those first that resemble `question`, if it is given."""

    def statement(self, question: str, completion: str) -> str:
        """The statement in a model's answer; "" where the model refuses the question."""

    def run(self, statement: str) -> Table:
        """Run a statement read-only."""

    def score(self, reference: str, completion: str) -> Score:
        """Whether the statement in a completion gives the same answer as the reference."""

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
    questions: str | None = None
    """A file of the user's own questions, which are only scored."""
    people: int | None = None
    """The most questions by people in one set; None for all."""
    reporter: Reporter = field(default_factory=SilentReporter)
    """Shows how many examples there are."""


class TaskSpec(Protocol):
    """How recipes and verbs open a task. The object `SPEC` in `quatrain/tasks/NAME/task.py`."""

    name: str
    """The name of the task and of the format of its records."""
    keys: tuple[str, ...]
    """Keys of the data settings that only this task reads; data that have one belong to it."""
    tasks: tuple[str, ...]
    """What `data.task` may name to have examples generated from nothing."""

    def open(self, data: DataParts, part: str) -> SourceTask[Any]:
        """The task over the records of a part of the data."""

    def generates(self, data: DataSettings) -> bool:
        """Whether the task can generate its examples from these data."""

    def generate(self, data: DataSettings, settings: GenerateSettings) -> Task[Any]:
        """The task with generated examples."""


@runtime_checkable
class DatabaseSpec(TaskSpec, Protocol):
    """The spec of a task that answers questions to a database."""

    def database(self, path: Path, *, rows: int, size: int, show_schema: bool) -> AbstractContextManager[Database]:
        """A database for a conversation; at most `rows` rows and `size` bytes of an answer are read."""


def specs() -> list[TaskSpec]:
    """The spec of every task that has one, found by its place in `quatrain/tasks`: a package with a `task` module."""
    folder = Path(__file__).parent
    names = [module.name for module in iter_modules([str(folder)]) if (folder / module.name / "task.py").is_file()]
    return [import_module(f"quatrain.tasks.{name}.task").SPEC for name in names]


def spec_of_source(data: DataParts, part: str = "source") -> TaskSpec | None:
    """The task whose examples a part of the data holds; None where no task claims it."""
    if (part, "spec") not in data.cache:
        named = specs() if data.name(part) is not None else []
        data.cache[part, "spec"] = next((spec for spec in named if _claims(spec, data, part)), None)
    spec: TaskSpec | None = data.cache[part, "spec"]
    return spec


def _claims(spec: TaskSpec, data: DataParts, part: str) -> bool:
    settings = data.settings
    if settings.format is not None:
        return settings.format == spec.name
    return any(getattr(settings, key) is not None for key in spec.keys) or data.detected_format(part) == spec.name


def source_task(data: DataParts, part: str = "source") -> SourceTask[Any] | None:
    """The task whose examples a part of the data holds, with the sets of `data_sets`; None where no task claims it.

    It is opened once.
    """
    spec = spec_of_source(data, part)
    return None if spec is None else _opened(spec, data, part)


def _opened(spec: TaskSpec, data: DataParts, part: str) -> SourceTask[Any]:
    if (part, "task") not in data.cache:

        def read(parts: DataParts, part: str) -> list[Any]:
            return _opened(spec, parts, part).take()

        task = data.cache[part, "task"] = spec.open(data, part)
        task.splits, task.held_out = data_sets(spec.name, data, read, by_source=True)
    opened: SourceTask[Any] = data.cache[part, "task"]
    return opened


def spec_of_database() -> DatabaseSpec:
    """The task that answers questions to a database."""
    return next(spec for spec in specs() if isinstance(spec, DatabaseSpec))


def generating_names() -> list[str]:
    """The tasks that `data.task` may name: they generate their examples from nothing."""
    return [name for spec in specs() for name in spec.tasks]


def generated(data: DataSettings, settings: GenerateSettings) -> Task[Any] | None:
    """The task that generates its examples from the data; None where there is none."""
    spec = next((spec for spec in specs() if spec.generates(data)), None)
    return None if spec is None else spec.generate(data, settings)
