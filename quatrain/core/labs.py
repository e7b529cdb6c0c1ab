"""What the labs in `docs/labs` share: sizes for a quick run, and checks of exercises."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from quatrain.core.errors import InputError

T = TypeVar("T")
SIZES = ("full", "small")


def at_size(full: T, small: T) -> T:
    """`full`, or `small` if the environment variable QUATRAIN_LAB is "small": settings with which a lab only shows
    that it runs. Raises InputError for another value of the variable.
    """
    size = os.environ.get("QUATRAIN_LAB") or "full"
    if size not in SIZES:
        raise InputError(f"QUATRAIN_LAB={size}: must be {' or '.join(SIZES)}; or unset it")
    return small if size == "small" else full


def check(exercise: int | str, answer: Any, expected: Any, *, hint: str, tolerance: float = 1e-4) -> None:
    """Prints whether an answer to an exercise is right, with a hint if it is wrong.

    `expected` is the right answer, or a function that takes the answer and returns whether it is right. Numbers, arrays
    and tensors must have the same shape and values within `tolerance` of the expected ones, everything else must be
    equal. An answer of None has not been given yet.
    """
    if answer is None:
        print(f"Exercise {exercise}: not answered yet.")
        return
    try:
        problem = _problem(answer, expected, tolerance)
    except Exception as error:
        # The learner's answer may be anything, and may fail in any way inside a function that examines it.
        problem = f"this answer cannot be checked ({type(error).__name__}: {error})"
    print(f"Exercise {exercise}: right." if not problem else f"Exercise {exercise}: wrong: {problem}. Hint: {hint}")


def _problem(answer: Any, expected: Any, tolerance: float) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if callable(expected):
        return "" if bool(expected(answer)) else f"your answer is {_shown(answer)}"
    if isinstance(expected, str | set | dict):
        return "" if answer == expected else f"your answer is {_shown(answer)}"
    import numpy as np

    wanted = np.asarray(_plain(expected))
    try:
        given = np.asarray(_plain(answer))
    except ValueError:  # lists of different lengths
        return f"your answer is {_shown(answer)} and needs the shape {wanted.shape}"
    if wanted.dtype.kind not in "biufc" or given.dtype.kind not in "biufc":
        return "" if wanted.tolist() == given.tolist() else f"your answer is {_shown(answer)}"
    if wanted.shape != given.shape:
        return f"your answer has the shape {given.shape} and needs {wanted.shape}"
    return "" if np.allclose(given, wanted, rtol=tolerance, atol=tolerance) else f"your answer is {_shown(answer)}"


def _plain(value: Any) -> Any:
    """A tensor without its gradient; everything else unchanged."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _shown(value: Any) -> str:
    text = " ".join(str(_plain(value)).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
