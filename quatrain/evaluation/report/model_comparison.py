"""The page of a comparison of models: one self-contained HTML file without scripts, in the style of the report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from quatrain.core.atomic import write_text
from quatrain.evaluation.charts import Bar, bar_chart
from quatrain.evaluation.compare import verdict
from quatrain.evaluation.measures import shown as as_text
from quatrain.evaluation.measures import shown_interval
from quatrain.evaluation.report.wording import amount, clipped, shown, size

PACKAGE = "quatrain.evaluation.report"


def write_comparison(comparison: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page of a comparison, or of a leaderboard, atomically, and return its path."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files(PACKAGE)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style"] = Markup((here / "style.css").read_text(encoding="utf-8"))
    template = environment.from_string((here / "compare.html.jinja").read_text(encoding="utf-8"))
    data = _board(comparison) if "suites" in comparison else _pairs(comparison)
    path = Path(path)
    write_text(path, shown(template.render(data)))
    return path


def _pairs(comparison: Mapping[str, Any]) -> dict[str, Any]:
    models = comparison["models"]
    charts = []
    for place, score in enumerate(models[0]["scores"]):
        bars = []
        for model in models:
            own = next((each for each in model["scores"] if each["name"] == score["name"]), None)
            if own is not None:
                bars.append(_bar(label_of(model["name"]), own, "o6"))
        for baseline in comparison["baselines"]:
            own = next((each for each in baseline["scores"] if each["name"] == score["name"]), None)
            if own is not None:
                bars.append(_bar(baseline["name"], own, "o2"))
        drawn = [bar for bar in bars if bar is not None]
        if drawn and place < 6:
            top = 1.0 if score["unit"] == "%" else None
            chart = bar_chart(drawn, label=score["name"], maximum=top, width=420)
            charts.append({"name": score["name"], "note": score["explanation"], "chart": chart})
    return {
        "kind": "comparison of models",
        "title": f"{comparison['suite']}",
        "lead": f"{comparison['title']}: {comparison['count']:,} examples, {len(models)} models.",
        "charts": charts,
        "pairs": [_pair(pair) for pair in comparison["pairs"]],
        "costs": [_cost(model) for model in models],
        "below": [line for model in models for line in _beaten(model)],
        "differing": comparison["differing"]
        | {"examples": [_example(each, models) for each in comparison["differing"]["examples"]]},
        "boards": [],
    }  # fmt: skip


def _beaten(model: Mapping[str, Any]) -> list[str]:
    """A line for each score of a model with the baselines that beat it."""
    found: dict[str, list[str]] = {}
    for each in model["below"]:
        found.setdefault(each["score"], []).append(each["baseline"])
    return [f"{model['name']}: {score} is below {'; '.join(names)}" for score, names in found.items()]


def label_of(name: str) -> str:
    """A short name of a model with its settings: `runs/sql/model@quantize=int8` is `sql@int8`."""
    model, _, settings = name.partition("@")
    parts = [part for part in model.split("/") if part and part != "model"]
    values = ",".join(part.partition("=")[2] or part for part in settings.split(",") if part)
    return (parts[-1] if parts else model) + (f"@{values}" if values else "")


def _bar(name: str, score: Mapping[str, Any], mark: str) -> Bar | None:
    if score["value"] is None:
        return None
    low, high = score["interval"]
    return Bar(name, score["value"], as_text(score), mark, low, high)


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for score in pair["scores"]:
        rows.append({
            "name": score["name"], "value": as_text(score),
            "interval": shown_interval(score),
            "verdict": verdict(score), "p": "–" if score["p_value"] is None else f"{score['p_value']:.3f}",
        })  # fmt: skip
    test = pair.get("mcnemar")
    note = ""
    if test is not None:
        note = (f"Only {pair['first']} is right on {test['only_first']:,} examples, only {pair['second']} on "
                f"{test['only_second']:,}; McNemar's exact test: p = {test['p_value']:.3f}.")  # fmt: skip
    return {"first": pair["first"], "second": pair["second"], "rows": rows, "note": note}


def _cost(model: Mapping[str, Any]) -> dict[str, str]:
    sizes, speed = model["size"] or {}, model["speed"] or {}
    rate = speed.get("examples_per_second")
    return {
        "name": model["name"],
        "parameters": amount(sizes.get("parameters")),
        "memory": size(sizes.get("bytes")),
        "disk": size(sizes.get("file_bytes")),
        "speed": "–" if rate is None else f"{rate:,.2f}",
    }


def _example(example: Mapping[str, Any], models: Any) -> dict[str, Any]:
    marks = {True: "right", False: "wrong", None: ""}
    answers = [
        {"name": model["name"], "text": clipped(text), "mark": marks[verdict]}
        for model, text, verdict in zip(models, example["answers"], example["correct"], strict=True)
    ]
    return {"prompt": clipped(example["prompt"]), "reference": clipped(example["reference"]), "answers": answers}


def _board(board: Mapping[str, Any]) -> dict[str, Any]:
    boards = []
    for suite in board["suites"]:
        rows = []
        for row in suite["rows"]:
            rows.append({
                "name": row["name"], "dtype": row["dtype"], "metric": row["metric"], "value": as_text(row),
                "interval": shown_interval(row), "below": ", ".join(row["below"]),
                "memory": size(row["size"].get("bytes")), "created": row["created"][:10],
            })  # fmt: skip
        metric = suite["rows"][0]["metric"]
        baselines = [
            {"name": baseline["name"], "kind": baseline["kind"], "value": as_text(each)}
            for baseline in suite["baselines"] for each in baseline["scores"] if each["name"] == metric
        ]  # fmt: skip
        boards.append({"suite": suite["suite"], "rows": rows, "baselines": baselines})
    return {
        "kind": "leaderboard", "title": board["folder"], "charts": [], "pairs": [], "costs": [], "below": [],
        "lead": f"All results of suites in this folder: {len(boards)} suites.", "differing": None, "boards": boards,
    }  # fmt: skip
