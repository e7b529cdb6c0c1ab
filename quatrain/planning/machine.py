"""Measures this machine: its device, the rate of its matrix products, its faster precision, free memory and disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from functools import cache
from pathlib import Path

import torch

from quatrain.core.errors import InputError
from quatrain.core.processes import environment_number

_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.max"),
    ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Linux files with the memory use and limit of a control group (a container); "max" means no limit."""


DEVICES = ("auto", "cuda", "mps", "cpu")


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` takes CUDA, else Apple's GPU, else the CPU. A process of several takes its own GPU.

    Raises InputError for an unknown name and a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in DEVICES:
        raise InputError(f"train.device: {name!r}; must be one of {', '.join(DEVICES)}.")
    if name == "auto":
        name = next(each for each in ("cuda", "mps", "cpu") if available[each])
    if not available[name]:
        raise InputError(
            f"train.device: {name}; this machine has none that PyTorch {torch.__version__} can use. Use auto or cpu."
        )
    if name == "cuda":
        return torch.device("cuda", environment_number("LOCAL_RANK"))
    return torch.device(name)


PATIENCE = 0.25
"""Seconds after which no further product is timed: on a CPU without instructions for bfloat16 one takes that long."""


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device | str = "cpu", size: int = 512) -> float:
    """Measures (size, size) matrix products: FLOP/s, the best of 20 or of 0.25 s, and of 2 at least."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    together = 1 if torch.device(device).type == "cpu" else 4  # A GPU also needs time to be told.
    best, begun = float("inf"), time.perf_counter()
    for tried in range(20 // together):
        _wait(device)
        start = time.perf_counter()
        for _ in range(together):
            a @ b
        _wait(device)
        best = min(best, (time.perf_counter() - start) / together)
        if tried and time.perf_counter() - begun > PATIENCE:  # The first also makes ready.
            break
    return 2 * size**3 / best


@cache
def relative_speed(precision: str, device: str = "cpu") -> float:
    """The rate of matrix products in `bfloat16` or `float16` over that of float32; 0 if the device has none."""
    try:
        return matmul_flops_per_second(getattr(torch, precision), device) / matmul_flops_per_second(
            torch.float32, device
        )
    except RuntimeError:
        return 0.0


def fastest_precision(device: str = "cpu") -> str:
    """`bfloat16` where its matrix products are at least 1.5 times as fast as float32's, otherwise `float32`."""
    return "bfloat16" if relative_speed("bfloat16", device) > 1.5 else "float32"


def _wait(device: torch.device | str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Free bytes of the GPU, or of RAM within the control group's limit; None if unknown."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for used, limit in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):
            room = int(Path(limit).read_text()) - int(Path(used).read_text())
            free = room if free is None else min(free, max(0, room))
    if free is None and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free


def free_disk(path: Path) -> int | None:
    """Free bytes on the disk of a path that exists or will; None if unknown."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
