"""Watches the metrics of preference and reinforcement learning, and raises alarms that say what to do.

A reward is a proxy: past some point its gain costs what it stands for (Gao, Schulman and Hilton 2023, "Scaling laws for
reward model overoptimization"). `Watch` compares windows of the logged metrics: the first ones, the best ones and the
last ones. It raises an alarm for a difference that is both large enough to matter and far outside the noise of the
metric itself (Welch's t statistic, converted to a normal quantile). A run whose reward does not move raises none.

Metrics: `reward`, `reward_std`, `true/NAME` (held out beside the reward), `kl`, `entropy`, `completion_length`,
`repetition`, `distinct`, `ended_fraction`, `clip_fraction`, `groups_without_spread`, `unscorable`, `constant/PART` (1
where a part gave all completions of a step the same score), `logps/chosen`, `logps/rejected`. Whatever is missing is
not watched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WINDOW = 10
"""Values in each of two compared windows; half of what there is where there are fewer than twice as many."""
FEWEST = 3
"""Values that a window must have at least."""
FIRST = 5
"""Values at the start that all later ones are compared with, where a run learns so fast that a window hides it."""
SIGNIFICANT = 5.0
"""Standard deviations of a normal distribution by which two windows must differ."""
CONSTANT_STEPS = 5
"""Logged steps in a row in which a reward must be constant."""
SHRUNK = 3
"""How many times shorter completions have become when a true metric no longer excuses it."""

_TRUE = "true/"
_CONSTANT = "constant/"


@dataclass(frozen=True)
class Alarm:
    """What went wrong (`kind`), the step that showed it, and a sentence with the numbers and what to do.

    `metrics` are those that the sentence is about.
    """

    kind: str
    step: int
    text: str
    metrics: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The alarm as JSON, for `metrics.jsonl`."""
        return {"kind": self.kind, "step": self.step, "text": self.text, "metrics": list(self.metrics)}


class Shift(NamedTuple):
    """Means of two windows of a metric, and the difference in standard deviations of a normal distribution."""

    before: float
    after: float
    z: float

    @property
    def rose(self) -> bool:
        return self.z >= SIGNIFICANT

    @property
    def fell(self) -> bool:
        return self.z <= -SIGNIFICANT


class Drift(NamedTuple):
    """Means of a metric at its start and now, where they differ beyond its noise."""

    before: float
    after: float


def shift(before: Sequence[float], after: Sequence[float], *, correlation: float = 0.0) -> Shift:
    """Compare the means of two windows by Welch's t statistic.

    The statistic is converted to the normal quantile of the same tail (Wallace 1959), so that short windows need larger
    differences. `correlation` is that of neighbouring values: fewer of them are independent then. Equal windows without
    noise give 0, different ones infinity.
    """
    first, second = _mean(before), _mean(after)
    errors = [_variance(values) / len(values) for values in (before, after)]
    if math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12):
        return Shift(first, second, 0.0)
    if not (total := sum(errors)):
        return Shift(first, second, math.copysign(math.inf, second - first))
    freedom = 1 / sum((e / total) ** 2 / (len(v) - 1) for e, v in zip(errors, (before, after), strict=True))
    error = math.sqrt(total * _inflation(correlation))
    return Shift(first, second, normal_quantile((second - first) / error, freedom))


def _inflation(correlation: float) -> float:
    """By how much correlated neighbours raise the variance of a mean, as in an autoregression of order 1."""
    return (1 + correlation) / (1 - correlation)


def normal_quantile(t: float, freedom: float) -> float:
    """The normal quantile with the tail of Student's `t` at these degrees of freedom (Wallace 1959)."""
    size = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.copysign(size, t)


