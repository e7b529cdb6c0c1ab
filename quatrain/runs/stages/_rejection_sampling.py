"""Implementation of the rejection-sampling stage: the objective; `_online` does the rest."""

from __future__ import annotations

from quatrain.alignment.best_of_n import RejectionSampling
from quatrain.alignment.policy import Reference
from quatrain.runs.job import TrainingJob
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._online import online_job, run_online
from quatrain.runs.stages.rejection_sampling import RejectionSamplingStage


def run(settings: RejectionSamplingStage, context: StageContext) -> StageResult:
    """Samples, trains on what is accepted, writes `model/` and evaluates it."""
    return run_online(settings, context, prepare(settings, context))


def prepare(settings: RejectionSamplingStage, context: StageContext) -> TrainingJob:
    """The training job of the stage."""

    def objective(pad_id: int, reference: Reference | None) -> RejectionSampling:
        return RejectionSampling(
            threshold=settings.threshold,
            per_prompt=settings.per_prompt,
            temperature=settings.temperature,
            pad_id=pad_id,
        )

    return online_job(settings, context, objective, needs_reference=False)
