"""`quatrain doctor`: installed versions, the speed of the device, and whether a model's equivalences hold on it."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.evaluation.doctor import Report

CORE = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "pydantic", "cyclopts", "rich", "tomli-w")
OPTIONAL = ("numba", "transformers", "peft", "pyarrow", "datasets", "sqlglot")


def doctor(
    model: str | None = None,
    /,
    *,
    quantize: str | None = None,
    only: Annotated[tuple[str, ...], Parameter(name="--only", consume_multiple=True)] = (),
    budget: float = 120.0,
    memory: float | None = None,
    device: str = "auto",
    reference: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show the installed versions and the device; for a model, how it is decoded, and whether its equivalences hold.

    Parameters
    ----------
    model
        A model folder, adapter folder, run or hub id. Each check computes the same thing in two ways and shows the
        difference. Also, 32 tokens are generated with it in bfloat16.
    quantize
        For the speed of decoding, quantize the model first: int8, int4 or nf4.
    only
        Run these checks alone, such as cache or chat-stop.
    budget
        Seconds after which no further check starts.
    memory
        Gigabytes that the weights may take in float32; of a larger model the first layers are examined. The default is
        an eighth of the free memory.
    device
        auto, cpu, cuda or mps.
    reference
        Another folder of the same model, such as the original of a converted one, for transformers to read.
    json_lines
        Write one JSON object, for programs.
    """
    import platform

    import quatrain
    from quatrain.cli.output import show, show_json, show_table

    _check(model, {"--only": only, "--reference": reference, "--quantize": quantize}, budget, memory)
    versions = {
        "quatrain": quatrain.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **_versions(CORE),
        **_versions(OPTIONAL),
    }
    missing = [name for name in CORE if versions[name] is None]
    examined = (
        None if model is None or missing else _examine(model, only, budget, memory, device, reference, json_lines)
    )
    facts, speeds = ({}, {}) if "torch" in missing or only else (_device_facts(), _speeds())
    decoding = {} if model is None or missing or only else _decoding(model, quantize)
    if json_lines:
        report = {"versions": versions, "device": facts, "flops_per_second": speeds, "missing": missing}
        report |= {"decoding": decoding} if decoding else {}
        show_json(report | ({} if examined is None else {"examination": examined.as_dict()}))
        return 1 if missing or (examined is not None and examined.failed) else 0
    if only:
        return _show_report(examined) if examined is not None else 1
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
    if examined is None:
        return 0
    show()
    return _show_report(examined)


def _check(model: str | None, flags: dict[str, Any], budget: float, memory: float | None) -> None:
    """Raises InputError for flags that cannot be used, all at once."""
    from quatrain.core.errors import InputError

    problems = [f"{flag}: needs a model; name one first" for flag, value in flags.items() if value and model is None]
    if not budget > 0:
        problems.append(f"--budget {budget:g}: must be above 0 seconds")
    if memory is not None and not memory > 0:
        problems.append(f"--memory {memory:g}: must be above 0 gigabytes")
    if problems:
        raise InputError("The flags cannot be used:", problems)


def _examine(
    model: str,
    only: tuple[str, ...],
    budget: float,
    memory: float | None,
    device: str,
    reference: str | None,
    quiet: bool,
) -> Report:
    from quatrain.cli.output import show_error
    from quatrain.evaluation.doctor import examine

    def progress(name: str) -> None:
        if not quiet and sys.stderr.isatty():
            show_error(f"checking {name} …")

    size = None if memory is None else int(memory * 1e9)
    return examine(model, device=device, only=only, seconds=budget, memory=size, reference=reference, progress=progress)


def _show_report(report: Report) -> int:
    """Shows each check with its difference and limit, then what to do about those that fail."""
    from quatrain.cli.output import show, show_table

    rows = [
        [row.name, row.pair, row.status, _figure(row.difference), _figure(row.limit), row.unit] for row in report.rows
    ]
    show_table(["check", "must agree", "result", "difference", "limit", "of"], rows)
    for row in report.rows:
        if row.status in ("not applicable", "not run"):
            show(f"{row.name}: {row.status}: {row.note}")
    for note in report.notes:
        show(f"Note: {note}")
    failed = report.failed
    for row in failed:
        found = "" if row.difference is None else f" (difference {_figure(row.difference)}, limit {_figure(row.limit)})"
        show(f"\n{row.name} failed{found}: {row.note}\n  {row.remedy}")
    held = sum(row.status == "holds" for row in report.rows)
    show(f"\n{held} checks hold, {len(failed)} failed, of {len(report.rows)}; on {report.device}, in float32.")
    return 1 if failed else 0


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if not math.isfinite(value) or value == int(value) else f"{value:.1e}"


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
