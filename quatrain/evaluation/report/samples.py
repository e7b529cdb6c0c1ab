"""The samples of a run side by side: one prompt, and what the model of each stage made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.evaluation.report.reading import StageRecord
from quatrain.evaluation.report.wording import clipped, is_sql, sql_markup

_PER_GROUP = 6
_UNJUDGED = 24

GROUPS = {
    "learned": "Wrong before, right after",
    "lost": "Right before, wrong after",
    "wrong": "Wrong before and after",
    "right": "Right before and after",
    "unjudged": "Not judged",
}
"""How a prompt went, from the first stage that was judged on it to the last."""


@dataclass
class Row:
    """A prompt, its reference, and the answer of each stage that met it."""

    held_out: str
    prompt: str
    temperature: str
    reference: str
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Its key in `GROUPS`."""
        judged = [answer["correct"] for answer in self.answers.values() if isinstance(answer.get("correct"), bool)]
        if not judged:
            return "unjudged"
        first, last = judged[0], judged[-1]
        return ("right" if first else "learned") if last else ("lost" if first else "wrong")


def samples(stages: Sequence[StageRecord], names: dict[str, str]) -> dict[str, Any] | None:
    """The samples for the page: some prompts of each group, with the answers of all stages, and how many there are."""
    having = [stage for stage in stages if stage.samples]
    rows = list(_rows(having))
    if not rows:
        return None
    counts = Counter(row.group for row in rows)
    groups = [
        {"key": key, "title": title, "count": counts[key], "rows": [_row(row, having, names) for row in chosen]}
        for key, title in GROUPS.items()
        if (
            chosen := _choose([row for row in rows if row.group == key], _UNJUDGED if key == "unjudged" else _PER_GROUP)
        )
    ]
    return {"groups": groups, "total": len(rows), "judged": len(rows) - counts["unjudged"]}


def _rows(stages: Sequence[StageRecord]) -> Iterator[Row]:
    """One row for each prompt, in the order of their first appearance; a prompt asked twice has two."""
    rows: dict[tuple[str, str, str, int], Row] = {}
    for stage in stages:
        asked: Counter[tuple[str, str, str]] = Counter()
        for sample in stage.samples:
            key = (_text(sample.get("set")), _text(sample.get("prompt")), _text(sample.get("temperature")))
            asked[key] += 1
            row = rows.setdefault((*key, asked[key]), Row(*key, reference=""))
            row.reference = row.reference or _text(sample.get("reference"))
            row.answers[stage.name] = sample
    yield from rows.values()


def _choose(rows: list[Row], limit: int) -> list[Row]:
    """At most `limit` rows, the held-out sets in turn, those that most stages answered first."""
    by_set: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: -len(row.answers)):
        by_set.setdefault(row.held_out, []).append(row)
    chosen: list[Row] = []
    while len(chosen) < limit and any(by_set.values()):
        chosen.extend(queue.pop(0) for queue in by_set.values() if queue)
    place = {id(row): index for index, row in enumerate(rows)}
    return sorted(chosen[:limit], key=lambda row: place[id(row)])


def _row(row: Row, stages: Sequence[StageRecord], names: dict[str, str]) -> dict[str, Any]:
    answers = [row.answers.get(stage.name) for stage in stages]
    code = any(is_sql(text) for text in (row.reference, *(_text(answer.get("output")) for answer in answers if answer)))
    cells: list[dict[str, Any]] = []
    for stage, answer in zip(stages, answers, strict=True):
        correct = answer.get("correct") if answer else None
        same = next((cell for cell in cells if answer and cell["raw"] == answer.get("output")), None)
        cells.append(
            {
                "stage": names[stage.name],
                "met": answer is not None,
                "raw": answer.get("output") if answer else None,
                "same_as": same["stage"] if same else None,
                "output": _shape(_text(answer.get("output")) if answer else "", code),
                "detail": clipped(_text(answer.get("detail"))) if answer else "",
                "verdict": {True: "right", False: "wrong"}.get(correct, "") if isinstance(correct, bool) else "",
            }
        )
    return {
        "set": row.held_out,
        "temperature": row.temperature,
        "prompt": clipped(row.prompt),
        "reference": _shape(row.reference, code),
        "code": code,
        "cells": cells,
    }


def _shape(text: str, code: bool) -> Any:
    return sql_markup(text) if code else clipped(text)


def _text(value: Any) -> str:
    """Anything as text: a conversation as its turns, other structures as JSON."""
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n".join(f"{turn.get('role', '')}: {turn['content']}" for turn in value)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
