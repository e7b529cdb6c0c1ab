"""Rewards: functions that score completions, their weighted sum, and the names of those that are broken.

A reward is any function `(examples, completions) -> scores`, batched; higher is better. A score of None means that the
reward cannot judge this completion, for example because the example's own reference fails.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.settings import Problem, Settings
from quatrain.core.wording import format_value, shorten, type_name

if TYPE_CHECKING:
    from torch import Tensor

    from quatrain.tasks.task import Task

SHOWN_CHARACTERS = 200
"""Most characters of a completion that an error shows."""
LARGEST_SCORE = 3.4e38
"""The largest absolute score: scores are float32."""


class Reward(Protocol):
    """Scores N completions of N examples. A result is a list or a tensor of N numbers; None for "cannot be judged"."""

    def __call__(self, examples: Sequence[Any], completions: Sequence[str]) -> Sequence[float | None]:
        """One score for each completion, higher is better."""
        ...


class RewardError(QuatrainError):
    """A reward is broken: it raised an exception, took too long, or returned something else than N finite numbers.

    `part` is the name of the reward, `reason` what is wrong with it. `index` is the first completion concerned; None
    if the batch as a whole is. Save the rollouts before this error stops a run.
    """

    def __init__(self, part: str, reason: str, *, index: int | None = None, completion: str | None = None):
        self.part, self.reason, self.index = part, reason, index
        shown = "" if completion is None else f" Completion {index}: {shorten(repr(completion), SHOWN_CHARACTERS)}"
        super().__init__(f"The reward {format_value(part)} {reason}.{shown}")


@dataclass(frozen=True)
class RewardScores:
    """The scores of N completions.

    `total` (N,) float32 is the weighted sum of `parts`, which hold the scores (N,) of each reward before its weight.
    `unscorable` (N,) is True where a reward could not judge the completion: its part and the total are 0 there, and
    the completion must not be learned from. `constant` names the rewards that gave all completions of the batch the
    same score, from which nothing can be learned.
    """

    total: Tensor
    parts: dict[str, Tensor]
    unscorable: Tensor
    constant: tuple[str, ...] = ()

    def judged(self, scores: Tensor) -> list[float | None]:
        """These scores (N,), the total or a part, as a list with None for completions that could not be judged."""
        pairs = zip(scores.tolist(), self.unscorable.tolist(), strict=True)
        return [None if missing else score for score, missing in pairs]

    def mean(self, scores: Tensor) -> float:
        """The mean of these scores (N,) over the completions that could be judged; NaN if there is none."""
        return float(scores[~self.unscorable].mean())


class WeightedRewards:
    """The weighted sum of named rewards. It is itself a reward.

    `parts` maps a name to a reward and its weight. A call of one reward may take `timeout` seconds (None for no limit);
    a reward that takes longer is given up, but its thread lives until the function returns.

        rewards = WeightedRewards({"correct": (TaskReward(task), 1.0), "brevity": (length, 0.1)})
        scores = rewards.score(examples, completions)
    """

    def __init__(self, parts: Mapping[str, tuple[Reward, float]], *, timeout: float | None = None):
        if not parts:
            raise InputError("rewards: none; name at least one reward.")
        self.parts, self.timeout = dict(parts), timeout

    def __call__(self, examples: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """The total of each completion; None where it cannot be judged."""
        scores = self.score(examples, completions)
        return scores.judged(scores.total)

    def score(self, examples: Sequence[Any], completions: Sequence[str]) -> RewardScores:
        """Score N completions of N examples. Raises RewardError that names a broken reward."""
        import torch

        if len(examples) != len(completions):
            raise ValueError(f"{len(examples)} examples for {len(completions)} completions")
        total = torch.zeros(len(completions))
        unscorable = torch.zeros(len(completions), dtype=torch.bool)
        parts: dict[str, Tensor] = {}
        constant = []
        for name, (reward, weight) in self.parts.items():
            values, missing = checked(name, self._call(name, reward, examples, completions), completions)
            parts[name] = values
            total += weight * values
            unscorable |= missing
            judged = values[~missing]
            if len(judged) > 1 and bool((judged == judged[0]).all()):
                constant.append(name)
            if not bool(total.isfinite().all()):
                index = int((~total.isfinite()).nonzero()[0])
                reason = f"makes the weighted sum {float(total[index])}; its weight is {weight:g}: use a smaller one"
                raise RewardError(name, reason, index=index, completion=completions[index])
        return RewardScores(total.masked_fill(unscorable, 0.0), parts, unscorable, tuple(constant))

    def _call(self, name: str, reward: Reward, examples: Sequence[Any], completions: Sequence[str]) -> Any:
        try:
            return limited(lambda: reward(examples, completions), self.timeout)
        except RewardError:
            raise
        except TimeoutError as error:
            limit = f"took longer than {self.timeout:g} s" if self.timeout is not None else "timed out"
            raise RewardError(name, f"{limit} for {len(completions)} completions") from error
        except Exception as error:
            text = shorten(str(error), SHOWN_CHARACTERS)
            raise RewardError(name, f"raised {type(error).__name__}: {text}") from error


def limited(function: Callable[[], Any], seconds: float | None) -> Any:
    """The result of a function. Raises TimeoutError if it takes longer than `seconds`; None for no limit.

    The function then runs on in a thread that does not keep the process alive.
    """
    if seconds is None:
        return function()
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="reward")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]


def checked(name: str, scores: Any, completions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What a reward returned as float32 (N,), 0 where it could not judge, and the mask (N,) of these completions.

    Raises RewardError for a wrong number of scores, for values that are not numbers, and for NaN and inf.
    """
    import torch

    count = len(completions)
    shape = tuple(getattr(scores, "shape", ()))
    if len(shape) > 1:
        raise RewardError(name, f"returned scores of shape {shape}; must be ({count},), one for each completion")
    if callable(getattr(scores, "tolist", None)):
        scores = scores.tolist()
    if isinstance(scores, str) or not isinstance(scores, Sequence):
        raise RewardError(name, f"returned {type_name(scores)}; must be a list of {count} numbers")
    if len(scores) != count:
        raise RewardError(name, f"returned {len(scores)} scores for {count} completions")
    values = torch.zeros(count)
    missing = torch.zeros(count, dtype=torch.bool)
    for index, (score, completion) in enumerate(zip(scores, completions, strict=True)):
        if score is None:
            missing[index] = True
            continue
        try:
            if isinstance(score, str):
                raise TypeError
            number = float(score)
        except (TypeError, ValueError):
            reason = f"returned {format_value(score)}, which is not a number"
            raise RewardError(name, reason, index=index, completion=completion) from None
        except OverflowError:
            number = math.inf
        if not abs(number) <= LARGEST_SCORE:
            reason = f"returned {number}" + ("; too large for float32" if math.isfinite(number) else "")
            raise RewardError(name, reason, index=index, completion=completion)
        values[index] = number
    return values, missing


