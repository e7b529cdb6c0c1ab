"""The quantize stage: weight-only int8, int4 or NF4, with size and speed before and after."""

from __future__ import annotations

from torch import nn

from quatrain.adapters.targets import is_of_head
from quatrain.compression import methods
from quatrain.compression.settings import QuantizeStage
from quatrain.runs.assess import assess
from quatrain.runs.material import model_of, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult


def run(settings: QuantizeStage, context: StageContext) -> StageResult:
    """Quantizes the linear layers, writes `model/` and measures it as every other stage is measured."""
    tokenizer = tokenizer_of(context)
    model = model_of(context)
    parameters = model.num_parameters()
    linears = sum(isinstance(module, nn.Linear) for name, module in model.named_modules() if not is_of_head(name))
    options = {"group": settings.group} if settings.method == "int4" else {}
    names = methods.quantize(model, settings.method, **options)
    size = write_model(model, tokenizer, context.model_folder)
    notes = [f"{len(names)} linear layers in {settings.method}"]
    if len(names) < linears:
        notes.append(f"{linears - len(names)} stay as they were: no group of {settings.method} divides their inputs")
    result = StageResult(parameters=parameters, trainable_parameters=0, model_bytes=size, notes=notes)
    assess(settings, context, model, tokenizer, result)
    return result
