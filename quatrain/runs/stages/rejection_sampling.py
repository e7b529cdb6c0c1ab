"""The rejection-sampling stage: the model learns its own best completions (RAFT, Dong et al. 2023)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quatrain.runs.online import OnlineStage, needs_prompts, online_conflicts, online_file_problems
from quatrain.runs.stage import StageSpec, deferred


class RejectionSamplingStage(OnlineStage):
    """Rejection-sampling fine-tuning: cross-entropy of the model's own accepted completions.

    Completions are accepted from a score of `threshold` on; without one, those that beat the mean of their prompt's
    samples. At most `per_prompt` of a prompt are learned. Each phase samples with the current weights, so that a stage
    with one phase is the usual fine-tuning and one with several is expert iteration.
    """

    kind: Literal["rejection-sampling"] = "rejection-sampling"
    samples: int = Field(default=8, ge=1, description="completions of each prompt, of which the best are learned")
    threshold: float | None = None
    per_prompt: int = Field(default=1, ge=1)


SPEC = StageSpec(
    RejectionSamplingStage,
    run=deferred("quatrain.runs.stages._rejection_sampling:run"),
    needs=needs_prompts,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._rejection_sampling:prepare"),
    conflicts=online_conflicts,
    file_problems=online_file_problems,
    teaches=lambda settings: "chat",
    distributed=True,
)
