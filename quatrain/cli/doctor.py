"""`quatrain doctor`: installed versions and the speed of the device."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

CORE = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "pydantic", "cyclopts", "rich", "tomli-w")
OPTIONAL = ("numba", "transformers", "peft", "pyarrow", "datasets", "sqlglot")


def doctor(
    model: str | None = None,
    /,
    *,
    quantize: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show the installed versions, the device, and its matrix-multiplication speed; for a model, how it is decoded.

    Parameters
    ----------
    model
        A model folder, hub id or run: 32 tokens are generated with it in bfloat16.
    quantize
        Quantize the model first: int8, int4 or nf4.
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
    decoding = {} if model is None or missing else _decoding(model, quantize)
    if json_lines:
        report = {"versions": versions, "device": facts, "flops_per_second": speeds, "missing": missing}
        show_json(report | ({"decoding": decoding} if decoding else {}))
        return 1 if missing else 0
    rows = [[name, version or "not installed"] for name, version in versions.items()]
    show_table(["what", "version"], rows)
    show()
    speed_rows = [[f"matrix product, {name}", f"{speed / 1e9:,.0f} GFLOP/s"] for name, speed in speeds.items()]
    show_table(["device", ""], [*([name, value] for name, value in facts.items()), *speed_rows])
    show()
    if decoding:
        show_table(["decoding", ""], [[name, str(value)] for name, value in decoding.items()])
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


def _decoding(model: str, quantize: str | None) -> dict[str, Any]:
    """What runs the decoding steps of a model, and how fast; native code's share of the memory's bandwidth."""
    import torch

    from quatrain.generation.engine import Engine, SamplingParams

    engine = Engine.load(model, dtype=torch.bfloat16, quantize=quantize)
    prompt = [list(range(8))]
    params = SamplingParams(max_new_tokens=32, ignore_eos=True)
    for _ in range(2):
        engine.generate(prompt, params)
    statistics = engine.statistics
    facts: dict[str, Any] = {
        "runs in": {"native": "native code", "static": "CUDA graphs"}.get(
            statistics.decoder, f"PyTorch: {statistics.decoder_reason}"
        ),
        "tokens/s of one text": round(statistics.decode_tokens_per_second, 1),
    }
    if statistics.weight_bandwidth:
        facts["GB/s of weights read"] = round(statistics.weight_bandwidth / 1e9, 1)
        facts["GB/s of this memory"] = round(statistics.memory_bandwidth / 1e9, 1)
    return facts
