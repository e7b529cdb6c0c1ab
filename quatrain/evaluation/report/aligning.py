"""Report section on alignment: alarms, rewards before and after, watched curves, and completions beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from quatrain.evaluation.charts import (
    Distribution,
    Mark,
    Series,
    finite,
    histogram,
    line_chart,
    robust_range,
    short,
    smooth,
    thin,
)
from quatrain.evaluation.report.reading import StageRecord
from quatrain.evaluation.report.samples import text_of
from quatrain.evaluation.report.wording import clipped, plain

_POINTS = 300
_SHOWN = 24
"""Prompts whose completions are shown."""
_WATCHED = (
    "reward", "validation_reward", "kl", "entropy", "completion_length", "repetition", "distinct", "ended_fraction",
    "clip_fraction", "groups_without_spread", "unscorable", "logps/chosen", "logps/rejected",
)  # fmt: skip
_SIGNS = {"reward", "logps/chosen"}
"""Curves that only an alignment has."""
_FACTS = (
    ("perplexity", "perplexity under the model before"),
    ("lengths", "tokens per completion"),
    ("repetition", "repeated 3-grams"),
    ("distinct", "different pairs of tokens"),
    ("ended_fraction", "completions that end"),
)
_SHARES = ("repetition", "distinct", "ended_fraction")


def is_watched(stage: StageRecord, key: str) -> bool:
    """Whether the section of alignment draws this curve of a stage."""
    return bool(_SIGNS & set(stage.curves)) and (key in _WATCHED or key.startswith(("reward/", "true/")))


def alignments(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage that aligned the model: alarms, tables, histograms, curves and completions."""
    sections = []
    for stage in stages:
        compared = _part(stage.result, "alignment")
        before, after = _part(compared, "before"), _part(compared, "after")
        section = {
            "name": names[stage.name],
            "alarms": [{"step": f"{step:,.0f}", "text": clipped(text_of(each.get("text")))}
                       for step, each in stage.alarms],
            "rows": _rows(compared, before, after),
            "histograms": _histograms(compared, before, after, names[stage.name]),
            "curves": _curves(stage, names[stage.name]),
            "completions": _completions(compared, before, after),
        }  # fmt: skip
        if any(section[key] for key in ("alarms", "rows", "histograms", "curves")):
            sections.append(section)
    return sections or None


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of a record; empty if it is missing or something else."""
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _numbers(values: Any) -> list[float | None]:
    return [finite(value) for value in values] if isinstance(values, list) else []


def _mean(value: Any) -> float | None:
    """A number, or the mean of the finite numbers of a list."""
    known = [number for number in _numbers(value) if number is not None]
    return fmean(known) if known else finite(value)


def _series(outcome: dict[str, Any]) -> dict[str, Any]:
    """The values of an outcome by what the reader calls them: reward, its parts, true metrics, facts."""
    named = {"reward": outcome.get("rewards")}
    for key, word in (("parts", "reward: {}"), ("true", "true metric: {}")):
        parts = _part(outcome, key)
        if key == "true" or len(parts) > 1:
            named |= {word.format(name): values for name, values in parts.items()}
    return named | {word: outcome.get(key) for key, word in _FACTS}


def _rows(compared: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
    first, last, rows = _series(before), _series(after), []
    shares = {word for key, word in _FACTS if key in _SHARES}
    for name in dict.fromkeys([*first, *last]):
        values = [_mean(each.get(name)) for each in (first, last)]
        if values == [None, None]:
            continue
        cells = ["–" if v is None else f"{v:.1%}" if name in shares else f"{v:.3g}" for v in values]
        note = ""
        if name == "reward" and (gained := finite(compared.get("gain"))) is not None:
            note = f"{gained:+.2f} standard deviations of the rewards before"
        elif values[0] and values[1] is not None and name not in shares and values[0] > 0 and values[1] > 0:
            note = f"{values[1] / values[0]:.2f} times" if not name.startswith(("reward", "true")) else ""
        rows.append({"name": name, "before": cells[0], "after": cells[1], "note": note})
    return rows


def _histograms(
    compared: dict[str, Any], before: dict[str, Any], after: dict[str, Any], name: str
) -> list[dict[str, str]]:
    """The rewards before and after, one chart for each control; then each true metric."""
    first, last = _numbers(before.get("rewards")), _numbers(after.get("rewards"))
    known = [value for value in (*first, *last) if value is not None]
    if not known:
        return []
    across = (min(known), max(known))
    controls = compared.get("controls")
    charts = []
    if isinstance(controls, list) and len(controls) == len(first) == len(last) and controls:
        asked = [text_of(control) for control in controls]
        for control in dict.fromkeys(asked):
            rows = [row for row, each in enumerate(asked) if each == control]
            pair = [[values[row] for row in rows] for values in (first, last)]
            charts.append(_histogram(f"asked for: {control}", "reward", pair, name, across))
    else:
        charts.append(_histogram("reward", "reward", [first, last], name, across))
    true = [_part(each, "true") for each in (before, after)]
    for key in dict.fromkeys(key for each in true for key in each):
        pair = [_numbers(each.get(key)) for each in true]
        charts.append(_histogram(f"true metric: {key}", str(key), pair, name, None))
    return charts


def _histogram(
    title: str, x_label: str, pair: list[list[float | None]], name: str, across: tuple[float, float] | None
) -> dict[str, str]:
    known = [[value for value in values if value is not None] for values in pair]
    means = [f"{fmean(values):.3g}" if values else "–" for values in known]
    chart = histogram(
        [Distribution("before", known[0], "before"), Distribution("after", known[1], "after")],
        label=f"{title} of {name}: mean {means[0]} before, {means[1]} after",
        x_label=x_label,
        x_range=across,
    )
    return {"title": title, "note": f"mean {means[0]} before, {means[1]} after", "chart": chart}


def _curves(stage: StageRecord, name: str) -> list[dict[str, str]]:
    """The proxy and the true metrics first, then what else is watched; alarms are marked where they belong."""
    if not _SIGNS & set(stage.curves):
        return []
    true = sorted(key for key in stage.curves if key.startswith("true/"))
    parts = sorted(key for key in stage.curves if key.startswith("reward/"))
    order = ["reward", *true, *(parts if len(parts) > 1 else []), *(key for key in _WATCHED if key != "reward")]
    beside = {"reward": "validation_reward", "logps/chosen": "logps/rejected"}
    charts = []
    for key in order:
        if key not in stage.curves or (key in beside.values() and set(beside) & set(stage.curves)):
            continue
        curve = stage.curves[key]
        if len(curve.steps) < 2 or curve.not_finite == len(curve.steps):
            continue
        lines = [Series(plain(key), *thin(curve.steps, curve.values, _POINTS), mark="raw")]
        if (window := max(1, len(curve.values) // 30)) > 1:
            values = smooth(curve.values, window)
            lines.append(Series("smoothed", *thin(curve.steps, values, _POINTS), mark="smooth"))
        else:
            lines = [Series(plain(key), *thin(curve.steps, curve.values, _POINTS), mark="smooth")]
        if other := stage.curves.get(beside.get(key, "")):
            held_out = "on held-out prompts" if key == "reward" else "rejected"
            lines.append(Series(held_out, *thin(other.steps, other.values, _POINTS), mark="validation", dots=True))
        kind = "learned from" if key == "reward" else "held out, not learned from" if key in true else ""
        marks = [Mark(step, text_of(alarm.get("text"))) for step, alarm in stage.alarms if _is_about(alarm, key)]
        chart = line_chart(
            lines,
            label=f"{plain(key)} of {name} by step",
            x_label="step",
            y_label=plain(key),
            y_range=robust_range([value for line in lines for value in line.y]),
            marks=marks,
            height=220,
        )
        known = [value for value in map(finite, curve.values) if value is not None]
        facts = f"{short(known[0])} → {short(known[-1])}" + (f" · {len(marks)} alarm" if marks else "")
        charts.append({"title": plain(key) + (f" ({kind})" if kind else ""), "note": facts, "chart": chart})
    return charts


def _is_about(alarm: dict[str, Any], key: str) -> bool:
    metrics = alarm.get("metrics")
    return isinstance(metrics, list) and key in metrics


def _completions(compared: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts with the completions of both models, and what they score."""
    prompts, controls = compared.get("prompts"), compared.get("controls")
    if not isinstance(prompts, list):
        return []
    rows = []
    for place, prompt in enumerate(prompts[:_SHOWN]):
        cells = [_cell(outcome, place) for outcome in (before, after)]
        if any(cells):
            asked = controls[place] if isinstance(controls, list) and place < len(controls) else ""
            rows.append({"prompt": clipped(text_of(prompt)), "control": text_of(asked), "cells": cells})
    return rows


def _cell(outcome: dict[str, Any], place: int) -> dict[str, str] | None:
    texts = outcome.get("texts")
    if not isinstance(texts, list) or place >= len(texts):
        return None
    facts = []
    named = {"reward": outcome.get("rewards")} | _part(outcome, "true")
    for name, values in named.items():
        numbers = _numbers(values)
        if place < len(numbers) and (number := numbers[place]) is not None:
            facts.append(f"{name} {number:.2f}")
    return {"text": clipped(text_of(texts[place]).strip()), "facts": " · ".join(facts)}
