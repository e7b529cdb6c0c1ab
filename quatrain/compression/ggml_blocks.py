"""Encodes weights in ggml's block formats, bit for bit as llama.cpp's own quantizer does.

A block of 32 weights (256 in the K formats) shares one scale, some also a minimum. The formats are those of ggml
(https://github.com/ggml-org/ggml, `ggml-common.h`). Decoding is the work of the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quatrain.compression.ggml_k_blocks import K_ENCODERS, WITH_IMPORTANCE
from quatrain.compression.ggml_search import symmetric, total, with_minimum
from quatrain.core.errors import InputError
from quatrain.core.gguf_file import FORMATS
from quatrain.core.wording import format_value

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Encoder = Callable[[Floats, Floats | None], Bytes]
"""Blocks (N, weights) and their importance (N, weights) or None, to bytes (N, bytes per block)."""

ROWS = 1 << 22
"""Weights that are encoded at a time, so that a large tensor needs little memory beside itself."""


def _halves(values: Floats) -> Bytes:
    """float32 (N,) as half precision, to the nearest, as bytes (N, 2)."""
    with np.errstate(over="ignore"):
        return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _inverse(values: Floats) -> Floats:
    """1 / x, and 0 for 0."""
    with np.errstate(divide="ignore"):
        return np.where(values == 0, np.float32(0), np.float32(1) / values).astype(np.float32)


def _f32(blocks: Floats, weights: Floats | None) -> Bytes:
    return np.ascontiguousarray(blocks, dtype="<f4").view(np.uint8).reshape(len(blocks), -1)


def _f16(blocks: Floats, weights: Floats | None) -> Bytes:
    with np.errstate(over="ignore"):
        return blocks.astype("<f2").view(np.uint8).reshape(len(blocks), -1)


def _bf16(blocks: Floats, weights: Floats | None) -> Bytes:
    """The upper half of float32, rounded to the nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(blocks, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return np.where(np.isnan(blocks), quiet, rounded).astype("<u2").view(np.uint8).reshape(len(blocks), -1)


def _q8_0(blocks: Floats, weights: Floats | None) -> Bytes:
    """8 bits, symmetric: the scale is the largest magnitude / 127; halves are rounded away from zero."""
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    scaled = blocks * _inverse(scale)[:, None]
    quanta = (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))).astype(np.int8)
    return np.concatenate([_halves(scale), quanta.view(np.uint8)], axis=1)


def _signed_largest(blocks: Floats) -> Floats:
    """The weight of the largest magnitude of each block, with its sign; the first of several."""
    place = np.abs(blocks).argmax(axis=1)
    return blocks[np.arange(len(blocks)), place]


def _pairs(quanta: Bytes) -> Bytes:
    """4-bit numbers (N, 32): the first half in the low bits of 16 bytes, the second in the high bits."""
    return (quanta[:, :16] | (quanta[:, 16:] << 4)).astype(np.uint8)


def _fifth_bits(quanta: Bytes) -> Bytes:
    """The fifth bits of 5-bit numbers (N, 32) as 4 bytes."""
    return np.packbits((quanta >> 4) & 1, axis=1, bitorder="little")


def _symmetric(blocks: Floats, bits: int) -> tuple[Floats, Bytes]:
    """Scale and quanta of a format whose largest weight has the smallest quantum: d = max / -2^(bits - 1)."""
    middle = 2 ** (bits - 1)
    scale = _signed_largest(blocks) / np.float32(-middle)
    shifted = blocks * _inverse(scale)[:, None] + np.float32(middle + 0.5)
    return scale, np.minimum(shifted.astype(np.int8), 2 * middle - 1).astype(np.uint8)


def _offset(blocks: Floats, bits: int) -> tuple[Floats, Floats, Bytes]:
    """Scale, minimum and quanta of a format with a minimum: weight = scale * quantum + minimum."""
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    scale = (high - low) / np.float32(2**bits - 1)
    shifted = (blocks - low[:, None]) * _inverse(scale)[:, None] + np.float32(0.5)
    return scale, low, np.minimum(shifted.astype(np.int8), 2**bits - 1).astype(np.uint8)


def _searched(blocks: Floats, weights: Floats, bits: int) -> tuple[Floats, Bytes]:
    """`_symmetric` with the scale that fits the weighted errors best."""
    middle = 2 ** (bits - 1)
    scale, quanta = symmetric(np.ascontiguousarray(blocks.T), middle, np.ascontiguousarray(weights.T))
    return scale, (quanta.T + middle).astype(np.uint8)


