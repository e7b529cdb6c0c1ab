"""Sweeps: the same recipe at several settings, a law fitted to the results, and a larger run that tests the law.

Each point of the grid is a run of its own under `NAME/points/`, so that an interrupted sweep goes on where it stopped
and a finished one is read again. The tokenizer is trained once. Points run in order of their FLOPs, in several
processes if asked, until the budget of minutes is used: points that would not fit are left out and named.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.failures import ended_workers_explained
from quatrain.core.progress import Reporter, SilentReporter
from quatrain.planning.counts import training_flops_per_token
from quatrain.planning.overview import parse_number
from quatrain.planning.scaling import Fit, IsoFlop, bootstrapped, fit, iso_flop_minimum, power_through
from quatrain.runs.costs import stage_costs, starting_config
from quatrain.runs.recipe import Recipe, load
from quatrain.training.settings import TrainSettings

MUP = "mup_base_width"
LEAST_POINTS = 6
"""Runs that a fit of the parametric law needs."""


LENGTHS = ("tokens", "flops")
"""Axes that are no setting: every point trains on so many tokens, or with so many FLOPs; its steps follow."""


@dataclass(frozen=True)
class Axis:
    """A setting of the recipe and the values that the sweep gives it; or one of `LENGTHS`, such as tokens=500k,1m."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """`key=a,b,c`. Raises InputError for fewer than two values, and for a value given twice."""
        key, separator, listed = text.partition("=")
        values = tuple(value.strip() for value in listed.split(",") if value.strip())
        if not separator or not key.strip() or not values or (len(values) < 2 and key.strip() not in LENGTHS):
            raise InputError(f"--over {text!r}: must be a setting and two values or more, such as train.steps=200,400")
        if len(set(values)) < len(values):
            raise InputError(f"--over {text!r}: a value is given twice")
        return cls(key.strip(), values)


def number_of(text: str) -> float | None:
    """The number that a setting is, such as 0.001 or 500k; None for another one."""
    try:
        return float(text)
    except ValueError:
        return parse_number(text)


@dataclass(frozen=True)
class Point:
    """One finished run: its settings, size, data, cost and loss. `loss` is the validation loss, nats a token."""

    settings: dict[str, str]
    parameters: float
    tokens: float
    flops: float
    loss: float
    seconds: float
    run: str

    def value(self, key: str) -> float:
        """A setting as a number. Raises InputError for a setting that is none."""
        if (number := number_of(self.settings[key])) is None:
            raise InputError(f"{key}: {self.settings[key]!r} is not a number, so no curve goes through it.")
        return number


@dataclass(frozen=True)
class Growth:
    """The optimal size is a power of compute: its exponent, with a 95 % interval by bootstrap over the points."""

    exponent: float
    low: float
    high: float


def _minimum(group: Sequence[Point]) -> IsoFlop:
    return iso_flop_minimum(
        float(np.mean([point.flops for point in group])), [point.parameters for point in group],
        [point.loss for point in group],
    )  # fmt: skip


@dataclass
class Sweep:
    """What a sweep found. `left_out` are the settings of points that the budget did not allow."""

    name: str
    axes: tuple[Axis, ...]
    points: list[Point] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def best(self) -> Point | None:
        """The point of the lowest loss; None without points."""
        return min(self.points, key=lambda point: point.loss, default=None)

    def law(self, *, bootstrap: int = 20) -> Fit | None:
        """L = E + A / N^alpha + B / D^beta through the points; None for too few of them or only one size or length."""
        sizes, lengths = {point.parameters for point in self.points}, {point.tokens for point in self.points}
        if len(self.points) < LEAST_POINTS or len(sizes) < 2 or len(lengths) < 2:
            return None
        columns = ([getattr(point, name) for point in self.points] for name in ("parameters", "tokens", "loss"))
        return fit(*columns, bootstrap=bootstrap, source=f"sweep {self.name}")

    def budgets(self, tolerance: float = 0.15) -> list[list[Point]]:
        """The points of each budget of FLOPs that at least three sizes were trained with."""
        groups: list[list[Point]] = []
        for point in sorted(self.points, key=lambda point: point.flops):
            if groups and point.flops <= groups[-1][0].flops * (1 + tolerance):
                groups[-1].append(point)
            else:
                groups.append([point])
        return [group for group in groups if len({point.parameters for point in group}) >= 3]

    def iso_flops(self) -> list[IsoFlop]:
        """The optimal size of each budget."""
        return [_minimum(group) for group in self.budgets()]

    def growth(self, *, draws: int = 200) -> Growth | None:
        """How the optimal size grows with compute (approach 2); None for fewer than two budgets."""
        groups = self.budgets()
        points = [point for group in groups for point in group]
        owners = [number for number, group in enumerate(groups) for _ in group]

        def exponent(rows: Iterable[int]) -> float:
            drawn: dict[int, list[Point]] = {}
            for row in rows:
                drawn.setdefault(owners[row], []).append(points[row])
            whole = [group for group in drawn.values() if len({point.parameters for point in group}) >= 3]
            minima = [(each.flops, each.parameters) for each in map(_minimum, whole)]
            return power_through(minima, "").exponent if len(minima) >= 2 else math.nan

        if len(groups) < 2:
            return None
        return Growth(exponent(range(len(points))), *bootstrapped(exponent, len(points), draws=draws))

    def transfer(self, key: str) -> dict[str, float]:
        """By how much the best value of `key` moves between widths: the largest over the smallest, for each value of
        an axis `mup_base_width`, or for all points.
        """
        base = next((axis.key for axis in self.axes if axis.key.endswith(MUP)), None)
        found: dict[str, list[float]] = {}
        for part, points in self.parts(base).items():
            best = Sweep(self.name, self.axes, points).optimum(key).values()
            found[part] = [value for value, _ in best]
        return {part: max(values) / min(values) for part, values in found.items() if len(values) > 1}

    def parts(self, key: str | None) -> dict[str, list[Point]]:
        """The points by a setting; all of them under "all" without one."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            found.setdefault("all" if key is None else f"{key.rpartition('.')[2]}={point.settings[key]}", []).append(
                point
            )
        return found

    def optimum(self, key: str) -> dict[str, tuple[float, float]]:
        """The best value of `key` and its loss for each combination of the other settings, by a parabola in log `key`.

        For learning rates and batch sizes. The best trained value counts where the parabola has no minimum inside.
        """
        others = [axis.key for axis in self.axes if axis.key != key]
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            name = ", ".join(f"{other}={point.settings[other]}" for other in others) or "all"
            groups.setdefault(name, []).append(point)
        found = {}
        for name, group in groups.items():
            best = min(group, key=lambda point: point.loss)
            found[name] = best.value(key), best.loss
            if len(group) >= 3:
                minimum = iso_flop_minimum(0.0, [point.value(key) for point in group], [point.loss for point in group])
                if minimum.inside:
                    found[name] = minimum.parameters, minimum.loss
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name, "axes": [asdict(axis) for axis in self.axes],
            "points": [asdict(point) for point in self.points], "left_out": self.left_out, "failed": self.failed,
        }  # fmt: skip


