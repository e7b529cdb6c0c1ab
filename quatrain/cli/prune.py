"""`quatrain prune`: sets weights to zero, or removes heads, units and layers, and shows what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL


def prune(
    model: Annotated[str, MODEL],
    *,
    out: Path | None = None,
    method: tuple[str, ...] = (),
    sparsity: tuple[float, ...] = (),
    pattern: str | None = None,
    heads: float = 0.0,
    units: float = 0.0,
    layers: float = 0.0,
    uncorrected: bool = False,
    calibrate: str | None = None,
    text: str | None = None,
    samples: int = 128,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Prune a model, and show sparsity, perplexity, bytes and tokens per second before and after.

    With --out the result is written as a model folder. Without it, any number of methods and sparsities are compared.

    Parameters
    ----------
    model
        A model folder, a run or a hub id.
    out
        The folder to write; it must be new or empty.
    method
        magnitude (of each layer), magnitude-global, wanda or sparsegpt; wanda by default.
    sparsity
        The share of weights to set to zero, such as 0.5.
    pattern
        N:M instead of a share: of every M weights in a row at most N stay, such as 2:4.
    heads
        The share of attention heads to remove from each layer, such as 0.25: the model becomes smaller and faster.
    units
        The share of feed-forward units to remove from each layer.
    layers
        The share of layers to remove.
    uncorrected
        Leave the weights that stay as they are; otherwise they are corrected by least squares on the text.
    calibrate
        A text (file, folder or catalog name) that all methods but magnitude read; its beginning is enough.
    text
        The text for the perplexity; by default what follows in the calibration text.
    samples
        Windows of the calibration text.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.compressing import Texts, check_out, check_texts, present, write
    from quatrain.core.errors import InputError
    from quatrain.loading.model import load_model

    shares: dict[str, Any] = {"heads": heads, "units": units, "layers": layers}
    removes = any(shares.values())
    problems = check_out(out)
    if removes and (method or sparsity or pattern):
        problems.append("--method, --sparsity, --pattern: set weights to zero; prune heads, units and layers by itself")
    names = method or ("wanda",)
    asked = _asked(names, sparsity, pattern)
    if out is not None and not removes and len(asked) > 1:
        problems.append(f"--out {out}: {len(asked)} results; name one method and one sparsity")
    needs = [name for name, _, reads in asked if reads] if not removes else ["removing parts"]
    problems += check_texts(needs, calibrate, text, samples)
    if problems:
        raise InputError("Nothing is pruned:", problems)
    before, tokenizer = load_model(model)
    texts = Texts.read(calibrate, text, tokenizer, before.config, samples)
    results: list[tuple[str, Any]] = [("before", before)]
    if removes:
        from quatrain.compression.pruning import structured

        small, _ = structured.prune(before, texts.batches, compensate=not uncorrected, **shares)
        results.append((", ".join(f"{share:.0%} of {name}" for name, share in shares.items() if share), small))
    for name, share, _ in asked if not removes else []:
        from quatrain.compression.pruning import unstructured

        pruned = load_model(model)[0]
        unstructured.prune(pruned, name, share, pattern=pattern, batches=texts.batches)
        results.append((f"{name} {pattern or f'{share:.0%}'}", pruned))
    if out is not None:
        write(results[-1][1], tokenizer, out)
    present(results, texts, out=out, json_lines=json_lines)
    return 0


def _asked(
    methods: tuple[str, ...], sparsity: tuple[float, ...], pattern: str | None
) -> list[tuple[str, float | None, bool]]:
    """Each method with each share, and whether it reads texts. Raises InputError."""
    from quatrain.compression.pruning.unstructured import check_request

    shares: list[float | None] = [*sparsity] or [None if pattern else 0.5]
    return [(name, share, check_request(name, share, pattern)[0].needs_inputs) for name in methods for share in shares]
