"""The grpo stage: group relative policy optimization and its kin (`quatrain.alignment.variants`), without a critic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.variants import (
    VARIANTS,
    Aggregation,
    Baseline,
    Correction,
    PolicyVariant,
    Ratio,
    Scale,
    Surrogate,
    variant,
)
from quatrain.core.errors import InputError
from quatrain.core.settings import Problem
from quatrain.core.wording import format_value
from quatrain.runs.online import OnlineStage, needs_prompts, online_conflicts, online_file_problems, online_lesson
from quatrain.runs.stage import StageSpec, deferred

KNOBS = tuple(item.name for item in fields(PolicyVariant))


class GRPOStage(OnlineStage):
    """Group relative policy optimization of the model so far, with rewards from `rewards` or from the task.

    `samples` completions of each prompt are a group, whose mean reward is the baseline. `variant` names all knobs of
    the loss at once; a knob that is given replaces the variant's. `quatrain.alignment.variants.PolicyVariant` describes
    them. With `dynamic_sampling` groups without spread are drawn again from other prompts, at most `attempts` times.
    """

    kind: Literal["grpo"] = "grpo"
    variant: str = Field(default="grpo", description=", ".join(VARIANTS))
    samples: int = Field(default=8, ge=1, description="completions of each prompt, which are a group")
    attempts: int = Field(default=4, ge=1, description="rounds of sampling, with dynamic_sampling")
    baseline: Baseline | None = None
    scale: Scale | None = None
    ratio: Ratio | None = None
    surrogate: Surrogate | None = None
    clip_low: float | None = Field(default=None, ge=0, le=1)
    clip_high: float | None = Field(default=None, ge=0)
    aggregation: Aggregation | None = None
    kl_coef: float | None = Field(default=None, ge=0)
    kl_in: Literal["loss", "reward"] | None = None
    kl_weighted: bool | None = None
    correction: Correction | None = None
    correction_limit: float | None = Field(default=None, gt=0)
    dynamic_sampling: bool | None = None
    mask_truncated: bool | None = None
    overlong_buffer: float | None = Field(default=None, ge=0, le=1)

    @property
    def policy(self) -> PolicyVariant:
        """The variant with the knobs that are given. Raises InputError for an unknown name."""
        given: dict[str, Any] = {name: getattr(self, name) for name in KNOBS}
        return variant(self.variant, **{name: value for name, value in given.items() if value is not None})

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        try:
            policy = self.policy
        except InputError as error:
            yield Problem(("variant",), error.message.removeprefix("variant: "))
            return
        if self.samples < 2 and policy.baseline in ("group_mean", "leave_one_out"):
            text = f'{self.samples}; baseline = "{policy.baseline}" compares the completions of a prompt: at least 2'
            yield Problem(("samples",), text, (("variant",), ("baseline",)))
        if policy.surrogate == "none" and self.minibatches * self.passes > 1:
            text = f"{format_value(self.variant)} has no ratio to an older policy: a phase must be one optimizer step"
            yield Problem(("variant",), text, (("minibatches",), ("passes",)))


SPEC = StageSpec(
    GRPOStage,
    run=deferred("quatrain.runs.stages._grpo:run"),
    needs=needs_prompts,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._grpo:prepare"),
    conflicts=online_conflicts,
    file_problems=online_file_problems,
    teaches=online_lesson,
    distributed=True,
)
