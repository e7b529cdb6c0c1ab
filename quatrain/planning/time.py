"""How long training takes: from operations and the machine's measured rate, or from steps that were measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quatrain.models.config import ModelConfig
from quatrain.planning.counts import flops_per_token
from quatrain.planning.machine import matmul_flops_per_second

SHARE = 0.5
"""Of the rate of one large matrix product, what a whole training step reaches, about: for a first guess."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of training: for each token of a micro-batch, and for what is done once a step (the optimizer).

    `forward` is that for each token of a validation. `measured` says whether steps were run, or operations counted.
    """

    per_token: float
    per_step: float
    forward: float
    measured: bool

    def step(self, tokens: float) -> float:
        """Seconds of a step of so many tokens, all its micro-batches together."""
        return self.per_step + self.per_token * tokens


def by_counting(config: ModelConfig, length: int, precision: str = "float32", *, frozen: bool = False) -> StepTime:
    """A first guess: operations over SHARE of the measured rate of matrix products. Good to a factor of two."""
    rate = SHARE * matmul_flops_per_second(getattr(torch, precision))
    forward = flops_per_token(config, length, training=False) / rate
    return StepTime(flops_per_token(config, length, frozen=frozen) / rate, 0.0, forward, measured=False)
