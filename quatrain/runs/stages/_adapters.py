"""Implementation of the adapters stage: one finetuning for each adapter from the same model, and one table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.progress import drop_metrics
from quatrain.core.wording import format_metric
from quatrain.evaluation.prompting import Comparison, KeptResults, PromptResult, compare
from quatrain.generation.engine import Engine
from quatrain.runs.folder import read_json
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages import spec_of
from quatrain.runs.stages.adapters import AdaptersStage, MethodSettings
from quatrain.runs.stages.finetune import FinetuneStage
from quatrain.tasks.prompting.prompt import make_prompt
from quatrain.tasks.prompting.texts import text_task, usable

COLUMNS = ["way", "learned numbers", "examples learned from", "metric", "score", "95 %", "training, seconds"]


def run(settings: AdaptersStage, context: StageContext) -> StageResult:
    """Trains and scores each adapter; leaves `NAME/adapter` for each, and no model."""
    result, found = StageResult(), dict[str, dict[str, Any]]()
    limit = context.recipe.evaluate.examples
    with text_task(context.data_of(settings), folder=context.folder, limit=limit) as task:
        examples, name = [], next(iter(task.held_out), "")
        if name:
            examples = usable(task, task.held_out[name])[:limit]
        if not examples:
            raise InputError("nothing to score adapters on: name data.test, or a share with data.validation")
        learned = len(usable(task, task.splits.get("train", ())))
        comparisons: dict[str, Comparison] = {}
        for method, own in settings.methods.items():
            found[method] = _trained(method, own, settings, context)
            engine = Engine.load(context.stage_folder / method / "model")
            prompt = make_prompt("plain", "plain", decoding=settings.decoding, style="chat", seed=context.seed)
            kept = KeptResults(context.stage_folder / method / "results")
            comparisons[method] = compare(engine, task, name, [prompt], examples, kept=kept)
    rows = _baseline_row(comparisons) + _earlier_rows(context, name)
    for method, comparison in comparisons.items():
        trained = found[method]
        rows.append(
            _row(method, comparison.results[0], f"{trained['trainable_parameters']:,}", f"{learned:,}",
                 f"{trained['seconds']:,.0f}")
        )  # fmt: skip
        result.scores = (result.scores or {}) | {f"{name}, {method}": comparison.results[0].scores}
        result.baselines = (result.baselines or {}) | {
            f"{name}, {method}": {"name": comparison.baseline_name, **comparison.baseline}
        }
        result.notes += [f"{method}: {note}" for note in comparison.results[0].notes]
    context.reporter.table(f"one task, several ways, on {name}", COLUMNS, rows)
    result.extra["comparisons"] = [
        {"title": f"one task, several ways, on {name}", "columns": COLUMNS, "rows": rows}
        | {"methods": {method: comparison.as_dict() for method, comparison in comparisons.items()}}
    ]
    return result


def _trained(name: str, method: MethodSettings, settings: AdaptersStage, context: StageContext) -> dict[str, Any]:
    """The result of the finetuning by one adapter; that of an earlier, stopped run where it has finished."""
    folder = context.stage_folder / name
    done = read_json(folder / "result.json")
    if done is not None:
        return done
    stage = FinetuneStage(
        train=method.train, adapter=method.adapter, data=settings.data, context=settings.context, evaluate=False
    )
    own = replace(context, stage_folder=folder, name=f"{context.name}-{name}")
    if not (folder / "checkpoints").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        drop_metrics(context.metrics_path, own.name, after=-1)
    context.reporter.info(f"adapter {name}")
    started = time.monotonic()
    result = spec_of(stage).run(stage, own)
    seconds = round(time.monotonic() - started, 3)
    values = {"seconds": seconds, "trainable_parameters": result.trainable_parameters or 0}
    write_json(folder / "result.json", values | {"validation_loss": result.validation_loss})
    return values


def _row(way: str, result: PromptResult, learned: str, examples: str, seconds: str) -> list[str]:
    bounds = f"{format_metric(result.metric, result.low)} to {format_metric(result.metric, result.high)}"
    return [way, learned, examples, result.metric, format_metric(result.metric, result.main), bounds, seconds]


def _baseline_row(comparisons: dict[str, Comparison]) -> list[list[str]]:
    first = next(iter(comparisons.values()))
    metric = first.results[0].metric
    value = format_metric(metric, first.baseline[metric]) if metric in first.baseline else ""
    return [[f"baseline: {first.baseline_name}", "0", "", metric, value, "", ""]]


def _earlier_rows(context: StageContext, name: str) -> list[list[str]]:
    """The prompts that an earlier prompting stage of the run has scored on the same set."""
    rows = []
    for place in sorted((context.folder / "stages").glob("*/result.json")):
        result = read_json(place) or {}
        for table in _listed(result.get("comparisons")):
            if table.get("title") != f"best of the search on {name}" and table.get("title") != f"prompts on {name}":
                continue
            kind = "best prompt found" if "search" in str(table["title"]) else "prompt"
            rows += [_prompt_row(kind, each) for each in _listed(table.get("results"))]
    return rows


def _listed(value: Any) -> Iterator[dict[str, Any]]:
    yield from (each for each in value if isinstance(each, dict)) if isinstance(value, Sequence) else ()


def _prompt_row(kind: str, found: dict[str, Any]) -> list[str]:
    scores, (low, high) = found["scores"], found["interval"]
    metric = next(iter(scores))
    shots = f"{found['shots']} shots {found['selection']}" if found["shots"] else "no shots"
    bounds = f"{format_metric(metric, low)} to {format_metric(metric, high)}"
    named = f"{kind}: {found['template']}, {shots}"
    return [named, "0", f"{found['shots_read']:g}", metric, format_metric(metric, scores[metric]), bounds, "0"]
