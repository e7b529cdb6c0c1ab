"""The quick set of tests, `-m "not slow"`: of many like cases it runs some."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Parameters of a test, of which the quick set runs those in `quick`; the others are marked slow."""
    values, quick = list(values), list(quick)
    unknown = [value for value in quick if value not in values]
    assert not unknown, f"no such parameters: {unknown}"
    return [value if value in quick else slow(value) for value in values]


def slow(value: Any) -> Any:
    """A parameter, or a tuple of several, that the quick set leaves out."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
