"""Which of the served models an adapter belongs to: the one that it names as its base, else the only one it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from quatrain.adapters.peft_config import base_folder
from quatrain.adapters.peft_files import read_adapter
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.wording import format_value
from quatrain.loading.model import ResolvedModel
from quatrain.models.hub import ADAPTER_CONFIG, resolve
from quatrain.models.io import model_folder
from quatrain.models.transformer.initialization import Uninitialized
from quatrain.models.transformer.stack import Model


def bind_adapters(
    models: Mapping[str, ResolvedModel], adapters: Mapping[str, str | Path]
) -> dict[str, dict[str, str | Path]]:
    """The adapters of each model by name; a name NAME@MODEL says which model is meant.

    Raises InputError, all problems at once, for adapters of no model, or of several.
    """
    result: dict[str, dict[str, str | Path]] = {name: {} for name in models}
    problems = []
    for text, path in adapters.items():
        name, _, wanted = text.partition("@")
        try:
            model = _model_of(name, path, models, wanted)
        except QuatrainError as error:
            problems += [f"adapter {name}: {part}" for part in (error.problems or [error.message])]
            continue
        if name in result[model]:
            problems.append(f"adapter {name}: given twice for {model}")
        result[model][name] = path
    if problems:
        raise InputError("These adapters cannot be served:", problems)
    return result


def _model_of(name: str, path: str | Path, models: Mapping[str, ResolvedModel], wanted: str) -> str:
    """The name of an adapter's model. Raises QuatrainError."""
    if wanted:
        if wanted not in models:
            raise InputError(f"no model is named {format_value(wanted)}; they are {', '.join(models)}")
        return wanted
    folder = resolve(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"{folder} is not an adapter folder: it has no {ADAPTER_CONFIG}")
    bare = {name: model.base for name, model in models.items() if not model.is_adapter and not model.adapters}
    try:
        base = base_folder(folder).resolve()
        found = [name for name, place in bare.items() if place.resolve() == base]
        why = "is the model that it names as its base"
    except QuatrainError:  # The base has moved, or was never named.
        found = []
    if not found:
        found = [name for name, place in bare.items() if _fits(folder, place)]
        why = "fits its shapes"
    if not found:
        raise InputError(
            f"{folder} names none of the models as its base and fits the shapes of none: {', '.join(models)}"
        )
    if len(found) > 1:
        example = f"--adapter {name}@{found[0]}={path}"
        raise InputError(f"each of {', '.join(found)} {why}; say which one is meant: {example}")
    return found[0]


def _fits(folder: Path, base: Path) -> bool:
    """Whether an adapter's tensors are those of a model's layers; the model is not loaded."""
    try:
        with torch.device("meta"), Uninitialized():
            model = Model(model_folder.load_config(base))
        read_adapter(model, folder)
    except QuatrainError:
        return False
    return True
