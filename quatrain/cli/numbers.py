"""`quatrain numbers`: the bits of numbers in float formats, and as integers with a scale and a zero point."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def numbers(
    *values: Annotated[float, Parameter(allow_leading_hyphen=True)],
    bits: int = 8,
    symmetric: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show numbers bit by bit: float32, bfloat16, float16 and FP8, and as integers that share a scale.

    Parameters
    ----------
    values
        Numbers, such as 0.1 3.14 -2; 0.1 by default.
    bits
        Bits of the integers.
    symmetric
        Integers without a zero point.
    json_lines
        Write one JSON object for each row, for programs.
    """
    from quatrain.cli.output import show, show_table
    from quatrain.compression.numbers import FORMATS, affine, float_bits

    given = list(values) or [0.1]
    rows = []
    for value in given:
        for name in FORMATS:
            found = float_bits(value, name)
            parts = f"{found.sign} {found.exponent} {found.fraction}"
            rows.append(
                (f"{value:g}", name, parts, found.formula(), f"{found.value:.9g}", f"{found.relative_error:.2g}")
            )
    show_table(
        ("number", "format", "sign, exponent, fraction", "formula", "means", "error"), rows, json_lines=json_lines
    )
    shared = affine(given, bits, symmetric=symmetric)
    integers = [
        (f"{value:g}", code, f"{read:.9g}", f"{error:.2g}")
        for value, code, read, error in zip(given, shared.codes, shared.values, shared.errors, strict=True)
    ]
    if not json_lines:
        show(
            f"\n{bits} bits from {shared.lowest} to {shared.highest}, scale {shared.scale:.6g}, "
            f"zero point {shared.zero_point}: value = scale (code - zero point)"
        )
    show_table(("number", "code", "means", "error"), integers, json_lines=json_lines)
    if json_lines:
        return 0
    ranges = [
        (form.name, form.bits, form.exponent, form.fraction, f"{form.largest:.4g}", f"{form.smallest_normal:.3g}",
         f"{form.smallest:.3g}", f"{form.epsilon:.3g}")
        for form in FORMATS.values()
    ]  # fmt: skip
    show()
    show_table(("format", "bits", "exponent", "fraction", "largest", "smallest normal", "smallest", "epsilon"), ranges)
    return 0
