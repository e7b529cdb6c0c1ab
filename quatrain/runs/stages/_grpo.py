"""Implementation of the grpo stage: the objective; `_online` does what all stages with rollouts share."""

from __future__ import annotations

from dataclasses import asdict

from quatrain.alignment.grpo import GRPO
from quatrain.alignment.policy import Reference
from quatrain.runs.job import TrainingJob
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._online import online_job, run_online
from quatrain.runs.stages.grpo import GRPOStage


def run(settings: GRPOStage, context: StageContext) -> StageResult:
    """Trains the policy on its own rollouts, writes `model/` and evaluates it. The result names all knobs."""
    result = run_online(settings, context, prepare(settings, context))
    result.extra["policy_loss"] = {"variant": settings.variant} | asdict(settings.policy)
    return result


def prepare(settings: GRPOStage, context: StageContext) -> TrainingJob:
    """The training job of the stage."""
    policy = settings.policy

    def objective(pad_id: int, reference: Reference | None) -> GRPO:
        return GRPO(
            policy,
            limit=settings.max_new_tokens,
            temperature=settings.temperature,
            pad_id=pad_id,
            reference=reference,
        )

    return online_job(
        settings,
        context,
        objective,
        needs_reference=policy.kl_coef > 0,
        attempts=settings.attempts if policy.dynamic_sampling else 1,
    )
