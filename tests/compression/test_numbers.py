"""Numbers bit by bit, against Python's own structs and PyTorch's rounding."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.cli import main
from quatrain.compression.numbers import FORMATS, affine, float_bits
from quatrain.core.errors import InputError


@settings(max_examples=100, deadline=None)
@given(st.floats(-60000, 60000), st.sampled_from(sorted(FORMATS)))
def test_the_bits_mean_the_rounded_number(value: float, name: str) -> None:
    found, form = float_bits(value, name), FORMATS[name]
    if math.isfinite(found.value):
        stored, fraction = int(found.exponent, 2), int(found.fraction, 2) / 2**form.fraction
        power = 2.0 ** ((stored or 1) - form.bias)
        assert (-1) ** int(found.sign) * power * (fraction + (stored > 0)) == found.value
        if form.smallest_normal <= abs(value) <= form.largest:
            assert found.relative_error <= form.epsilon / 2 * 1.0001
    if name in ("float32", "float16"):
        packed = struct.pack(">f" if name == "float32" else ">e", found.value)
        assert "".join(f"{byte:08b}" for byte in packed) == found.sign + found.exponent + found.fraction


@pytest.mark.parametrize("name", FORMATS)
def test_the_ranges_are_those_of_pytorch(name: str) -> None:
    form, known = FORMATS[name], torch.finfo(FORMATS[name].dtype)
    assert (form.bits, form.largest, form.smallest_normal) == (known.bits, known.max, known.tiny)
    assert form.epsilon == known.eps
    assert float_bits(form.smallest, name).value == form.smallest and float_bits(form.smallest / 2, name).value == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), st.integers(2, 8), st.booleans())
def test_integers_err_by_at_most_half_a_scale(values: list[float], bits: int, symmetric: bool) -> None:
    found = affine(values, bits, symmetric=symmetric)
    assert all(found.lowest <= code <= found.highest for code in found.codes)
    # The zero point is rounded too.
    assert found.largest_error <= found.scale * (0.5 if symmetric else 1.0) * (1 + 1e-9)
    assert affine([*values, 0.0], bits, symmetric=symmetric).values[-1] == 0


def test_what_is_no_number_is_said() -> None:
    for wrong in ([], [math.inf]):
        with pytest.raises(InputError, match="finite"):
            affine(wrong)
    with pytest.raises(InputError, match="bits"):
        affine([1.0], 17)
    with pytest.raises(InputError, match="format"):
        float_bits(1.0, "float7")


def test_the_verb_shows_bits_and_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["numbers", "0.1", "-2"]) == 0
    shown = capsys.readouterr().out
    assert "0 01111011 1001101" in shown and "zero point" in shown and "65504" in shown.replace("6.55e+04", "65504")
