"""Report section on comparisons: the tables of a stage, and the answers of all that was compared side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.evaluation.report.reading import StageRecord
from quatrain.evaluation.report.samples import text_of
from quatrain.evaluation.report.wording import clipped

_SHOWN = 12


def comparisons(stages: Sequence[StageRecord], names: dict[str, str]) -> list[dict[str, Any]] | None:
    """For each stage that compared something: its tables, and some examples with their references and answers."""
    sections = []
    for stage in stages:
        tables = [table for each in _listed(stage.result.get("comparisons")) if (table := _table(each))]
        rows = [_row(each) for each in _listed(stage.result.get("side_by_side"))[:_SHOWN]]
        if tables or rows:
            sections.append({"name": names[stage.name], "tables": tables, "rows": rows})
    return sections or None


def _listed(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _table(value: dict[str, Any]) -> dict[str, Any] | None:
    columns, rows = value.get("columns"), value.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        return None
    cells = [[text_of(cell) for cell in row] for row in rows if isinstance(row, list) and len(row) == len(columns)]
    return {"title": text_of(value.get("title")), "columns": list(map(text_of, columns)), "rows": cells}


def _row(value: dict[str, Any]) -> dict[str, Any]:
    references = value.get("references")
    answers = _listed(value.get("answers"))
    return {
        "prompt": clipped(text_of(value.get("prompt"))),
        "references": [clipped(text_of(each)) for each in references] if isinstance(references, list) else [],
        "answers": [
            {"label": text_of(each.get("label")), "output": clipped(text_of(each.get("output")))} for each in answers
        ],
    }
