"""What the training stages of a recipe cost, from their settings alone: FLOPs and peak memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quatrain.data.sources import text_bytes
from quatrain.models.hub import CONFIG, resolve
from quatrain.models.io.model_folder import checkpoint_dtype, load_config
from quatrain.planning import counts
from quatrain.planning.training_plan import plan_training
from quatrain.runs.settings import RecipeSettings
from quatrain.runs.stage import stage_name
from quatrain.training.settings import TrainSettings

STEPS_OF_AN_EPOCH = 1000
"""Steps that are assumed where the length of a training is in epochs of data whose size is not known."""
BYTES_PER_TOKEN = 4.0
"""Of English text in a vocabulary of subwords, about; a character is a byte."""
TOKENS_PER_EXAMPLE = 40
"""Of an example that a task generates, about."""


@dataclass(frozen=True)
class StageCost:
    """A stage that trains: FLOPs of its training, and bytes at its peak (None for models that are not planned)."""

    name: str
    kind: str
    flops: float
    memory: int | None


def starting_config(recipe: RecipeSettings) -> tuple[Any, str]:
    """The configuration of the model that the recipe starts from, and the dtype of its files."""
    if recipe.model.folder is None:
        return recipe.model.config(recipe.tokenizer.vocab_size), "float32"
    folder = resolve(recipe.model.folder, files=CONFIG)
    return load_config(folder), checkpoint_dtype(folder)


def steps_of_an_epoch(recipe: RecipeSettings, stage: Any) -> float:
    """About how many steps an epoch of a stage has, by the sizes of its files, which are not read."""
    data, train = recipe.data_of(stage), stage.train
    if data.generates:
        tokens: float | None = data.examples * TOKENS_PER_EXAMPLE
    else:
        size = None if data.source is None else text_bytes(data.source)
        tokens = None if size is None else size / (1.0 if recipe.tokenizer.kind == "char" else BYTES_PER_TOKEN)
    return STEPS_OF_AN_EPOCH if tokens is None else max(1.0, tokens / train.batch_tokens)


def stage_flops(config: Any, recipe: RecipeSettings, stage: Any) -> float:
    """FLOPs of a stage's training; 0 for a stage that does not train."""
    train = getattr(stage, "train", None)
    if not isinstance(train, TrainSettings):
        return 0.0
    steps = train.steps if train.steps is not None else steps_of_an_epoch(recipe, stage) * (train.epochs or 1)
    return counts.training_flops_per_token(config, recipe.context_of(stage)) * steps * train.batch_tokens


def stage_costs(recipe: RecipeSettings, *, memory: bool = True) -> list[StageCost]:
    """The cost of each stage that trains."""
    config, stored = starting_config(recipe)
    found = []
    for index, stage in enumerate(recipe.stage):
        train = getattr(stage, "train", None)
        if not isinstance(train, TrainSettings):
            continue
        peak = None
        if memory and counts.is_planned(config):
            adapter = getattr(stage, "adapter", None)
            context = min(recipe.context_of(stage), config.max_position_embeddings)
            peak = plan_training(config, train, context, adapter=adapter, stored=stored).memory.peak
            stored = "float32"  # the dtype of the model that a stage leaves to the next
        found.append(StageCost(stage_name(index, stage), stage.kind, stage_flops(config, recipe, stage), peak))
    return found
