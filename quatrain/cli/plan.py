"""`quatrain plan`: estimates parameters, memory and operations of a model before it is created or loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.runs.recipe import Recipe


def plan(
    model: str,
    *overrides: str,
    method: str | None = None,
    rank: int | None = None,
    target_modules: tuple[str, ...] = (),
    trainable_tokens: str | None = None,
    batch_tokens: int | None = None,
    context: int | None = None,
    accumulation: int | None = None,
    optimizer: str | None = None,
    precision: str | None = None,
    paged_optimizer: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Estimate the parameters, memory and FLOPs of a model folder or of a recipe's model, without reading weights.

    With --method also the memory of training it, by part and at the peak.

    Parameters
    ----------
    model
        A model folder, a run's folder, an id of the Hugging Face hub, the name of a shipped recipe, or the path of
        a recipe.
    overrides
        Settings of a recipe to change, such as model.hidden_size=512.
    method
        The training method: full, lora, qlora (4-bit base weights), dora, loha, lokr, ia3, bitfit,
        last-layers, prompt, p-tuning or prefix.
    rank
        The rank of a low-rank adapter, 16 by default.
    target_modules
        The layers with adapters, such as --target-modules q_proj --target-modules v_proj; by default all linear
        layers.
    trainable_tokens
        special (the default): train the embedding rows of special tokens in addition to an adapter, so that the
        embedding has a gradient. none: do not.
    batch_tokens
        Tokens per step, 16,384 by default.
    context
        Tokens per row; by default the model's context, at most 2,048.
    accumulation
        The number of micro-batches per step.
    optimizer
        adamw, adamw8bit or muon.
    precision
        float32, bfloat16 or float16; by default the faster of the first two on this machine.
    paged_optimizer
        Keep optimizer states in host memory.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show_json, show_table
    from quatrain.core.errors import InputError
    from quatrain.models import classic
    from quatrain.planning.training_plan import plan_method

    train: dict[str, Any] = _given(
        batch_tokens=batch_tokens, accumulation=accumulation, optimizer=optimizer, precision=precision,
        paged_optimizer=paged_optimizer or None,
    )  # fmt: skip
    adapter = _given(rank=rank, target_modules=target_modules or None, trainable_tokens=trainable_tokens)
    config, recipe, stored = _config(model, overrides)
    if classic.find(config.family) is not None:
        raise InputError(f"{model}: a plan is for transformers, and this is a model of type {config.family}.")
    method_plan = None
    if method is not None:
        method_plan = plan_method(
            config, method, train=train, adapter=adapter, context=context, special=_special(model), stored=stored
        )
    elif names := [*train, *adapter, *_given(context=context)]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise InputError(f"{flags}: only with --method, such as --method lora.")
    figures = _figures(config, recipe, stored) | ({} if method_plan is None else {"method": method_plan.as_dict()})
    if json_lines:
        show_json(figures)
    else:
        method_rows = [] if method_plan is None else method_plan.rows_for_table()
        show_table(["what", "how much"], [*_rows(config, figures), *method_rows])
    return 0


def _given(**options: Any) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def _config(model: str, overrides: tuple[str, ...]) -> tuple[ModelConfig, Recipe | None, str]:
    """The configuration of a model folder, hub model or recipe; its recipe, if any; dtype of the initial weights."""
    from quatrain.core.errors import InputError
    from quatrain.core.progress import create_reporter
    from quatrain.models.hub import CONFIG, resolve
    from quatrain.models.io.model_folder import checkpoint_dtype, load_config
    from quatrain.models.run_folder import run_folder
    from quatrain.runs.recipe import load, recipe_names

    of_run = model not in recipe_names() and run_folder(model) is not None
    of_hub = model.count("/") == 1 and not model.endswith(".toml") and not Path(model).exists()
    if of_run or of_hub or Path(model).is_dir():
        if overrides:
            raise InputError(f"{overrides[0]}: only a recipe's settings can be changed, and {model} is a model")
        folder = resolve(model, files=CONFIG)
        return load_config(folder), None, checkpoint_dtype(folder)
    recipe = load(model, overrides, say=create_reporter(stream=sys.stderr).info)
    if recipe.model.folder is not None:
        folder = resolve(recipe.model.folder, files=CONFIG)
        return load_config(folder), recipe, checkpoint_dtype(folder)
    return recipe.model.config(recipe.tokenizer.vocab_size), recipe, "float32"


def _special(model: str) -> list[int]:
    """The special tokens of a model folder, if it has a tokenizer."""
    from quatrain.models.run_folder import model_of_run
    from quatrain.tokenizers.tokenizer import Tokenizer

    folder = model_of_run(model) or Path(model)
    tokenizer = Tokenizer.find(folder) if folder.is_dir() else None
    return sorted(tokenizer.special_ids) if tokenizer is not None else []


def _figures(config: ModelConfig, recipe: Recipe | None, stored: str) -> dict[str, Any]:
    """The counts as plain numbers: bytes, and FLOPs for one token."""
    from quatrain.planning import counts
    from quatrain.planning.training_plan import plan_training

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
        stage_plan = plan_training(
            config, train, recipe.context_of(stage), adapter=getattr(stage, "adapter", None), stored=stored
        )
        training[stage.kind] = stage_plan.memory.peak
        stored = "float32"  # the dtype of the model that a stage leaves to the next
    return figures | ({"training": training} if training else {})


def _rows(config: ModelConfig, figures: dict[str, Any]) -> list[list[object]]:
    from quatrain.core.wording import format_bytes

    rows: list[list[object]] = [["parameters", f"{figures['parameters']:,}"]]
    rows += [[f"weights in {name}", format_bytes(count)] for name, count in figures["weights"].items()]
    if config.is_causal:
        rows.append([f"cache of {config.max_position_embeddings} tokens, float32", format_bytes(figures["cache"])])
    rows.append(["operations to read or write a token", f"{figures['flops_per_token'] / 1e6:,.1f} MFLOP"])
    rows.append(["operations to learn from a token", f"{figures['training_flops_per_token'] / 1e6:,.1f} MFLOP"])
    for kind, count in figures.get("training", {}).items():
        rows.append([f"memory of {kind} at its peak, about", format_bytes(count)])
    return rows
