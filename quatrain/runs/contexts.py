"""Builds the context of a stage from what earlier stages have left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quatrain.core.errors import QuatrainError
from quatrain.core.processes import process_number
from quatrain.core.progress import Reporter
from quatrain.runs.folder import written_folder
from quatrain.runs.inputs import beginning
from quatrain.runs.settings import RecipeSettings
from quatrain.runs.stage import StageContext, stage_name
from quatrain.runs.stages import spec_of


def judges(context: StageContext) -> dict[str, Path | None]:
    """The model folders of earlier stages whose models judge, by the kind of the stage; None where it has not run."""
    recipe, stages = context.recipe, context.folder / "stages"
    return {
        stage.kind: written_folder(stages / stage_name(number, stage), "model")
        for number, stage in enumerate(recipe.stage[: context.index])
        if spec_of(stage).judges
    }


def stage_context(recipe: RecipeSettings, folder: Path, index: int, reporter: Reporter, **more: Any) -> StageContext:
    """The context of a stage; `more` are further fields of `StageContext`.

    Raises QuatrainError where an earlier stage has no result.
    """
    model = beginning(recipe)
    tokenizer = Path(recipe.tokenizer.path) if recipe.tokenizer.path else model
    for number in range(index):
        earlier = folder / "stages" / stage_name(number, recipe.stage[number])
        if not (earlier / "result.json").is_file():
            raise QuatrainError(
                f"{earlier} has no result that this process can read; all processes need the same run folder."
            )
        tokenizer = written_folder(earlier, "tokenizer") or tokenizer
        if not spec_of(recipe.stage[number]).judges:
            model = written_folder(earlier, "model") or model
    stage = recipe.stage[index]
    name = stage_name(index, stage)
    processes = process_number()[1] if spec_of(stage).distributed else 1
    place = folder / "stages" / name
    return StageContext(
        recipe, folder, place, index, name, model, tokenizer, recipe.seed, reporter, processes=processes, **more
    )
