"""The doctor: equivalences on the user's own model and device, as rows with a difference, a limit and a remedy.

`examine(model)` runs every check of `checks/`. With `transformers` and `peft` installed they are references; without
them these rows say so, and all others run.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.settings import did_you_mean
from quatrain.core.wording import printable, shorten
from quatrain.evaluation.doctor import checks
from quatrain.evaluation.doctor.check import (
    FAILED,
    HOLDS,
    NOT_APPLICABLE,
    NOT_RUN,
    Check,
    DoesNotApply,
    Finding,
    NotRun,
    Row,
)
from quatrain.evaluation.doctor.subject import ModelUnderTest

__all__ = ["Check", "Finding", "ModelUnderTest", "Report", "Row", "all_checks", "examine"]

ORDER = ("files", "reference", "decoding", "chat", "adapting", "training", "alignment", "resuming", "native")
"""The modules of checks in the order in which they run, the slowest last; others follow."""


@dataclass(frozen=True)
class Report:
    """The rows of an examination, what was sampled, and the rounding of the model in float32."""

    model: str
    device: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that do not hold."""
        return tuple(row for row in self.rows if row.status == FAILED)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        counts = {status: sum(row.status == status for row in self.rows) for status in STATUSES}
        return {
            "model": self.model,
            "device": self.device,
            "counts": counts,
            "notes": list(self.notes),
            "checks": [row.as_dict() for row in self.rows],
        }


STATUSES = (HOLDS, FAILED, NOT_APPLICABLE, NOT_RUN)


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order in which they run."""
    names = [module.name for module in pkgutil.iter_modules(checks.__path__)]
    ordered = [*(name for name in ORDER if name in names), *(name for name in names if name not in ORDER)]
    modules = [importlib.import_module(f"{checks.__name__}.{name}") for name in ordered]
    return tuple(check for module in modules for check in module.CHECKS)


def examine(
    model: str | Path,
    *,
    device: str = "auto",
    only: Sequence[str] = (),
    seconds: float = 120.0,
    memory: int | None = None,
    reference: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Runs the checks, or `only` those of these names, on a model folder, adapter folder, run or hub id.

    After `seconds` no further check starts. A model whose weights take more than `memory` bytes in float32 is examined
    with its first layers alone. `reference` is another folder of the same model, such as the original of a converted
    one: transformers reads that one. `progress` is told the name of each check before it runs. Raises InputError for
    unknown names, and for a folder that is not a model.
    """
    chosen = _chosen(only)
    rows = []
    with ModelUnderTest(model, device=device, seconds=seconds, memory=memory, reference=reference) as subject:
        subject.model  # noqa: B018 - a folder that cannot be read is an error of the input, not a row.
        for check in chosen:
            if progress is not None:
                progress(check.name)
            rows.append(_row(check, subject))
        return Report(subject.name, str(subject.device), tuple(rows), tuple(subject.notes))


def _chosen(only: Iterable[str]) -> list[Check]:
    known = all_checks()
    names = [check.name for check in known]
    wrong = [name for name in only if name not in names]
    if wrong:
        raise InputError(
            "These checks are unknown:",
            [f"{name}{did_you_mean(name, names)}" for name in wrong] + [f"the checks are {', '.join(names)}"],
        )
    return [check for check in known if not only or check.name in only]


def _row(check: Check, subject: ModelUnderTest) -> Row:
    """Runs a check. What it raises, other than its own two exceptions, is a failure with the message as note."""
    start = time.perf_counter()

    def row(status: str, note: str, difference: float | None = None, limit: float = check.limit) -> Row:
        seconds = time.perf_counter() - start
        return Row(check.name, check.pair, status, difference, limit, check.unit, note, check.remedy, seconds)

    if subject.is_late:
        return row(NOT_RUN, f"the budget of {subject.seconds:g} s is used up; allow more with --budget")
    try:
        finding = check.run(subject)
    except DoesNotApply as reason:
        return row(NOT_APPLICABLE, str(reason))
    except NotRun as reason:
        return row(NOT_RUN, str(reason))
    except (QuatrainError, RuntimeError, ValueError, TypeError, KeyError, ImportError, OSError) as error:
        problems = getattr(error, "problems", [])
        text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        return row(FAILED, shorten(printable("; ".join([text, *problems[:3]])), 400))
    limit = check.limit if finding.limit is None else finding.limit
    holds = not math.isnan(finding.difference) and finding.difference <= limit
    return row(HOLDS if holds else FAILED, finding.detail, finding.difference, limit)
