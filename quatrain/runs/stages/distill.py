"""The distill stage: the model learns a stronger model's distributions on its own completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from quatrain.core.reading import user_path
from quatrain.runs.online import OnlineStage, needs_prompts, online_conflicts, online_file_problems
from quatrain.runs.settings import RecipeSettings
from quatrain.runs.stage import StageSpec, deferred


class DistillStage(OnlineStage):
    """On-policy distillation (GKD, Agarwal et al. 2024) from the model in the folder `teacher`.

    `divergence`: `reverse` (student from teacher), `forward` (teacher from student), or `js` with the teacher's share
    `mixture`. The teacher must have the student's tokenizer. Rewards are measured and take no part in the loss.
    """

    kind: Literal["distill"] = "distill"
    teacher: str = Field(min_length=1, description="a model folder with the same tokenizer")
    divergence: Literal["reverse", "forward", "js"] = "reverse"
    mixture: float = Field(default=0.5, gt=0, lt=1)


def file_problems(settings: DistillStage, recipe: RecipeSettings) -> Iterator[str]:
    """A teacher's folder that is missing, and what rewards lack."""
    yield from online_file_problems(settings, recipe)
    if not (Path(user_path(settings.teacher, "teacher")) / "config.json").is_file():
        yield f"teacher: {settings.teacher} is not a model folder: it has no config.json"


SPEC = StageSpec(
    DistillStage,
    run=deferred("quatrain.runs.stages._distill:run"),
    needs=needs_prompts,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._distill:prepare"),
    conflicts=online_conflicts,
    file_problems=file_problems,
    teaches=lambda settings: "chat",
    distributed=True,
)