def _searched_offset(blocks: Floats, weights: Floats, bits: int) -> tuple[Floats, Floats, Bytes]:
    """`_offset` with the scale and the minimum that fit the weighted errors best."""
    scale, low, quanta = with_minimum(
        np.ascontiguousarray(blocks.T), 2**bits - 1, np.ascontiguousarray(weights.T), WITH_IMPORTANCE
    )
    return scale, -low, quanta.T.astype(np.uint8)


def _q4_0(blocks: Floats, weights: Floats | None) -> Bytes:
    scale, quanta = _symmetric(blocks, 4) if weights is None else _searched(blocks, weights, 4)
    return np.concatenate([_halves(scale), _pairs(quanta)], axis=1)


def _q4_1(blocks: Floats, weights: Floats | None) -> Bytes:
    scale, low, quanta = _offset(blocks, 4) if weights is None else _searched_offset(blocks, weights, 4)
    return np.concatenate([_halves(scale), _halves(low), _pairs(quanta)], axis=1)


def _q5_0(blocks: Floats, weights: Floats | None) -> Bytes:
    scale, quanta = _symmetric(blocks, 5) if weights is None else _searched(blocks, weights, 5)
    return np.concatenate([_halves(scale), _fifth_bits(quanta), _pairs((quanta & 15).astype(np.uint8))], axis=1)


def _q5_1(blocks: Floats, weights: Floats | None) -> Bytes:
    scale, low, quanta = _offset(blocks, 5) if weights is None else _searched_offset(blocks, weights, 5)
    return np.concatenate(
        [_halves(scale), _halves(low), _fifth_bits(quanta), _pairs((quanta & 15).astype(np.uint8))], axis=1
    )


MXFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def _mxfp4(blocks: Floats, weights: Floats | None) -> Bytes:
    """4-bit floats that share a power of two, by which the largest lies in [4, 8); weights stored so are kept."""
    largest = np.abs(blocks).max(axis=1)
    exponents = np.where(largest > 0, np.frexp(largest)[1] - 3 + 127, 0).clip(0, 255).astype(np.uint8)
    scaled = np.ldexp(blocks, 127 - exponents[:, None].astype(np.int32))
    codes = np.abs(scaled[:, :, None] - MXFP4_VALUES).argmin(axis=2).astype(np.uint8)
    return np.concatenate([exponents[:, None], codes[:, :16] | codes[:, 16:] << 4], axis=1)


ENCODERS: dict[str, Encoder] = {
    "F32": _f32, "F16": _f16, "BF16": _bf16, "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0,
    "Q5_1": _q5_1, "MXFP4": _mxfp4, **K_ENCODERS,
}  # fmt: skip
"""The encoders by the name of their format."""


WEIGHED_BY_ROW = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""The formats in which llama.cpp multiplies the importance by sqrt(mean square of the row + x²)."""


def _weights(rows: Floats, importance: Floats, name: str) -> Floats:
    """The weights of the errors of rows (R, W) from the importance of their columns (W,)."""
    weights = np.broadcast_to(importance.astype(np.float32), rows.shape)
    if name not in WEIGHED_BY_ROW:
        return weights
    mean = total(np.ascontiguousarray((rows * rows).T)) / np.float32(rows.shape[1])
    return weights * np.sqrt(mean[:, None] + rows * rows)


def encode(tensor: Floats, name: str, importance: Floats | None = None) -> Bytes:
    """A float32 array in a format: uint8, flat. Rows (the last axis) must be whole blocks.

    `importance` (the last axis) weighs the squared errors of each column, as llama.cpp's importance matrix does. Raises
    InputError for an unknown format, and for rows that the blocks do not divide.
    """
    if name not in ENCODERS:
        raise InputError(f"format {format_value(name)}; must be one of {', '.join(ENCODERS)}")
    size, width = FORMATS[name].weights, tensor.shape[-1]
    if width % size:
        raise InputError(f"a row of {width} weights; {name} has blocks of {size}, which do not divide it")
    rows = np.ascontiguousarray(tensor, dtype=np.float32).reshape(-1, width)
    step = max(1, ROWS // width)
    parts = []
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        weights = None if importance is None else _weights(part, importance, name).reshape(-1, size)
        parts.append(ENCODERS[name](part.reshape(-1, size), weights).reshape(-1))
    return np.concatenate(parts)
