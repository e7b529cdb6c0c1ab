"""Progress: each form says what is done, and the log of metrics has each step once."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.live import LiveReporter
from quatrain.core.progress import (
    JsonReporter,
    MetricsLog,
    PlainReporter,
    Reporter,
    SilentReporter,
    create_reporter,
    read_metrics,
)
from quatrain.core.wording import format_bytes, format_duration, format_metrics, text_table, write_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(reporter: Reporter) -> None:
    reporter.stage(2, 5, "02-pretrain", "3 M parameters")
    with reporter.task("pretrain", total=40) as task:
        for step in range(40):
            task.update(step + 1, loss=2.5, tokens_per_second=51_234.0)
        task.advance(0, loss=2.25)
    reporter.info("plain [bold]text[/bold] [a.b]")
    reporter.warn("look out")
    reporter.table("Scores", ["set", "share"], [["new [values]", 0.5]])
    reporter.score("new values", {"execution_accuracy": 0.975, "count": 200})


def test_plain_lines_have_the_time_and_no_colour() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    work(reporter)
    lines = stream.getvalue().splitlines()
    assert all(len(line.split(" ")[0]) == 8 and line[2] == line[5] == ":" for line in lines)
    assert "\x1b" not in stream.getvalue()
    text = stream.getvalue()
    assert "stage 2/5: 02-pretrain, 3 M parameters" in text
    assert "pretrain: step 40/40, loss 2.250, 51,234 tokens/s, elapsed" in text
    assert "plain [bold]text[/bold] [a.b]" in text
    assert "new values: execution accuracy 97.5%, count 200" in text
    assert text.count("pretrain: step") == 1, "quick work needs one line, not forty"


def test_plain_lines_come_every_few_seconds_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("quatrain.core.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with PlainReporter(stream).task("pretrain", total=100) as task:
        for step in range(1, 101):
            now[0] += 1.0
            task.update(step)
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert len(lines) == 20
    assert lines[1] == "pretrain: step 10/100, elapsed 10 s, left 1 min 30 s"
    assert lines[-1].startswith("pretrain: step 100/100")


def test_the_time_left_of_a_resumed_task_counts_only_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("quatrain.core.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with PlainReporter(stream).task("pretrain", total=1000) as task:
        for step in range(901, 907):
            now[0] += 1.0
            task.update(step)
    assert "left 1 min 34 s" in stream.getvalue() or "left 1 min 35 s" in stream.getvalue()


def test_json_lines_are_objects_of_known_events() -> None:
    stream = io.StringIO()
    work(JsonReporter(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["stage", "progress", "info", "warning", "table", "score"]
    assert events[1]["step"] == events[1]["total"] == 40 and events[1]["metrics"]["loss"] == 2.25
    assert events[5]["metrics"] == {"execution_accuracy": 0.975, "count": 200}


def test_the_live_display_reads_no_text_as_markup() -> None:
    stream = Terminal()
    work(LiveReporter(stream))
    text = stream.getvalue()
    assert "plain [bold]text[/bold] [a.b]" in text
    assert "new [values]" in text
    assert "40 steps" in text and "02-pretrain" in text


def test_the_form_suits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(create_reporter(stream=io.StringIO()), PlainReporter)
    assert isinstance(create_reporter(json_lines=True), JsonReporter)
    assert isinstance(create_reporter(quiet=True), SilentReporter)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(create_reporter(stream=Terminal()), LiveReporter)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(create_reporter(stream=Terminal()), PlainReporter)


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    work(SilentReporter())
    assert capsys.readouterr().out == ""


def test_a_task_that_fails_lets_the_error_through() -> None:
    for reporter in (PlainReporter(io.StringIO()), LiveReporter(Terminal()), SilentReporter()):
        with pytest.raises(ZeroDivisionError), reporter.task("x", total=3) as task:
            task.update(1 // 0)


def test_text_is_written_whatever_the_encoding_knows() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write_text(stream, "größer → 你\n")
    stream.flush()
    assert raw.getvalue() == b"gr\\xf6\\xdfer \\u2192 \\u4f60\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.44, "9.4 s"),
        (59.4, "59 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (11220, "3 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (812, "812 B"), (3_400_000, "3.4 MB"), (999_999, "1.0 MB"), (2.5e13, "25.0 TB")]
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_metrics_are_written_as_a_reader_wants_them() -> None:
    metrics = {"loss": 2.1037, "learning_rate": 0.003, "tokens_per_second": 51234.4, "exact_match": 0.9}
    assert format_metrics(metrics) == "loss 2.104, learning rate 3.0e-03, 51,234 tokens/s, exact match 90.0%"
    assert format_metrics({"exact_match": 54.3}) == "exact match 54.300"


def test_tables_align_numbers_to_the_right() -> None:
    text = text_table(["name", "count"], [["a", 1], ["bcdef", 1000], ["x", None]])
    assert text.splitlines() == ["name   count", "-----  -----", "a          1", "bcdef   1000", "x"]
    assert text_table(["a", "b"], []).splitlines() == ["a  b", "-  -"]


@settings(deadline=None)  # it writes files
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 12)), max_size=5), st.binary(max_size=9))
def test_after_interruptions_every_step_stands_once(attempts: list[tuple[str, int]], cut: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        done = {"a": 0, "b": 0}
        for stage, upto in attempts:
            resume = done[stage] // 3 * 3  # checkpoints at each third step
            with MetricsLog(path, stage, resume_step=resume) as log:
                for step in range(resume + 1, max(resume, upto) + 1):
                    log.write(step, loss=1.0)
            done[stage] = max(resume, upto)
            with open(path, "ab") as file:
                file.write(b'{"stage": ' + cut.replace(b"\n", b""))
            with open(path, "ab") as file:
                file.write(b"\n")
        for stage, upto in done.items():
            steps = (
                [record["step"] for record in read_metrics(path) if record.get("stage") == stage] if attempts else []
            )
            assert steps == list(range(1, upto + 1))


def test_values_that_json_lacks_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl", "a") as log:
        log.write(1, loss=math.nan, best=math.inf, fine=1.5)
    assert read_metrics(tmp_path / "m.jsonl") == [{"stage": "a", "step": 1, "loss": None, "best": None, "fine": 1.5}]


def test_progress_is_imported_without_rich() -> None:
    imports = "import sys, quatrain.core.progress, quatrain.runs.runner; "
    code = imports + "print({'rich', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
