"""A suite: examples, what a model is asked about each, and how its answers are counted.

A suite is one file in `quatrain/evaluation/suites/` with one class `SUITE`, found by its place. It is a `Task`:
rewards, few-shot prompts and GRPO can use it through that protocol. Beyond a task it says which kind of question it
asks (`ask`), and counts the same answers in every way that papers use (`measures`), beside its baselines.

`ChoiceSuite` asks how likely each of several answers is; `WritingSuite` lets the model write; `RecordSuite` takes the
predictions of a model with a task's head.
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import islice
from pkgutil import iter_modules
from typing import Any, ClassVar

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.corpus import FileSource
from quatrain.data.records import Row
from quatrain.data.sources import find_files, selected_rows
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.subject import Prompt, Subject
from quatrain.generation.params import SamplingParams
from quatrain.tasks.task import Score, Task

Output = dict[str, Any]
"""What a model answered to one example, as JSON: log-probabilities, a text, a prediction."""
BINS = 10
"""Bins of confidence of a reliability picture."""


@dataclass(frozen=True)
class Baseline:
    """What a dumb or classic method scores: its answers, or its measures where it has another kind of answer.

    `is_classic`: a method that learns, such as a linear model; otherwise the least that a model has to beat.
    `is_ceiling`: a bound that a model is compared with but is not expected to beat, such as people.
    """

    name: str
    outputs: Sequence[Output] = ()
    measures: Sequence[Measure] = ()
    is_classic: bool = False
    is_ceiling: bool = False


class Suite(Task[Row]):
    """Examples with questions to a model.

    `source` names other data in the suite's form (a file or a name of the catalog), `shots` the worked examples before
    each question, `chat` whether questions are asked through the chat template. Which examples are shown follows from
    `seed`.
    """

    title: ClassVar[str]
    """What the suite measures, in one line."""
    paper: ClassVar[str] = ""
    data: ClassVar[str | None] = None
    """The default data: a name of the catalog; None where the user has to name some."""
    examples_data: ClassVar[str | None] = None
    """Where worked examples come from."""
    columns: ClassVar[str] = ""
    """The columns of a file in the suite's form, as messages name them."""
    default_shots: ClassVar[int] = 0
    extra: ClassVar[tuple[str, ...]] = ()
    """Names of options that only some suites take, such as `judge`."""
    version: ClassVar[int] = 1
    """Counted up when the prompt or the counting changes, so that stored scores say which they are of."""
    chunk: ClassVar[int] = 32
    """Examples that are asked, and stored, together."""
    baseline_name = ""

    def __init__(
        self,
        source: str | None = None,
        *,
        shots: int | None = None,
        seed: int = 0,
        chat: bool | None = None,
        max_new_tokens: int | None = None,
        fitting: bool = False,
    ):
        """`fitting` leaves out examples that do not fit into the model's context, which are an error otherwise."""
        super().__init__()
        self.source = source or self.data
        if self.source is None:
            raise InputError(f"{self.name} has no data of its own: write {self.name}:FILE, with {self.columns}")
        self.shots = self.default_shots if shots is None else shots
        if self.shots < 0:
            raise InputError(f"--shots {shots}: must be at least 0")
        if self.shots and self.examples_data is None:
            raise InputError(f"--shots {shots}: {self.name} takes no worked examples")
        self.seed, self.chat, self.max_new_tokens, self.fitting = seed, chat, max_new_tokens, fitting

    # Data

    def read(self, limit: int | None = None) -> list[Row]:
        """The examples, of which `value` has the suite's own form. Raises InputError with every row that has not."""
        return self.rows_of(str(self.source), limit)

    def rows_of(self, source: str, limit: int | None = None) -> list[Row]:
        """The examples of a source in the suite's form."""
        rows, problems = [], []
        for row in islice(raw_rows(source), limit):
            try:
                if row.fault is not None:
                    raise ValueError(row.fault)
                rows.append(Row(row.place, self.parse(row.value)))
            except (KeyError, ValueError, TypeError, IndexError) as error:
                reason = f"the column {error} is missing" if isinstance(error, KeyError) else str(error)
                problems.append(f"{row.place}: {reason}")
        if problems:
            raise InputError(f"{source} cannot be read for {self.name}, which takes {self.columns}:", problems[:20])
        if not rows:
            raise InputError(f"{source} has no examples for {self.name}")
        return rows

    def sources(self) -> list[str]:
        """The data that decide the score, whose hashes the passport has."""
        return [source for source in (self.source, self.examples_data if self.shots else None) if source]

    @abstractmethod
    def parse(self, value: Mapping[str, Any]) -> Any:
        """A row of a file in the suite's own form. Raises KeyError or ValueError for another row."""

    def worked_examples(self, row: Row) -> list[Row]:
        """The examples that are shown before a question, never the question itself."""
        if not self.shots:
            return []
        pool = [each for each in self._pool(row) if each.value != row.value]
        if len(pool) < self.shots:
            raise InputError(f"--shots {self.shots}: {self.examples_data} has {len(pool)} examples for {row.place}")
        return self.choose(pool, self.shots)

    def choose(self, pool: list[Row], count: int) -> list[Row]:
        """`count` of the worked examples: the same for every question, drawn by the seed."""
        return random.Random(self.seed).sample(pool, count)

    def _pool(self, row: Row) -> list[Row]:
        key = self.group(row)
        if not hasattr(self, "_pools"):
            pools: dict[str, list[Row]] = {}
            for each in self.rows_of(str(self.examples_data)):
                pools.setdefault(self.group(each), []).append(each)
            self._pools = pools
        return self._pools.get(key, [])

    def group(self, row: Row) -> str:
        """Examples are shown only before questions of their own group, such as a subject; "" for one group."""
        return ""

    # Asking

    @abstractmethod
    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        """The model's answers."""

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        """Raises InputError, before anything is asked, for what the model cannot read."""

    def whole(self, subject: Subject, limit: int | None) -> dict[str, Any] | None:
        """The result of a suite that another library asks and counts as a whole; None for all others."""
        return None

    def asks_by_chat(self, subject: Subject) -> bool:
        """Whether the questions go through the chat template."""
        if self.chat and not subject.has_chat:
            raise InputError(f"--chat: {subject.name} has no chat template; leave it out, or fine-tune on chats")
        return bool(self.chat)

    def decoding(self, subject: Subject) -> dict[str, Any]:
        """How texts are decoded, for the passport; {} where none are written."""
        return {}

    # Counting

    @abstractmethod
    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        """The answers counted in every way that is in use, the main one first."""

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        """What dumb and classic methods answer on the same examples, computed from the data."""
        return []

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        """What explains the scores: scores by group, a reliability picture."""
        return {}

    def correct(self, row: Row, output: Output) -> bool | None:
        """Whether an answer is right, for McNemar's test; None where answers are not simply right or wrong."""
        return None

    def shown(self, row: Row, output: Output) -> str:
        """An answer as people read it."""
        return str(output.get("text", output))

    def prompt_text(self, row: Row) -> str:
        """What the model reads for an example, for the passport and for samples."""
        return self.question(row)

    # Task

    def place(self, example: Row) -> str:
        return example.place

    def messages(self, example: Row) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": self.prompt_text(example)},
            {"role": "assistant", "content": self.reference(example)},
        ]

    def question(self, example: Row) -> str:
        raise NotImplementedError

    def reference(self, example: Row) -> str:
        raise NotImplementedError

    def score(self, example: Row, completion: str) -> Score:
        main = self.measures([example], [{"text": completion}])[0]
        return Score({main.name: main.value})

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        first = self.baselines(examples)[0]
        return [self.shown(*pair) for pair in zip(examples, first.outputs, strict=True)]

    def settings(self) -> dict[str, Any]:
        """What reproduces the questions, for the passport."""
        known = {"suite": self.name, "version": self.version, "source": self.source, "shots": self.shots}
        known |= {"seed": self.seed, "chat": self.chat}
        if self.max_new_tokens is not None:
            known["max_new_tokens"] = self.max_new_tokens
        if self.fitting:
            known["fitting"] = True
        return known