@dataclass(frozen=True)
class SweepPlan:
    """How a sweep runs. `minutes`: None has no limit. `processes` run points side by side, sharing the cores.

    `predict`: settings of a larger run, `key=value`. `best`: a setting of the axes whose best value is looked for.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    folder: Path
    minutes: float | None = None
    processes: int = 1
    predict: tuple[str, ...] = ()
    best: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.axes:
            problems.append("--over: missing; name a setting and its values, such as --over model.hidden_size=64,128")
        if self.processes < 1:
            problems.append(f"--processes {self.processes}: must be at least 1")
        if self.minutes is not None and not self.minutes > 0:
            problems.append(f"--minutes {self.minutes}: must be above 0")
        keys = [axis.key for axis in self.axes]
        problems += [f"--over {key}: given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
        problems += [
            f"--predict {change!r}: must be a setting and its value, such as model.hidden_size=192"
            for change in self.predict
            if "=" not in change
        ]
        if self.predict and (count := math.prod(len(axis.values) for axis in self.axes)) < LEAST_POINTS:
            problems.append(f"--predict: {count} points; a law needs {LEAST_POINTS}, of two sizes and two lengths")
        if self.best is not None:
            axis = next((axis for axis in self.axes if axis.key == self.best), None)
            if axis is None:
                problems.append(f"--best {self.best}: must be a setting of --over ({', '.join(keys)})")
            else:
                problems += [
                    f"--best {axis.key}: {value!r} is no number above 0, so no curve goes through it"
                    for value in axis.values
                    if not 0 < (number_of(value) or 0) < math.inf
                ]
        if problems:
            raise InputError("This sweep cannot run:", problems)

    def grid(self) -> list[dict[str, str]]:
        """The settings of each point."""
        return [
            dict(zip((axis.key for axis in self.axes), values, strict=True))
            for values in product(*(axis.values for axis in self.axes))
        ]

    def larger(self) -> dict[str, str]:
        """The settings of the larger run. Those of the axes that `predict` does not name have their last values."""
        return {axis.key: axis.values[-1] for axis in self.axes} | dict(each.split("=", 1) for each in self.predict)

    def recipe_of(self, settings: Mapping[str, str], tokenizer: Path | None = None) -> Recipe:
        """The recipe of a point. Raises InputError for settings that the recipe does not have, all problems at once."""
        words = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items())
        mark = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:6]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", words)[:80].lstrip(".-") + f"-{mark}"
        plain = {key: value for key, value in settings.items() if key not in LENGTHS}
        changed = [*self.overrides, *(f"{key}={value}" for key, value in plain.items()), f"name={name}"]
        if tokenizer is not None:
            changed += [f"tokenizer.path={tokenizer}", "stage.tokenizer=none"]
        recipe = load(self.recipe, changed)
        for key in settings.keys() - plain.keys():
            changed += _length(recipe, key, settings[key])
        return recipe if len(plain) == len(settings) else load(self.recipe, changed)

    @property
    def points(self) -> Path:
        """The folder of the points' runs."""
        return self.folder / "points"


