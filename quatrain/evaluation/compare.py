"""Models, adapters, settings and quantizations on one suite, paired: is a difference more than noise?

All are asked the same examples. A difference has a paired bootstrap interval (the same resamples for both), answers
that are right or wrong McNemar's exact test, and the report lists what the models answer differently. The leaderboard
collects all results of a folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.progress import Reporter
from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, difference, higher_is_better, is_below, mcnemar, wilson
from quatrain.evaluation.report.reading import read_run
from quatrain.evaluation.report.wording import is_share
from quatrain.evaluation.results import read_result
from quatrain.evaluation.subject import Subject, subject_of
from quatrain.evaluation.suite import Output, Suite, suite_class
from quatrain.evaluation.suite_run import checked_rows, finite, folder_of, run_suite, stored_answers

SHOWN = 20
"""Examples that the models answer differently that a comparison shows."""
OPTIONS = {"quantize": str, "shots": int, "chat": str, "seed": int, "max_new_tokens": int}
"""What `MODEL@NAME=VALUE,…` may set, and its type."""


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison: a model and its settings."""

    name: str
    model: str
    quantize: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Contestant:
        """`MODEL` or `MODEL@quantize=int8,shots=2`. Raises InputError, all problems at once."""
        model, _, settings = text.rpartition("@") if re.search(r"@\w+=", text) else (text, "", "")
        options: dict[str, Any] = {}
        problems = []
        for part in filter(None, settings.split(",")):
            name, _, value = part.partition("=")
            try:
                if name not in OPTIONS:
                    raise ValueError(f"unknown; must be one of {', '.join(OPTIONS)}")
                options[name] = _truth(value) if name == "chat" else OPTIONS[name](value)
            except ValueError as error:
                problems.append(f"{part}: {error}")
        if problems:
            raise InputError(f"{text}: settings are given as MODEL@NAME=VALUE,NAME=VALUE", problems)
        quantize = options.pop("quantize", None)
        return cls(text, model, quantize, options)

    def subject(self, batch_size: int) -> Subject:
        """The model, loaded. Raises InputError."""
        subject = subject_of(self.model, quantize=self.quantize, batch_size=batch_size)
        subject.name = self.name
        return subject


def _truth(value: str) -> bool:
    if value not in ("true", "false", "yes", "no"):
        raise ValueError("must be true or false")
    return value in ("true", "yes")


def compare(
    names: Sequence[str],
    suite: str,
    *,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 64,
    reporter: Reporter | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """A comparison of models on a suite (SUITE or SUITE:FILE): scores, pairs of models, examples they answer apart.

    Each of `names` is MODEL or MODEL@NAME=VALUE. Answers are stored as `run_suite` does, and are not asked again.
    Raises InputError for fewer than two, and for suites that another library counts.
    """
    if len(names) < 2:
        raise InputError("compare needs at least two models: quatrain compare A B --suite mmlu")
    if len(set(names)) < len(names):
        raise InputError(f"compare: {', '.join(names)} name a model twice; settings tell them apart: A A@quantize=int8")
    contestants = [Contestant.of(name) for name in names]
    kind, _, source = suite.partition(":")
    results, measured, answered = [], [], []
    rows: list[Row] = []
    for contestant in contestants:
        own: Suite = suite_class(kind)(source or None, **{**(options or {}), **contestant.options})
        subject = contestant.subject(batch_size)
        rows = checked_rows(subject, own, limit)
        place = Path(folder) if folder is not None else folder_of(contestant.model, subject)
        result = run_suite(subject, own, limit=limit, rows=rows, folder=place, reporter=reporter, fresh=fresh)
        if result.get("answers") is None:
            raise InputError(f"{suite}: another library counts it, so that its answers cannot be paired; compare "
                             "results by `quatrain compare FOLDER`")  # fmt: skip
        outputs = stored_answers(place / result["answers"])[: len(rows)]
        results.append(result)
        measured.append({measure.name: measure for measure in own.measures(rows, outputs)})
        answered.append(Answers(own, rows, outputs))
    return finite(_comparison(suite, results, measured, answered))


@dataclass
class Answers:
    """The answers of one model."""

    suite: Suite
    rows: Sequence[Row]
    outputs: Sequence[Output]

    @property
    def right(self) -> list[bool] | None:
        """Whether each is right; None where answers are not simply right or wrong."""
        found = [self.suite.correct(row, output) for row, output in zip(self.rows, self.outputs, strict=True)]
        return None if None in found else [bool(each) for each in found]

    def texts(self) -> list[str]:
        """The answers as people read them."""
        return [self.suite.shown(row, output) for row, output in zip(self.rows, self.outputs, strict=True)]


def _comparison(
    suite: str,
    results: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, Measure]],
    answered: Sequence[Answers],
) -> dict[str, Any]:
    first = results[0]
    models = [
        {
            "name": result["model"],
            "scores": result["scores"],
            "below": result["below"],
            "size": result["size"],
            "speed": result.get("speed"),
            "file": result["file"],
        }
        for result in results
    ]
    pairs = []
    for one, other in combinations(range(len(results)), 2):
        pairs.append(_pair(results, measured, answered, one, other))
    return {
        "suite": suite,
        "title": first["title"],
        "count": first["count"],
        "models": models,
        "baselines": first["baselines"],
        "pairs": pairs,
        "differing": _differing(answered),
        "notes": list(dict.fromkeys(note for result in results for note in result["notes"])),
    }


