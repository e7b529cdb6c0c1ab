"""What the machine at hand can do, by measuring: its device, the speed of its matrix products, the faster precision."""

from __future__ import annotations

import time
from functools import cache

import torch


def default_device() -> torch.device:
    """CUDA, else Apple's Metal, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device | str = "cpu", size: int = 512) -> float:
    """Measured rate of a (size, size) matrix product: floating-point operations per second, the best of 5 tries."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 4 * 2 * size**3 / best


@cache
def fastest_precision(device: str = "cpu") -> str:
    """`bfloat16` where its matrix products are at least 1.5 times as fast as float32's, otherwise `float32`."""
    try:
        half = matmul_flops_per_second(torch.bfloat16, device)
    except RuntimeError:
        return "float32"
    return "bfloat16" if half > 1.5 * matmul_flops_per_second(torch.float32, device) else "float32"


def _wait(device: torch.device | str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()