def raw_rows(source: str) -> Iterator[Row]:
    """The rows of a source as its files have them, faulty ones included."""
    yield from FileSource(find_files(source), selection=selected_rows(source)).rows()


@dataclass(frozen=True)
class Choices:
    """A question with its answers, of which `right` are correct."""

    question: str
    answers: tuple[str, ...]
    right: tuple[int, ...]
    group: str = ""


class ChoiceSuite(Suite):
    """Questions with given answers: the likeliest answer is the model's.

    The answers of one question are scored after the same prompt, which is read once.
    """

    joint: ClassVar[str] = " "
    """What stands between a prompt and an answer."""

    def context(self, row: Row) -> str:
        """The question as it stands before each answer, without worked examples."""
        return str(row.value.question)

    def answers(self, row: Row) -> Sequence[str]:
        """The texts whose likelihood is measured."""
        return list(row.value.answers)

    def preamble(self, row: Row) -> str:
        """What stands before the worked examples."""
        return ""

    def solved(self, row: Row) -> str:
        """A worked example."""
        return self.context(row) + self.joint + self.answers(row)[row.value.right[0]]

    def prompt_text(self, row: Row) -> str:
        shown = [self.solved(each) for each in self.worked_examples(row)]
        return self.preamble(row) + "\n\n".join([*shown, self.context(row)])

    def pairs(self, subject: Subject, row: Row) -> list[tuple[Prompt, str]]:
        """Each answer with the prompt before it."""
        prompt = self.prompt_text(row)
        if self.asks_by_chat(subject):
            chat = [{"role": "user", "content": prompt}]
            return [(chat, answer) for answer in self.answers(row)]
        return [(prompt, self.joint + answer) for answer in self.answers(row)]

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        pairs = [self.pairs(subject, row) for row in rows]
        flat = [pair for each in pairs for pair in each]
        scores = iter(subject.likelihoods([prompt for prompt, _ in flat], [answer for _, answer in flat]))
        outputs = []
        for each in pairs:
            own = [next(scores) for _ in each]
            outputs.append({"logprobs": [score.total for score in own], "tokens": [score.tokens for score in own]})
        return outputs

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        pairs = [max(self.pairs(subject, row), key=lambda pair: len(pair[1])) for row in rows]
        subject.check([prompt for prompt, _ in pairs], [answer for _, answer in pairs], 0)

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        def right(picks: Sequence[int]) -> list[float]:
            return [float(pick in row.value.right) for pick, row in zip(picks, rows, strict=True)]

        found = [
            mean_of("acc", right([picked(output) for output in outputs]),
                    "The answer with the highest log-probability."),
            mean_of("acc_norm", right([picked(output, self._bytes(row)) for row, output in zip(rows, outputs)]),
                    "Log-probability divided by the answer's bytes (lm-eval's acc_norm): long answers are not punished "
                    "for having more tokens."),
        ]  # fmt: skip
        if all("tokens" in output for output in outputs):
            found.append(mean_of("acc_norm_tokens", right([picked(output, output["tokens"]) for output in outputs]),
                                 "Log-probability divided by the answer's tokens, as several papers do; it depends on "
                                 "the tokenizer."))  # fmt: skip
        if all("tokens" in output for output in outputs):
            confidences = [max(shares(output)) for output in outputs]
            found.append(calibration_error(confidences, right([picked(output) for output in outputs])))
        return found

    def _bytes(self, row: Row) -> list[int]:
        return [max(1, len(answer.encode())) for answer in self.answers(row)]

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        right = [bool(self.correct(row, output)) for row, output in zip(rows, outputs, strict=True)]
        found: dict[str, Any] = {"reliability": reliability([max(shares(output)) for output in outputs], right)}
        groups = [row.value.group for row in rows]
        if len(set(groups)) > 1:
            found["by_group"] = by_group(groups, right)
        return found

    def correct(self, row: Row, output: Output) -> bool | None:
        return picked(output) in row.value.right

    def shown(self, row: Row, output: Output) -> str:
        return str(row.value.answers[picked(output)])

    def question(self, example: Row) -> str:
        lines = [f"{letter(place)}. {answer}" for place, answer in enumerate(example.value.answers)]
        return "\n".join([example.value.question, *lines])

    def reference(self, example: Row) -> str:
        return str(example.value.answers[example.value.right[0]])

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        positions = Counter(place for row in rows for place in row.value.right)
        most = min(positions, key=lambda place: (-positions[place], place))
        longest = [max(range(len(row.value.answers)), key=lambda place: len(row.value.answers[place])) for row in rows]
        return [
            Baseline("longest answer", [chosen(row, place) for row, place in zip(rows, longest, strict=True)]),
            Baseline(
                f"always answer {letter(most)}, the most frequent",
                [chosen(row, min(most, len(row.value.answers) - 1)) for row in rows],
            ),
            Baseline("chance", measures=[chance(rows)]),
        ]