def _pair(
    results: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, Measure]],
    answered: Sequence[Answers],
    one: int,
    other: int,
) -> dict[str, Any]:
    """The differences of two models in every score, and McNemar's test."""
    differences = []
    for name, measure in measured[one].items():
        if name not in measured[other]:
            continue
        apart = difference(measure, measured[other][name])
        differences.append({
            "name": name, "value": apart.value, "interval": [apart.interval.low, apart.interval.high],
            "p_value": apart.p_value, "is_clear": apart.is_clear, "unit": measure.unit,
            "higher_is_better": measure.higher_is_better,
        })  # fmt: skip
    pair: dict[str, Any] = {"first": results[one]["model"], "second": results[other]["model"], "scores": differences}
    sides = answered[one].right, answered[other].right
    if sides[0] is not None and sides[1] is not None:
        test = mcnemar(sides[0], sides[1])
        pair["mcnemar"] = {"only_first": test.only_first, "only_second": test.only_second, "p_value": test.p_value}
    return pair


def _differing(answered: Sequence[Answers]) -> dict[str, Any]:
    """The examples on which the models differ: in being right where that is known, otherwise in what they say."""
    texts = [each.texts() for each in answered]
    verdicts = [each.right for each in answered]
    judged = all(each is not None for each in verdicts)
    keys = [list(column) for column in zip(*(verdicts if judged else texts), strict=True)]
    places = [place for place, key in enumerate(keys) if len(set(map(str, key))) > 1]
    first = answered[0]
    shown = []
    for place in places[:SHOWN]:
        row = first.rows[place]
        shown.append({
            "prompt": first.suite.question(row), "reference": first.suite.reference(row),
            "answers": [own[place] for own in texts],
            "correct": [own[place] if own is not None else None for own in verdicts],
        })  # fmt: skip
    return {"count": len(places), "of": len(first.rows), "examples": shown}


def leaderboard(folder: str | Path) -> dict[str, Any]:
    """All results of suites and the last scores of all runs below a folder: for each set the best model first.

    Of equal questions to one model the newest result counts. Raises InputError where there is none.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{folder} is no folder: `quatrain compare FOLDER` lists the results below it, and "
                         "`quatrain compare A B --suite NAME` compares models")  # fmt: skip
    suites: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    damaged = []
    for path in sorted(place.rglob("*.json"), key=lambda each: each.stat().st_mtime):
        if not re.fullmatch(r".+-[0-9a-f]{12}", path.stem):
            continue
        try:
            result = read_result(path)
            row = _ranked(result, path)
        except (QuatrainError, KeyError, IndexError, TypeError):
            damaged.append(str(path))
            continue
        settings = result["passport"]["suite"]
        shots = "the task's own" if settings["shots"] is None else settings["shots"]
        data = f"{settings['source']}, {result['count']:,} examples, {shots} shots"
        suites.setdefault(f"{result['suite']} ({data})", {})[row["name"], row["dtype"]] = row | {
            "baselines": result["baselines"]
        }
    for name, row in _runs(place):
        suites.setdefault(name, {})[row["name"], ""] = row
    if not suites:
        raise InputError(f"{folder} has no results of suites; make some with `quatrain evaluate MODEL SUITE`")
    boards = []
    for name, found in sorted(suites.items()):
        rows = sorted(
            found.values(), key=lambda row: row["value"], reverse=next(iter(found.values()))["higher_is_better"]
        )
        boards.append({"suite": name, "rows": rows, "baselines": rows[0]["baselines"]})
    return finite({"folder": str(folder), "suites": boards, "damaged": damaged})


def _runs(place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The main score of every run below a folder on each of its held-out sets, after its last stage with scores."""
    for path in sorted(place.rglob("run.json")):
        try:
            record = read_run(path.parent)
        except QuatrainError:
            continue
        last = next((stage for stage in reversed(record.stages) if stage.scores), None)
        for name, metrics in ({} if last is None else last.scores).items():
            main = next((key for key in metrics if key != "count"), None)
            if last is None or main is None:
                continue
            unit = "%" if is_share(main, (metrics[main],)) else ""
            beaten = last.baselines.get(name, {}).get(main)
            better = higher_is_better(main)
            is_lower = beaten is not None and is_below(metrics[main], beaten, higher_is_better=better)
            ends = wilson(metrics[main], int(metrics["count"])) if unit and metrics.get("count") else None
            row = {
                "name": str(path.parent), "metric": main, "value": metrics[main], "unit": unit, "dtype": last.kind,
                "interval": [None, None] if ends is None else [ends.low, ends.high], "higher_is_better": better,
                "size": {"bytes": last.number("weight_bytes")}, "created": "", "file": str(path),
                "below": [last.baseline_name(name) or "the dumb baseline"] if is_lower else [], "baselines": [],
            }  # fmt: skip
            yield f"held-out set of runs: {name}", row


def _ranked(result: Mapping[str, Any], path: Path) -> dict[str, Any]:
    main = result["scores"][0]
    model = result["passport"]["model"]
    return {
        "name": result["model"], "metric": main["name"], "value": main["value"], "interval": main["interval"],
        "unit": main["unit"], "higher_is_better": main["higher_is_better"], "size": result.get("size") or {},
        "below": [each["baseline"] for each in result["below"] if each["score"] == main["name"]],
        "dtype": str(model.get("quantize") or model.get("dtype", "")), "created": result["passport"]["created"],
        "file": str(path),
    }  # fmt: skip


def verdict(entry: Mapping[str, Any]) -> str:
    """A difference in words."""
    if entry["value"] is None or not math.isfinite(entry["value"]):
        return "cannot be compared"
    if not entry["is_clear"]:
        return "within noise"
    return "better" if (entry["value"] > 0) == entry["higher_is_better"] else "worse"
