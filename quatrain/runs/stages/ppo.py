"""The ppo stage: proximal policy optimization (Schulman et al., 2017; Ouyang et al., 2022) with a learned baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.runs.online import OnlineStage, needs_prompts, online_conflicts, online_file_problems, online_lesson
from quatrain.runs.stage import StageSpec, deferred


class PPOStage(OnlineStage):
    """Proximal policy optimization of the model so far, with rewards from `rewards` or from the task.

    The reference of the KL penalty is the model at the start: the base under the adapter, or a frozen copy.
    `kl_target` adapts `kl_coef`. `value` = "head" reads the policy's hidden states, "model" is a second model that
    starts from the same weights. `quatrain.alignment.ppo.PPOConfig` describes the other coefficients.
    """

    kind: Literal["ppo"] = "ppo"
    passes: int = Field(default=4, ge=1, description="passes over the rollouts of a phase")
    clip: float = Field(default=0.2, gt=0, le=1)
    value_clip: float = Field(default=0.2, ge=0)
    value_coef: float = Field(default=0.1, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    kl_coef: float = Field(default=0.05, ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_target: float | None = Field(default=None, gt=0, description="nats per completion")
    kl_horizon: int = Field(default=10_000, ge=1, description="completions in which kl_coef changes by up to 20 %")
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    missing_end_penalty: float = Field(default=0.0, ge=0, description="for a completion that was cut at the limit")
    value: Literal["head", "model"] = "head"

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        if self.kl_target is not None and not self.kl_coef:
            yield Problem(("kl_target",), f"{self.kl_target}; needs kl_coef above 0 to adapt", (("kl_coef",),))
        if self.value == "model" and self.adapter is not None:
            text = '"model"; a second whole model would learn beside an adapter: use "head", or leave the adapter out'
            yield Problem(("value",), text, (("adapter",),))


SPEC = StageSpec(
    PPOStage,
    run=deferred("quatrain.runs.stages._ppo:run"),
    needs=needs_prompts,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._ppo:prepare"),
    conflicts=online_conflicts,
    file_problems=online_file_problems,
    teaches=online_lesson,
    distributed=True,
)