def letter(place: int) -> str:
    """A for 0, B for 1, …"""
    return chr(ord("A") + place)


def picked(output: Output, divisors: Sequence[float] | None = None) -> int:
    """The answer with the highest log-probability, divided by its length if `divisors` are given; first of equals."""
    scores = output["logprobs"]
    if divisors is not None:
        scores = [score / length for score, length in zip(scores, divisors, strict=True)]
    return max(range(len(scores)), key=lambda place: scores[place])


def shares(output: Output) -> list[float]:
    """The probabilities of the answers, of these alone."""
    scores = np.asarray(output["logprobs"], dtype=np.float64)
    weights = np.exp(scores - scores.max())
    normalized: list[float] = (weights / weights.sum()).tolist()
    return normalized


def chosen(row: Row, place: int) -> Output:
    """The answer of a baseline that picks one answer."""
    return {"logprobs": [0.0 if number == place else -1e6 for number in range(len(row.value.answers))]}


def chance(rows: Sequence[Row]) -> Measure:
    """The expected accuracy of a random answer."""
    return mean_of("acc", [len(row.value.right) / len(row.value.answers) for row in rows], "a random answer")


def calibration_error(confidences: Sequence[float], right: Sequence[float], bins: int = BINS) -> Measure:
    """The expected calibration error: how far confidence and accuracy lie apart, over bins of equal width.

    Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599).
    """
    statistics = np.zeros((len(right), 3 * bins))
    for row, (confidence, hit) in enumerate(zip(confidences, right, strict=True)):
        place = min(int(confidence * bins), bins - 1)
        statistics[row, [place, bins + place, 2 * bins + place]] = 1.0, confidence, hit

    def combine(sums: np.ndarray) -> np.ndarray:
        count, confidence, hits = sums.reshape(len(sums), 3, bins).transpose(1, 0, 2)
        apart: np.ndarray = np.abs(confidence - hits).sum(1) / count.sum(1)
        return apart

    return Measure(
        "ece",
        statistics,
        combine,
        f"Expected calibration error over {bins} bins: the mean distance between the probability of the chosen answer, "
        "among the given answers, and the share of right ones. 0 is calibrated.",
        higher_is_better=False,
        per_example=False,
        unit="%",
    )


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[dict[str, float]]:
    """For each bin of confidence that occurs its mean confidence, accuracy and count."""
    rows = []
    for place in range(bins):
        inside = [number for number, value in enumerate(confidences) if min(int(value * bins), bins - 1) == place]
        if inside:
            rows.append({
                "confidence": float(np.mean([confidences[number] for number in inside])),
                "accuracy": float(np.mean([right[number] for number in inside])),
                "count": len(inside),
            })  # fmt: skip
    return rows


