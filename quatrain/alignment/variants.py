"""The variants of GRPO, as settings of one loss (`quatrain.alignment.grpo`).

This module imports no torch, so that recipes are checked quickly.

Every variant is a `PolicyVariant`: how a completion's advantage follows from the rewards of its group, what the ratio
of the new policy to the old one is taken over, how it is clipped, and how tokens are averaged. `VARIANTS` names them:

- `grpo`: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300); `bnpo` averages over tokens instead of completions.
- `dapo`: Yu et al. 2025 (arXiv 2503.14476); `dr_grpo`: Liu et al. 2025 (arXiv 2503.20783).
- `gspo`: Zheng et al. 2025 (arXiv 2507.18071); `cispo`: MiniMax-M1 2025 (arXiv 2506.13585).
- `rloo`: Ahmadian et al. 2024 (arXiv 2402.14740); `reinforce`, `reinforce_baseline`: Williams 1992.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

Baseline = Literal["group_mean", "leave_one_out", "batch_mean", "none"]
Scale = Literal["group", "batch", "none"]
Ratio = Literal["token", "sequence_mean", "sequence"]
Surrogate = Literal["clip", "truncate", "none"]
Aggregation = Literal["sequence_mean", "token_mean", "constant", "sequence_sum"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class PolicyVariant:
    """The knobs of a policy-gradient loss. Raises InputError, all problems at once, for values out of range."""

    baseline: Baseline = "group_mean"
    """What is subtracted from a reward: the mean of its group, of the others of its group, of the batch, or nothing."""
    scale: Scale = "group"
    """What divides the difference: the standard deviation of its group, of the batch, or nothing."""
    ratio: Ratio = "token"
    """Over what the ratio to the old policy is taken: each token, the geometric mean of the completion's tokens, or the
    product of all of them."""
    surrogate: Surrogate = "clip"
    """`clip`: the lesser of the advantage times the ratio and the clipped ratio (PPO); `truncate`: the log-probability
    weighted by the ratio, which has no gradient and is at most 1 + clip_high (CISPO); `none`: the log-probability
    (REINFORCE), for data of the current policy alone."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    """The ratio is clipped to 1 - clip_low … 1 + clip_high."""
    aggregation: Aggregation = "sequence_mean"
    """The mean over completions of the mean over their tokens; the mean over all tokens of the step; the mean over
    completions of the sum over tokens divided by `max_new_tokens`; the mean over completions of the sum."""
    kl_coef: float = 0.0
    """The weight of the divergence from the reference model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence counts: per token in the loss (its estimator is e^d - d - 1, of d = reference - policy), or
    summed over the completion and subtracted from the reward (d itself)."""
    kl_weighted: bool = True
    """Whether the divergence in the loss is weighted by the ratio, which makes its gradient unbiased (DeepSeek-V3.2,
    arXiv 2512.02556)."""
    correction: Correction = "none"
    """Weights that correct the difference between the engine that sampled and the model that trains: the ratio of
    their probabilities, per token or completion, cut at `correction_limit` (truncate) or set to 0 above it (mask)."""
    correction_limit: float = 3.0
    dynamic_sampling: bool = False
    """Whether groups without spread are replaced by other prompts, as long as there are any."""
    mask_truncated: bool = False
    """Whether completions that were cut at the limit do not count in the loss."""
    overlong_buffer: float = 0.0
    """The share of the longest completion in which the reward falls linearly from its own value by 1."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        problems = []
        for item in fields(self):
            value, options = getattr(self, item.name), get_args(hints[item.name])
            if options and value not in options:
                shown = ", ".join(f'"{option}"' for option in options)
                problems.append(f"{item.name}: {format_value(value)}; must be one of {shown}")
            elif hints[item.name] is bool and not isinstance(value, bool):
                problems.append(f"{item.name}: {format_value(value)}; must be true or false")
            elif hints[item.name] is float and not _is_number(value):
                problems.append(f"{item.name}: {format_value(value)}; must be a number of at least 0")
        if not problems and self.clip_low > 1:
            problems.append(f"clip_low: {self.clip_low}; must be at most 1")
        if not problems and self.overlong_buffer > 1:
            problems.append(f"overlong_buffer: {self.overlong_buffer}; must be at most 1")
        if not problems and self.correction_limit <= 0:
            problems.append(f"correction_limit: {self.correction_limit}; must be above 0")
        if problems:
            raise InputError("This policy-gradient loss cannot be set up:", problems)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and value >= 0


VARIANTS: Mapping[str, PolicyVariant] = {
    "grpo": PolicyVariant(),
    "bnpo": PolicyVariant(aggregation="token_mean"),
    "dapo": PolicyVariant(aggregation="token_mean", clip_high=0.28, dynamic_sampling=True, overlong_buffer=0.2),
    "dr_grpo": PolicyVariant(scale="none", aggregation="constant"),
    "gspo": PolicyVariant(ratio="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    "cispo": PolicyVariant(surrogate="truncate", clip_high=4.0, aggregation="token_mean"),
    "rloo": PolicyVariant(baseline="leave_one_out", scale="none", ratio="sequence", kl_in="reward"),
    "reinforce": PolicyVariant(
        baseline="none", scale="none", surrogate="none", aggregation="sequence_sum", kl_in="reward"
    ),
    "reinforce_baseline": PolicyVariant(
        baseline="batch_mean", scale="none", surrogate="none", aggregation="sequence_sum", kl_in="reward"
    ),
}
"""The knobs that a variant's name sets."""


def variant(name: str, **knobs: Any) -> PolicyVariant:
    """The variant of this name, with single knobs replaced. Raises InputError for unknown names and values."""
    if name not in VARIANTS:
        raise InputError(f"variant: {format_value(name)}; must be one of {', '.join(VARIANTS)}")
    known = [item.name for item in fields(PolicyVariant)]
    if unknown := [key for key in knobs if key not in known]:
        raise InputError(
            "This policy-gradient loss cannot be set up:",
            [f"{key}: not a setting of the loss; these are {', '.join(known)}" for key in unknown],
        )
    return replace(VARIANTS[name], **knobs)
