"""The sections of the report: texts, tables and charts from the records of a run.

Each function returns plain data for the template, or None for an empty section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.evaluation.charts import (
    Bar,
    Series,
    Slice,
    bar_chart,
    finite,
    line_chart,
    ordered_mark,
    robust_range,
    share_chart,
    smooth,
    thin,
)
from quatrain.evaluation.measures import higher_is_better, is_below
from quatrain.evaluation.report.aligning import alignments, is_watched
from quatrain.evaluation.report.comparing import comparisons
from quatrain.evaluation.report.figures import figures
from quatrain.evaluation.report.learning import confusions, memory, training_samples
from quatrain.evaluation.report.reading import Curve, RunRecord, StageRecord
from quatrain.evaluation.report.samples import samples
from quatrain.evaluation.report.suites import suites
from quatrain.evaluation.report.wording import amount, duration, interval, is_share, metric, plain, size
from quatrain.planning.energy import Energy, format_energy

_POINTS = 600
_MAIN_CURVES = ("loss", "validation_loss")
_METRIC_ORDER = ("execution_accuracy", "accuracy", "exact_match", "f1")
_FIRST_CURVES = ("learning_rate", "grad_norm", "tokens_per_second")


def page(run: RunRecord) -> dict[str, Any]:
    """The data of the whole template."""
    names = labels(run.stages)
    return {
        "run": run,
        "status": _status(run),
        "lead": _lead(run, names),
        "tiles": _tiles(run, names),
        "curves": _curves(run, names),
        "figures": figures(run.stages, names),
        "scores": _scores(run, names),
        "kinds": _kinds(run, names),
        "suites": suites(run.suites, run.folder),
        "alignments": alignments(run.stages, names),
        "comparisons": comparisons(run.stages, names),
        "training_samples": training_samples(run.stages, names),
        "confusions": confusions(run.stages, names),
        "samples": samples(run.stages, names),
        "quantization": _quantization(run, names),
        "models": _models(run, names),
        "gates": [
            {
                "stage": names.get(str(gate["stage"]), str(gate["stage"])),
                "name": str(gate["name"]),
                "value": str(gate["shown"]),
                "limit": str(gate["limit"]),
                "passed": gate["passed"] is True,
            }
            for gate in run.gates
        ],
        "cost": _cost(run, names),
        "memory": memory(run.stages, names),
        "notes": [(names[stage.name], note) for stage in run.stages for note in (*_ngram(stage), *stage.notes)],
    }


def _ngram(stage: StageRecord) -> list[str]:
    """The counted model that a language model has to beat, named with its loss; nothing for other stages."""
    counted, own = stage.result.get("ngram"), stage.number("validation_loss")
    if not isinstance(counted, dict) or own is None or (loss := finite(counted.get("loss"))) is None:
        return []
    order, seconds = finite(counted.get("order")) or 0, finite(counted.get("seconds")) or 0
    verdict = (
        f"{loss - own:.3f} above the model's" if loss > own else f"{own - loss:.3f} below the model's: it still wins"
    )
    return [
        f"a {order:.0f}-gram with modified Kneser-Ney smoothing, counted in {seconds:.1f} s from the same tokens, has "
        f"the loss {loss:.3f} on the text held out, {verdict}"
    ]


def labels(stages: Sequence[StageRecord]) -> dict[str, str]:
    """Display names of the stages: the kind, or the folder's name if a kind occurs more than once."""
    kinds = [stage.kind for stage in stages]
    return {stage.name: stage.kind if kinds.count(stage.kind) == 1 else stage.name for stage in stages}


def _status(run: RunRecord) -> str | None:
    """Notes on an unfinished run and on unreadable files."""
    sentences = []
    if not run.finished:
        done, planned = sum(stage.finished for stage in run.stages), max(len(run.planned), len(run.stages))
        what = "No stage is" if not done else "1 stage is" if done == 1 else f"{done} stages are"
        sentences.append(f"This run is not finished. {what} done{f' of {planned}' if planned else ''}.")
    if run.damaged:
        sentences.append(f"Unreadable, and omitted: {', '.join(run.damaged)}.")
    return " ".join(sentences) or None


def _last(run: RunRecord, key: str) -> float | None:
    """The value of a key in the newest stage that has it."""
    return next((value for stage in reversed(run.stages) if (value := stage.number(key)) is not None), None)


def _most(run: RunRecord, key: str) -> float | None:
    return max((value for stage in run.stages if (value := stage.number(key)) is not None), default=None)


