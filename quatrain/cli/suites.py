"""The suites of `quatrain evaluate`: options, the table of scores beside baselines, and reproducing a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from quatrain.compression.settings import Method

if TYPE_CHECKING:
    from quatrain.core.progress import Reporter
    from quatrain.evaluation.subject import Subject
    from quatrain.evaluation.suite import Suite


@Parameter(name="*")
@dataclass(frozen=True)
class SuiteOptions:
    """How suites are asked and where their results are stored."""

    shots: int | None = None
    """Worked examples before each question; the suite's own number by default."""
    chat: bool | None = None
    """Ask through the chat template. By default suites that let a model write do, where it has one."""
    no_chat: bool = False
    """Ask with plain text, although the model has a chat template."""
    seed: int = 0
    """Draws the worked examples, where a suite draws them."""
    quantize: Method | None = None
    """Round the weights to 8 or 4 bits while they are loaded."""
    batch_size: int = 64
    """Answers that are computed together."""
    output: str | None = None
    """The folder of the results: by default `evaluations` in the model's run, or evaluations/MODEL."""
    fresh: bool = False
    """Ask everything anew, although answers are stored."""
    fitting: bool = False
    """Leave out examples that do not fit into the model's context, which are an error otherwise; the result says it."""
    judge: str | None = None
    """Of winrate: the model that judges, a folder, hub id or http://HOST/v1#NAME. Of toxicity: a text classifier."""
    words: str | None = None
    """Of toxicity: a file with a word on each line, instead of the package's short list."""
    train: str | None = None
    """Of suites of records: the data that baselines learn from, and from which worked examples are drawn."""
    passport: str | None = None
    """A result file: ask the same questions of the same model again, and compare the scores."""


OPTIONS = SuiteOptions()


def is_suite(name: str) -> bool:
    """Whether an argument names a suite, perhaps with data of its own (SUITE:FILE)."""
    from quatrain.core.reading import exists
    from quatrain.evaluation.suite import suite_names

    return name.partition(":")[0] in suite_names() and not exists(name)


def opened(names: Sequence[str], options: SuiteOptions, max_new_tokens: int | None, **more: Any) -> list[Suite]:
    """The suites of arguments SUITE or SUITE:FILE. Raises InputError for an option that none of them takes."""
    from quatrain.core.errors import InputError
    from quatrain.evaluation.suite import suite_class

    chat = False if options.no_chat else options.chat
    own: dict[str, Any] = {"shots": options.shots, "seed": options.seed, "chat": chat, "max_new_tokens": max_new_tokens}
    own["fitting"] = options.fitting
    special = {"judge": options.judge, "words": options.words, "train": options.train}
    given = {name: value for name, value in {**more, **special}.items() if value}
    suites: list[Suite] = []
    taken: set[str] = set()
    for name in names:
        kind, _, source = name.partition(":")
        suite = suite_class(kind)
        extra = {option: value for option, value in given.items() if option in suite.extra}
        taken |= extra.keys()
        suites.append(suite(source or None, **own, **extra))
    if idle := sorted(given.keys() - taken):
        raise InputError(f"--{', --'.join(idle)}: of no use to {', '.join(names)}; leave it out")
    return suites


def run_suites(
    model: str,
    names: Sequence[str],
    options: SuiteOptions,
    *,
    limit: int | None,
    max_new_tokens: int | None,
    more: Mapping[str, Any],
    json_lines: bool,
) -> int:
    """Asks every suite, stores the results, and shows them."""
    from quatrain.cli.output import show, show_json
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.evaluation.suite_run import checked_suites, finite, folder_of, run_suite

    suites = opened(names, options, max_new_tokens, **more)
    subject = opened_model(model, options)
    reporter: Reporter = SilentReporter() if json_lines else create_reporter()
    folder = options.output or folder_of(model, subject)
    read = checked_suites(subject, suites, limit)
    for number, (suite, rows) in enumerate(zip(suites, read, strict=True)):
        result = run_suite(
            subject, suite, limit=limit, rows=rows, folder=folder, reporter=reporter, fresh=options.fresh
        )
        if json_lines:
            show_json(finite({name: value for name, value in result.items() if name != "samples"}))
            continue
        if number:
            show()
        show_result(result)
    show_in_run(folder)
    return 0


