"""Gates: numbers that a stage has to reach before the run goes on.

A gate is a setting of any stage. It is checked against the stage's result each time the recipe runs, so that another
limit needs no stage again: `gates` are not in a stage's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from quatrain.core.errors import QuatrainError
from quatrain.core.settings import Problem, Settings, suggest
from quatrain.core.wording import format_metric


class Gate(Settings):
    """A limit of one number of a stage's result.

    `metric` is a key of the result, such as `validation_loss` or `energy.kwh`, or with `set` a metric of this held-out
    set. `over_baseline` is the least gain over the set's dumb baseline.
    """

    metric: str = Field(min_length=1)
    set: str | None = Field(default=None, min_length=1, description="a held-out set of the stage's scores")
    at_least: float | None = None
    at_most: float | None = None
    over_baseline: float | None = None

    def conflicts(self) -> Iterator[Problem]:
        given = [name for name in ("at_least", "at_most", "over_baseline") if getattr(self, name) is not None]
        if not given:
            yield Problem((), "has no limit; must have at_least, at_most or over_baseline")
        if self.over_baseline is not None and self.set is None:
            yield Problem(("over_baseline",), "only the scores of a set have a baseline: name the set", (("set",),))
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            yield Problem(("at_least",), f"{self.at_least:g}; is above at_most = {self.at_most:g}", (("at_most",),))


@dataclass(frozen=True)
class GateOutcome:
    """A gate beside the stage's number; None where the result has no such number."""

    stage: str
    name: str
    value: float | None
    limit: str
    passed: bool
    known: str = ""
    """The numbers that there are, for a gate whose number is not one of them."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in asdict(self).items() if key != "known"} | {"shown": self.shown}

    @property
    def shown(self) -> str:
        """The number as text."""
        return "none" if self.value is None else _shown(self.name.rpartition(": ")[2], self.value)

    @property
    def text(self) -> str:
        """`accuracy 61.0 %, at least 50.0 %`."""
        return f"{self.name} {self.shown}, must be {self.limit}{self.known}"


class GateFailed(QuatrainError):
    """A stage has not reached its gates. Its result is kept; the stages after it have not run."""


def outcomes(stage: str, gates: Sequence[Gate], result: Mapping[str, Any]) -> list[GateOutcome]:
    """Each gate of a stage beside its result."""
    return [_outcome(stage, gate, result) for gate in gates]


def check(found: Sequence[GateOutcome]) -> None:
    """Raises GateFailed, with every gate that is not passed."""
    failed = [each.text for each in found if not each.passed]
    if failed:
        raise GateFailed(
            f"{found[0].stage}: the gate is not passed, and the run stops here. Improve what is before it and run "
            "again with --reuse, or change the limit: no finished stage runs again for that.",
            failed,
        )


def _outcome(stage: str, gate: Gate, result: Mapping[str, Any]) -> GateOutcome:
    metrics = result if gate.set is None else (result.get("scores") or {}).get(gate.set) or {}
    value = _number(metrics, gate.metric)
    name = gate.metric if gate.set is None else f"{gate.set}: {gate.metric}"
    number = math.nan if value is None else value  # which no limit holds
    limits, passed = [], value is not None
    if gate.at_least is not None:
        limits.append(f"at least {_shown(gate.metric, gate.at_least)}")
        passed = passed and number >= gate.at_least
    if gate.at_most is not None:
        limits.append(f"at most {_shown(gate.metric, gate.at_most)}")
        passed = passed and number <= gate.at_most
    if gate.over_baseline is not None:
        from quatrain.evaluation.measures import higher_is_better

        baseline = _number((result.get("baselines") or {}).get(gate.set) or {}, gate.metric)
        sign = 1 if higher_is_better(gate.metric) else -1
        than = "which the set does not have" if baseline is None else _shown(gate.metric, baseline)
        limits.append(f"{_shown(gate.metric, gate.over_baseline)} better than the dumb baseline, {than}")
        passed = passed and baseline is not None and sign * (number - baseline) >= gate.over_baseline
    return GateOutcome(
        stage, name, value, " and ".join(limits), passed, "" if value is not None else _known(gate, result)
    )


def _shown(metric: str, value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.3g}"
    text = format_metric(metric, value)
    whole = math.isfinite(value) and value == int(value)
    return f"{value:,.0f}" if whole and not text.endswith("%") else text


def _number(values: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path."""
    found: Any = values
    for key in [path] if path in values else path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _known(gate: Gate, result: Mapping[str, Any]) -> str:
    """The numbers that a gate could have named."""
    scores = result.get("scores") or {}
    if gate.set is not None and gate.set not in scores:
        sets = ", ".join(scores) or "none"
        return f"; the stage has no scores of {gate.set!r}, only of: {sets}"
    values = result if gate.set is None else scores[gate.set]
    names = [key for key in values if _number(values, key) is not None]
    near = suggest(gate.metric, names)
    return f"; the stage has no such number{f', did you mean {near}?' if near else ''}; it has: {', '.join(names)}"
