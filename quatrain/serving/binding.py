"""Which of the served models an adapter belongs to: the one that it names as its base, else the only one it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quatrain.adapters.peft_config import base_folder
from quatrain.adapters.peft_files import read_adapter
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.wording import format_value
from quatrain.models.hub import ADAPTER_CONFIG, resolve
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.serving.models import ModelEntry


def bind_adapters(entries: Sequence[ModelEntry], adapters: Mapping[str, str | Path]) -> None:
    """Gives each adapter to the model of its base; a name NAME@MODEL names that model.

    Raises InputError, all problems at once, for adapters of no model, or of several.
    """
    problems = []
    for text, path in adapters.items():
        name, _, wanted = text.partition("@")
        try:
            entry = _model_of(name, path, entries, wanted)
        except QuatrainError as error:
            problems += [f"adapter {name}: {part}" for part in (error.problems or [error.message])]
        else:
            if name in entry.adapters:
                problems.append(f"adapter {name}: given twice for {entry.name}")
            entry.adapters[name] = path
    if problems:
        raise InputError("These adapters cannot be served:", problems)


def _model_of(name: str, path: str | Path, entries: Sequence[ModelEntry], wanted: str) -> ModelEntry:
    """The model of one adapter. Raises QuatrainError."""
    if wanted:
        named = [entry for entry in entries if entry.name == wanted]
        if not named:
            raise InputError(f"no model is named {format_value(wanted)}; they are {_names(entries)}")
        return named[0]
    folder = resolve(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"{folder} is not an adapter folder: it has no {ADAPTER_CONFIG}")
    bare = [entry for entry in entries if not entry.resolved.is_adapter and not entry.resolved.adapters]
    try:
        base = base_folder(folder).resolve()
        found = [entry for entry in bare if entry.resolved.base.resolve() == base]
        why = "is the model that it names as its base"
    except QuatrainError:  # The base has moved, or was never named.
        found = []
    if not found:
        found = [entry for entry in bare if _fits(folder, entry)]
        why = "fits its shapes"
    if not found:
        raise InputError(
            f"{folder} names none of the models as its base and fits the shapes of none: {_names(entries)}"
        )
    if len(found) > 1:
        example = f"--adapter {name}@{found[0].name}={path}"
        raise InputError(f"each of {_names(found)} {why}; say which one is meant: {example}")
    return found[0]


def _fits(folder: Path, entry: ModelEntry) -> bool:
    """Whether an adapter's tensors are those of a model's layers; the model is not loaded."""
    try:
        with torch.device("meta"):
            model = Model(model_folder.load_config(entry.resolved.base))
        read_adapter(model, folder)
    except QuatrainError:
        return False
    return True


def _names(entries: Sequence[ModelEntry]) -> str:
    return ", ".join(entry.name for entry in entries)
