"""What the suites of fairness and safety share: their files, and the model of a subject of this machine."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from quatrain.core.errors import InputError
from quatrain.evaluation.subject import LocalSubject, Subject


def own_file(name: str) -> str:
    """The path of a file that comes with the package."""
    return str(files("quatrain.evaluation.safety") / "files" / name)


def model_of(subject: Subject, what: str) -> tuple[Any, Any]:
    """The model and tokenizer of a subject of this machine. Raises InputError for an endpoint, which shows neither."""
    if not isinstance(subject, LocalSubject):
        raise InputError(f"{what} needs the model itself, on this machine; {subject.name} is an endpoint")
    return subject.network, subject.tokenizer
