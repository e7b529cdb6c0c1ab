"""Finds the model and the tokenizer of a run, so that a run can be given wherever a model is expected."""

from __future__ import annotations

import os
from pathlib import Path

from quatrain.core.errors import QuatrainError

RUNS = "runs"
"""The default folder of `quatrain run`; a run given by name is searched in it."""

MODEL = ("config.json", "adapter_config.json", "adapters")
"""A model folder contains one of these."""

TOKENIZER = ("tokenizer.json",)


def run_folder(name: str | Path) -> Path | None:
    """The folder of a run, given by its path or by its name in `runs`; None if there is no such run."""
    text = os.path.expanduser(str(name))
    paths = [text] if text else []
    if text and not os.path.exists(text) and os.path.basename(text) == text:
        paths = [os.path.join(RUNS, text)]
    # The final model of a run also contains recipe.toml, but neither run.json nor stages.
    runs = (path for path in paths if _has(path, ("recipe.toml",)) and _has(path, ("run.json", "stages")))
    return next((Path(path) for path in runs if not _has(path, MODEL)), None)


def model_of_run(name: str | Path) -> Path | None:
    """The final model of a run, or that of its newest stage; None if `name` is not a run.

    Raises QuatrainError for a run without a model.
    """
    return _newest(name, MODEL, ["model"])


def tokenizer_of_run(name: str | Path) -> Path | None:
    """The tokenizer of a run, from its newest model or else a tokenizer stage; None if `name` is not a run.

    Raises QuatrainError for a run without a tokenizer.
    """
    return _newest(name, TOKENIZER, ["model", "tokenizer"])


def _newest(name: str | Path, files: tuple[str, ...], kinds: list[str]) -> Path | None:
    folder = run_folder(name)
    if folder is None:
        return None
    for kind in kinds:
        for path in (folder / kind, *sorted(folder.glob(f"stages/*/{kind}"), reverse=True)):
            if _has(path, files):
                return path
    raise QuatrainError(f"{folder}: this run has no {kinds[-1]} yet; continue it with `quatrain run`.")


def _has(folder: str | Path, files: tuple[str, ...]) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in files)
