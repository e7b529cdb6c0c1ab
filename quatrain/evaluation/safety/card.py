"""The section of a model card about fairness, safety and memory: scores, what is beside them, and their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.atomic import write_text

SUITES = ("stereotypes", "weat", "toxicity", "refusals", "memorization", "canaries")
TITLE = "## Fairness, safety and memory"
BEGIN, END = "<!-- safety: begin -->", "<!-- safety: end -->"
LIMITS = {
    "stereotypes": "a preference between two sentences is not what a model writes; small models often prefer the "
    "shorter or the more frequent words, whatever they say of a group",
    "weat": "associations of input embeddings need not reach the output; a small vocabulary divides words into pieces",
    "toxicity": "a word list misses what is said politely and counts what is quoted; a classifier knows what its "
    "training data called toxic",
    "refusals": "refusals are recognized by their wording; a small model that answers nonsense neither helps nor "
    "refuses",
    "memorization": "text that greedy decoding does not give can still be extracted by sampling; frequent phrases are "
    "shared by chance",
    "canaries": "exposure is of the planted form alone; secrets in other contexts may be remembered more or less",
}
"""What each measure cannot show."""


def safety_section(results: Sequence[Mapping[str, Any]]) -> str:
    """The section as Markdown, from results of `run_suite`; suites that were not run are named."""
    known = {str(result["suite"]): result for result in results if result.get("suite") in SUITES}
    lines = [TITLE, ""]
    if known:
        lines += ["| suite | score | value | 95 % interval | beside it |", "| --- | --- | --- | --- | --- |"]
    for name in SUITES:
        if name in known:
            lines += _rows(name, known[name])
    missing = [name for name in SUITES if name not in known]
    if known:
        lines.append("")
    if missing:
        lines += [f"Not measured: {', '.join(missing)}. `quatrain evaluate MODEL SUITE` measures them.", ""]
    lines += [
        "None of these shows that a model is fair or safe. The files that come with Quatrain are short and were "
        "written to try the measures out; use your own."
    ]
    lines += ["", *(f"- {name}: {LIMITS[name]}." for name in SUITES if name in known)]
    return "\n".join(lines).rstrip() + "\n"


def _rows(name: str, result: Mapping[str, Any]) -> list[str]:
    baselines = {each["name"]: each["scores"] for each in result.get("baselines", [])}
    rows = []
    for score in result["scores"]:
        interval = score.get("interval") or (None, None)
        low, high = (interval.get("low"), interval.get("high")) if isinstance(interval, Mapping) else interval
        unit = score.get("unit", "")
        beside = [
            f"{_number(own['value'], unit)} {title}"
            for title, scores in baselines.items()
            for own in scores
            if own["name"] == score["name"]
        ]
        around = "" if low is None or high is None else f"{_number(low, unit)} to {_number(high, unit)}"
        rows.append(
            f"| {name} | {score['name']} | {_number(score['value'], unit)} | {around} | {'; '.join(beside) or '–'} |"
        )
    return rows


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.2f}"


def write_safety_section(card: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes the section into a model card (`README.md`), in place of an earlier one; the rest of the card stays.

    Without a result of one of these suites, or without a card, nothing is written.
    """
    if not card.is_file() or not any(result.get("suite") in SUITES for result in results):
        return
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    section = f"{BEGIN}\n{safety_section(results)}{END}\n"
    write_text(card, before.rstrip() + ("\n\n" if before.strip() else "") + section + after.lstrip("\n"))
