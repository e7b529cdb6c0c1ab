"""`quatrain merge`: adapters made part of their model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

PROBE = 256
"""Tokens on which the model is compared before and after."""


def merge(
    *adapters: str,
    out: Path,
    weights: tuple[float, ...] = (),
    probe: str | None = None,
    tolerance: float = 0.001,
    quantize: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Merge adapters into their base, and write a plain model folder.

    What the model says of a probe is compared before and after: one adapter that is merged whole must say the same, but
    for rounding. Beyond the tolerance nothing is written.

    Parameters
    ----------
    adapters
        Adapter folders, PEFT's or ours, of one base model.
    out
        The folder to write; it must not be there yet, or be empty.
    weights
        How much of each is merged, such as --weights 0.7 --weights 0.3; all of it unless given.
    probe
        A text file whose beginning the model is compared on; random tokens unless given.
    tolerance
        The largest change of the logits that is allowed, as a share of the largest logit. It is checked where one
        adapter is merged whole.
    quantize
        Write the merged model in int8, int4 or nf4.
    json_lines
        Write one JSON object, for programs.
    """
    import torch

    from quatrain.atomic import disk_errors
    from quatrain.cli.output import show, show_json
    from quatrain.errors import InputError
    from quatrain.generation.loading import load_model
    from quatrain.generation.merging import change
    from quatrain.generation.merging import merge as merged_of
    from quatrain.models import hub
    from quatrain.text.files import read_documents

    problems = [] if adapters else ["no adapter is named: quatrain merge ADAPTER --out FOLDER"]
    with disk_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            problems.append(f"--out {out}: is there already; name a new folder")
    if problems:
        raise InputError("Nothing is merged:", problems)
    model = merged_of(adapters, weights, quantize=quantize)
    before, tokenizer = load_model(adapters[0])
    length = min(PROBE, before.config.context_length)
    if probe is not None and tokenizer is not None:
        ids = tokenizer.encode(next(iter(read_documents(probe)))[: 20 * PROBE])[:length]
    else:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(before.config.vocab_size, (length,), generator=draw).tolist()
    inputs = torch.tensor([ids])
    found = change(before, model, inputs)
    whole = len(adapters) == 1 and not any(weight != 1 for weight in weights)
    if whole:
        found.check(tolerance)
    hub.save(model, out)
    if tokenizer is not None:
        tokenizer.save(out)
    if json_lines:
        show_json({"out": str(out), **vars(found)})
        return 0
    than = "its adapter over its base" if whole else "the first adapter alone"
    show(f"logits      at most {found.largest:.3g} apart from those of {than}, {found.share:.3%} of the largest")
    if found.loss_before is not None and found.loss_after is not None:
        on = probe or "random tokens"
        show(f"perplexity  {_perplexity(found.loss_before)} before, {_perplexity(found.loss_after)} after, on {on}")
    show(f"written     {out}")
    return 0


def _perplexity(loss: float) -> str:
    import math

    return f"{math.exp(loss):,.4g}" if loss < 700 else "beyond counting"
