"""Numbers by hand: the bits of float formats, their range and precision, and integers with a scale and a zero point.

IEEE 754 for float32 and float16, bfloat16 (Kalamkar et al. 2019, arXiv 1905.12322), FP8 (Micikevicius et al. 2022,
arXiv 2209.05433), affine integers (Jacob et al. 2018, arXiv 1712.05877).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value


@dataclass(frozen=True)
class FloatFormat:
    """A float format: one sign bit, `exponent` bits, `fraction` bits.

    A number is (-1)^sign 2^(e - bias) (1 + fraction), or without the 1 and with 2^(1 - bias) where e = 0.
    """

    name: str
    dtype: torch.dtype
    exponent: int
    fraction: int

    @property
    def bits(self) -> int:
        """All bits."""
        return 1 + self.exponent + self.fraction

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return int(2 ** (self.exponent - 1)) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(torch.finfo(self.dtype).max)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with full precision."""
        return float(2.0 ** (1 - self.bias))

    @property
    def smallest(self) -> float:
        """The smallest positive number."""
        return float(2.0 ** (1 - self.bias - self.fraction))

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number; half of it bounds the relative error of rounding."""
        return float(2.0**-self.fraction)


FORMATS = {
    each.name: each
    for each in (
        FloatFormat("float32", torch.float32, 8, 23),
        FloatFormat("bfloat16", torch.bfloat16, 8, 7),
        FloatFormat("float16", torch.float16, 5, 10),
        FloatFormat("fp8 e4m3", torch.float8_e4m3fn, 4, 3),
        FloatFormat("fp8 e5m2", torch.float8_e5m2, 5, 2),
    )
}
"""The float formats by name."""


@dataclass(frozen=True)
class FloatBits:
    """A number in a float format: its bits, the number that they mean, and the error of rounding to it."""

    format: FloatFormat
    sign: str
    exponent: str
    fraction: str
    value: float
    error: float

    @property
    def relative_error(self) -> float:
        """The error as a share of the number; 0 for 0."""
        exact = self.value - self.error
        return abs(self.error / exact) if exact else 0.0

    def formula(self) -> str:
        """The number as the bits spell it, such as (-1)^0 2^(126 - 127) (1 + 0.5)."""
        stored, fraction = int(self.exponent, 2), int(self.fraction, 2) / 2**self.format.fraction
        if not math.isfinite(self.value):
            return str(self.value)
        power = stored if stored else 1
        lead = "1 + " if stored else ""
        return f"(-1)^{self.sign} 2^({power} - {self.format.bias}) ({lead}{fraction:g})"


def float_bits(value: float, name: str) -> FloatBits:
    """The bits of a number in the format `name`, rounded to the nearest, ties to even. Raises InputError."""
    if name not in FORMATS:
        raise InputError(f"format: {format_value(name)}; must be one of {', '.join(FORMATS)}")
    form = FORMATS[name]
    stored = torch.tensor(value, dtype=torch.float64).to(form.dtype)
    whole = {8: torch.uint8, 16: torch.int16, 32: torch.int32}[form.bits]
    bits = f"{int(stored.view(whole)) % 2**form.bits:0{form.bits}b}"
    found = float(stored.double())
    error = found - value if math.isfinite(found) and math.isfinite(value) else math.nan
    end = 1 + form.exponent
    return FloatBits(form, bits[0], bits[1:end], bits[end:], found, error)


@dataclass(frozen=True)
class Affine:
    """Numbers as integers q of some bits: scale (q - zero_point). `errors`: what is read back minus what was given."""

    scale: float
    zero_point: int
    lowest: int
    highest: int
    codes: tuple[int, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def largest_error(self) -> float:
        """At most half a scale, where no number is clipped."""
        return max(map(abs, self.errors), default=0.0)


def affine(values: Sequence[float], bits: int = 8, *, symmetric: bool = False) -> Affine:
    """Quantizes numbers to integers of so many bits.

    Affine: the range [min, max], widened to hold 0, is mapped to all codes. Symmetric: the zero point is 0 and the
    lowest code is not used. Raises InputError for no numbers, numbers that are not finite, and bits outside 2 to 16.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise InputError("values: must be at least one finite number")
    if not 2 <= bits <= 16:
        raise InputError(f"bits: {bits}; must be 2 to 16")
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if symmetric:
        lowest = -highest
        scale = max(map(abs, values)) / highest or 1.0
        zero = 0
    else:
        least, most = min(0.0, *values), max(0.0, *values)
        scale = (most - least) / (highest - lowest) or 1.0
        zero = round(lowest - least / scale)
    codes = tuple(min(highest, max(lowest, round(value / scale) + zero)) for value in values)
    read = tuple(scale * (code - zero) for code in codes)
    errors = tuple(after - before for after, before in zip(read, values, strict=True))
    return Affine(scale, zero, lowest, highest, codes, read, errors)
