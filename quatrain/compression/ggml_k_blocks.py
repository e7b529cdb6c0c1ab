"""ggml's K formats: blocks of 256 weights with a half-precision scale over the quantized scales of 8 or 16 parts.

Q2_K, Q4_K and Q5_K also have minima. The scales of the parts are searched (`ggml_search`); then every weight is rounded
again by the quantized scale of its part. With an importance matrix, llama.cpp weighs and searches otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quatrain.compression.ggml_search import (
    TINY,
    Floats,
    Quanta,
    largest,
    positive,
    quotient,
    rounded,
    symmetric,
    symmetric_by_descent,
    total,
    with_minimum,
)

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
WITH_IMPORTANCE = (-0.9, 0.05, 36)
"""The candidates of a search with an importance matrix."""


def _half(values: Floats) -> tuple[Bytes, Floats]:
    """float32 (N,) as bytes of half precision (N, 2), and what they hold in float32."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    return halves.view(np.uint8).reshape(-1, 2), halves.astype(np.float32)


def _parts(blocks: Floats, count: int) -> Floats:
    """Blocks (N, 256) as parts (256 / count, N * count)."""
    return np.ascontiguousarray(blocks.reshape(len(blocks) * count, -1).T)


def _whole(parts: Quanta, count: int) -> Bytes:
    """The quanta of parts as whole blocks (N, 256)."""
    return np.ascontiguousarray(parts.T).reshape(-1, count * len(parts)).astype(np.uint8)


def _scaled(sums: Floats, parts: int, x: Floats) -> Floats:
    """sqrt(sum + x²) for sums (N,) of blocks and parts x (n, N * parts)."""
    return np.sqrt(np.repeat(sums, parts) + x * x)


def _square_sum(blocks: Floats) -> Floats:
    """The sums of squares of blocks (N, 256), added in order: (N,)."""
    return total(np.ascontiguousarray((blocks * blocks).T))


def _weigh(blocks: Floats, weights: Floats, x: Floats, parts: int, factor: int) -> Floats:
    """The weights of the errors with an importance matrix: importance · sqrt(factor · mean square + x²)."""
    mean = np.float32(factor) * _square_sum(blocks) / np.float32(256)
    return _parts(weights, parts) * _scaled(mean, parts, x)


def _low_crumbs(quanta: Bytes) -> Bytes:
    """2-bit numbers (N, 256) as 64 bytes: of each 128, every byte has one of each 32."""
    four = quanta.reshape(len(quanta), 2, 4, 32)
    packed = four[:, :, 0] | (four[:, :, 1] << 2) | (four[:, :, 2] << 4) | (four[:, :, 3] << 6)
    return packed.astype(np.uint8).reshape(len(quanta), 64)


def _nibbles(quanta: Bytes) -> Bytes:
    """4-bit numbers (N, 256) as 128 bytes: of each 64, the first 32 in the low bits."""
    two = quanta.reshape(len(quanta), 4, 2, 32)
    return (two[:, :, 0] | (two[:, :, 1] << 4)).astype(np.uint8).reshape(len(quanta), 128)


def _by_quantized(x: Floats, scale: Floats, shift: Floats, found: Quanta, low: int, high: int) -> Quanta:
    """The quanta of parts x by their quantized scales; those that were found where the scale is 0."""
    again = rounded(quotient(x + shift, np.broadcast_to(scale, x.shape)), low, high)
    return np.where(scale == 0, found, again)


def _best_of_maxima(values: Floats, top: int) -> tuple[Floats, Quanta]:
    """A scale (N,) for the scales of parts (parts, N) by their maximum, and their quanta."""
    high = np.maximum(values.max(axis=0), np.float32(0))
    inverse = np.where(high > 0, quotient(np.full_like(high, top), high), np.float32(0))
    quanta = np.minimum(np.rint(inverse * values), np.float32(top))
    return np.where(high > 0, high / np.float32(top), np.float32(0)), quanta


def q2_k(blocks: Floats, weights: Floats | None) -> Bytes:
    """2.625 bits: 16 parts, scales and minima of 4 bits."""
    x = _parts(blocks, 16)
    if weights is None:
        scales, minima, quanta = with_minimum(x, 3, np.abs(x), (-0.5, 0.1, 15), absolute=True)
        pick: Callable[[Floats], tuple[Floats, Quanta]] = lambda values: _best_of_maxima(values, 15)  # noqa: E731
    else:
        weighed = _weigh(blocks, weights, x, 16, 1)
        scales, minima, quanta = with_minimum(x, 3, weighed, WITH_IMPORTANCE)
        sums = total(weighed).reshape(-1, 16).T
        pick = lambda values: positive(values, 15, sums)  # noqa: E731
    (d, scale_quanta), (m, minimum_quanta) = (pick(each.reshape(-1, 16).T) for each in (scales, minima))
    d_bytes, d = _half(d)
    m_bytes, m = _half(m)
    own = (d * scale_quanta).T.reshape(-1)
    quanta = _by_quantized(x, own, (m * minimum_quanta).T.reshape(-1), quanta, 0, 3)
    packed = (scale_quanta.astype(np.uint8) | (minimum_quanta.astype(np.uint8) << 4)).T
    return np.concatenate([packed, _low_crumbs(_whole(quanta, 16)), d_bytes, m_bytes], axis=1)


