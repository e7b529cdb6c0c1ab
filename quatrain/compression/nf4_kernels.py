"""bitsandbytes' NF4 dequantization kernel, used if the library is installed, agrees bit for bit and is faster."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from quatrain.compression.layer import is_faster

Dequantize = Callable[[Tensor, Tensor, Sequence[int], torch.dtype], Tensor]
"""Weights of a shape and dtype, from packed values and scales."""

PROBE = 1024
"""Inputs and outputs of the weight that the implementations are measured on."""


def supports(shape: Sequence[int], block: int) -> bool:
    """Whether the kernel takes a weight of this shape: rows must be whole blocks, else it may read wrong scales."""
    return shape[-1] % block == 0


def dequantize(packed: Tensor, scales: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Weights of a shape, from bytes of two values each and the scale of each block, rounded to `dtype`."""
    weights: Tensor = torch.ops.bitsandbytes.dequantize_4bit(packed, scales, block, "nf4", list(shape), dtype)
    return weights


@cache
def kernel_is_faster(device: torch.device, dtype: torch.dtype, block: int, reference: Dequantize) -> bool:
    """Whether the kernel is available, equals the reference bit for bit, and is faster, measured here."""
    if device.type not in ("cpu", "cuda") or not _imported():
        return False
    draw, count = torch.Generator().manual_seed(0), PROBE * PROBE
    packed = torch.randint(256, (count // 2, 1), dtype=torch.uint8, generator=draw).to(device)
    scales = torch.rand(count // block, generator=draw).to(device)

    def plain() -> Tensor:
        return reference(packed, scales, (PROBE, PROBE), dtype)

    def kernel() -> Tensor:
        return dequantize(packed, scales, block, (PROBE, PROBE), dtype)

    try:
        same = torch.equal(plain(), kernel())
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return same and is_faster(kernel, plain, dtype)


@cache
def _imported() -> bool:
    """Whether bitsandbytes can be imported. Its warnings are silenced: they concern products that are not used here."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError):
        return False
    finally:
        logger.setLevel(before)
    return True
