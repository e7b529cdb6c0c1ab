"""Implementation of the ppo stage: the objective and the value function; `_online` does what GRPO shares."""

from __future__ import annotations

from dataclasses import fields

from quatrain.alignment.policy import ActorCritic, Reference, ValueHead, ValueModel
from quatrain.alignment.ppo import PPO, PPOConfig
from quatrain.loading.model import load_weights
from quatrain.models.transformer.stack import Model
from quatrain.runs.job import TrainingJob
from quatrain.runs.material import fresh_model, model_folder_of, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._online import online_job, run_online
from quatrain.runs.stages.ppo import PPOStage


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
        trainee=lambda model: ActorCritic(model, value_function(settings, context, model)),
    )


def value_function(settings: PPOStage, context: StageContext, model: Model) -> ValueHead | ValueModel:
    """The value head on the policy, or a second model that starts from the weights of the policy."""
    if settings.value == "head":
        return ValueHead(model.config.output_hidden_size)
    folder = model_folder_of(context)
    more = {"head": "value", "labels": ("value",)}
    if folder is None:
        return ValueModel(fresh_model(context, tokenizer_of(context), **more))  # type: ignore[arg-type]
    return ValueModel(load_weights(folder, seed=context.seed, **more))  # type: ignore[arg-type]