class TaskReward:
    """The main metric of a task as a reward; None where the example's own reference cannot be judged."""

    def __init__(self, task: Task[Any]):
        self.task = task

    def __call__(self, examples: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        return self.task.reward(examples, completions)


@dataclass(frozen=True)
class RewardContext:
    """What a reward of a recipe may use: the task of the stage, if it has one, and the judges of earlier stages.

    `judges` maps the kind of a stage to a function that returns its model and tokenizer.
    """

    task: Task[Any] | None = None
    judges: Mapping[str, Callable[[], tuple[Any, Any]]] = field(default_factory=dict)

    def reference(self, example: Any, field: str | None = None) -> Any:
        """The right answer of an example: its `field`, or, without one, the reference of the task."""
        if field is not None:
            return field_of(example, field)
        if self.task is not None:
            return self.task.reference(example)
        return field_of(example, "reference")


def field_of(example: Any, name: str) -> Any:
    """The field of an example that is a mapping or an object. Raises InputError if it has none of this name."""
    value = example.get(name) if isinstance(example, Mapping) else getattr(example, name, None)
    if value is None:
        raise InputError(f"The example has no field {format_value(name)}: {format_value(example)}")
    return value


def compiled(pattern: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """A regular expression of a recipe, whose dot matches line breaks too."""
    return re.compile(pattern, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def pattern_problems(key: str, pattern: str | None) -> Iterator[Problem]:
    """The problem of a regular expression that is none."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        yield Problem((key,), f"{format_value(pattern)}; no valid regular expression: {error}")


class RewardSettings(Settings):
    """One table of `rewards` in a recipe. Each kind of reward extends it, fixes `kind` and builds its function.

    `weight` multiplies the score in the sum; a negative one turns the reward round. `name` is what metrics call it, by
    default its kind.
    """

    needs_task: ClassVar[bool] = False
    """Whether the reward is the score of the stage's own task."""

    kind: str
    weight: float = 1.0
    name: str | None = None

    def build(self, context: RewardContext) -> Reward:
        """The function that scores. Raises InputError for what the recipe's user has to mend."""
        raise NotImplementedError

    @property
    def part(self) -> str:
        """The name of the reward in metrics."""
        return self.name or self.kind
