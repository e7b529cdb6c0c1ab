"""Runs a suite on a model: asks in parts, stores every answer, and resumes where it was stopped.

Answers are written to `SUITE-KEY.answers.jsonl`, one line each, before they are counted; the key follows from the
model, the data and the questions. A second run finds them and only counts. The result is `SUITE-KEY.json`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import InputError
from quatrain.core.progress import Reporter, SilentReporter
from quatrain.data.records import Row
from quatrain.evaluation.evaluate import spread
from quatrain.evaluation.measures import Measure, is_below, summary
from quatrain.evaluation.passport import key_of, passport
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, Suite

SAMPLES = 12
"""Answers that a result shows."""


def run_suite(
    subject: Subject,
    suite: Suite,
    *,
    limit: int | None = None,
    rows: Sequence[Row] | None = None,
    folder: str | Path | None = None,
    reporter: Reporter | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """The result of a suite: scores in every convention with intervals, baselines, samples and the passport.

    With a `folder` the answers and the result are stored there, and answers that are stored already are not asked again
    unless `fresh`. `rows` are the examples, if they have been read and checked (`checked_rows`) already. Raises
    InputError, before anything is asked, for prompts that the model cannot read.
    """
    reporter = reporter or SilentReporter()
    rows = checked_rows(subject, suite, limit) if rows is None else rows
    known = passport(subject, suite, rows, limit)
    base = None if folder is None else Path(folder) / f"{suite.name}-{key_of(known)}"
    answers = None if base is None else base.with_name(base.name + ".answers.jsonl")
    started = time.perf_counter()
    asked, tokens = 0, 0
    result = suite.whole(subject, limit)
    if result is None:
        outputs, asked = _ask(subject, suite, rows, answers, reporter, fresh)
        tokens = sum(_tokens(output) for output in outputs[len(outputs) - asked :])
        result = result_of(suite, rows, outputs)
    else:
        asked, answers = result["count"], None
    seconds = time.perf_counter() - started
    result |= {"model": subject.name, "size": subject.size(), "passport": known}
    if asked:
        result["speed"] = {"seconds": seconds, "examples": asked, "examples_per_second": asked / seconds}
        if tokens:
            result["speed"]["tokens_per_second"] = tokens / seconds
    if base is not None:
        result["answers"] = str(answers.name) if answers is not None else None
        previous = base.with_name(base.name + ".json")
        if not asked and previous.is_file():  # the speed is that of the run that asked
            result["speed"] = json.loads(previous.read_text(encoding="utf-8")).get("speed")
        write_json(previous, finite(result))
        result["file"] = str(previous)
    return result


def checked_rows(subject: Subject, suite: Suite, limit: int | None = None) -> list[Row]:
    """The examples of a suite. Raises InputError for prompts that the model cannot read, unless `suite.fitting`."""
    rows = suite.read(limit)
    if not suite.fitting:
        suite.check(subject, rows)
        return rows
    fitting = [row for row in rows if _fits(subject, suite, row)]
    if not fitting:
        suite.check(subject, rows)
    if len(fitting) < len(rows):
        left_out = len(rows) - len(fitting)
        suite.notes.append(f"{left_out:,} of {len(rows):,} examples do not fit into the model's context and are left "
                           "out: this score is not that of the whole set")  # fmt: skip
    return fitting


def _fits(subject: Subject, suite: Suite, row: Row) -> bool:
    try:
        suite.check(subject, [row])
    except InputError:
        return False
    return True


def checked_suites(subject: Subject, suites: Sequence[Suite], limit: int | None = None) -> list[list[Row]]:
    """The examples of several suites. Raises InputError with the problems of all of them."""
    read: list[list[Row]] = []
    problems: list[str] = []
    for suite in suites:
        try:
            read.append(checked_rows(subject, suite, limit))
        except InputError as error:
            problems += [f"{suite.name}: {error.message}", *(f"{suite.name}: {each}" for each in error.problems)]
    if problems:
        raise InputError(f"{subject.name} cannot be asked:", problems)
    return read


def _tokens(output: Output) -> int:
    tokens = output.get("tokens", 0)
    return sum(tokens) if isinstance(tokens, list) else int(tokens or 0)


def _ask(
    subject: Subject, suite: Suite, rows: Sequence[Row], path: Path | None, reporter: Reporter, fresh: bool
) -> tuple[list[Output], int]:
    """The answers, and how many of them had to be asked."""
    outputs = [] if path is None or fresh else stored_answers(path)[: len(rows)]
    if path is not None and (outputs or fresh or path.exists()):
        _rewrite(path, rows, outputs)  # without a line that a kill has cut
    before = len(outputs)
    if before and before < len(rows):
        reporter.info(f"{suite.name}: {before:,} of {len(rows):,} answers are stored already")
    with reporter.task(f"{suite.name} on {subject.name}", total=len(rows), unit="example") as bar:
        bar.update(before)
        while len(outputs) < len(rows):
            part = rows[len(outputs) : len(outputs) + suite.chunk]
            new = suite.ask(subject, part)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(_line(*pair) for pair in zip(part, new, strict=True))
            outputs += new
            bar.update(len(outputs))
    return outputs, len(rows) - before


def _line(row: Row, output: Output) -> str:
    return json.dumps({"place": row.place, "output": output}, ensure_ascii=True) + "\n"


def _rewrite(path: Path, rows: Sequence[Row], outputs: Sequence[Output]) -> None:
    with atomic_write(path) as file:
        file.writelines(_line(*pair) for pair in zip(rows, outputs, strict=False))


def stored_answers(path: Path) -> list[Output]:
    """The answers of a file, up to the first damaged line; [] without the file."""
    outputs: list[Output] = []
    if not path.is_file():
        return outputs
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                outputs.append(json.loads(line)["output"])
            except (ValueError, KeyError, TypeError):
                break
    return outputs


def result_of(suite: Suite, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
    """Scores, intervals, baselines, details and samples of given answers; nothing is asked.

    Raises InputError where answers and examples are not equally many.
    """
    if len(rows) != len(outputs):
        raise InputError(f"{suite.name}: {len(outputs):,} answers for {len(rows):,} examples; must be one for each")
    measures = suite.measures(rows, outputs)
    baselines = [_baseline(suite, rows, baseline) for baseline in suite.baselines(rows)]
    result: dict[str, Any] = {
        "suite": suite.name,
        "title": suite.title,
        "paper": suite.paper,
        "count": len(rows),
        "scores": [summary(measure) for measure in measures],
        "baselines": baselines,
        "details": suite.details(rows, outputs),
        "notes": list(suite.notes),
        "samples": [
            {"prompt": suite.question(row), "reference": suite.reference(row), "output": suite.shown(row, output)}
            | ({} if (right := suite.correct(row, output)) is None else {"correct": right})
            for row, output in spread(list(zip(rows, outputs, strict=True)), SAMPLES)
        ],
    }
    result["below"] = below(result["scores"], baselines)
    return result


def _baseline(suite: Suite, rows: Sequence[Row], baseline: Baseline) -> dict[str, Any]:
    measures: Sequence[Measure] = baseline.measures or suite.measures(rows, baseline.outputs)
    kind = "ceiling" if baseline.is_ceiling else "classic" if baseline.is_classic else "dumb"
    return {"name": baseline.name, "kind": kind, "scores": [summary(measure) for measure in measures]}


def below(scores: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every score that a dumb or a classic method beats: {"score", "baseline", "kind", "value", "baseline_value"}."""
    found = []
    for baseline in baselines:
        values = {each["name"]: each["value"] for each in baseline["scores"]}
        for score in scores:
            other = values.get(score["name"])
            if baseline["kind"] == "ceiling" or other is None or not math.isfinite(other):
                continue
            if is_below(score["value"], other, higher_is_better=score["higher_is_better"]):
                found.append({"score": score["name"], "baseline": baseline["name"], "kind": baseline["kind"],
                              "value": score["value"], "baseline_value": other})  # fmt: skip
    return found


def finite(value: Any) -> Any:
    """A value as JSON has it: None for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def slug(name: str) -> str:
    """A model's name as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:] or "model"


def folder_of(model: str, subject: Subject) -> Path:
    """Where results are stored: in the run that the model belongs to, or else in `evaluations/MODEL`."""
    folder = subject.description().get("folder")
    if folder is not None:
        run = next((parent for parent in (Path(folder), *Path(folder).parents[:3]) if (parent / "run.json").is_file()),
                   None)  # fmt: skip
        if run is not None:
            return run / "evaluations"
    return Path("evaluations") / slug(model)
