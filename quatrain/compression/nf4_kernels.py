"""bitsandbytes' kernel for working NF4 weights out, where that library is installed and is the faster way."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from quatrain.compression.layer import is_faster

Plainly = Callable[[Tensor, Tensor, Sequence[int], torch.dtype], Tensor]
"""Weights of a shape and dtype, out of their numbers and scales, by PyTorch alone."""

PROBE = 1024
"""Inputs and outputs of the weight that both ways are tried on."""


def takes(shape: Sequence[int], block: int) -> bool:
    """Whether the kernel takes a weight of this shape: of other rows than of whole blocks it may read other scales."""
    return shape[-1] % block == 0


def worked_out(packed: Tensor, scales: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weights of this shape of bytes that stand for two each, times the scales of blocks, rounded to `dtype`."""
    found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(packed, scales, block, "nf4", list(shape), dtype)
    return found


@cache
def kernel_is_faster(device: torch.device, dtype: torch.dtype, block: int, plainly: Plainly) -> bool:
    """Whether the kernel is here, gives the same bits as the plain way, and is faster, measured here."""
    if device.type not in ("cpu", "cuda") or not _imported():
        return False
    draw, count = torch.Generator().manual_seed(0), PROBE * PROBE
    packed = torch.randint(256, (count // 2, 1), dtype=torch.uint8, generator=draw).to(device)
    scales = torch.rand(count // block, generator=draw).to(device)

    def plain() -> Tensor:
        return plainly(packed, scales, (PROBE, PROBE), dtype)

    def other() -> Tensor:
        return worked_out(packed, scales, block, (PROBE, PROBE), dtype)

    try:
        same = torch.equal(plain(), other())
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return same and is_faster(other, plain, dtype)


@cache
def _imported() -> bool:
    """Whether bitsandbytes can be imported; what it warns of concerns products that are not used here."""
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
