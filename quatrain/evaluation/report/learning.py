"""What a stage was like while it learned: its samples by step, what it confuses, and the memory that its parts took."""

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
"""Labels up to which their table of confusions is drawn, and drawn beside the scores."""
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


def looks(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage that was looked at while it learned: its prompts, each with what was said of it at some steps."""
    sections = []
    for stage in stages:
        rows: dict[tuple[str, str], list[tuple[str, str]]] = {}
        expected: dict[tuple[str, str], str] = {}
        for step, samples in [*((f"step {step:,.0f}", each) for step, each in stage.looks), ("the end", stage.samples)]:
            for sample in samples:
                key = text_of(sample.get("set")), text_of(sample.get("prompt"))
                if key in rows or step != "the end":
                    expected[key] = text_of(sample.get("reference"))
                    rows.setdefault(key, []).append((step, clipped(text_of(sample.get("output")))))
        prompts = [
            {"prompt": clipped(key[1]), "reference": clipped(expected[key]), "said": _spread(said, _STEPS)}
            for key, said in rows.items()
        ]
        if prompts:
            sections.append({"name": names[stage.name], "prompts": prompts[:_PROMPTS]})
    return sections or None


def _spread(found: list[Any], count: int) -> list[Any]:
    """At most `count` of a list, evenly, the first and the last among them."""
    if len(found) <= count:
        return found
    return [found[round(place * (len(found) - 1) / (count - 1))] for place in range(count)]


def confusions(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage that tells labels apart: the table of confusions, the pairs that are most often confused, and
    precision, recall and F1 by label.
    """
    sections = []
    for stage in stages:
        known, rows = stage.confusion, stage.result.get("by_label")
        chart, worst, wide = None, [], False
        if known is not None:
            labels, counts = known
            wide = len(labels) > _NARROW
            if len(labels) <= _DRAWN:
                chart = matrix_chart(counts, labels, label=f"Confusions of {names[stage.name]}")
            pairs = [
                (counts[true][said], labels[true], labels[said])
                for true in range(len(labels)) for said in range(len(labels)) if true != said and counts[true][said]
            ]  # fmt: skip
            worst = [f"{count:,} × {true} taken for {said}" for count, true, said in sorted(pairs, reverse=True)[:5]]
        table = [
            {"label": str(row.get("label", "")), "count": f"{finite(row.get('count')) or 0:,.0f}"}
            | {key: metric(key, finite(row.get(key))) for key in ("precision", "recall", "f1")}
            for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)
        ]  # fmt: skip
        if known is not None or table:
            sections.append({"name": names[stage.name], "chart": chart, "worst": worst, "table": table, "wide": wide})
    return sections or None


def memory(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage that trained: what the parts of its peak memory took, as measured."""
    sections = []
    for stage in stages:
        measured = stage.result.get("memory")
        if not isinstance(measured, dict):
            continue
        found = {key: finite(measured.get(key)) or 0.0 for key in (*_PARTS, "peak")}
        if found["peak"] <= 0:
            continue
        parts = [Slice(key, found[key], size(found[key])) for key in _PARTS if found[key] > 0]
        rest = found["peak"] - sum(part.value for part in parts)
        if rest > 0:
            parts.append(Slice("the rest: code, data", rest, size(rest)))
        words = ", ".join(f"{part.name} {part.text}" for part in parts)
        chart = share_chart(parts, label=f"Memory of {names[stage.name]} by part")
        sections.append({"name": names[stage.name], "peak": size(found["peak"]), "parts": words, "chart": chart})
    return sections or None