@dataclass
class Series:
    """A metric over the logged steps. `best` is the start of the window with the highest mean, the last one left "
    "out."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    best: int = 0
    _differences: tuple[list[float], list[float]] = field(default_factory=lambda: ([0.0, 0.0], [0.0, 0.0]))

    def add(self, step: int, value: float) -> None:
        for lag, sums in enumerate(self._differences, 1):
            if len(self.values) >= lag:
                difference = value - self.values[-lag]
                sums[0] += difference
                sums[1] += difference * difference
        self.steps.append(step)
        self.values.append(value)
        start = len(self.values) - 2 * WINDOW
        if start >= 0 and _mean(self.window(start)) > _mean(self.window(self.best)):
            self.best = start

    @property
    def correlation(self) -> float:
        """An upper bound of the correlation of neighbouring values, whatever their trend.

        It follows from the variances of the differences to the last value and to the one before. Policies drift, so
        that their metrics are rarely white noise.
        """
        count = len(self.values)
        if count < 4:
            return 0.0
        one, two = (
            max(0.0, squares / (count - lag) - (total / (count - lag)) ** 2)
            for lag, (total, squares) in enumerate(self._differences, 1)
        )
        return min(0.95, max(0.0, (two / one - 1 if one else 0.0) + 1 / math.sqrt(count)))

    @property
    def size(self) -> int:
        """Values in a window."""
        return min(WINDOW, len(self.values) // 2)

    def window(self, start: int) -> list[float]:
        """The values of the window at this place; negative places count from the end."""
        return self.values[start:][: self.size]

    def last(self) -> list[float]:
        return self.values[-self.size :]

    def since_start(self) -> Shift | None:
        """The last window against the first; None with too few values."""
        return None if self.size < FEWEST else shift(self.window(0), self.last(), correlation=self.correlation)

    def drift(self) -> Drift | None:
        """The last window against the first values; None if it did not move away from them.

        It did if the windows differ significantly, or if the whole second half is beyond all first values.
        """
        moved = self.since_start()
        if moved is None:
            return None
        first, half, last = self.values[: min(FIRST, self.size)], self.values[len(self.values) // 2 :], self.last()
        apart = len(self.values) >= 2 * WINDOW and (min(half) > max(first) or max(half) < min(first))
        return Drift(_mean(first), _mean(last)) if apart or abs(moved.z) >= SIGNIFICANT else None

    def since_best(self) -> Shift | None:
        """The last window against the best one before it; None with too few values."""
        return None if self.size < FEWEST else shift(self.window(self.best), self.last(), correlation=self.correlation)


class Watch:
    """Reads the entries of a training log in order and returns the alarms that each raises.

    Each kind of alarm is raised once per metric. `replay` restores the state of an interrupted run from its log.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.raised: dict[tuple[str, tuple[str, ...]], Alarm] = {}
        self.step = 0
        self._previous: dict[str, float] = {}
        self._runs: dict[str, _ConstantRun] = {}

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms so far, in order."""
        return list(self.raised.values())

    def update(self, entry: Mapping[str, Any]) -> list[Alarm]:
        """Take the entry of one step, `{"step": …, "reward": …, …}`, and return new alarms.

        A rollout that is learned in several steps has the same reward, spread and length in each; its metrics count
        once.
        """
        numbers = {
            name: float(value)
            for name, value in entry.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        self.step = int(numbers.pop("step", self.step))
        rollout = {name: numbers[name] for name in _ROLLOUT if name in numbers}
        repeated = len(rollout) > 1 and rollout == self._previous
        self._previous = rollout or self._previous
        for name, value in numbers.items():
            series = self.series.setdefault(name, Series())
            if not (repeated and series.values and series.values[-1] == value):
                series.add(self.step, value)
        if "reward" in numbers and "reward_std" in numbers:
            still = numbers["reward_std"] <= 1e-7 * (1 + abs(numbers["reward"]))
            self._constant("reward", numbers["reward"], still)
        for name, value in numbers.items():
            if name.startswith(_CONSTANT):
                part = f"reward/{name.removeprefix(_CONSTANT)}"
                self._constant(part, numbers.get(part, math.nan), value >= 1)
        new = []
        for alarm in (each for detect in DETECTORS for each in detect(self)):
            if (key := (alarm.kind, alarm.metrics)) not in self.raised:
                self.raised[key] = alarm
                new.append(alarm)
        return new

    def replay(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take the entries that an interrupted run logged; their alarms are not raised again."""
        for entry in entries:
            self.update(entry)

    def since_start(self, name: str) -> Shift | None:
        """How a metric differs from its start; None if it is not known well enough."""
        return self.series[name].since_start() if name in self.series else None

    def drift(self, name: str) -> Drift | None:
        """How a metric left its start; None if it is near to it, or not known well enough."""
        return self.series[name].drift() if name in self.series else None

    def recent(self, name: str, count: int = WINDOW) -> list[float]:
        """The last `count` values of a metric; empty with fewer."""
        values = self.series[name].values if name in self.series else []
        return values[-count:] if len(values) >= count else []

    def gains(self) -> bool:
        """Whether a true metric rises, as far as its values can tell: they are often few."""
        for name, series in self.series.items():
            if name.startswith(_TRUE) and len(series.values) > 1:
                moved, half = series.since_start(), series.values[len(series.values) // 2 :]
                if (moved is not None and moved.z >= 2) or min(half) > max(series.values[: (len(half) + 1) // 2]):
                    return True
        return False

    def learned(self) -> bool:
        """Whether the reward is far above its start."""
        moved = self.since_start("reward")
        return moved is not None and moved.rose

    def constant_runs(self) -> dict[str, _ConstantRun]:
        """The rewards and parts of which it is known whether they are constant."""
        return self._runs

    def _constant(self, name: str, value: float, still: bool) -> None:
        self._runs.setdefault(name, _ConstantRun()).add(value, still)


_ROLLOUT = ("reward", "reward_std", "completion_length", "repetition", "distinct", "ended_fraction", "unscorable")


@dataclass
class _ConstantRun:
    """How long a reward has been constant, at which value, and the mean of its steps before that were not."""

    steps: int = 0
    value: float = math.nan
    varied: list[float] = field(default_factory=list)

    def add(self, value: float, still: bool) -> None:
        if not still:
            self.steps = 0
            self.varied.append(value)
        else:
            self.steps = self.steps + 1 if value == self.value or self.steps == 0 else 1
            self.value = value

    @property
    def stuck(self) -> bool:
        """Constant for long enough, and not because the best score was reached."""
        return self.steps >= CONSTANT_STEPS and not (self.varied and self.value > _mean(self.varied[:WINDOW]))


# The detectors


def hacked(watch: Watch) -> Iterator[Alarm]:
    """The reward rises while a true metric falls, from where it was best."""
    reward = watch.series.get("reward")
    for name, series in watch.series.items():
        moved = series.since_best() if name.startswith(_TRUE) else None
        if reward is None or moved is None or not moved.fell or moved.before - moved.after < 0.05 * abs(moved.before):
            continue
        start = series.steps[series.best]
        then = [value for step, value in zip(reward.steps, reward.values, strict=True) if step >= start][: reward.size]
        if len(then) >= FEWEST and (proxy := shift(then, reward.last(), correlation=reward.correlation)).rose:
            yield Alarm(
                "reward_hacking",
                watch.step,
                f"reward hacking: since step {start:,} the reward rose from {proxy.before:.3g} to {proxy.after:.3g} "
                f"while {name} fell from {moved.before:.3g} to {moved.after:.3g}. The policy learns what the reward "
                "overrates: read the completions, then take an earlier checkpoint, raise kl_coef, or correct the "
                "reward.",
                ("reward", name),
            )


def drifted(watch: Watch) -> Iterator[Alarm]:
    """The reward rises together with length, repetition or completions that do not end, and no true metric rises."""
    reward = watch.drift("reward")
    if reward is None or reward.after <= reward.before or watch.gains():
        return
    rise = f"the reward rose from {reward.before:.3g} to {reward.after:.3g} while "
    known = any(name.startswith(_TRUE) for name in watch.series)
    proof = "The true metric does not confirm the gain" if known else "No true metric confirms the gain"
    for name, is_large, words, remedy in (
        ("completion_length", lambda a, b: max(a, b) >= 1.5 * min(a, b) + 0.5,
         "tokens per completion went from {} to {}", "add a length reward, or shorten max_new_tokens"),
        ("repetition", lambda a, b: b - a >= 0.1, "the share of repeated n-grams rose from {} to {}",
         "add a repetition reward"),
        ("ended_fraction", lambda a, b: a - b >= 0.3, "the share of completions that end fell from {} to {}",
         "give truncated completions no reward"),
    ):  # fmt: skip
        moved = watch.drift(name)
        if moved is not None and is_large(moved.before, moved.after):
            numbers = words.format(f"{moved.before:.3g}", f"{moved.after:.3g}")
            yield Alarm(
                f"{name}_drift",
                watch.step,
                f"reward hacking: {rise}{numbers}. {proof}: read the completions; if the reward pays for this, "
                f"{remedy}, or raise kl_coef.",
                ("reward", name),
            )


def shortened(watch: Watch) -> Iterator[Alarm]:
    """Completions shrink to a third while the reward rises, whatever a true metric says: one that reads words rates two
    good words above a sentence that has them.
    """
    moved, reward = watch.drift("completion_length"), watch.drift("reward")
    if moved is None or reward is None or reward.after <= reward.before or SHRUNK * moved.after > moved.before:
        return
    yield Alarm(
        "completion_length_drift",
        watch.step,
        f"short completions: from {moved.before:.3g} to {moved.after:.3g} tokens while the reward rose from "
        f"{reward.before:.3g} to {reward.after:.3g}. A true metric may be fooled by this: read the "
        "completions, and add a length reward with a target, raise kl_coef, or lower the learning rate.",
        ("reward", "completion_length"),
    )


def collapsed_modes(watch: Watch) -> Iterator[Alarm]:
    """The completions become alike, while their rewards still differ. A true metric may be fooled as well."""
    moved, reward = watch.drift("distinct"), watch.drift("reward")
    if moved is None or reward is None or reward.after <= reward.before or moved.after > 0.6 * moved.before:
        return
    spread = watch.since_start("reward_std")
    if spread is None or spread.after >= 0.25 * spread.before:
        yield Alarm(
            "mode_collapse",
            watch.step,
            f"mode collapse: of all pairs of neighbouring tokens {moved.before:.0%} were different ones at the start, "
            f"{moved.after:.0%} are now, while the reward rose from {reward.before:.3g} to {reward.after:.3g}. The "
            "completions become alike, and a true metric may be fooled by them: read them, raise kl_coef or "
            "entropy_coef, or take an earlier checkpoint.",
            ("distinct",),
        )


def negative_kl(watch: Watch) -> Iterator[Alarm]:
    """The mean divergence is below zero, which no divergence can be."""
    values = watch.recent("kl", 2 * WINDOW)
    if not values or not (mean := _mean(values)) < -1e-3:
        return
    error = math.sqrt(_variance(values) / len(values) * _inflation(watch.series["kl"].correlation))
    if not error or normal_quantile(mean / error, len(values) - 1) <= -SIGNIFICANT:
        yield Alarm(
            "negative_kl",
            watch.step,
            f"negative KL: the mean of the last {len(values)} values is {mean:.3g}, and a divergence cannot be below "
            "0. The completions are not samples of the policy that is measured: check that rollouts use temperature "
            "1 without filters, that the sign of the penalty is right, and that steps_per_rollout is small.",
            ("kl",),
        )


def collapsed(watch: Watch) -> Iterator[Alarm]:
    """The entropy falls to a fifth of its start, although the reward is neither rising nor at its best."""
    series, entropy = watch.series.get("entropy"), watch.since_start("entropy")
    if series is None or entropy is None or entropy.after > 0.2 * entropy.before:
        return
    if len(series.values) < 2 * WINDOW or max(series.last()) >= min(series.window(0)):
        return
    spread, reward = watch.since_start("reward_std"), watch.series.get("reward")
    if watch.learned() and (watch.gains() or (spread is not None and spread.after < 0.25 * spread.before)):
        return
    if reward is not None and shift(reward.window(-2 * WINDOW), reward.last()).z >= 2:
        return
    yield Alarm(
        "entropy_collapse",
        watch.step,
        f"entropy collapse: from {entropy.before:.3g} to {entropy.after:.3g} nats per token, and the reward has "
        "stopped rising. The policy no longer explores: lower the learning rate, raise entropy_coef or kl_coef, and "
        "start from an earlier checkpoint.",
        ("entropy",),
    )


def chosen_fell(watch: Watch) -> Iterator[Alarm]:
    """The chosen answers become less likely, as DPO may do when both answers of a pair fall."""
    moved = watch.since_start("logps/chosen")
    if moved is None or not moved.fell or moved.before - moved.after < max(1.0, 0.05 * abs(moved.before)):
        return
    rejected = watch.since_start("logps/rejected")
    others = "" if rejected is None else f", those of the rejected from {rejected.before:.1f} to {rejected.after:.1f}"
    yield Alarm(
        "chosen_logps",
        watch.step,
        f"falling chosen log-probabilities: from {moved.before:.1f} to {moved.after:.1f} nats{others}. Both kinds of "
        "answers become unlikely, and something else likely: set sft_weight (0.1 to 1), lower the learning rate, or "
        "raise beta.",
        ("logps/chosen",),
    )


def constant(watch: Watch) -> Iterator[Alarm]:
    """A reward, or a part of it, is the same for all completions, step after step."""
    for name, run in watch.constant_runs().items():
        if run.stuck:
            value = "" if math.isnan(run.value) else f" of {run.value:.3g}"
            yield Alarm(
                "constant_reward",
                watch.step,
                f"constant reward: {name} gave all completions of the last {run.steps} logged steps the same "
                f"score{value}, and nothing can be learned from it. Check the reward on a few completions by hand; "
                "if no completion is right yet, begin with supervised training or easier prompts.",
                (name,),
            )


def without_spread(watch: Watch) -> Iterator[Alarm]:
    """Almost no group of completions has different rewards, so that group baselines leave nothing to learn."""
    values = watch.recent("groups_without_spread")
    if values and min(values) <= 1 and _mean(values) >= 0.95 and not watch.learned():
        yield Alarm(
            "groups_without_spread",
            watch.step,
            f"groups without spread: in {_mean(values):.0%} of the groups of the last {len(values)} logged steps all "
            "rewards were equal, so their advantages are 0. Take prompts of medium difficulty, more samples per "
            "prompt, or a reward with more levels.",
            ("groups_without_spread",),
        )


def unscorable(watch: Watch) -> Iterator[Alarm]:
    """Half of the completions cannot be judged, or many more than at the start."""
    values, moved = watch.recent("unscorable"), watch.since_start("unscorable")
    if not values or moved is None:
        return
    if _mean(values) >= 0.5 or (moved.rose and moved.after - moved.before >= 0.2):
        yield Alarm(
            "unscorable",
            watch.step,
            f"unscorable completions: {moved.before:.0%} at the start, {_mean(values):.0%} in the last {len(values)} "
            "logged steps. They teach nothing: look at them, and let the reward give them the lowest score if they "
            "are bad.",
            ("unscorable",),
        )


def clipped(watch: Watch) -> Iterator[Alarm]:
    """Half of the tokens are clipped: the policy moves further per rollout than its clip range allows."""
    values = watch.recent("clip_fraction")
    if values and (share := _mean(values)) >= 0.5:
        yield Alarm(
            "clip_fraction",
            watch.step,
            f"clipping: {share:.0%} of the tokens of the last {len(values)} logged steps were clipped. The steps are "
            "too large: lower the learning rate, or take fewer epochs per rollout.",
            ("clip_fraction",),
        )


DETECTORS: tuple[Callable[[Watch], Iterator[Alarm]], ...] = (
    hacked, drifted, shortened, collapsed_modes, negative_kl, collapsed, chosen_fell, constant, without_spread,
    unscorable, clipped,
)  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) if len(values) > 1 else 0.0