def by_group(groups: Sequence[str], values: Sequence[float]) -> list[dict[str, Any]]:
    """The mean value of each group and its count, in the order of names."""
    sums: dict[str, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        sums.setdefault(group, []).append(float(value))
    return [{"group": name, "value": float(np.mean(own)), "count": len(own)} for name, own in sorted(sums.items())]


class WritingSuite(Suite):
    """Questions that the model answers with a text, decoded greedily."""

    default_new_tokens: ClassVar[int] = 128
    stop: ClassVar[tuple[str, ...]] = ()
    """Where a text ends that continues worked examples; a chat's answer ends by itself."""

    def asks_by_chat(self, subject: Subject) -> bool:
        """A model with a chat template is asked through it, unless the user forbids that."""
        return subject.has_chat if self.chat is None else super().asks_by_chat(subject)

    def prompts(self, subject: Subject, rows: Sequence[Row]) -> list[Prompt]:
        """The prompts of some examples."""
        if self.asks_by_chat(subject):
            return [[{"role": "user", "content": self.prompt_text(row)}] for row in rows]
        return [self.prompt_text(row) for row in rows]

    def params(self, subject: Subject) -> SamplingParams:
        """How the answers are decoded."""
        stop = () if self.asks_by_chat(subject) else self.stop
        return SamplingParams(max_new_tokens=self.max_new_tokens or self.default_new_tokens, stop=stop)

    def decoding(self, subject: Subject) -> dict[str, Any]:
        params = self.params(subject)
        return {"temperature": params.temperature, "max_new_tokens": params.max_new_tokens, "stop": list(params.stop)}

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        written = subject.write(self.prompts(subject, rows), self.params(subject))
        return [{"text": each.text, "tokens": each.tokens, "finished": each.finished} for each in written]

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        subject.check(self.prompts(subject, rows), (), self.params(subject).max_new_tokens)


def suite_names() -> list[str]:
    """The suites, by the files of `quatrain/evaluation/suites`."""
    package = import_module("quatrain.evaluation.suites")
    names = (module.name for module in iter_modules(package.__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in names)


@cache
def suite_class(name: str) -> type[Suite]:
    """The class of a suite. Raises InputError, with near names, for an unknown one."""
    if name not in suite_names():
        import difflib

        near = difflib.get_close_matches(name, suite_names(), 2, 0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{name!r} is no suite.{hint} Suites: {', '.join(suite_names())}")
    kind: type[Suite] = import_module(f"quatrain.evaluation.suites.{name.replace('-', '_')}").SUITE
    return kind


def prompt_hash(texts: Sequence[str]) -> str:
    """The SHA-256 of all prompts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
