"""What is measured of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch

from quatrain.planning import machine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that each reading moves on by what the list holds; the measured speeds are forgotten."""
    ticks, now = [0.0], [0.0]

    def read() -> float:
        now[0] += ticks[0]
        return now[0]

    monkeypatch.setattr(machine.time, "perf_counter", read)
    machine.relative_speed.cache_clear()
    yield ticks
    machine.relative_speed.cache_clear()


@pytest.mark.parametrize(("tick", "products"), [(1e-6, 20), (1.0, 2)])
def test_a_slow_product_is_timed_twice(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tick: float, products: int
) -> None:
    """bfloat16 without instructions takes 0.3 s a product: 20 of them at the start of every run would be noticed."""
    clock[0], numbers = tick, count()
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (next(numbers), multiply(a, b))[1])
    assert machine.matmul_flops_per_second(torch.float32, size=8) == pytest.approx(2 * 8**3 / tick)
    assert next(numbers) == products


@pytest.mark.parametrize(("half", "chosen"), [(2.0, "bfloat16"), (1.4, "float32"), (0.03, "float32")])
def test_the_faster_precision(clock: list[float], monkeypatch: pytest.MonkeyPatch, half: float, chosen: str) -> None:
    rates = {torch.float32: 1.0, torch.bfloat16: half}
    monkeypatch.setattr(machine, "matmul_flops_per_second", lambda dtype, device: rates[dtype])
    assert machine.fastest_precision() == chosen


def test_a_precision_that_the_device_lacks(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(dtype: torch.dtype, device: str) -> float:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(machine, "matmul_flops_per_second", refused)
    assert machine.relative_speed("bfloat16") == 0 and machine.fastest_precision() == "float32"