def _sum(run: RunRecord, key: str) -> float | None:
    values = [value for stage in run.stages if (value := stage.number(key)) is not None]
    return sum(values) if values else None


def _lead(run: RunRecord, names: dict[str, str]) -> dict[str, Any]:
    """The first line: the result of the run, and the stages with their times."""
    parameters, seconds = _last(run, "parameters"), _sum(run, "seconds")
    what = f"A model of {amount(parameters)} parameters" if parameters else "A run"
    when = f", trained in {duration(seconds)}" if seconds else ""
    steps = [
        {"name": names[stage.name], "time": duration(stage.number("seconds")), "done": stage.finished}
        for stage in run.stages
    ]
    existing = {stage.name for stage in run.stages}
    to_come = [kind for index, kind in enumerate(run.planned, 1) if f"{index:02d}-{kind}" not in existing]
    steps += [{"name": kind, "time": "to come", "done": False} for kind in to_come]
    return {"sentence": f"{what}{when}.", "steps": steps}


def _tiles(run: RunRecord, names: dict[str, str]) -> list[dict[str, str]]:
    """The figures at the top: final scores, then costs."""
    tiles: list[dict[str, str]] = []
    scored = [stage for stage in run.stages if stage.scores]
    if scored:
        first, last = scored[0], scored[-1]
        for name, metrics in list(last.scores.items())[:6]:
            key = _main_metric([metrics])
            start = first.scores.get(name, {}).get(key)
            note = plain(key)
            if first is not last and start is not None:
                note += f", from {metric(key, start)} after {names[first.name]}"
            if (baseline := last.baselines.get(name, {}).get(key)) is not None:
                note += f"; baseline {metric(key, baseline)}"
            tiles.append({"value": metric(key, metrics[key]), "name": name, "note": note, "kind": "score"})
    elif (loss := _last(run, "validation_loss")) is not None:
        perplexity = _last(run, "perplexity")
        note = "per token, on held-out text" if perplexity is None else f"perplexity {perplexity:.4g}"
        tiles.append({"value": f"{loss:.4f}", "name": "validation loss", "note": note, "kind": "score"})
    for value, name, note in (
        (duration(_sum(run, "seconds")), "time", "all stages"),
        (size(_most(run, "peak_memory_bytes")), "peak memory", "of the whole process"),
        (amount(_sum(run, "flops"), "FLOP"), "computation", "floating-point operations"),
        (size(_last(run, "model_bytes")), "final model", f"{amount(_last(run, 'parameters'))} parameters"),
    ):
        if value != "–":
            tiles.append(
                {"value": value, "name": name, "note": note.replace("– parameters", "on disk"), "kind": "cost"}
            )
    return tiles


# Curves


def _curves(run: RunRecord, names: dict[str, str]) -> list[dict[str, Any]] | None:
    sections = []
    drawn = [stage for stage in run.stages if stage.curves]
    width = 400 if sum(any(key in stage.curves for key in _MAIN_CURVES) for stage in drawn) > 1 else 540
    for stage in drawn:
        name = names[stage.name]
        others = [key for key in stage.curves if key not in _MAIN_CURVES and not is_watched(stage, key)]
        others.sort(key=lambda key: (_FIRST_CURVES.index(key) if key in _FIRST_CURVES else -1, key))
        sections.append(
            {
                "name": name,
                "chart": _loss_chart(stage, name, width),
                "facts": _curve_facts(stage),
                "others": [chart for key in others if (chart := _other_chart(stage.curves[key], key, name))],
            }
        )
    return sections or None


