"""`quatrain plan`: what a model comes to, before it is made or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.models.config import ModelConfig
    from quatrain.recipe import Recipe


def plan(model: str, *overrides: str, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Count the parameters of a model folder or of a recipe's model, its memory and its operations.

    Parameters
    ----------
    model
        A model folder, an id of the Hugging Face hub, the name of a shipped recipe, or the path of a recipe.
    overrides
        Settings of a recipe to change, such as model.hidden_size=512.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show_json, show_table

    config, recipe = _config(model, overrides)
    figures = _figures(config, recipe)
    if json_lines:
        show_json(figures)
    else:
        show_table(["what", "how much"], _rows(config, figures))
    return 0


def _config(model: str, overrides: tuple[str, ...]) -> tuple[ModelConfig, Recipe | None]:
    """The configuration of a model in a folder or on the hub, or that of a recipe's with the recipe."""
    from quatrain.errors import InputError
    from quatrain.recipe import load

    if Path(model).is_dir() or (model.count("/") == 1 and not model.endswith(".toml") and not Path(model).exists()):
        if overrides:
            raise InputError(f"{overrides[0]}: only a recipe's settings can be changed, and {model} is a model")
        return _folder_config(model), None
    recipe = load(model, overrides)
    if recipe.model.folder is not None:
        return _folder_config(recipe.model.folder), recipe
    return recipe.model.config(recipe.tokenizer.vocab_size), recipe


def _folder_config(folder: str) -> ModelConfig:
    from quatrain.models.hub import load_config

    return load_config(folder)


def _figures(config: ModelConfig, recipe: Recipe | None) -> dict[str, Any]:
    """The counts as plain numbers: bytes, and operations for one token."""
    from quatrain.planning import counts

    longest = config.max_position_embeddings
    figures: dict[str, Any] = {
        "parameters": counts.parameters(config),
        "weights": {dtype: counts.weight_bytes(config, dtype) for dtype in ("float32", "bfloat16", "int8", "int4")},
        "cache": counts.kv_cache_bytes(config, longest),
        "flops_per_token": counts.flops_per_token(config, longest, training=False),
        "training_flops_per_token": counts.flops_per_token(config, longest),
    }
    training = {}
    for stage in recipe.stage if recipe else ():
        train = getattr(stage, "train", None)
        if recipe is None or train is None:
            continue
        context = recipe.context_of(stage)
        rows = max(1, train.batch_tokens // context // train.accumulation)
        memory = counts.training_memory(config, rows, context, optimizer=train.optimizer)
        training[stage.kind] = memory.total
    return figures | ({"training": training} if training else {})


def _rows(config: ModelConfig, figures: dict[str, Any]) -> list[list[object]]:
    from quatrain.wording import format_bytes

    rows: list[list[object]] = [["parameters", f"{figures['parameters']:,}"]]
    rows += [[f"weights in {name}", format_bytes(count)] for name, count in figures["weights"].items()]
    if config.is_causal:
        rows.append([f"cache of {config.max_position_embeddings} tokens, float32", format_bytes(figures["cache"])])
    rows.append(["operations to read or write a token", f"{figures['flops_per_token'] / 1e6:,.1f} MFLOP"])
    rows.append(["operations to learn from a token", f"{figures['training_flops_per_token'] / 1e6:,.1f} MFLOP"])
    for kind, count in figures.get("training", {}).items():
        rows.append([f"memory to {kind} every weight, about", format_bytes(count)])
    return rows
