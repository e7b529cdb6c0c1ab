"""The quantize stage: fewer bits a weight, with or without calibration, with size and speed before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from quatrain.compression.settings import CALIBRATED, FLOAT_ONLY_FAMILIES, Method
from quatrain.core.settings import Problem
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings
from quatrain.runs.folder import read_json
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageContext, StageResult, StageSpec

if TYPE_CHECKING:
    from torch import Tensor

    from quatrain.models.transformer.stack import Model

UNQUANTIZABLE = (
    "whose files fuse or transpose its linear layers, for which the formats of quantized folders have no place; leave "
    'the stage out, or choose family = "llama"'
)


class QuantizeStage(StageSettings):
    """Quantization of the linear layers except the head.

    `int8` stores one scale for each output channel; `int4` one for each `group` of a row's weights; `nf4` four bits a
    weight at the quantiles of a normal distribution, with a scale for each 64, itself of eight bits (QLoRA); `fp8`
    eight-bit floats; `w8a8` int8 weights and activations.

    `calibration` = "gptq" or "awq" (int8, int4) or "smoothquant" (w8a8) reads `samples` windows of the text.
    """

    kind: Literal["quantize"] = "quantize"
    method: Method = "int8"
    calibration: Literal["nearest", "gptq", "awq", "smoothquant"] = "nearest"
    samples: int = Field(default=128, ge=1, description="windows of the text that calibrate")
    data: DataSettings | None = None
    group: Literal[32, 64, 128] | None = Field(
        default=None, description="weights that share a scale (int4); the largest that divides the layers unless given"
    )
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        known = CALIBRATED[self.calibration]
        if known and self.method not in known:
            text = f"{format_value(self.calibration)}; it calibrates {' and '.join(known)}, not {self.method}"
            yield Problem(("calibration",), text, (("method",),))
        if self.group is not None and self.method != "int4":
            yield Problem(("group",), f'{self.group}; only method = "int4" reads it: leave it out', (("method",),))


def conflicts(settings: QuantizeStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Families whose files have no format for quantized layers."""
    if recipe.model.folder is None and recipe.model.family in FLOAT_ONLY_FAMILIES:
        text = f"quantize cannot follow model.family = {format_value(recipe.model.family)}, {UNQUANTIZABLE}"
        yield Problem(("stage", index), text, (("model", "family"),))


def file_problems(settings: QuantizeStage, recipe: RecipeSettings) -> Iterator[str]:
    """The same for the family of `model.folder`."""
    if recipe.model.folder is not None:
        config = read_json(Path(recipe.model.folder).expanduser() / "config.json") or {}
        if config.get("model_type") in FLOAT_ONLY_FAMILIES:
            folder = format_value(recipe.model.folder)
            yield f"model.folder: {folder} holds a {config['model_type']} model, {UNQUANTIZABLE}"


def run(settings: QuantizeStage, context: StageContext) -> StageResult:
    """Quantizes the linear layers, writes `model/` and evaluates it like every other stage."""
    from torch import nn

    from quatrain.compression import methods
    from quatrain.models.modules import is_in_head
    from quatrain.runs.assess import assess
    from quatrain.runs.material import model_of, tokenizer_of, write_model

    tokenizer = tokenizer_of(context)
    model = model_of(context)
    parameters = model.num_parameters()
    linears = sum(isinstance(module, nn.Linear) for name, module in model.named_modules() if not is_in_head(name))
    options: dict[str, Any] = {"group": settings.group} if settings.method == "int4" else {}
    if settings.calibration != "nearest":
        options |= {"calibration": settings.calibration, "batches": calibration_of(settings, context, model)}
    names = methods.quantize(model, settings.method, **options)
    size = write_model(model, tokenizer, context.model_folder)
    notes = [f"{len(names)} linear layers in {settings.method}"]
    if len(names) < linears:
        notes.append(f"{linears - len(names)} stay as they were: no group of {settings.method} divides their inputs")
    result = StageResult(parameters=parameters, trainable_parameters=0, model_bytes=size, compressed=True, notes=notes)
    assess(settings, context, model, tokenizer, result)
    return result


def calibration_of(settings: QuantizeStage, context: StageContext, model: Model) -> list[dict[str, Tensor]]:
    """The first windows of the text, as batches."""
    import numpy as np

    from quatrain.evaluation.compression import calibration_batches
    from quatrain.runs.material import pieces, tokenizer_of

    length, ids = min(2048, model.config.context_length), list[int]()
    tokenizer = tokenizer_of(context)
    for piece in pieces(context, settings):
        ids += tokenizer.encode(piece.text)
        if len(ids) >= settings.samples * length:
            break
    return calibration_batches(np.asarray(ids[: settings.samples * length]), context=length)


def needs(settings: QuantizeStage, recipe: RecipeSettings) -> set[Need]:
    """A model, and text where it is calibrated."""
    return {"model"} if settings.calibration == "nearest" else {"model", "data"}


SPEC = StageSpec(
    QuantizeStage,
    run=run,
    needs=needs,
    produces=("model",),
    conflicts=conflicts,
    file_problems=file_problems,
    final="a quantized model no longer learns",
)
