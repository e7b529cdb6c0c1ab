"""The losses of preference pairs: DPO and its relatives, one entry of `LOSSES` each.

| loss | source | reference |
|---|---|---|
| sigmoid | DPO, Rafailov et al. 2023 (arXiv 2305.18290) | yes |
| cdpo | conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences" | yes |
| robust | Chowdhury et al. 2024 (arXiv 2403.00409) | yes |
| ipo | Azar et al. 2023 (arXiv 2310.12036) | yes |
| hinge | SLiC, Zhao et al. 2023 (arXiv 2305.10425), as in Liu et al. 2023 (arXiv 2309.06657) | yes |
| orpo | Hong et al. 2024 (arXiv 2403.07691) | no |
| simpo | Meng et al. 2024 (arXiv 2405.14734) | no |

Unpaired answers have a loss of their own, `quatrain.alignment.kto`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean

LARGEST_MEAN_LOGPROB = -1e-6
"""ORPO's log odds grow without bound as an answer's probability reaches 1; mean log-probabilities stop here."""


@dataclass(frozen=True)
class Answers:
    """B answers: their log-probabilities under the policy and the reference, and their lengths in tokens, each (B).

    Log-probabilities are summed over the answer's tokens, in nats. `reference` is 0 for losses without a reference.
    """

    logprob: Tensor
    reference: Tensor
    length: Tensor

    @property
    def gain(self) -> Tensor:
        """The log-ratio of policy and reference (B)."""
        return self.logprob - self.reference

    @property
    def mean_logprob(self) -> Tensor:
        """The policy's log-probability per token (B)."""
        return self.logprob / self.length


@dataclass(frozen=True)
class LossSettings:
    """The settings of a pair loss; each loss reads `beta` and those that its entry names."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5


Compute = Callable[[Answers, Answers, LossSettings], Tensor]


@dataclass(frozen=True)
class PairLoss:
    """A pair loss: `compute(chosen, rejected, settings)` gives the losses (B).

    `reference`: it compares with a reference model. `beta` is the usual value. `reads` names the settings that it reads
    beside `beta`. `per_token`: rewards are per token, not summed over the answer. `likelihood`: the chosen answers'
    loss per token is part of it.
    """

    compute: Compute
    reference: bool = True
    beta: float = 0.1
    reads: tuple[str, ...] = ()
    per_token: bool = False
    likelihood: bool = False

    def first(self, settings: LossSettings) -> float | None:
        """The loss of a pair whose policy is the reference; None for a loss without a reference."""
        if not self.reference:
            return None
        zero, one = torch.zeros(1), torch.ones(1)
        return float(self.compute(Answers(zero, zero, one), Answers(zero, zero, one), settings))


def _margin(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    return settings.beta * (chosen.gain - rejected.gain)


def _sigmoid(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    return -F.logsigmoid(_margin(chosen, rejected, settings))


def _conservative(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """The expected loss if a share `label_smoothing` of the pairs is swapped."""
    margin, swapped = _margin(chosen, rejected, settings), settings.label_smoothing
    return -(1 - swapped) * F.logsigmoid(margin) - swapped * F.logsigmoid(-margin)


def _robust(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """An unbiased estimate of the loss without swapped pairs, from pairs of which a share is swapped."""
    margin, swapped = _margin(chosen, rejected, settings), settings.label_smoothing
    return (-(1 - swapped) * F.logsigmoid(margin) + swapped * F.logsigmoid(-margin)) / (1 - 2 * swapped)


def _ipo(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """The squared distance of the gap from 1 / (2 beta). Gains are per token, as the authors' results have them."""
    gap = chosen.gain / chosen.length - rejected.gain / rejected.length
    return (gap - 1 / (2 * settings.beta)).square()


def _hinge(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    return F.relu(1 - _margin(chosen, rejected, settings))


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logprob); the branch at ln 2 avoids cancellation."""
    logprob = logprob.clamp(max=LARGEST_MEAN_LOGPROB)
    small = logprob < -math.log(2)
    others = torch.where(
        small,
        torch.log1p(-torch.where(small, logprob, -1.0).exp()),
        torch.log(-torch.expm1(torch.where(small, -0.5, logprob))),
    )
    return logprob - others


def _orpo(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    ratio = _log_odds(chosen.mean_logprob) - _log_odds(rejected.mean_logprob)
    return -settings.beta * F.logsigmoid(ratio)


def _simpo(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    gap = settings.beta * (chosen.mean_logprob - rejected.mean_logprob)
    return -F.logsigmoid(gap - settings.simpo_gamma)


LOSSES: dict[str, PairLoss] = {
    "sigmoid": PairLoss(_sigmoid),
    "cdpo": PairLoss(_conservative, reads=("label_smoothing",)),
    "robust": PairLoss(_robust, reads=("label_smoothing",)),
    "ipo": PairLoss(_ipo, per_token=True),
    "hinge": PairLoss(_hinge),
    "orpo": PairLoss(_orpo, reference=False, per_token=True, likelihood=True),
    "simpo": PairLoss(_simpo, reference=False, beta=2.0, reads=("simpo_gamma",), per_token=True),
}
"""Every pair loss by name."""

UNPAIRED = ("kto",)
"""The losses of unpaired answers."""

NAMES = (*LOSSES, *UNPAIRED)
"""Every name of the option `loss`."""


def pair_loss(name: str) -> PairLoss:
    """The pair loss of this name. Raises InputError for any other name."""
    if name in LOSSES:
        return LOSSES[name]
    if name in UNPAIRED:
        raise InputError(f"loss: {name!r} learns from single rated answers, not from pairs; use the objective KTO.")
    raise InputError(f"loss: {name!r} is unknown; must be one of {', '.join(NAMES)}{did_you_mean(name, list(NAMES))}")


def settings_problems(name: str, beta: float, given: dict[str, Any], sft_weight: float) -> list[str]:
    """The problems of a pair loss's settings; `given` has those that differ from their default."""
    loss, problems = pair_loss(name), []
    if not beta > 0 or not math.isfinite(beta):
        problems.append(f"beta: {beta}; must be above 0")
    for key, value in given.items():
        if key not in loss.reads:
            readers = " and ".join(repr(each) for each, other in LOSSES.items() if key in other.reads)
            problems.append(f"{key}: {value}; loss {name!r} does not read it, only {readers}")
    smoothing = given.get("label_smoothing", 0.0)
    if "label_smoothing" in loss.reads and not 0 < smoothing < 0.5:
        problems.append(f"label_smoothing: {smoothing}; loss {name!r} needs a share above 0 and below 0.5")
    if not given.get("simpo_gamma", 0.0) >= 0:
        problems.append(f"simpo_gamma: {given['simpo_gamma']}; must be at least 0")
    if not sft_weight >= 0:
        problems.append(f"sft_weight: {sft_weight}; must be at least 0")
    elif sft_weight and loss.likelihood:
        problems.append(f"sft_weight: {sft_weight}; loss {name!r} already has the chosen answers' loss: leave it out")
    return problems
