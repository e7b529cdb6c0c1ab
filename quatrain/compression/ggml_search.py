"""Searches for the scales of ggml's blocks: least squares over candidates, as llama.cpp's quantizer searches.

All arrays are (n, N): n weights of each of N blocks, in float32. Sums run over the weights in order, in float32:
another order changes the last bit and with it, now and then, the choice of a scale. `weights` are those of the squared
errors, which each function minimizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Quanta = NDArray[np.float32]
"""Whole numbers as float32, which all products need."""

TINY = np.float32(1e-15)
"""A block whose largest magnitude is below it is all zeros."""
ONE = np.float32(1)


def total(values: Floats) -> Floats:
    """The sums over the weights of each block, added in order: (N,)."""
    result: Floats = np.add.reduce(values, axis=0)
    return result


def times(factor: float, number: int, plus: float = 0.0) -> np.float32:
    """factor · number + plus, each step rounded to float32."""
    return np.float32(np.float32(np.float32(factor) * np.float32(number)) + np.float32(plus))


def quotient(values: Floats, by: Floats) -> Floats:
    """Quotients, 0 where the divisor is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(by == 0, np.float32(0), values / by).astype(np.float32)


def rounded(values: Floats, low: int, high: int) -> Quanta:
    """The nearest whole numbers, ties to even, within limits."""
    result: Quanta = np.clip(np.rint(values), np.float32(low), np.float32(high))
    return result


def largest(values: Floats) -> Floats:
    """The weight of the largest magnitude of each block, with its sign; the first of several."""
    place = np.abs(values).argmax(axis=0)
    return np.take_along_axis(values, place[None], axis=0)[0]


def symmetric(x: Floats, steps: int, weights: Floats) -> tuple[Floats, Quanta]:
    """Scales (N,) and quanta in [-steps, steps - 1] that minimize the weighted squared error of 19 candidates.

    A candidate gives the largest weight the quantum -steps - 0.1 i; its scale is the least-squares one.
    """
    peak = largest(x)
    empty = np.abs(peak) < TINY
    safe = np.where(empty, ONE, peak)
    wx = weights * x

    def attempt(offset: np.float32) -> tuple[Quanta, Floats, Floats]:
        inverse = (-(np.float32(steps) + offset) / safe).astype(np.float32)
        quanta = rounded(inverse * x, -steps, steps - 1)
        return quanta, total(wx * quanta), total(weights * quanta * quanta)

    quanta, cross, square = attempt(np.float32(0))
    scale = quotient(cross, square)
    best = scale * cross
    for number in (*range(-9, 0), *range(1, 10)):
        tried, cross, square = attempt(times(0.1, number))
        better = (square > 0) & (cross * cross > best * square)
        quanta = np.where(better, tried, quanta)
        scale = np.where(better, quotient(cross, square), scale)
        best = np.where(better, scale * cross, best)
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-steps), quanta)


def descended(
    x: Floats, weights: Floats, quanta: Quanta, low: int, high: int, *, needs_both: bool
) -> tuple[Floats, Quanta]:
    """Scales and quanta after up to five rounds of coordinate descent: each weight takes the quantum that fits best.

    `needs_both` requires a positive rest of both sums before a weight may change.
    """
    quanta = quanta.copy()
    wx = weights * x
    cross, square = total(wx * quanta), total(weights * quanta * quanta)
    for _ in range(5):
        changed = False
        for each in range(len(x)):
            old = quanta[each]
            rest = cross - wx[each] * old
            rest_square = square - weights[each] * old * old
            allowed = (rest > 0) & (rest_square > 0) if needs_both else rest > 0
            new = rounded(quotient(x[each] * rest_square, rest), low, high)
            with_new = rest + wx[each] * new
            square_new = rest_square + weights[each] * new * new
            with np.errstate(over="ignore", invalid="ignore"):
                better = with_new * with_new * square > cross * cross * square_new
            take = allowed & (new != old) & (square_new > 0) & better
            if not take.any():
                continue
            changed = True
            quanta[each] = np.where(take, new, old)
            cross, square = np.where(take, with_new, cross), np.where(take, square_new, square)
        if not changed:
            break
    return np.where(square > 0, quotient(cross, square), np.float32(0)), quanta


