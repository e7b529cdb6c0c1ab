"""Implementation of the distill stage: the teacher and the objective; `_online` does the rest."""

from __future__ import annotations

from quatrain.alignment.distillation import OnPolicyDistillation
from quatrain.alignment.policy import Reference
from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.loading.model import load_model
from quatrain.runs.job import TrainingJob
from quatrain.runs.material import tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._online import online_job, run_online
from quatrain.runs.stages.distill import DistillStage


def run(settings: DistillStage, context: StageContext) -> StageResult:
    """Trains the student on its own completions, writes `model/` and evaluates it."""
    return run_online(settings, context, prepare(settings, context))


def prepare(settings: DistillStage, context: StageContext) -> TrainingJob:
    """The training job of the stage. Raises InputError for a teacher with another tokenizer."""
    teacher, tokenizer = load_model(user_path(settings.teacher, "teacher"))
    if tokenizer.fingerprint != tokenizer_of(context).fingerprint:
        raise InputError(
            f"teacher: {settings.teacher} has another tokenizer than the student, so their tokens cannot be compared. "
            "Distil from a model with the same tokenizer."
        )

    def objective(pad_id: int, reference: Reference | None) -> OnPolicyDistillation:
        return OnPolicyDistillation(
            teacher,
            kind=settings.divergence,
            mixture=settings.mixture,
            temperature=settings.temperature,
            pad_id=pad_id,
        )

    return online_job(settings, context, objective, needs_reference=False)
