"""Input checks shared by all metrics, and the error for a library that is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.libraries import require


def check_lengths(predictions: Sequence[Any], references: Sequence[Any], metric: str) -> None:
    """Raises InputError if the lists are empty or differ in length."""
    for name, values in (("predictions", predictions), ("references", references)):
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise InputError(
                f"{metric}: {name} must be a list, one entry for each example, not {type(values).__name__}."
            )
    if len(predictions) != len(references):
        raise InputError(
            f"{metric}: {len(predictions):,} predictions for {len(references):,} references; must be one for each."
        )
    if not len(references):
        raise InputError(f"{metric}: there is no example to measure; at least one is needed.")


def check_texts(values: Sequence[Any], name: str, metric: str) -> None:
    """Raises InputError for a value that is not a text, with its number (from 1)."""
    wrong = next(((number, value) for number, value in enumerate(values, 1) if not isinstance(value, str)), None)
    if wrong is not None:
        raise InputError(f"{metric}: {name} number {wrong[0]} is {type(wrong[1]).__name__}; must be a text.")


def reference_lists(references: Sequence[Any], metric: str) -> list[list[str]]:
    """The references of each example as a list. Raises InputError for an example without texts."""
    lists = [[each] if isinstance(each, str) else list(each) if isinstance(each, list | tuple) else [each]
             for each in references]  # fmt: skip
    for number, each in enumerate(lists, 1):
        if not each:
            raise InputError(f"{metric}: example {number} has no reference; at least one is needed.")
        check_texts(each, f"example {number}: reference", metric)
    return lists


def library(name: str, package: str, metric: str) -> Any:
    """Imports a library of the extra `eval`. Raises InputError with the command that installs it."""
    with require(metric, package, "eval"):
        return importlib.import_module(name)