def symmetric_by_descent(x: Floats, steps: int) -> tuple[Floats, Quanta]:
    """Scales and quanta in [-steps, steps - 1], weights x²: coordinate descent from the plain rounding (Q3_K)."""
    peak = largest(x)
    empty = np.abs(peak) < TINY
    inverse = (np.float32(-steps) / np.where(empty, ONE, peak)).astype(np.float32)
    start = rounded(inverse * x, -steps, steps - 1)
    scale, quanta = descended(x, x * x, start, -steps, steps - 1, needs_both=False)
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-steps), quanta)


def with_minimum(
    x: Floats, top: int, weights: Floats, search: tuple[float, float, int], *, absolute: bool = False
) -> tuple[Floats, Floats, Quanta]:
    """Scales, minima (as positive numbers to subtract) and quanta in [0, top] of blocks with a minimum.

    `search` is (first offset, step, last number) of the candidates for the number of steps. The error is the weighted
    square, or the weighted magnitude if `absolute`. A minimum above zero becomes zero.
    """
    first, step, last = np.float32(search[0]), np.float32(search[1]), search[2]
    low = np.minimum(x.min(axis=0), np.float32(0))
    high = x.max(axis=0)
    flat = high <= low
    sum_w, sum_x = total(weights), total(weights * x)

    def error(scale: Floats, minimum: Floats, quanta: Quanta) -> Floats:
        difference = scale * quanta + minimum - x
        return total(weights * (np.abs(difference) if absolute else difference * difference))

    def attempt(steps: np.float32, minimum: Floats) -> tuple[Floats, Quanta]:
        inverse = (steps / np.where(flat, ONE, high - minimum)).astype(np.float32)
        return inverse, rounded(inverse * (x - minimum), 0, top)

    inverse, quanta = attempt(np.float32(top), low)
    scale, minimum = ONE / inverse, low
    best = error(scale, minimum, quanta)
    for number in range(last + 1):
        _, tried = attempt(first + step * np.float32(number) + np.float32(top), minimum)
        weighted = weights * tried
        sum_l, sum_l2, sum_xl = total(weighted), total(weighted * tried), total(weighted * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = quotient(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_minimum = quotient(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        above = new_minimum > 0
        new_scale = np.where(above, quotient(sum_xl, sum_l2), new_scale)
        new_minimum = np.where(above, np.float32(0), new_minimum)
        found = error(new_scale, new_minimum, tried)
        better = (determinant > 0) & (found < best)
        quanta = np.where(better, tried, quanta)
        best = np.where(better, found, best)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_minimum, minimum)
    zero = np.float32(0)
    return np.where(flat, zero, scale), -np.where(flat, low, minimum), np.where(flat, zero, quanta)


def positive(x: Floats, top: int, weights: Floats) -> tuple[Floats, Quanta]:
    """Scales and quanta in [0, top] of numbers that are not negative: eight candidates, then coordinate descent."""
    high = np.maximum(x.max(axis=0), np.float32(0))
    empty = high < TINY
    safe = np.where(empty, ONE, high)
    inverse = (np.float32(top) / safe).astype(np.float32)

    def error(scale: Floats, quanta: Quanta) -> Floats:
        difference = x - scale * quanta
        return total(weights * difference * difference)

    best = error(ONE / inverse, np.rint(inverse * x))
    for number in (*range(-4, 0), *range(1, 5)):
        tried = (times(0.1, number, top) / safe).astype(np.float32)
        found = error(ONE / tried, np.minimum(np.rint(tried * x), np.float32(top)))
        better = found < best
        best, inverse = np.where(better, found, best), np.where(better, tried, inverse)
    start = np.minimum(np.rint(inverse * x), np.float32(top))
    scale, quanta = descended(x, weights, start, -(2**30), top, needs_both=True)
    zero = np.float32(0)
    return np.where(empty, zero, scale), np.where(empty, zero, quanta)