def _length(recipe: Recipe, key: str, text: str) -> Iterator[str]:
    """Overrides that train the last training stage on so many tokens, or with so many FLOPs."""
    amount = parse_number(text)
    if not amount:
        raise InputError(f"{key}={text!r}: must be a positive number such as 500k, 1.5m or 2e12")
    trained = [
        index for index, stage in enumerate(recipe.stage) if isinstance(getattr(stage, "train", None), TrainSettings)
    ]
    if not trained:
        raise InputError(f"{key}: {recipe.name} has no stage that trains")
    stage: Any = recipe.stage[trained[-1]]
    if key == "flops":
        amount /= training_flops_per_token(starting_config(recipe)[0], recipe.context_of(stage))
    steps = max(1, round(amount / stage.train.batch_tokens))
    place = (
        f"stage.{stage.kind}" if [each.kind for each in recipe.stage].count(stage.kind) == 1 else f"stage.{trained[-1]}"
    )
    yield f"{place}.train.epochs=none"
    yield f"{place}.train.steps={steps}"
    if stage.train.warmup_steps > steps:
        yield f"{place}.train.warmup_steps={steps // 10}"


def run_sweep(plan: SweepPlan, reporter: Reporter) -> Sweep:
    """Runs the points that are not finished, smallest first, and returns all of them; also written to `sweep.json`.

    Raises InputError, before anything runs, if a recipe of a point or of the larger run is wrong. A point that fails
    is named and left out.
    """
    if plan.predict:
        plan.recipe_of(plan.larger())
    grid = plan.grid()
    recipes = [plan.recipe_of(settings) for settings in grid]
    order = sorted(range(len(grid)), key=lambda number: _cost(recipes[number]))
    sweep = Sweep(plan.name, plan.axes)
    plan.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(plan, recipes[order[0]])
    finish = None if plan.minutes is None else time.monotonic() + 60 * plan.minutes
    with reporter.task("sweep", total=len(grid), unit="point") as task:
        ordered, costs = [grid[each] for each in order], [_cost(recipes[each]) for each in order]
        for number, outcome in _outcomes(plan, ordered, costs, tokenizer, finish):
            settings = grid[order[number]]
            label = ", ".join(f"{key}={value}" for key, value in settings.items())
            if outcome is None:
                sweep.left_out.append(settings)
            elif isinstance(outcome, str):
                sweep.failed[label] = outcome
                reporter.warn(f"{label}: {outcome}")
            else:
                sweep.points.append(outcome)
                sizes = f"{outcome.parameters:,.0f} parameters, {outcome.tokens:,.0f} tokens"
                reporter.info(f"{label}: loss {outcome.loss:.4f}, {sizes}, {outcome.seconds:,.0f} s")
            task.update(len(sweep.points) + len(sweep.left_out) + len(sweep.failed))
            write_json(plan.folder / "sweep.json", sweep.as_dict())
    return sweep


Outcome = Point | str | None


def _outcomes(
    plan: SweepPlan,
    grid: Sequence[dict[str, str]],
    costs: Sequence[float],
    tokenizer: Path | None,
    finish: float | None,
) -> Iterator[tuple[int, Outcome]]:
    """(number, result) of each point as it finishes: a Point, the message of a failure, or None if there is no time.

    Finished points are read before anything runs. The seconds of a point are predicted from those that ran, by FLOPs.
    """
    waiting = []
    for number, settings in enumerate(grid):
        found = finished_point(plan, settings, tokenizer)
        if found is None:
            waiting.append(number)
        else:
            yield number, found
    rate: list[float] = []  # FLOPs a second
    threads = max(1, _threads() // plan.processes)
    context = multiprocessing.get_context("spawn")
    explained = ended_workers_explained("the sweep", "with the points that have finished")
    with explained, ProcessPoolExecutor(plan.processes, mp_context=context) as pool, _stopping_children():
        running: dict[Future[Outcome], int] = {}
        while waiting or running:
            while waiting and len(running) < plan.processes:
                number = waiting.pop(0)
                expected = costs[number] / (sum(rate) / len(rate)) if rate else 0.0
                if finish is not None and time.monotonic() + expected > finish:
                    yield number, None
                    continue
                running[pool.submit(_run_point, plan, grid[number], tokenizer, threads)] = number
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), set())
            for future in done:
                number = running.pop(future)
                outcome = future.result()
                if isinstance(outcome, Point) and outcome.seconds > 0:
                    rate.append(costs[number] / outcome.seconds)
                yield number, outcome


