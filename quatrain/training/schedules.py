"""Learning-rate schedules, as the share of the peak at a step: constant, linear, cosine, warm-up-stable-decay."""

from __future__ import annotations

import math


def share(
    step: int, *, steps: int, schedule: str = "cosine", warmup: int = 0, minimum: float = 0.0, decay: float = 0.4
) -> float:
    """The learning rate of step `step` (0-based) over its peak.

    A linear warm-up of `warmup` steps ends at 1. `cosine` and `linear` then fall to `minimum` at the last step;
    `wsd` (Hu et al. 2024, arXiv 2404.06395) stays at 1 and falls linearly over the last `decay` share of the steps.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    start = max(warmup, steps - math.ceil(decay * steps)) if schedule == "wsd" else warmup
    if step < start:
        return 1.0
    progress = min(1.0, (step - start + 1) / max(1, steps - start))
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return minimum + (1 - minimum) * fall
