"""What the machine at hand can do, by measuring: the fastest precision, and the memory that the process has used."""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path

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


def peak_memory_bytes() -> int | None:
    """Largest resident memory of this process so far, or since `reset_peak_memory` where the system can reset it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> bool:
    """Starts the peak anew from what is used now (Linux); says whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
