"""`quatrain quantize`: writes a model in fewer bits, and shows what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL


def quantize(
    model: Annotated[str, MODEL],
    *,
    out: Path | None = None,
    method: tuple[str, ...] = (),
    calibration: tuple[str, ...] = (),
    group: Literal[32, 64, 128] | None = None,
    layout: Literal["compressed-tensors", "gptq", "awq"] = "compressed-tensors",
    calibrate: str | None = None,
    text: str | None = None,
    samples: int = 128,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Quantize a model, and show perplexity, bytes and tokens per second before and after.

    With --out the result is written as a model folder. Without it, any number of methods and calibrations are compared.

    Parameters
    ----------
    model
        A model folder, a run or a hub id.
    out
        The folder to write; it must be new or empty.
    method
        int8, int4, nf4, fp8 (weights alone) or w8a8 (int8 weights and activations); int8 by default.
    calibration
        nearest, gptq (int8, int4), awq (int8, int4) or smoothquant (w8a8); nearest by default.
    group
        Weights that share a scale in int4; the largest that divides the layers by default.
    layout
        The files' layout of int4: compressed-tensors, gptq or awq.
    calibrate
        A text (file, folder or catalog name) that gptq, awq and smoothquant read; its beginning is enough.
    text
        The text for the perplexity; by default what follows in the calibration text.
    samples
        Windows of the calibration text.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.compressing import Texts, check_out, check_texts, present, write
    from quatrain.compression import methods
    from quatrain.compression.int4 import Int4Linear
    from quatrain.core.errors import InputError
    from quatrain.loading.model import load_model

    asked = [(name, how) for name in method or ("int8",) for how in calibration or ("nearest",)]
    problems = check_out(out)
    for name, how in asked:
        problems += methods.problems(name, how)
    if out is not None and len(asked) > 1:
        problems.append(f"--out {out}: {len(asked)} results; name one method and one calibration")
    if group is not None and any(name != "int4" for name, _ in asked):
        problems.append(f"--group {group}: only int4 reads it; leave it out")
    if layout != "compressed-tensors" and any(name != "int4" for name, _ in asked):
        problems.append(f"--layout {layout}: only int4 has it; leave it out")
    needs = [how for _, how in asked if how != "nearest"]
    problems += check_texts(needs, calibrate, text, samples)
    if problems:
        raise InputError("Nothing is quantized:", list(dict.fromkeys(problems)))
    before, tokenizer = load_model(model)
    texts = Texts.read(calibrate, text, tokenizer, before.config, samples)
    results: list[tuple[str, Any]] = [("before", before)]
    for name, how in asked:
        quantized = load_model(model)[0]
        options = {} if group is None else {"group": group}
        methods.quantize(quantized, name, calibration=how, batches=texts.batches, **options)
        results.append((name if how == "nearest" else f"{name} {how}", quantized))
    if layout != "compressed-tensors":
        for _, quantized in results[1:]:
            for layer in quantized.modules():
                if isinstance(layer, Int4Linear):
                    layer.layout = layout
    if out is not None:
        write(results[-1][1], tokenizer, out)
    present(results, texts, out=out, json_lines=json_lines)
    return 0
