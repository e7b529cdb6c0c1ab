"""The quantize stage: weight-only int8 or NF4, with size and speed before and after."""

from __future__ import annotations

from quatrain.compression import int8, nf4
from quatrain.compression.settings import QuantizeStage
from quatrain.stages.assess import assess
from quatrain.stages.base import Context, StageResult
from quatrain.stages.material import model_of, tokenizer_of, write_model


def run(settings: QuantizeStage, context: Context) -> StageResult:
    """Quantizes the linear layers, writes `model/` and measures it as every other stage is measured."""
    tokenizer = tokenizer_of(context)
    model = model_of(context)
    parameters = model.num_parameters()
    names = nf4.quantize(model) if settings.method == "nf4" else int8.quantize(model)
    size = write_model(model, tokenizer, context.model_folder)
    notes = [f"{len(names)} linear layers in {settings.method}"]
    result = StageResult(parameters=parameters, trainable_parameters=0, model_bytes=size, notes=notes)
    assess(settings, context, model, tokenizer, result)
    return result
