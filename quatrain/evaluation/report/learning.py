"""Report sections on training: samples by step, confusion matrices, and memory by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.evaluation.charts import Slice, finite, share_chart
from quatrain.evaluation.matrix import matrix_chart
from quatrain.evaluation.report.reading import StageRecord
from quatrain.evaluation.report.samples import text_of
from quatrain.evaluation.report.wording import clipped, metric, size

_STEPS, _PROMPTS = 8, 6
_DRAWN, _NARROW = 24, 8
"""Largest numbers of labels for which a confusion matrix is drawn, and is drawn beside the scores."""
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


def training_samples(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage with samples during training: its prompts, each with the outputs at some steps."""
    sections = []
    for stage in stages:
        rows: dict[tuple[str, str], list[tuple[str, str]]] = {}
        expected: dict[tuple[str, str], str] = {}
        for step, samples in [
            *((f"step {step:,.0f}", each) for step, each in stage.training_samples),
            ("the end", stage.samples),
        ]:
            for sample in samples:
                key = text_of(sample.get("set")), text_of(sample.get("prompt"))
                if key in rows or step != "the end":
                    expected[key] = text_of(sample.get("reference"))
                    rows.setdefault(key, []).append((step, clipped(text_of(sample.get("output")))))
        prompts = [
            {"prompt": clipped(key[1]), "reference": clipped(expected[key]), "outputs": _spread(outputs, _STEPS)}
            for key, outputs in rows.items()
        ]
        if prompts:
            sections.append({"name": names[stage.name], "prompts": prompts[:_PROMPTS]})
    return sections or None


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` items of a list, evenly spaced, including the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def confusions(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each classification stage: the confusion matrix, the most frequent confusions, and scores by label."""
    sections = []
    for stage in stages:
        confusion, rows = stage.confusion, stage.result.get("by_label")
        chart, worst, wide = None, [], False
        if confusion is not None:
            labels, counts = confusion
            wide = len(labels) > _NARROW
            if len(labels) <= _DRAWN:
                chart = matrix_chart(counts, labels, label=f"Confusions of {names[stage.name]}")
            pairs = [
                (counts[true][predicted], labels[true], labels[predicted])
                for true in range(len(labels)) for predicted in range(len(labels))
                if true != predicted and counts[true][predicted]
            ]  # fmt: skip
            most = sorted(pairs, reverse=True)[:5]
            worst = [f"{count:,} × {true} predicted as {wrong}" for count, true, wrong in most]
        table = [
            {"label": str(row.get("label", "")), "count": f"{finite(row.get('count')) or 0:,.0f}"}
            | {key: metric(key, finite(row.get(key))) for key in ("precision", "recall", "f1")}
            for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)
        ]  # fmt: skip
        if confusion is not None or table:
            sections.append({"name": names[stage.name], "chart": chart, "worst": worst, "table": table, "wide": wide})
    return sections or None


def memory(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each training stage: the measured parts of its peak memory."""
    sections = []
    for stage in stages:
        measured = stage.result.get("memory")
        if not isinstance(measured, dict):
            continue
        sizes = {key: finite(measured.get(key)) or 0.0 for key in (*_PARTS, "peak")}
        if sizes["peak"] <= 0:
            continue
        parts = [Slice(key, sizes[key], size(sizes[key])) for key in _PARTS if sizes[key] > 0]
        rest = sizes["peak"] - sum(part.value for part in parts)
        if rest > 0:
            parts.append(Slice("other: code, data", rest, size(rest)))
        words = ", ".join(f"{part.name} {part.text}" for part in parts)
        chart = share_chart(parts, label=f"Memory of {names[stage.name]} by part")
        sections.append({"name": names[stage.name], "peak": size(sizes["peak"]), "parts": words, "chart": chart})
    return sections or None
