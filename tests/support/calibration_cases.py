"""Inputs of a layer whose channels are correlated, as those of trained models are."""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.compression.calibration import LayerInputs


def correlated(count: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)


def inputs_of(x: Tensor) -> LayerInputs:
    inputs = LayerInputs(x.shape[1])
    inputs.add(x)
    return inputs
