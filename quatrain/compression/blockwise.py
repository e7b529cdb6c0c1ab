"""Numbers held as the places of values in a short table, with a scale, the largest magnitude, for each block.

The table of eight bits is the dynamic one of Dettmers 2015 (arXiv 1511.04561): an exponent of varying length, and what
is left of the bits for the fraction. Dettmers et al. 2021 (arXiv 2110.02861) hold an optimizer's moments in it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@cache
def dynamic_code(signed: bool = True) -> Tensor:
    """The 256 values of eight-bit numbers with an exponent of varying length, ascending (256,) float32, 1 the largest.

    For each of seven powers of ten, twice as many steps between a tenth and one as for the power before; and 0 and 1.
    Without a sign there are twice as many of each.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, (1 << exponent + (not signed)) + 1)
        steps = 10 ** (exponent - 6) * ((borders[:-1] + borders[1:]) / 2)
        values += steps.tolist() + ((-steps).tolist() if signed else [])
    return torch.tensor(sorted(values))


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """The numbers of the nearest code values; half way between two the lower one."""
    borders = (code[:-1] + code[1:]) / 2
    return torch.bucketize(values, borders.to(values.device), out_int32=True).to(torch.uint8)


def quantize(values: Tensor, size: int, code: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of code values (N,) uint8, and the largest magnitude of each block (ceil(N / size),) float32."""
    count = len(values)
    blocks = F.pad(values, (0, -count % size)).view(-1, size)
    largest = blocks.abs().amax(1)
    safe = largest.clamp(min=1e-38)
    scaled = (blocks * (1.0 / safe)[:, None]).clamp(-1, 1)
    if count % size:  # the last block, which is not whole, is divided
        scaled[-1] = (blocks[-1] / safe[-1]).clamp(-1, 1)
        largest[-1] = safe[-1]
    return nearest(scaled.view(-1)[:count], code), largest


def dequantize(numbers: Tensor, scales: Tensor, size: int, code: Tensor) -> Tensor:
    """The values (N,) float32 that numbers (N,) of a code stand for, a scale for each `size` of them."""
    values = code.to(numbers.device).index_select(0, numbers.int())
    if len(numbers) % size:
        return values.mul_(scales.repeat_interleave(size)[: len(numbers)])
    return values.view(-1, size).mul_(scales[:, None]).view(-1)
