"""`quatrain doctor`: installed versions and the speed of the device."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

CORE = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "pydantic", "cyclopts", "rich", "tomli-w")
OPTIONAL = ("transformers", "peft", "pyarrow", "datasets", "sqlglot")


def doctor(*, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show the installed versions, the device, and its matrix-multiplication speed.

    Parameters
    ----------
    json_lines
        Write one JSON object, for programs.
    """
    import platform
    import sys

    import quatrain
    from quatrain.cli.output import show, show_json, show_table

    versions = {
        "quatrain": quatrain.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **_versions(CORE),
        **_versions(OPTIONAL),
    }
    missing = [name for name in CORE if versions[name] is None]
    facts, speeds = ({}, {}) if "torch" in missing else (_device_facts(), _speeds())
    if json_lines:
        show_json({"versions": versions, "device": facts, "flops_per_second": speeds, "missing": missing})
        return 1 if missing else 0
    rows = [[name, version or "not installed"] for name, version in versions.items()]
    show_table(["what", "version"], rows)
    show()
    speed_rows = [[f"matrix product, {name}", f"{speed / 1e9:,.0f} GFLOP/s"] for name, speed in speeds.items()]
    show_table(["device", ""], [*([name, value] for name, value in facts.items()), *speed_rows])
    show()
    if missing:
        show(f"Missing: {', '.join(missing)}. Install with {sys.executable} -m pip install {' '.join(missing)}")
        return 1
    show("All required packages are installed.")
    return 0


def _versions(names: tuple[str, ...]) -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _device_facts() -> dict[str, str]:
    import os

    import torch

    from quatrain.planning.machine import choose_device, fastest_precision

    device = choose_device()
    facts = {"device": device.type, "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        facts["name"] = torch.cuda.get_device_name(device)
    facts["precision of train.precision = auto"] = fastest_precision(device.type)
    return facts


def _speeds() -> dict[str, float]:
    import torch

    from quatrain.planning.machine import choose_device, matmul_flops_per_second

    speeds = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            speeds[str(dtype).removeprefix("torch.")] = matmul_flops_per_second(dtype, choose_device())
        except RuntimeError:
            continue
    return speeds
