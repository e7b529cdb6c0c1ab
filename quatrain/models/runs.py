"""A run's folder in the place of a model: the run's final model, or that of its newest stage."""

from __future__ import annotations

import os
from pathlib import Path

from quatrain.core.errors import QuatrainError

RUNS = "runs"
"""The folder in which `quatrain run` keeps runs unless told otherwise; a bare name is looked for in it."""

MODEL = ("config.json", "adapter_config.json", "adapters")
"""A folder of a model has one of these."""

TOKENIZER = ("tokenizer.json",)


def run_folder(name: str | Path) -> Path | None:
    """The folder of a run: a path of one, or the name of one in `runs`. None for anything else."""
    text = os.path.expanduser(str(name))
    places = [text] if text else []
    if text and not os.path.exists(text) and os.path.basename(text) == text:
        places = [os.path.join(RUNS, text)]
    # A run's final model has its recipe beside it too, but neither a state nor stages.
    found = (place for place in places if _has(place, ("recipe.toml",)) and _has(place, ("run.json", "stages")))
    return next((Path(place) for place in found if not _has(place, MODEL)), None)


def model_of_run(name: str | Path) -> Path | None:
    """The newest model that a run has made; None where `name` is no run's. Raises QuatrainError for a run without."""
    return _newest(name, MODEL, ["model"])


def tokenizer_of_run(name: str | Path) -> Path | None:
    """The tokenizer that a run has made, with its newest model or before it; None where `name` is no run's."""
    return _newest(name, TOKENIZER, ["model", "tokenizer"])


def _newest(name: str | Path, files: tuple[str, ...], kinds: list[str]) -> Path | None:
    folder = run_folder(name)
    if folder is None:
        return None
    for kind in kinds:
        for path in (folder / kind, *sorted(folder.glob(f"stages/*/{kind}"), reverse=True)):
            if _has(path, files):
                return path
    raise QuatrainError(f"{folder}: this run has made no {kinds[-1]} yet; let it go on with `quatrain run`.")


def _has(folder: str | Path, files: tuple[str, ...]) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in files)
