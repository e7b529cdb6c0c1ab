"""The page of a sweep: losses by compute with the fitted law, the curve of one setting, and every point in a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.atomic import disk_errors, write_text
from quatrain.evaluation.charts import Series, escaped, line_chart
from quatrain.planning.scaling import Fit
from quatrain.runs.sweep import MUP, Point, Prediction, Sweep, SweepPlan

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that people with colour blindness tell apart (Okabe and Ito 2008)."""
MARKS = tuple(f"s{number}" for number in range(len(COLOURS)))
OPTIMUM = "best"
STYLE = " ".join(
    f".line.{mark} {{ stroke: {colour}; }} .dot.{mark} {{ fill: {colour}; }}"
    for mark, colour in zip(MARKS, COLOURS, strict=True)
)
STYLE += f" .line.{OPTIMUM} {{ stroke: var(--soft); stroke-dasharray: 4 4; }}"
STYLE += f" .dot.{OPTIMUM} {{ fill: currentColor; r: 5px; }} figure {{ margin-bottom: 1.5rem; }}"
MOST_LINES = 5
"""Sizes that a legend names; of more, the lowest loss by compute is drawn."""


def write_page(plan: SweepPlan, sweep: Sweep, law: Fit | None, prediction: Prediction | None) -> Path:
    """Writes `sweep.html` into the folder of the sweep, with the fitted `law` and the curve of the plan's `best`."""
    best = plan.best
    other = best is not None or bool(sweep.budgets())
    charts = [] if other and law is None else [_by_compute(sweep, law, prediction)]
    if sweep.budgets():
        charts.append(_by_size(sweep))
    if best is not None and sweep.points:
        base = next((axis.key for axis in sweep.axes if axis.key.endswith(MUP)), None)
        charts += [_by_setting(sweep, part, points, best) for part, points in sweep.parts(base).items()]
    style = files("quatrain.evaluation.report").joinpath("style.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = "".join(f"<th>{escaped(name)}</th>" for name in (*_keys(sweep), "parameters", "tokens", "loss", "seconds"))
    rows = "".join(f"<tr>{_cells(sweep, point)}</tr>" for point in sorted(sweep.points, key=lambda point: point.loss))
    lead = escaped(_lead(sweep, law, prediction))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="color-scheme" content="light dark">'
        f"<title>{escaped(plan.name)}</title><style>{style}{STYLE}</style></head><body><header>"
        f'<p class="brand">Quatrain <span>sweep</span></p><h1><bdi>{escaped(plan.name)}</bdi></h1>'
        f'<p class="lead">{lead}</p></header><main><section>{"".join(charts)}</section>'
        f'<section><div class="scroll">{table}</div></section></main></body></html>'
    )
    page = plan.folder / "sweep.html"
    with disk_errors(page):
        write_text(page, html)
    return page


def _keys(sweep: Sweep) -> list[str]:
    return [axis.key.rpartition(".")[2] for axis in sweep.axes]


def _cells(sweep: Sweep, point: Point) -> str:
    values = [*(point.settings[axis.key] for axis in sweep.axes), f"{point.parameters:,.0f}", f"{point.tokens:,.0f}"]
    return "".join(f"<td>{escaped(value)}</td>" for value in (*values, f"{point.loss:.4f}", f"{point.seconds:,.0f}"))


def _lead(sweep: Sweep, law: Fit | None, prediction: Prediction | None) -> str:
    text = f"{len(sweep.points)} runs"
    if law is not None:
        terms = law.law
        text += f": loss = {terms.E:.3f} + {terms.A:.4g} / N^{terms.alpha:.3f} + {terms.B:.4g} / D^{terms.beta:.3f}"
    if prediction is not None:
        text += f". A larger run: {prediction.predicted:.4f} predicted, {prediction.point.loss:.4f} measured"
    return text + "."