def opened_model(model: str, options: SuiteOptions) -> Subject:
    """The model that is evaluated."""
    from quatrain.core.errors import InputError
    from quatrain.evaluation.subject import subject_of
    from quatrain.generation.endpoint import is_endpoint

    if options.quantize is not None and is_endpoint(model):
        raise InputError(f"--quantize {options.quantize}: the weights behind {model} are not read here")
    return subject_of(model, quantize=options.quantize, batch_size=options.batch_size)


def show_in_run(folder: Any) -> None:
    """Writes the report and the model card of the run whose results these are anew; nothing for other models."""
    from pathlib import Path

    from quatrain.evaluation.report import write_report
    from quatrain.evaluation.report.suites import FOLDER
    from quatrain.runs.summary import update_card

    run = Path(folder).parent
    if Path(folder).name == FOLDER and (run / "run.json").is_file():
        write_report(run)
        update_card(run)


def show_result(result: Mapping[str, Any]) -> None:
    """A table of the scores beside the baselines; what a baseline beats is red on a terminal, and marked in words."""
    from quatrain.cli.output import show, show_marked
    from quatrain.core.wording import text_table
    from quatrain.evaluation.measures import shown, shown_interval

    show(f"{result['suite']}: {result['title']}, {result['count']:,} examples")
    beaten: dict[str, list[str]] = {}
    for each in result["below"]:
        beaten.setdefault(each["score"], []).append(each["baseline"])
    names = [baseline["name"] for baseline in result["baselines"]]
    rows = []
    for score in result["scores"]:
        own = [_of(baseline, score) for baseline in result["baselines"]]
        rows.append((score["name"], shown(score), shown_interval(score), *own))
    table = text_table(("score", "value", "95 % interval", *names), rows).splitlines()
    for line in table[:2]:
        show(line)
    for score, line in zip(result["scores"], table[2:], strict=True):
        show_marked(line, red=score["name"] in beaten)
    for name, baselines in beaten.items():
        show_marked(f"{name} is below: {'; '.join(baselines)}", red=True)
    for note in result["notes"]:
        show(f"note: {note}")
    if speed := result.get("speed"):
        show(f"{speed['examples_per_second']:.2f} examples/s, {speed['seconds']:.1f} s")
    if file := result.get("file"):
        show(f"stored in {file}; reproduce with: quatrain evaluate --passport {file}")


def _of(baseline: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    from quatrain.evaluation.measures import shown

    return next((shown(each) for each in baseline["scores"] if each["name"] == score["name"]), "")


def reproduce(path: str, options: SuiteOptions, *, json_lines: bool) -> int:
    """Asks the questions of a stored result again; 0 if every score is equal, otherwise 1."""
    from quatrain.cli.output import show, show_json, show_table
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.evaluation.passport import changes, compared
    from quatrain.evaluation.results import read_result
    from quatrain.evaluation.suite import suite_class
    from quatrain.evaluation.suite_run import finite, run_suite

    stored = read_result(path)
    passport = stored["passport"]
    known = dict(passport["suite"])
    name, limit = known.pop("suite"), known.pop("limit")
    for extra in ("version", "examples"):
        known.pop(extra, None)
    suite = suite_class(name)(known.pop("source"), **known)
    model = passport["model"]
    options = SuiteOptions(quantize=model.get("quantize"), batch_size=options.batch_size)
    subject = opened_model(model.get("folder") or model["model"], options)
    reporter: Reporter = SilentReporter() if json_lines else create_reporter()
    result = finite(run_suite(subject, suite, limit=limit, reporter=reporter, fresh=True))
    differences = compared(stored, result)
    changed = changes(passport, result["passport"])
    if json_lines:
        rows = [dict(zip(("score", "then", "now"), each, strict=True)) for each in differences]
        show_json({"equal": not differences, "differences": rows, "changes": changed})
        return 1 if differences else 0
    for change in changed:
        show(f"changed: {change}")
    if differences:
        show_table(("score", "then", "now"), differences)
        return 1
    show(f"reproduced: all {len(stored['scores'])} scores of {name} are equal")
    return 0
