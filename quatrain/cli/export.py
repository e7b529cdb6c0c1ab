"""`quatrain export`: writes a model in another program's format, and proves that it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL


def export(
    model: Annotated[str, MODEL],
    *,
    to: str,
    out: Path | None = None,
    format: str | None = None,
    calibration: Path | None = None,
    context: int | None = None,
    force: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Export a model to another program's format: gguf, gguf-adapter, ollama, onnx, mlx, hf.

    The written files are opened again: in this package, and in llama.cpp or ONNX Runtime if installed. Their token
    ids, logits, greedy ids and stop tokens are compared with the model's. Files that differ are refused.

    Parameters
    ----------
    model
        A model folder, a run, a hub id, an adapter (which is merged into its base) or a .gguf file.
    to
        The target: gguf, gguf-adapter, ollama, onnx, mlx or hf.
    out
        The folder to write; it must be new or empty. By default beside the model, with the target's name.
    format
        The number format, such as F16, Q8_0 or Q4_K for gguf, float32 or int8 for onnx; an unknown one lists them all.
    calibration
        A text file: weights that matter for its words are rounded more carefully (importance matrix).
    context
        The context length of the file, if it is to be shorter than the model's.
    force
        Keep files that do not compute what the model computes.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show, show_json, show_table
    from quatrain.core.wording import format_bytes
    from quatrain.export.exporter import ExportSettings, as_json, failed
    from quatrain.export.exporter import export as export_model

    settings = ExportSettings(format=format, calibration=calibration, context=context, force=force)
    done = export_model(model, to, out, settings)
    if json_lines:
        show_json(as_json(done))
        return 0
    rows = [[check.runtime, check.name, check.result, "ok" if check.ok else "FAILED"] for check in done.checks]
    show_table(["runtime", "compared", "result", ""], rows)
    for note in done.notes:
        show(f"note     {note}")
    if wrong := failed(done.checks):
        show(f"FORCED   {len(wrong)} of {len(done.checks)} comparisons failed; do not trust these files")
    show(f"written  {done.out} ({done.format}, {format_bytes(done.nbytes)})")
    return 0
