"""Result files of suites: scores, baselines, samples and the passport, as `quatrain evaluate` stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import read_json


def read_result(path: str | Path) -> dict[str, Any]:
    """A result file. Raises InputError for another file."""
    result: dict[str, Any] = read_json(path)
    if not isinstance(result.get("passport"), dict) or not isinstance(result.get("scores"), list):
        raise InputError(f"{path} is no result of `quatrain evaluate`: it has no passport and scores")
    return result
