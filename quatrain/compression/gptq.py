"""GPTQ: rounds the columns of a weight one after the other, and corrects the error of each in those that follow.

Frantar et al. 2022 (arXiv 2210.17323). The scales are those of rounding to the nearest, so files and kernels stay the
same. Columns are visited in the order of their inputs' energy (`act_order` in the authors' code).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.compression.calibration import LayerInputs
from quatrain.compression.integers import IntegerLinear

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean."""
BLOCK = 128
"""Columns whose corrections are applied to the rest of the weight together."""


@torch.no_grad()
def gptq(layer: IntegerLinear, weight: Tensor, inputs: LayerInputs) -> dict[str, Tensor]:
    """The buffers of `layer` for a weight (out, in), given the statistics of its inputs.

    Where rounding to the nearest has the smaller error of the outputs on these inputs, its buffers are returned.
    """
    nearest = layer.quantize_weight(weight)
    scale = layer.column_scales(weight.float())
    codes = gptq_codes(weight.float(), scale, inputs, layer.levels)
    found = layer.pack(codes, layer.scales(weight.float()))
    errors = [inputs.error(layer.unpacked(buffers) - weight.float()) for buffers in (nearest, found)]
    return found if errors[1] <= errors[0] else nearest


def gptq_codes(weight: Tensor, scale: Tensor, inputs: LayerInputs, levels: tuple[int, int]) -> Tensor:
    """Integers (out, in) within `levels` for a weight (out, in) and the scale (out, in) of each of its values."""
    order = inputs.gram.diagonal().argsort(descending=True, stable=True)
    w, scale = weight[:, order].clone(), scale[:, order]
    factor = inputs.permuted(order).inverse_factor(DAMPING)[0]
    codes = torch.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        block, inverse = w[:, start:stop], factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for column in range(stop - start):
            place = start + column
            code = (block[:, column] / scale[:, place]).round_().clamp_(*levels)
            codes[:, place] = code
            errors[:, column] = (block[:, column] - code * scale[:, place]) / inverse[column, column]
            block[:, column + 1 :] -= errors[:, column, None] * inverse[column, column + 1 :]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    back = torch.empty_like(codes)
    back[:, order] = codes
    return back