def q3_k(blocks: Floats, weights: Floats | None) -> Bytes:
    """3.4375 bits: 16 parts, signed scales of 6 bits."""
    x = _parts(blocks, 16)
    if weights is None:
        scales, quanta = symmetric_by_descent(x, 4)
        by_part = scales.reshape(-1, 16).T
        peak = largest(by_part)
        inverse = quotient(np.full_like(peak, -32), peak)
        numbers = rounded(inverse * by_part, -32, 31)
        d = quotient(np.ones_like(peak), inverse)
    else:
        weighed = _weigh(blocks, weights, x, 16, 2)
        scales, quanta = symmetric(x, 4, weighed)
        sums = np.ascontiguousarray(total(weighed).reshape(-1, 16).T)
        d, numbers = symmetric(np.ascontiguousarray(scales.reshape(-1, 16).T), 32, sums)
    d_bytes, d = _half(d)
    if weights is None:
        numbers = np.where(peak == 0, np.float32(-32), numbers)
    quanta = _by_quantized(x, (d * numbers).T.reshape(-1), np.zeros_like(x), quanta, -4, 3) + np.float32(4)
    whole = _whole(quanta, 16)
    high = np.packbits((whole > 3).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    low = _low_crumbs(np.where(whole > 3, whole - 4, whole).astype(np.uint8))
    six = (numbers + np.float32(32)).astype(np.uint8).T
    packed = (six[:, :8] & 15) | ((six[:, 8:] & 15) << 4)
    top = (six >> 4).reshape(-1, 4, 4)
    upper = top[:, 0] | (top[:, 1] << 2) | (top[:, 2] << 4) | (top[:, 3] << 6)
    return np.concatenate([high, low, packed.astype(np.uint8), upper.astype(np.uint8), d_bytes], axis=1)


def _six_bit_pairs(scales: Bytes, minima: Bytes) -> Bytes:
    """8 scales and 8 minima of 6 bits (N, 8) as 12 bytes."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    third = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return np.concatenate([first, second, third], axis=1).astype(np.uint8)


def _eight_parts(
    blocks: Floats, weights: Floats | None, top: int, search: tuple[float, float, int]
) -> tuple[Bytes, Bytes]:
    """What Q4_K and Q5_K share: the bytes of scales and minima (N, 16), and the quanta (N, 256)."""
    x = _parts(blocks, 8)
    if weights is None:
        weighed = np.sqrt(total(x * x) / np.float32(32)) + np.abs(x)
        scales, minima, quanta = with_minimum(x, top, weighed, search)
        (d, scale_quanta), (m, minimum_quanta) = (
            _best_of_maxima(each.reshape(-1, 8).T, 63) for each in (scales, minima)
        )
    else:
        weighed = _weigh(blocks, weights, x, 8, 2)
        scales, minima, quanta = with_minimum(x, top, weighed, WITH_IMPORTANCE)
        sums = np.ascontiguousarray(total(weighed).reshape(-1, 8).T)
        (d, scale_quanta), (m, minimum_quanta) = (
            positive(np.ascontiguousarray(each.reshape(-1, 8).T), 63, sums) for each in (scales, minima)
        )
    d_bytes, d = _half(d)
    m_bytes, m = _half(m)
    quanta = _by_quantized(x, (d * scale_quanta).T.reshape(-1), (m * minimum_quanta).T.reshape(-1), quanta, 0, top)
    pairs = _six_bit_pairs(scale_quanta.T.astype(np.uint8), minimum_quanta.T.astype(np.uint8))
    return np.concatenate([d_bytes, m_bytes, pairs], axis=1), _whole(quanta, 8)


def q4_k(blocks: Floats, weights: Floats | None) -> Bytes:
    """4.5 bits: 8 parts, scales and minima of 6 bits."""
    head, quanta = _eight_parts(blocks, weights, 15, (-1.0, 0.1, 20))
    return np.concatenate([head, _nibbles(quanta)], axis=1)


def q5_k(blocks: Floats, weights: Floats | None) -> Bytes:
    """5.5 bits: 8 parts, scales and minima of 6 bits; the fifth bits of the weights apart."""
    head, quanta = _eight_parts(blocks, weights, 31, (-0.5, 0.1, 15))
    high = np.packbits((quanta >> 4).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    return np.concatenate([head, high, _nibbles((quanta & 15).astype(np.uint8))], axis=1)


def q6_k(blocks: Floats, weights: Floats | None) -> Bytes:
    """6.5625 bits: 16 parts, signed scales of 8 bits."""
    x = _parts(blocks, 16)
    scales, quanta = symmetric(x, 32, x * x if weights is None else _parts(weights, 16))
    by_part = scales.reshape(-1, 16).T
    peak = largest(by_part)
    empty = np.abs(peak) < TINY
    inverse = np.float32(-128) / np.where(empty, np.float32(1), peak)
    numbers = np.minimum(np.rint(inverse * by_part), np.float32(127))
    numbers = np.where(empty, np.float32(0), numbers)
    d_bytes, d = _half(np.where(empty, np.float32(0), np.float32(1) / inverse))
    quanta = _by_quantized(x, (d * numbers).T.reshape(-1), np.zeros_like(x), quanta, -32, 31) + np.float32(32)
    whole = np.where(empty[:, None], 0, _whole(quanta, 16)).astype(np.uint8)
    four = whole.reshape(-1, 2, 4, 32)
    low = four & 15
    nibbles = np.stack([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], axis=2)
    top = four >> 4
    crumbs = top[:, :, 0] | (top[:, :, 1] << 2) | (top[:, :, 2] << 4) | (top[:, :, 3] << 6)
    packed = (nibbles.astype(np.uint8).reshape(-1, 128), crumbs.astype(np.uint8).reshape(-1, 64))
    return np.concatenate([*packed, numbers.T.astype(np.int8).view(np.uint8), d_bytes], axis=1)


K_ENCODERS = {"Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}
"""The encoders by the name of their format."""
