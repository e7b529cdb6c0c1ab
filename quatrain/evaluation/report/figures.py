"""The figures that stages leave in their results: pictures of what a model has learned.

A stage's `result.json` may have `figures`, each with a `title`, a `note`, a `kind` and the data of this kind:

- `lines`: `lines` of `name`, `x` and `y`, with `x_label` and `y_label`;
- `points`: `points` of `label`, `x`, `y` and `detail`, over a logarithmic x axis;
- `bars`: `bars` of `label`, `value` and `text`;
- `heat`: `rows`, `columns` and `values` from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from quatrain.evaluation.charts import (
    Bar,
    Point,
    Series,
    bar_chart,
    heat_chart,
    line_chart,
    point_chart,
)
from quatrain.evaluation.report.reading import StageRecord

_MARKS = ("smooth", "validation", "raw", "single")


def _lines(figure: dict[str, Any]) -> str:
    lines = [
        Series(each["name"], each["x"], each["y"], mark=_MARKS[number % len(_MARKS)], dots=len(each["x"]) <= 20)
        for number, each in enumerate(figure["lines"])
    ]
    return line_chart(lines, label=figure["title"], x_label=figure["x_label"], y_label=figure["y_label"], width=540)


def _points(figure: dict[str, Any]) -> str:
    points = [Point(each["label"], each["x"], each["y"], each.get("detail", "")) for each in figure["points"]]
    return point_chart(points, label=figure["title"], x_label=figure["x_label"], y_label=figure["y_label"])


def _bars(figure: dict[str, Any]) -> str:
    bars = [Bar(each["label"], each["value"], each["text"], "o5") for each in figure["bars"]]
    return bar_chart(bars, label=figure["title"], width=480)


def _heat(figure: dict[str, Any]) -> str:
    return heat_chart(figure["rows"], figure["columns"], figure["values"], label=figure["title"])


DRAWN: dict[str, Callable[[dict[str, Any]], str]] = {"lines": _lines, "points": _points, "bars": _bars, "heat": _heat}


def figures(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage with figures its name and their charts. A figure that cannot be drawn is left out."""
    sections = []
    for stage in stages:
        found = stage.result.get("figures")
        drawn = []
        for figure in found if isinstance(found, list) else []:
            try:
                chart = DRAWN[figure["kind"]](figure)
                drawn.append({"title": str(figure["title"]), "note": str(figure.get("note", "")), "chart": chart})
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # A report is written of any run, a damaged one included.
        if drawn:
            sections.append({"name": names[stage.name], "figures": drawn})
    return sections or None
