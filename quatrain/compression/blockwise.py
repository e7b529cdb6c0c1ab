"""Blockwise quantization: each value becomes an index into a short code table, with an absmax scale per block.

The 8-bit table is the dynamic data type of Dettmers 2015 (arXiv 1511.04561): an exponent of varying length, the
remaining bits for the fraction. 8-bit optimizers (Dettmers et al. 2021, arXiv 2110.02861) store their moments in it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@cache
def dynamic_code(signed: bool = True) -> Tensor:
    """The 256 values of the dynamic 8-bit data type (256,) float32, ascending; the largest is 1.

    The table holds 0, 1 and seven powers of ten; each power of ten has twice as many steps between 0.1 and 1 as the one
    below. The unsigned table has twice as many steps per power.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, (1 << exponent + (not signed)) + 1)
        steps = 10 ** (exponent - 6) * ((borders[:-1] + borders[1:]) / 2)
        values += steps.tolist() + ((-steps).tolist() if signed else [])
    return torch.tensor(sorted(values))


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """Indices (uint8) of the nearest values of `code`; a tie takes the lower one."""
    borders = (code[:-1] + code[1:]) / 2
    return torch.bucketize(values, borders.to(values.device), out_int32=True).to(torch.uint8)


def quantize(values: Tensor, size: int, code: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes `values` (N,): indices into `code` (N,) uint8 and absmax scales (ceil(N / size),) float32."""
    count = len(values)
    blocks = F.pad(values, (0, -count % size)).view(-1, size)
    absmax = blocks.abs().amax(1)
    safe = absmax.clamp(min=1e-38)
    scaled = (blocks * (1.0 / safe)[:, None]).clamp(-1, 1)
    if count % size:  # bitsandbytes divides the last, partial block
        scaled[-1] = (blocks[-1] / safe[-1]).clamp(-1, 1)
        absmax[-1] = safe[-1]
    return nearest(scaled.view(-1)[:count], code), absmax


def dequantize(indices: Tensor, scales: Tensor, size: int, code: Tensor) -> Tensor:
    """The values (N,) float32 of `indices` (N,) into `code`, with one scale per `size` of them."""
    values = code.to(indices.device).index_select(0, indices.int())
    if len(indices) % size:
        return values.mul_(scales.repeat_interleave(size)[: len(indices)])
    return values.view(-1, size).mul_(scales[:, None]).view(-1)
