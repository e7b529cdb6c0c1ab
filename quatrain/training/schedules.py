"""Learning-rate schedules: constant, linear, cosine, warmup-stable-decay (WSD)."""

from __future__ import annotations

import math


def learning_rate_ratio(
    step: int,
    *,
    steps: int,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    min_ratio: float = 0.0,
    decay_ratio: float = 0.4,
) -> float:
    """The learning rate at `step` (0-based) as a fraction of the peak.

    A linear warmup of `warmup_steps` steps ends at 1. `cosine` and `linear` then fall to `min_ratio` at the last step;
    `wsd` (Hu et al. 2024, arXiv 2404.06395) stays at 1 and falls linearly over the last `decay_ratio` of the steps.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    start = max(warmup_steps, steps - math.ceil(decay_ratio * steps)) if schedule == "wsd" else warmup_steps
    if step < start:
        return 1.0
    progress = min(1.0, (step - start + 1) / max(1, steps - start))
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return min_ratio + (1 - min_ratio) * fall
