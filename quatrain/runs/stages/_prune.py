"""Implementation of the prune stage: calibration, pruning, rewinding; `_pretrain` trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.compression.calibration import Inputs
from quatrain.compression.pruning import structured, unstructured
from quatrain.core.errors import InputError
from quatrain.evaluation.compression import COLUMNS, Footprint, calibration_batches, side_by_side, verdict
from quatrain.loading.model import load_model
from quatrain.models.transformer.stack import Model
from quatrain.runs.assess import assess
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import learn
from quatrain.runs.material import fresh_model, model_of, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages import _pretrain
from quatrain.runs.stages.prune import PruneStage
from quatrain.training import checkpoints

MEASURED = 32_768
"""Tokens of the text held out on which the models are compared."""
OTHER_SEED = 7919
"""Added to the recipe's seed for the fresh weights of the control."""


def run(settings: PruneStage, context: StageContext) -> StageResult:
    """Prunes, trains if asked, writes `model/` and compares it with the model before."""
    tokenizer = tokenizer_of(context)
    before = model_of(context)
    _, held_out = _pretrain.split_tokens(settings, context, tokenizer)
    tokens = np.asarray(held_out.tokens[:MEASURED], dtype=np.int64)
    length = settings.context or before.config.context_length
    if settings.train is None:
        after = pruned(settings, context)
        size = write_model(after, tokenizer, context.model_folder)
        result = StageResult(parameters=after.num_parameters(), trainable_parameters=0, model_bytes=size)
        rows = side_by_side([("before", before), ("pruned", after)], tokens, context=length)
    else:
        job = prepare(settings, context)
        middle = side_by_side([("before", before), ("pruned", job.model)], tokens, context=length)
        _, result = learn(job, context)
        after = job.model
        ends = side_by_side([("before", before), ("trained", after)], tokens, context=length)
        rows = [ends[0], middle[1], ends[1]]
        checkpoints.remove(context.checkpoints)
    told = list(verdict(rows[0], rows[-1]))
    result.compressed = True
    result.perplexity = rows[-1].perplexity
    result.notes += told
    result.extra["compression"] = [each.as_dict() for each in rows]
    result.extra["comparisons"] = [comparison(rows)]
    for line in told:
        context.reporter.info(line)
    assess(settings, context, after, tokenizer, result)
    return result


def comparison(rows: list[Footprint]) -> dict[str, Any]:
    """The table of the report."""
    return {"title": "Before and after", "columns": list(COLUMNS), "rows": [list(each.row()) for each in rows]}


def prepare(settings: PruneStage, context: StageContext) -> TrainingJob:
    """The training job of the stage, with the pruned model. A sentence for a stage that does not train."""
    if settings.train is None:
        return "Skipped: this stage prunes and does not train."  # type: ignore[return-value]
    job = _pretrain.prepare(settings, context)
    model = pruned(settings, context)
    if not settings.removes:
        job.masks = unstructured.masks_of(model)
    if settings.rewind is not None:
        _rewind(model, _origin(settings.rewind, context), job.masks)
    job.model = _pretrain.with_dropout(model, settings.train.dropout)
    return job


def pruned(settings: PruneStage, context: StageContext) -> Model:
    """The previous model, pruned."""
    model = model_of(context)
    if settings.removes:
        shares: dict[str, Any] = {"heads": settings.heads, "units": settings.units, "layers": settings.layers}
        small, kept = structured.prune(
            model, _batches(settings, context, model), alternate=settings.alternate, **shares
        )
        context.reporter.info(f"layers kept: {', '.join(map(str, kept.layers))} of {model.config.num_hidden_layers}")
        return small
    reads = unstructured.METHODS[settings.method].needs_inputs
    batches = _batches(settings, context, model) if reads else ()
    unstructured.prune(model, settings.method, settings.sparsity, pattern=settings.pattern, batches=batches)
    return model


def _batches(settings: PruneStage, context: StageContext, model: Model) -> list[Inputs]:
    learned, _ = _pretrain.split_tokens(settings, context, tokenizer_of(context))
    length = min(settings.context or model.config.context_length, model.config.context_length)
    tokens = np.asarray(learned.tokens[: settings.samples * length], dtype=np.int64)
    return list(calibration_batches(tokens, context=length))


def _origin(rewind: str, context: StageContext) -> Model:
    """The model whose weights the ticket gets."""
    if rewind in ("seed", "other"):
        seed = context.seed + (OTHER_SEED if rewind == "other" else 0)
        return fresh_model(replace(context, seed=seed), tokenizer_of(context))
    folder = context.folder / "stages" / rewind / "model"
    if context.fresh_model:
        return fresh_model(context, tokenizer_of(context))
    if not (folder / "config.json").is_file():
        raise InputError(f'rewind: "{rewind}"; must be "seed", "other" or a finished stage, such as "02-pretrain"')
    return load_model(folder)[0]


@torch.no_grad()
def _rewind(model: Model, origin: Model, masks: dict[str, Tensor]) -> None:
    """Gives all weights the values of `origin`, and keeps those at zero that the masks leave out."""
    if model.config != origin.config:
        raise InputError("rewind: the weights to rewind to are those of a model of another shape.")
    model.load_state_dict(origin.state_dict())
    for name, mask in masks.items():
        weight: Any = model.get_submodule(name).weight
        weight.mul_(mask)
