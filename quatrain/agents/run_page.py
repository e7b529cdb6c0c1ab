"""The page of a recorded run: every turn, call and result, as one HTML file without scripts and requests."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from quatrain.agents.recorder import Record
from quatrain.core.atomic import write_text


def run_page(record: Record) -> str:
    """The HTML of a run."""
    from jinja2 import Environment

    turns = list(record.of("turn"))
    calls = list(record.of("call"))
    longest = max((turn["seconds"] for turn in turns), default=0.0) or 1.0
    events = [
        event | ({"share": round(100 * event["seconds"] / longest)} if event["event"] == "turn" else {})
        for event in record.events
    ]
    money = (record.end or {}).get("usage", {}).get("money", 0.0)
    totals = [
        ("turns", len(turns)),
        ("calls", len(calls)),
        ("refused or failed", sum(call["failed"] for call in calls)),
        ("tokens read", f"{sum(turn['prompt_tokens'] for turn in turns):,}"),
        ("tokens written", f"{sum(turn['completion_tokens'] for turn in turns):,}"),
        ("seconds", f"{sum(event['seconds'] for event in (*turns, *calls)):.1f}"),
        *([("money", f"{money:.4f}")] if money else []),
    ]
    source = files("quatrain.agents").joinpath("run_page.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True).from_string(source)
    return template.render(start=record.start, end=record.end, cut=record.cut, events=events, totals=totals)


def write_page(record: Record, path: str | Path) -> None:
    """Write the page to a file."""
    write_text(path, run_page(record))
