"""`quatrain label`: choices typed or piped, resumed, undone; what is shown side by side."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from quatrain.alignment.labelling import read_choices
from quatrain.cli import main
from quatrain.cli.label import side_by_side
from quatrain.core.errors import InputError


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(4)))
    return path


def labels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, keys: str, *more: str
) -> str:
    """What a session with these keys writes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{key}\n" for key in keys.split())))
    assert main(["label", str(folder), "--max-new-tokens", "6", *more]) == 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out


def test_choices_are_recorded_resumed_and_compared(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "choices.jsonl"
    options = ("--prompts", str(prompts), "--out", str(out), "--rater")
    shown = labels(monkeypatch, capsys, folder, "a x u t b q", *options, "anna")
    assert "1 of 4" in shown and "say 0" in shown and "A" in shown and "│ B" in shown and "Taken back: a." in shown
    assert [row["choice"] for row in read_choices(out)] == ["tie", "b"]
    assert f"{out}: tie 1, b 1" in shown
    shown = labels(monkeypatch, capsys, folder, "n s", *options, "anna")
    assert "1 of 4" not in shown and "3 of 4" in shown
    rows = read_choices(out)
    assert [row["choice"] for row in rows] == ["tie", "b", "both_bad", "skip"]
    assert [row["prompt"][0]["content"] for row in rows] == ["say 0", "say 1", "say 2", "say 3"]
    shown = labels(monkeypatch, capsys, folder, "t t n q", *options, "ben", "--json")
    report = json.loads(shown.splitlines()[-1])
    assert report["choices"] == {"tie": 2, "both_bad": 1} and report["remaining"] == 1
    (found,) = report["agreement"]
    assert (found["first"], found["second"], found["count"]) == ("anna", "ben", 3) and found["raw"] == pytest.approx(
        2 / 3
    )
    own = [row["answers"] for row in read_choices(out) if row["rater"] == "ben"]
    assert [sorted(each) for each in own] == [sorted(row["answers"]) for row in rows[:3]]


def test_prompts_are_typed_where_no_file_is_given(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "choices.jsonl"
    shown = labels(monkeypatch, capsys, folder, "hello a there b", "--out", str(out))
    assert [(row["prompt"][0]["content"], row["choice"]) for row in read_choices(out)] == [
        ("hello", "a"),
        ("there", "b"),
    ]
    assert shown.count("prompt (empty to quit)") == 3
    labels(monkeypatch, capsys, folder, "more t", "--out", str(out))
    assert [row["number"] for row in read_choices(out)] == [0, 1, 2]
    # The answers to the first prompt were the same: nothing is in the file, and the others are not asked again.
    out.write_text("".join(line for line in out.read_text().splitlines(keepends=True) if "hello" not in line))
    shown = labels(monkeypatch, capsys, folder, "", "--out", str(out))
    assert "better [" not in shown and "prompt (empty to quit)" in shown


def test_a_file_of_other_content_is_left_alone(folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prompts.read_text()
    assert main(["label", str(folder), "--prompts", str(prompts), "--out", str(prompts)]) == InputError.exit_code == 2
    assert "is not a choice of `quatrain label`" in capsys.readouterr().err and prompts.read_text() == before


def test_texts_side_by_side() -> None:
    lines = side_by_side(("one two three", "four\n\x1b[31mfive"), 43)
    assert lines == [
        f"{'A':<20} │ B", "─" * 20 + " │ " + "─" * 20, f"{'one two three':<20} │ four", f"{'':<20} │ \\x1b[31mfive",
    ]  # fmt: skip
    assert side_by_side(("x", ""), 20) == ["A", "─" * 20, "x", "", "B", "─" * 20, ""]
