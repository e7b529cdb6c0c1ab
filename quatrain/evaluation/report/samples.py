"""Samples of a run side by side: each prompt with the answers of the model after each stage."""

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
"""Groups of prompts, by the verdicts of the first and the last judged stage."""


@dataclass
class SampleRow:
    """A prompt, its reference, and the answers of the stages that were asked."""

    held_out: str
    prompt: str
    reference: str = ""
    answers: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Samples by stage name and temperature."""

    @property
    def group(self) -> str:
        """The key of the group in `GROUPS`."""
        judged = [answer["correct"] for answer in self.answers.values() if isinstance(answer.get("correct"), bool)]
        if not judged:
            return "unjudged"
        first, last = judged[0], judged[-1]
        return ("right" if first else "learned") if last else ("lost" if first else "wrong")


def samples(stages: Sequence[StageRecord], names: dict[str, str]) -> dict[str, Any] | None:
    """Template data: some prompts of each group with the answers of all stages, and the counts."""
    sampled = [stage for stage in stages if stage.samples]
    rows = list(_rows(sampled))
    if not rows:
        return None
    counts = Counter(row.group for row in rows)
    groups = [
        {"key": key, "title": title, "count": counts[key], "rows": [_row(row, sampled, names) for row in chosen]}
        for key, title in GROUPS.items()
        if (
            chosen := _choose([row for row in rows if row.group == key], _UNJUDGED if key == "unjudged" else _PER_GROUP)
        )
    ]
    title = "The same prompt, stage after stage" if len(sampled) > 1 else "Samples"
    return {"title": title, "groups": groups, "total": len(rows), "judged": len(rows) - counts["unjudged"]}


def _rows(stages: Sequence[StageRecord]) -> Iterator[SampleRow]:
    """One row per prompt, in the order of first appearance.

    Answers of a stage at several temperatures share one row; two answers at the same temperature have two rows.
    """
    rows: dict[tuple[str, str, int], SampleRow] = {}
    for stage in stages:
        counts: Counter[tuple[str, ...]] = Counter()
        for sample in stage.samples:
            temperature = text_of(sample.get("temperature"))
            held_out, prompt = "" if temperature else text_of(sample.get("set")), text_of(sample.get("prompt"))
            counts[held_out, prompt, temperature] += 1
            key = (held_out, prompt, counts[held_out, prompt, temperature])
            row = rows.setdefault(key, SampleRow(held_out, prompt))
            row.reference = row.reference or text_of(sample.get("reference"))
            row.answers[stage.name, temperature] = sample
    yield from rows.values()


def _choose(rows: list[SampleRow], limit: int) -> list[SampleRow]:
    """At most `limit` rows, alternating between held-out sets; prompts with most answers come first."""
    by_set: dict[str, list[SampleRow]] = {}
    for row in sorted(rows, key=lambda row: -len(row.answers)):
        by_set.setdefault(row.held_out, []).append(row)
    chosen: list[SampleRow] = []
    while len(chosen) < limit and any(by_set.values()):
        chosen.extend(queue.pop(0) for queue in by_set.values() if queue)
    place = {id(row): index for index, row in enumerate(rows)}
    return sorted(chosen[:limit], key=lambda row: place[id(row)])


def _row(row: SampleRow, stages: Sequence[StageRecord], names: dict[str, str]) -> dict[str, Any]:
    outputs = [row.reference, *(text_of(answer.get("output")) for answer in row.answers.values())]
    code = any(is_sql(text) for text in outputs)
    temperatures = list(dict.fromkeys(temperature for _, temperature in row.answers))
    cells: list[dict[str, Any]] = []
    for stage in stages:
        for temperature in temperatures:
            label = f"after {names[stage.name]}" + (f", temperature {temperature}" if temperature else "")
            answer = row.answers.get((stage.name, temperature))
            shown = _answer(answer, code, cells) if answer else {"asked": False, "verdict": ""}
            cells.append({"label": label} | shown)
    return {
        "set": row.held_out,
        "prompt": clipped(row.prompt),
        "reference": _shape(row.reference, code),
        "code": code,
        "cells": cells,
    }


def _answer(answer: dict[str, Any], code: bool, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Template data of an answer; an answer equal to an earlier one refers to it."""
    text, correct = text_of(answer.get("output")), answer.get("correct")
    return {
        "asked": True,
        "text": text,
        "same_as": next((cell["label"] for cell in earlier if cell["asked"] and cell["text"] == text), None),
        "output": _shape(text, code),
        "detail": clipped(text_of(answer.get("detail"))),
        "verdict": ("right" if correct else "wrong") if isinstance(correct, bool) else "",
    }


def _shape(text: str, code: bool) -> Any:
    return sql_markup(text) if code else clipped(text)


def text_of(value: Any) -> str:
    """Any value as text: a conversation as its turns, other structures as JSON."""
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n".join(f"{turn.get('role', '')}: {turn['content']}" for turn in value)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
