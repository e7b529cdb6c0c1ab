"""`quatrain merge`: merges adapters into their base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

PROBE = 256
"""The number of tokens on which the model is compared before and after."""


def merge(
    *adapters: str,
    out: Path,
    weights: tuple[float, ...] = (),
    probe: str | None = None,
    tolerance: float | None = None,
    quantize: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Merge adapters into their base model, and write a plain model folder.

    The logits on a probe text are compared before and after: they must equal those of the base with its weighted
    adapters, up to rounding. If they differ by more than the tolerance or are not finite, nothing is written.

    Parameters
    ----------
    adapters
        Adapter folders (PEFT format) of one base model.
    out
        The folder to write; it must be new or empty.
    weights
        The weight of each adapter, such as --weights 0.7 --weights 0.3; 1 by default.
    probe
        A text file on whose beginning the model is compared; random tokens by default.
    tolerance
        The largest allowed change of the logits, as a share of the largest logit: 0.001 by default; with --quantize 0.2
        for int8 and 1 for int4 and nf4.
    quantize
        Write the merged model in int8, int4 or nf4.
    json_lines
        Write one JSON object, for programs.
    """
    import torch

    from quatrain.cli.output import show, show_json
    from quatrain.compression import methods
    from quatrain.core.atomic import disk_errors
    from quatrain.core.errors import InputError
    from quatrain.loading.combined import together
    from quatrain.loading.merging import OF_BITS, ROUNDING_ERROR, argument_problems, change
    from quatrain.loading.merging import merge as merged_of
    from quatrain.loading.model import load_model
    from quatrain.models.io import model_folder

    problems = argument_problems(adapters, weights, quantize, tolerance)
    with disk_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            problems.append(f"--out {out}: is not empty; name a new folder")
    if problems:
        raise InputError("Nothing is merged:", problems)
    model = merged_of(adapters, weights)
    whole = len(adapters) == 1 and not any(weight != 1 for weight in weights)
    first, tokenizer = load_model(adapters[0])
    before = first if whole else together(adapters, weights or [1.0] * len(adapters))
    inputs = torch.tensor([_probe_ids(probe, tokenizer, first.config)])
    difference = change(before, model, inputs)
    difference.check(ROUNDING_ERROR if tolerance is None else tolerance)
    if quantize is not None:
        methods.quantize(model, quantize)
        difference = change(before, model, inputs)
        difference.check(OF_BITS[quantize] if tolerance is None else tolerance, f"Rounding to {quantize}")
    model_folder.save(model, out)
    if tokenizer is not None:
        tokenizer.save(out)
    if json_lines:
        show_json({"out": str(out), **vars(difference)})
        return 0
    before_merge = "its base with the adapter" if whole else "the base with the weighted adapters"
    share = f"{difference.share:.3%} of the largest"
    show(f"logits      differ by at most {difference.largest:.3g} from those of {before_merge}, {share}")
    if difference.loss_before is not None and difference.loss_after is not None:
        before_after = f"{_perplexity(difference.loss_before)} before, {_perplexity(difference.loss_after)} after"
        show(f"perplexity  {before_after}, on {probe or 'random tokens'}")
    show(f"written     {out}")
    return 0


def _probe_ids(probe: str | None, tokenizer: Any, config: Any) -> list[int]:
    """The token ids on which the models are compared: the beginning of a text, or random ones."""
    import torch

    from quatrain.core.errors import InputError
    from quatrain.data.documents import read_documents

    length = min(PROBE, config.context_length)
    if probe is None:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(config.vocab_size, (length,), generator=draw).tolist()
    if tokenizer is None:
        raise InputError(f"--probe {probe}: neither the adapter nor its base has a tokenizer to read it; omit it")
    text = next(iter(read_documents(probe)), "")
    ids: list[int] = tokenizer.encode(text[: 20 * PROBE])[:length]
    if not ids:
        raise InputError(f"--probe {probe}: has no text; name another file, or omit it for random tokens")
    return ids


def _perplexity(loss: float) -> str:
    import math

    return f"{math.exp(loss):,.4g}" if loss < 700 else "infinite"
