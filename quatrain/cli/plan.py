"""`quatrain plan`: what a model comes to, before it is made."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def plan(model: str, *overrides: str, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Count the parameters of a model folder or of a recipe's model, and the bytes of its weights.

    Parameters
    ----------
    model
        A model folder, the name of a shipped recipe, or the path of a recipe.
    overrides
        Settings of a recipe to change, such as model.hidden_size=512.
    json_lines
        Write one JSON object, for programs.
    """
    from pathlib import Path

    from quatrain.cli.output import show_json, show_table
    from quatrain.errors import InputError
    from quatrain.models.settings import ModelSettings
    from quatrain.progress import format_bytes
    from quatrain.recipe import load

    folder = Path(model)
    if folder.is_dir():
        if overrides:
            raise InputError(f"{overrides[0]}: only a recipe's settings can be changed, and {model} is a model folder")
        parameters = _count_folder(folder)
    else:
        recipe = load(model, overrides)
        settings: ModelSettings = recipe.model
        if settings.folder is not None:
            parameters = _count_folder(Path(settings.folder))
        else:
            parameters = settings.parameters(recipe.tokenizer.vocab_size)
    sizes = {"float32": 4 * parameters, "bfloat16": 2 * parameters, "int8": parameters}
    if json_lines:
        show_json({"parameters": parameters, "bytes": sizes})
        return 0
    rows = [["parameters", f"{parameters:,}"]]
    rows += [[f"weights in {name}", format_bytes(count)] for name, count in sizes.items()]
    rows.append(["training state, float32 with AdamW", format_bytes(16 * parameters)])
    show_table(["what", "how much"], rows)
    return 0


def _count_folder(folder: object) -> int:
    """Parameters of a model folder, by the shapes in its configuration; no weights are read."""
    import torch

    from quatrain.models import hub
    from quatrain.models.stack import Model

    with torch.device("meta"):
        return Model(hub.read_config(folder)).num_parameters()  # type: ignore[arg-type]
