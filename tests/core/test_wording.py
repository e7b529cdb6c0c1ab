"""Texts of unknown origin for a terminal, JSON for programs, tables in a width, hints of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.live import LiveReporter
from quatrain.core.progress import JsonReporter, PlainReporter
from quatrain.core.settings import did_you_mean, suggest
from quatrain.core.wording import format_metric, json_line, printable, text_table
from quatrain.runs.recipe import load
from quatrain.runs.runner import Run
from quatrain.runs.summary import next_hints

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\u202eright\r\x00"
CONTROLS = set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066]))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_show_as_text_and_ordinary_text_stays() -> None:
    assert printable(EVIL) == r"\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\u202eright\r\x00"
    for text in ("a\tb\n", "naïve 東京 \U0001f468\u200d\U0001f469 می\u200cخواهم a\u00adb\u3000", ""):
        assert printable(text) == text


@given(st.text())
def test_nothing_printable_obeys_a_terminal(text: str) -> None:
    assert not CONTROLS & set(printable(text))
    printable(text).encode()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)),
       st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]))  # fmt: skip
def test_json_for_programs_keeps_its_value_in_any_encoding(value: object, encoding: str) -> None:
    line = json_line(value, encoding)
    assert not CONTROLS & set(line) and json.loads(line.encode(encoding).decode(encoding)) == value


@given(
    st.lists(st.tuples(st.text(max_size=30), st.integers(), st.text(max_size=120)), max_size=5),
    st.integers(1, 100),
)
def test_a_table_keeps_to_its_width(rows: list[tuple[str, int, str]], width: int) -> None:
    shown = text_table(["name", "count", "description"], rows, width=width)
    # tabs and wide characters are for the terminal to count; long words are broken
    assert all(len(line) <= width for line in shown.splitlines())
    if any(len(printable(name)) > width / 3 or len(str(count)) > width / 5 for name, count, _ in rows):
        return  # the other columns may leave less than a third
    for _, _, text in rows:
        words = printable(" ".join(text.split())).split()
        assert all(word in shown for word in words if len(word) < width / 3 and word.isascii())


def test_a_table_that_fits_is_the_same_with_a_width() -> None:
    rows = [["a", 1], ["bcdef", 1000]]
    assert text_table(["name", "count"], rows, width=80) == text_table(["name", "count"], rows)


def test_every_reporter_shows_control_characters_as_text() -> None:
    for reporter in (PlainReporter(io.StringIO()), LiveReporter(Terminal()), JsonReporter(io.StringIO())):
        reporter.stage(1, 2, EVIL, EVIL)
        reporter.info(EVIL)
        reporter.warn(EVIL)
        reporter.table(EVIL, [EVIL, "b"], [[EVIL, 1]])
        reporter.score(EVIL, {EVIL: 0.5})
        with reporter.task(EVIL, total=3) as task:
            task.update(2, **{EVIL: 1.0})
        stream = reporter.console.file if isinstance(reporter, LiveReporter) else reporter.stream
        assert isinstance(stream, io.StringIO)
        said = stream.getvalue()
        assert "]0;title" in said and not {"\x07", "\x9b", "\x7f", "\u202e", "\x00"} & set(said)
        assert "\x1b]0" not in said and "\x1b[31mred" not in said


def test_speeds_have_no_more_digits_than_they_need() -> None:
    assert format_metric("tokens_per_second", 712.186) == "712"
    assert format_metric("tokens_per_second", 1122.3) == "1,122"
    assert format_metric("tokens_per_second", 2.186) == "2.186"
    assert format_metric("loss", 712.186) == "712.186"


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120])
def test_the_live_display_keeps_the_time_left_in_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    reporter = LiveReporter(Terminal())
    reporter.heading = "2/3"
    task = reporter.task("02-pretrain", total=4000)
    task.clock.started -= 1000  # type: ignore[attr-defined]
    task.clock._first = (task.clock.started, 0)  # type: ignore[attr-defined]
    task.update(2000, loss=2.104, learning_rate=1e-3, tokens_per_second=712.186)
    words = task.words(width - 2)  # type: ignore[attr-defined]
    assert "left" in words and len(words) <= width - 2
    assert ("2,000/4,000" in words) == (width > 30) and ("loss 2.104" in words) == (width >= 60)


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=5))
def test_a_suggestion_is_never_what_was_typed(word: str, words: list[str]) -> None:
    assert suggest(word, [*words, word]) != word
    assert did_you_mean(word, [word]) == ""


def hints(folder: Path, recipe: str, *overrides: str) -> list[str]:
    return next_hints(Run(folder, load(recipe, overrides)))


def test_hints_fit_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    assert hints(folder, "quickstart") == ["quatrain run quickstart name=mine data.database=my.sqlite"]
    (folder / "model").mkdir(parents=True)
    (folder / "shop.sqlite").touch()
    (folder / "report.html").touch()
    (tmp_path / "mine").mkdir()
    assert hints(folder, "quickstart") == [
        f"quatrain chat '{folder}/model' --db '{folder}/shop.sqlite'",
        f"open '{folder}/report.html' in a browser",
        "quatrain run quickstart name=mine-2 data.database=my.sqlite",
    ]
    own = tmp_path / "own.sqlite"
    own.touch()
    assert hints(folder, "quickstart", f"data.database={own}") == [
        f"quatrain chat '{folder}/model' --db {own}",
        f"open '{folder}/report.html' in a browser",
    ]
    assert hints(folder, "gpt-pretrain", f"data.source={own}")[-1] == (
        f"quatrain run domain data.source=my.txt model.folder='{folder}/model'"
    )
    assert not any("my.txt" in hint for hint in hints(folder, "sherlock", f"data.source={own}"))