@contextmanager
def _stopping_children() -> Iterator[None]:
    """Where the sweep is stopped, the points that run are stopped too: they keep their checkpoints."""
    try:
        yield
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def _threads() -> int:
    """The threads of this process, which OMP_NUM_THREADS limits."""
    import torch

    return torch.get_num_threads()


def _run_point(plan: SweepPlan, settings: dict[str, str], tokenizer: Path | None, threads: int) -> Outcome:
    """Runs a point in a process of its own."""
    import torch

    from quatrain.runs.runner import run

    torch.set_num_threads(threads)
    try:
        run(plan.recipe_of(settings, tokenizer), runs_dir=plan.points, reuse=True, reporter=SilentReporter())
    except QuatrainError as error:
        return " ".join(str(error).split())
    return finished_point(plan, settings, tokenizer)


def finished_point(plan: SweepPlan, settings: dict[str, str], tokenizer: Path | None) -> Point | None:
    """The point if exactly its run has finished."""
    from quatrain.runs.runner import finished_run

    recipe = plan.recipe_of(settings, tokenizer)
    done = finished_run(plan.points / recipe.name, recipe)
    if done is None:
        return None
    trained = [
        (result, stage) for result, stage in zip(done.results, recipe.stage, strict=True) if hasattr(stage, "train")
    ]
    if not trained or not isinstance(trained[-1][0].get("validation_loss"), int | float):
        raise InputError(f"{plan.recipe}: no stage with a validation loss, which a sweep compares")
    result, stage = trained[-1]
    tokens = float(result.get("steps") or 0) * stage.train.batch_tokens
    return Point(
        settings,
        parameters=float(result["parameters"]),
        tokens=tokens,
        flops=float(result.get("flops") or 0),
        loss=float(result["validation_loss"]),
        seconds=float(result.get("training_seconds") or 0),
        run=recipe.name,
    )


def _tokenizer(plan: SweepPlan, first: Recipe) -> Path | None:
    """The tokenizer of all points, trained once; None if the recipe trains none or the sweep changes it."""
    kinds = [stage.kind for stage in first.stage]
    changed = ("tokenizer.", "stage.tokenizer", "data.")
    if "tokenizer" not in kinds or any(axis.key.startswith(changed) for axis in plan.axes):
        return None
    from quatrain.runs.runner import run

    stages = tuple(stage for stage in first.stage if stage.kind == "tokenizer")
    only = first.model_copy(update={"name": "tokenizer", "stage": stages})
    done = run(only, runs_dir=plan.folder, reuse=True, reporter=SilentReporter())
    stage = next(iter((done.folder / "stages").iterdir()))
    return stage / "tokenizer"


def _cost(recipe: Recipe) -> float:
    """FLOPs of a recipe's training: for the order of the points and to predict their seconds."""
    return sum(stage.flops for stage in stage_costs(recipe, memory=False))


@dataclass(frozen=True)
class Prediction:
    """A larger run beside what the law of the smaller ones says of it."""

    point: Point
    predicted: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return (self.predicted - self.point.loss) / self.point.loss


def predict_and_run(plan: SweepPlan, law: Fit | None, reporter: Reporter) -> Prediction:
    """Predicts the loss of the larger run of a plan by the law of its sweep, then runs it.

    Raises InputError without a law, and QuatrainError if the run fails.
    """
    if law is None:
        raise InputError(f"--predict: no law; it needs at least {LEAST_POINTS} points of two sizes and two lengths")
    settings = plan.larger()
    tokenizer = _tokenizer(plan, plan.recipe_of(settings))
    outcome = finished_point(plan, settings, tokenizer)
    if outcome is None:
        reporter.info("the larger run: " + ", ".join(f"{key}={value}" for key, value in settings.items()))
        ran = _run_point(plan, settings, tokenizer, _threads())
        if not isinstance(ran, Point):
            raise QuatrainError(f"The larger run failed: {ran}")
        outcome = ran
    return Prediction(outcome, law.law.loss(outcome.parameters, outcome.tokens))
