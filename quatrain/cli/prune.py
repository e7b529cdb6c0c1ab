"""`quatrain prune`: sets weights to zero or removes heads, units and layers, and shows what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def prune(
    model: str,
    *,
    out: Path | None = None,
    method: tuple[str, ...] = (),
    sparsity: tuple[float, ...] = (),
    pattern: str | None = None,
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
    calibrate
        A text (file, folder or catalog name) that wanda and sparsegpt read; its beginning is enough.
    text
        The text for the perplexity; by default what follows in the calibration text.
    samples
        Windows of the calibration text.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.compressing import Texts, check_out, present, write
    from quatrain.compression.pruning import unstructured
    from quatrain.core.errors import InputError
    from quatrain.loading.model import load_model

    names, shares = method or ("wanda",), list(sparsity) or ([None] if pattern else [0.5])  # type: ignore[list-item]
    problems = check_out(out)
    if out is not None and len(names) * len(shares) > 1:
        problems.append(f"--out {out}: {len(names) * len(shares)} results; name one method and one sparsity")
    if samples < 1:
        problems.append(f"--samples {samples}: must be at least 1")
    needs = [
        name for name in names for share in shares if unstructured.check_request(name, share, pattern)[0].needs_inputs
    ]
    if needs and calibrate is None and text is None:
        problems.append(f"--calibrate: missing; {needs[0]} reads a text, such as --calibrate my.txt")
    if problems:
        raise InputError("Nothing is pruned:", problems)
    before, tokenizer = load_model(model)
    texts = Texts.read(calibrate, text, tokenizer, before.config, samples)
    results: list[tuple[str, Any]] = [("before", before)]
    for name in names:
        for share in shares:
            pruned = load_model(model)[0]
            unstructured.prune(pruned, name, share, pattern=pattern, batches=texts.batches)
            results.append((f"{name} {pattern or f'{share:.0%}'}", pruned))
    if out is not None:
        write(results[-1][1], tokenizer, out)
    present(results, texts, out=out, json_lines=json_lines)
    return 0
