"""Implementation of the ppo stage: the objective and the value function; `_online` does what GRPO shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from quatrain.alignment.policy import ActorCritic, Reference, ValueHead, ValueModel
from quatrain.alignment.ppo import PPO, PPOConfig
from quatrain.models.transformer.stack import Model
from quatrain.runs.job import TrainingJob
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._online import online_job, run_online
from quatrain.runs.stages.ppo import PPOStage

VALUES: dict[str, Callable[[Model], ValueHead | ValueModel]] = {
    "head": lambda model: ValueHead(model.config.output_hidden_size),
    "model": ValueModel,
}
"""`value` of the stage -> the value function of a policy."""


def run(settings: PPOStage, context: StageContext) -> StageResult:
    """Trains the policy on its own rollouts, writes `model/` and evaluates it."""
    return run_online(settings, context, prepare(settings, context))


def prepare(settings: PPOStage, context: StageContext) -> TrainingJob:
    """The training job of the stage."""
    config = PPOConfig(**{each.name: getattr(settings, each.name) for each in fields(PPOConfig)})

    def objective(pad_id: int, reference: Reference | None) -> PPO:
        return PPO(config, temperature=settings.temperature, pad_id=pad_id, reference=reference)

    return online_job(
        settings,
        context,
        objective,
        needs_reference=settings.kl_coef > 0,
        trainee=lambda model: ActorCritic(model, VALUES[settings.value](model)),
    )
