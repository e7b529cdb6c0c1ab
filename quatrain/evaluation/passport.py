"""The passport of a score: everything that decides it, so that one command reproduces it.

A result file holds the passport, the scores with their intervals, the baselines and the answers' file.
`quatrain evaluate --passport FILE` asks the same questions of the same model and compares.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from quatrain.core.reading import sha256_of
from quatrain.data.records import Row
from quatrain.data.sources import find_files
from quatrain.evaluation.measures import RESAMPLES
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Suite, prompt_hash

LIBRARIES = ("torch", "numpy", "tokenizers", "sacrebleu", "rouge-score", "scikit-learn", "lm_eval")
"""Libraries whose version may change a score."""
TOLERANCE = 1e-9
"""Scores that differ by less are equal: sums of the same numbers in another order."""


def passport(
    subject: Subject, suite: Suite, rows: Sequence[Row], limit: int | None, resample_seed: int = 0
) -> dict[str, Any]:
    """What decides a score: model, data, questions, decoding, versions and how the interval is computed."""
    prompts = [suite.prompt_text(row) for row in rows]
    return {
        "suite": suite.settings() | {"limit": limit, "examples": len(rows)},
        "model": subject.description(),
        "data_sha256": {source: [sha256_of(path) for path in find_files(source)] for source in suite.sources()},
        "prompts_sha256": prompt_hash(prompts),
        "template": prompts[0] if prompts else "",
        "chat": suite.asks_by_chat(subject),
        "decoding": suite.decoding(subject),
        "interval": {"method": "percentile bootstrap over examples, 95 %", "resamples": RESAMPLES,
                     "seed": resample_seed},
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of Python, Quatrain and the libraries that may change a score."""
    import quatrain

    known = {"python": platform.python_version(), "quatrain": quatrain.__version__, "platform": sys.platform}
    for name in LIBRARIES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return known


def key_of(known: Mapping[str, Any]) -> str:
    """A short name of the questions and the model: equal keys ask the same of the same model."""
    parts = {name: known[name] for name in ("suite", "data_sha256", "prompts_sha256", "chat", "decoding")}
    model = {name: value for name, value in known["model"].items() if name not in ("model", "folder")}
    text = repr(sorted((name, repr(value)) for name, value in (parts | {"model": model}).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def changes(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a new passport has otherwise than the stored one, as far as it can change a score."""
    problems = []
    for part in ("suite", "model", "data_sha256", "prompts_sha256", "chat", "decoding", "versions"):
        one, other = stored.get(part), new.get(part)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            names = [name for name in names if (part, name) not in (("model", "folder"), ("model", "model"))]
            problems += [f"{part}.{name}: {one.get(name)!r} then, {other.get(name)!r} now" for name in names]
        elif one != other:
            problems.append(f"{part}: {one!r} then, {other!r} now")
    return problems


def compared(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """The scores that differ: name, then, now. Empty if the result is reproduced."""
    now = {score["name"]: score["value"] for score in new["scores"]}
    return [
        (score["name"], score["value"], now.get(score["name"], float("nan")))
        for score in stored["scores"]
        if not _equal(score["value"], now.get(score["name"]))
    ]


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE * max(1.0, abs(one))
