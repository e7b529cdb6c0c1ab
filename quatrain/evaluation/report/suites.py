"""Report and model card on suites: scores beside baselines, those below one marked in red, reliability pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.errors import QuatrainError
from quatrain.evaluation.charts import Series, line_chart
from quatrain.evaluation.measures import shown, shown_interval
from quatrain.evaluation.report.wording import clipped
from quatrain.evaluation.results import read_result

FOLDER = "evaluations"
"""Where the results of a run's models lie, in the run's folder."""
RED = "🔴"
"""Markdown has no colours; this mark is red wherever a model card is shown."""


def stored_results(run_folder: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of suites in a run's folder, the newest of each suite and model, and the names of damaged files."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    damaged = []
    for path in sorted(Path(run_folder, FOLDER).glob("*.json"), key=lambda each: each.stat().st_mtime):
        try:
            result = read_result(path)
            found[str(result["suite"]), str(result["passport"]["model"].get("folder"))] = result
            _table(result)
        except (QuatrainError, KeyError, TypeError, AttributeError, ValueError):
            damaged.append(path.name)
    return list(found.values()), damaged


def suites(results: Sequence[Mapping[str, Any]], run_folder: str | Path) -> list[dict[str, Any]] | None:
    """The section of each result; None without results."""
    return [_section(result, Path(run_folder)) for result in results] or None


def _section(result: Mapping[str, Any], run_folder: Path) -> dict[str, Any]:
    model = str(result.get("model", ""))
    folder = result["passport"]["model"].get("folder")
    if folder is not None and Path(folder).is_relative_to(run_folder.resolve()):
        model = str(Path(folder).relative_to(run_folder.resolve()))
    settings = result["passport"].get("suite", {})
    chart = None
    bins = result.get("details", {}).get("reliability")
    if isinstance(bins, list) and len(bins) > 1:
        confidence, accuracy = ([each[name] for each in bins] for name in ("confidence", "accuracy"))
        chart = line_chart(
            [Series("right", confidence, accuracy, "smooth", dots=True), Series("calibrated", [0, 1], [0, 1], "raw")],
            label="reliability",
            x_label="confidence",
            y_label="share of right answers",
            y_range=(0.0, 1.0),
        )
    return {
        "suite": result["suite"],
        "title": f"{result.get('title', '')}, {result['count']:,} examples of {settings.get('source')}, "
        f"{settings.get('shots', 0)} worked examples; {model}",
        "chart": chart,
        "notes": [clipped(str(note)) for note in result.get("notes", [])],
    } | _table(result)


def _table(result: Mapping[str, Any]) -> dict[str, Any]:
    """The scores by row: value, interval, each baseline; `below` says whether a baseline beats the score."""
    beaten = {each["score"] for each in result["below"]}
    rows = []
    for score in result["scores"]:
        values = []
        for baseline in result["baselines"]:
            own = next((each for each in baseline["scores"] if each["name"] == score["name"]), None)
            values.append("" if own is None else shown(own))
        rows.append({
            "name": score["name"], "value": shown(score), "interval": shown_interval(score),
            "baselines": values, "below": score["name"] in beaten, "explanation": score.get("explanation", ""),
        })  # fmt: skip
    return {"rows": rows, "baselines": [baseline["name"] for baseline in result["baselines"]]}


def card_section(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a model card on suites; a score that a baseline beats has a red mark."""
    lines: list[str] = []
    for result in results:
        table = _table(result)
        settings = result["passport"].get("suite", {})
        columns = ["score", "value", "95 % interval", *table["baselines"]]
        lines += [
            f"### {result['suite']}",
            "",
            f"{result.get('title', '')}: {result['count']:,} examples of `{settings.get('source')}`, "
            f"{settings.get('shots', 0)} worked examples.",
            "",
            "| " + " | ".join(columns) + " |",
            "|" + " --- |" * len(columns),
        ]
        for row in table["rows"]:
            value = f"{RED} {row['value']} (below a baseline)" if row["below"] else row["value"]
            lines.append("| " + " | ".join([row["name"], value, row["interval"], *row["baselines"]]) + " |")
        lines += ["", *(f"- {note}" for note in result.get("notes", [])), ""]
    return ["## Suites", "", *lines] if lines else []