def _loss_chart(stage: StageRecord, name: str, width: int) -> str | None:
    lines = []
    losses, validation = stage.curves.get("loss"), stage.curves.get("validation_loss")
    if losses:
        window = max(1, len(losses.values) // 40)
        raw = thin(losses.steps, losses.values, _POINTS)
        if window > 1:
            lines.append(Series("training loss", *raw, mark="raw"))
            lines.append(Series("smoothed", *thin(losses.steps, smooth(losses.values, window), _POINTS), mark="smooth"))
        else:
            lines.append(Series("training loss", *raw, mark="smooth"))
    if validation:
        points = thin(validation.steps, validation.values, 200)
        lines.append(Series("validation loss", *points, mark="validation", dots=len(points[0]) <= 40))
    if not lines:
        return None
    shown = robust_range([value for line in lines for value in line.y])
    label = f"Loss of {name} by step"
    return line_chart(lines, label=label, x_label="step", y_label="loss", y_range=shown, width=width)


def _curve_facts(stage: StageRecord) -> list[str]:
    facts = []
    for key in _MAIN_CURVES:
        curve = stage.curves.get(key)
        known = [value for value in curve.values if value is not None and value == value] if curve else []
        if known:
            start = f"{known[0]:.3f} → " if len(known) > 1 else ""
            facts.append(f"{plain(key)} {start}{known[-1]:.3f}")
    broken = sum(stage.curves[key].not_finite for key in _MAIN_CURVES if key in stage.curves)
    if broken:
        facts.append(f"{broken:,} {'value is' if broken == 1 else 'values are'} not finite (gaps in the lines)")
    return facts


def _other_chart(curve: Curve, key: str, name: str) -> str | None:
    if len(curve.steps) < 2 or curve.not_finite == len(curve.steps):
        return None
    line = Series(plain(key), *thin(curve.steps, curve.values, _POINTS // 2), mark="single")
    shown = robust_range(line.y)
    return line_chart(
        [line], label=f"{plain(key)} of {name} by step", x_label="step", y_label=plain(key), y_range=shown, height=220
    )


# Scores


def _main_metric(metrics: Sequence[dict[str, float]]) -> str:
    """The main metric of a set: the first well-known metric, otherwise the first one."""
    keys = [key for each in metrics for key in each if key != "count"]
    return next((key for key in _METRIC_ORDER if key in keys), keys[0] if keys else "count")


def _scores(run: RunRecord, names: dict[str, str]) -> dict[str, Any] | None:
    """A chart for each held-out set, and a table of all metrics."""
    scored = [stage for stage in run.stages if stage.scores]
    if not scored:
        return None
    sets = list(dict.fromkeys(name for stage in scored for name in stage.scores))
    charts, rows = [], []
    for held_out in sets:
        having = [stage for stage in scored if held_out in stage.scores]
        main = _main_metric([stage.scores[held_out] for stage in having])
        count = next((c for stage in having if (c := stage.scores[held_out].get("count"))), None)
        note = f"{plain(main)}{f', {count:,.0f} examples' if count else ''}"
        baseline = {key: value for stage in having for key, value in stage.baselines.get(held_out, {}).items()}
        if main in baseline:
            named = next(filter(None, (stage.baseline_name(held_out) for stage in having)), "")
            note += f"; baseline {metric(main, baseline[main])}" + (f" ({named})" if named else "")
        charts.append({"name": held_out, "note": note, "chart": _score_chart(having, held_out, main, names)})
        for key in dict.fromkeys(key for stage in having for key in stage.scores[held_out] if key != "count"):
            values = [stage.scores.get(held_out, {}).get(key) for stage in scored]
            cells = [{"text": metric(key, value), "below": _is_beaten(key, value, baseline)} for value in values]
            cells.insert(0, {"text": metric(key, baseline.get(key)), "below": False})
            rows.append({"set": held_out, "metric": plain(key), "values": cells})
    return {"charts": charts, "stages": ["dumb baseline", *(names[stage.name] for stage in scored)], "rows": rows}


def _is_beaten(key: str, value: float | None, baseline: Mapping[str, float]) -> bool:
    """Whether the dumb baseline has a better value."""
    if value is None or key not in baseline:
        return False
    return is_below(value, baseline[key], higher_is_better=higher_is_better(key))


def _kinds(run: RunRecord, names: dict[str, str]) -> dict[str, Any] | None:
    """How many examples of each kind are right after each stage."""
    stages = [stage for stage in run.stages if stage.kinds]
    rows = [
        {"set": held_out, "kind": kind, "values": [_right(stage.kinds.get(held_out, {}).get(kind)) for stage in stages]}
        for held_out, kinds in (stages[-1].kinds.items() if stages else ())
        for kind in kinds
    ]
    return {"stages": [names[stage.name] for stage in stages], "rows": rows} if rows else None


def _right(counts: dict[str, int] | None) -> str:
    return f"{counts['right']:,} of {counts['count']:,}" if counts else "–"


def _score_chart(having: list[StageRecord], held_out: str, main: str, names: dict[str, str]) -> str:
    pairs = [(stage, stage.scores[held_out][main]) for stage in having if main in stage.scores[held_out]]
    share = is_share(main, tuple(value for _, value in pairs))
    bars = []
    for index, (stage, value) in enumerate(pairs):
        bounds = interval(value, stage.scores[held_out].get("count")) if share else None
        low, high = bounds or (None, None)
        bars.append(
            Bar(names[stage.name], value, metric(main, value), ordered_mark(index, len(pairs)), low=low, high=high)
        )
    label = f"{plain(main)} on {held_out}: " + ", ".join(f"{bar.text} after {bar.label}" for bar in bars)
    return bar_chart(bars, label=label, maximum=1.0 if share else None)


# Size, speed, cost


def _quantization(run: RunRecord, names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage that compresses the model: size and speed before and after."""
    comparisons = []
    for index, stage in enumerate(run.stages):
        before = next((s for s in reversed(run.stages[:index]) if s.number("model_bytes") is not None), None)
        if not stage.result.get("compressed") or not stage.finished or before is None:
            continue
        pair, charts, facts = (before, stage), [], []
        for key, name, word in (
            ("model_bytes", "size on disk", lambda value: size(value)),
            ("generation_tokens_per_second", "speed", lambda value: f"{value:,.0f} tokens/s"),
        ):
            values = [each.number(key) for each in pair]
            if values[0] is None or values[1] is None or values[0] <= 0 or values[1] <= 0:
                continue
            bars = [
                Bar(names[each.name], value, word(value), mark)
                for each, value, mark in zip(pair, values, ("o3", "o6"), strict=True)
                if value is not None
            ]
            charts.append({"name": name, "chart": bar_chart(bars, label=f"{name} before and after", width=480)})
            ratio = values[0] / values[1] if key == "model_bytes" else values[1] / values[0]
            facts.append(f"{ratio:.2f} times {'smaller' if key == 'model_bytes' else 'the speed'}")
        for held_out, metrics in stage.scores.items():
            key = _main_metric([metrics])
            earlier = before.scores.get(held_out, {}).get(key)
            if earlier is not None:
                facts.append(f"{held_out}: {metric(key, earlier)} → {metric(key, metrics[key])}")
        comparisons.append({"name": names[stage.name], "before": names[before.name], "charts": charts, "facts": facts})
    return comparisons or None


def _models(run: RunRecord, names: dict[str, str]) -> list[dict[str, str]] | None:
    """The model after each stage: its size, speed and validation loss."""
    keys = ("parameters", "model_bytes", "generation_tokens_per_second", "perplexity", "validation_loss")
    rows = []
    for stage in run.stages:
        values = {key: stage.number(key) for key in keys}
        if all(value is None for value in values.values()):
            continue
        speed, trainable = values["generation_tokens_per_second"], stage.number("trainable_parameters")
        rows.append(
            {
                "name": names[stage.name],
                "parameters": amount(values["parameters"]),
                "trained": amount(trainable),
                "size": size(values["model_bytes"]),
                "speed": "–" if speed is None else f"{speed:,.0f}",
                "loss": "–" if values["validation_loss"] is None else f"{values['validation_loss']:.4f}",
                "perplexity": "–" if values["perplexity"] is None else f"{values['perplexity']:.4g}",
            }
        )
    return rows or None


def _cost(run: RunRecord, names: dict[str, str]) -> dict[str, Any] | None:
    keys = ("seconds", "peak_memory_bytes", "flops", "tokens")
    having = [stage for stage in run.stages if any(stage.number(key) is not None for key in keys)]
    if not having:
        return None
    rows, parts = [], []
    for stage in having:
        seconds, tokens = stage.number("seconds"), stage.number("tokens")
        learning = stage.number("training_seconds") or seconds
        rows.append(
            {
                "name": names[stage.name],
                "time": duration(seconds),
                "memory": size(stage.number("peak_memory_bytes")),
                "tokens": amount(tokens),
                "rate": f"{tokens / learning:,.0f}" if tokens and learning else "–",
                "flops": amount(stage.number("flops"), "FLOP"),
                "energy": format_energy(stage.energy.kwh) if stage.energy.method else "–",
            }
        )
        if seconds:
            parts.append(Slice(names[stage.name], seconds, duration(seconds)))
    energy = sum((stage.energy for stage in having), Energy())
    total = {
        "name": "the whole run",
        "time": duration(_sum(run, "seconds")),
        "memory": size(_most(run, "peak_memory_bytes")),
        "tokens": amount(_sum(run, "tokens")),
        "rate": "",
        "flops": amount(_sum(run, "flops"), "FLOP"),
        "energy": format_energy(energy.kwh) if energy.method else "–",
    }
    shares = share_chart(parts, label="Share of the time by stage") if len(parts) > 1 else None
    return {"rows": rows, "total": total, "shares": shares, "energy": energy.text if energy.method else None}