def _by_compute(sweep: Sweep, law: Fit | None, prediction: Prediction | None) -> str:
    """The losses of each size by FLOPs, with the law at its optimum."""
    by_size: dict[float, list[Point]] = {}
    for point in sorted(sweep.points, key=lambda point: point.flops):
        by_size.setdefault(point.parameters, []).append(point)
    if len(by_size) > MOST_LINES:
        points = sorted(sweep.points, key=lambda point: (point.flops, point.loss))
        lowest = np.minimum.accumulate([point.loss for point in points])
        best = [point for point, loss in zip(points, lowest, strict=True) if point.loss == loss]
        lines = [_line(f"the lowest of {len(by_size)} sizes", best, lambda point: point.flops, MARKS[0])]
    else:
        lines = [
            _line(f"{size:,.0f} parameters", points, lambda point: point.flops, MARKS[number % len(MARKS)])
            for number, (size, points) in enumerate(sorted(by_size.items()))
        ]
    ends = [*sweep.points, *([] if prediction is None else [prediction.point])]
    if law is not None:
        budgets = np.geomspace(min(point.flops for point in ends), max(point.flops for point in ends), 40)
        with contextlib.suppress(ArithmeticError):  # a law of a few bad runs has no optimum: exponents near 0
            frontier = [law.law.loss(*law.law.optimal(float(budget))) for budget in budgets]
            x = [float(each) for each in np.log10(budgets)]
            lines.append(Series("the law at its optimum", x, frontier, mark=OPTIMUM))
    if prediction is not None:
        lines.append(_line("the larger run", [prediction.point], lambda point: point.flops, OPTIMUM))
    return _figure(
        lines,
        label="Loss by compute",
        x_label="log10 of training FLOPs",
        y_label="loss, nats a token",
        width=640,
        height=320,
    )


def _by_size(sweep: Sweep) -> str:
    """The losses of each budget by size, and the optimum of each."""
    lines = [
        _line(f"{group[0].flops:.1e} FLOPs", sorted(group, key=lambda point: point.parameters),
              lambda point: point.parameters, MARKS[number % len(MARKS)])
        for number, group in enumerate(sweep.budgets())
    ]  # fmt: skip
    found = [each for each in sweep.iso_flops() if each.inside]
    if found:
        x = [float(np.log10(each.parameters)) for each in found]
        lines.append(Series("the best size", x, [each.loss for each in found], mark=OPTIMUM, dots=True))
    return _figure(
        lines,
        label="Loss by size at equal compute",
        x_label="log10 of parameters",
        y_label="loss, nats a token",
        width=640,
    )


def _by_setting(sweep: Sweep, part: str, chosen: list[Point], best: str) -> str:
    """The losses by one setting, a line for each combination of the others, and the best value of each."""
    points = sorted(chosen, key=lambda point: point.value(best))
    others = [axis.key for axis in sweep.axes if axis.key != best and (part == "all" or not axis.key.endswith(MUP))]
    groups: dict[str, list[Point]] = {}
    for point in points:
        name = ", ".join(f"{key.rpartition('.')[2]} {point.settings[key]}" for key in others)
        groups.setdefault(name or best, []).append(point)
    lines = [
        _line(name, group, lambda point: point.value(best), MARKS[number % len(MARKS)])
        for number, (name, group) in enumerate(groups.items())
    ]
    optima = list(Sweep(sweep.name, sweep.axes, points).optimum(best).values())
    x = [float(np.log10(value)) for value, _ in optima]
    lines.append(Series("the best", x, [loss for _, loss in optima], mark=OPTIMUM, dots=True))
    name = best.rpartition(".")[2]
    title = f"Loss by {best}" if part == "all" else f"Loss by {best}, {part}"
    return _figure(lines, label=title, x_label=f"log10 of {name}", y_label="loss, nats a token", width=640)


def _figure(lines: list[Series], *, label: str, **options: Any) -> str:
    """A chart under its title."""
    title = f"<figcaption><b>{escaped(label)}</b></figcaption>"
    return f'<figure class="card">{title}{line_chart(lines, label=label, **options)}</figure>'


def _line(name: str, points: Iterable[Point], value: Callable[[Point], float], mark: str) -> Series:
    points = list(points)
    x = [float(np.log10(value(point))) for point in points]
    return Series(name, x, [point.loss for point in points], mark=mark, dots=True)
