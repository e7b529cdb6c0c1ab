"""Quantization methods by name: quantizes a model in place, dequantizes it, and quantizes a folder as it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.compression import files, smoothing
from quatrain.compression.calibration import CalibratedBlock, Inputs, LayerInputs, calibrated_blocks
from quatrain.compression.fp8 import FP8Linear
from quatrain.compression.gptq import gptq
from quatrain.compression.int4 import Int4Linear
from quatrain.compression.int8 import Int8Linear, W8A8Linear
from quatrain.compression.layer import QuantizedLinear
from quatrain.compression.nf4 import NF4Linear
from quatrain.compression.settings import CALIBRATED
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.modules import is_adapter, is_in_head, replace_module
from quatrain.models.transformer.stack import Model

METHODS: dict[str, type[QuantizedLinear]] = {
    layer.method: layer for layer in (Int8Linear, Int4Linear, NF4Linear, W8A8Linear, FP8Linear)
}


def layer_class(method: str) -> type[QuantizedLinear]:
    """The layer class of a method. Raises InputError for an unknown method."""
    if method not in METHODS:
        raise InputError(f"quantize: {method!r}; must be one of {', '.join(METHODS)}")
    return METHODS[method]


def _select_layers(
    model: Model, quantized: type[QuantizedLinear], options: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """The paths of the linear layers to quantize, and the options that all of them share.

    The head stays float: nothing dampens its rounding errors, and a tied head is the embedding. Raises InputError if
    there is nothing to quantize.
    """
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and not is_in_head(name)
    }
    options = quantized.shared_options(list(linears.values()), **options)
    names = [name for name, module in linears.items() if quantized.supports(module, **options)]
    if not names:
        given = "".join(f", {key} = {value}" for key, value in options.items())
        raise InputError(
            f"No linear layer can be quantized: the sizes of all of them are unsuitable for {quantized.method}{given}."
        )
    return names, options


def select_layers(
    model: Model, method: str, options: dict[str, Any]
) -> tuple[type[QuantizedLinear], list[str], dict[str, Any]]:
    """The layer class of a method, the paths of the layers that it quantizes, and the options that they share.

    Raises InputError for an unknown method, and if there is nothing to quantize.
    """
    quantized = layer_class(method)
    return quantized, *_select_layers(model, quantized, options)


def problems(method: str, calibration: str) -> list[str]:
    """Why a method cannot be calibrated so; an empty list if it can."""
    if method not in METHODS:
        return [f"quantize: {format_value(method)}; must be one of {', '.join(METHODS)}"]
    if calibration not in CALIBRATIONS:
        return [f"calibration: {format_value(calibration)}; must be one of {', '.join(CALIBRATIONS)}"]
    known = CALIBRATED[calibration]
    return (
        []
        if not known or method in known
        else [f"calibration: {calibration}; it calibrates {' and '.join(known)}, not {method}"]
    )


def quantize(
    model: Model, method: str, *, calibration: str = "nearest", batches: Sequence[Inputs] = (), **options: Any
) -> list[str]:
    """Quantizes the model's linear layers, except the head, in place; returns their paths.

    `calibration`: `nearest` rounds each weight; `gptq`, `awq` and `smoothquant` read `batches` (arguments of
    `Model.hidden_states`). Options: `double` (double quantization) for nf4; `group` for int4, which skips layers whose
    inputs it does not divide. Raises InputError for unmerged adapters, and if there is nothing to quantize.
    """
    if wrong := problems(method, calibration):
        raise InputError("This quantization cannot be done:", wrong)
    quantized = layer_class(method)
    if adapted := [name for name, module in model.named_modules() if is_adapter(module)]:
        raise InputError("Merge the adapters before quantizing the model:", adapted[:5])
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("No linear layer is left to quantize: the model is quantized already.")
    names, options = _select_layers(model, quantized, options)
    if calibration != "nearest":
        _calibrated(model, names, quantized, options, CALIBRATIONS[calibration], batches)
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            replace_module(model, name, quantized.from_linear(module, **options))
    return names


@dataclass(frozen=True)
class Calibration:
    """How texts are used. smooth: scales a block first. encode: the buffers of a layer; None: the nearest codes."""

    smooth: Callable[[CalibratedBlock, Callable[[nn.Linear], QuantizedLinear | None]], None] | None = None
    encode: Callable[[Any, Tensor, LayerInputs], dict[str, Tensor]] | None = None


def _awq(block: CalibratedBlock, empty: Callable[[nn.Linear], QuantizedLinear | None]) -> None:
    def round_trip(linear: nn.Linear, weight: Tensor) -> Tensor:
        layer: Any = empty(linear)
        if layer is None:  # It stays in float.
            return weight
        rounded: Tensor = layer.round_trip(weight)
        return rounded

    smoothing.smooth(block, lambda group, inputs: smoothing.awq_scale(group, inputs, round_trip))


def _smoothquant(block: CalibratedBlock, empty: Callable[[nn.Linear], QuantizedLinear | None]) -> None:
    smoothing.smooth(block, smoothing.smoothquant_scale)


CALIBRATIONS = {
    "nearest": Calibration(),
    "gptq": Calibration(encode=gptq),
    "awq": Calibration(smooth=_awq),
    "smoothquant": Calibration(smooth=_smoothquant),
}


def _encoded(
    encode: Callable[[Any, Tensor, LayerInputs], dict[str, Tensor]],
    inputs: LayerInputs,
    layer: QuantizedLinear,
    weight: Tensor,
) -> dict[str, Tensor]:
    return encode(layer, weight, inputs)


@torch.no_grad()
def _calibrated(
    model: Model,
    names: Sequence[str],
    quantized: type[QuantizedLinear],
    options: dict[str, Any],
    calibration: Calibration,
    batches: Sequence[Inputs],
) -> None:
    """Quantizes the named layers block by block."""

    def empty(linear: nn.Linear) -> QuantizedLinear | None:
        if not quantized.supports(linear, **options):
            return None
        return quantized.empty_like(linear, **options)

    chosen = set(names)
    for block in calibrated_blocks(model, batches):
        layers = {name: module for name, module in block.layers.items() if name in chosen}
        if calibration.smooth is not None:
            calibration.smooth(block, empty)
        for name, linear in layers.items():
            encode = None
            if calibration.encode is not None:
                encode = partial(_encoded, calibration.encode, block.inputs[name])
            layer = quantized.from_linear(linear, encode=encode, **options)
            replace_module(model, name, layer)


def dequantize(model: nn.Module) -> list[str]:
    """Replaces quantized layers by float32 linear layers, in place; returns their paths."""
    quantized = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    for name, module in quantized:
        replace_module(model, name, module.dequantize())
    return [name for name, _ in quantized]


def loading_hook(method: str | None) -> Callable[[Model, dict[str, Any]], None]:
    """The `prepare` hook of `model_folder.load`, which puts quantized layers into the model before it is filled.

    A folder that is quantized already gets its own layers, whatever `method` is. For a float folder, the layers of
    `method` quantize one weight after the other as it is read; call `finish_loading` afterwards. Raises InputError for
    an unknown method.
    """
    quantized = None if method is None else layer_class(method)

    def prepare(model: Model, config: dict[str, Any]) -> None:

        files.replace_layers(model, config)
        if quantized is None or config.get("quantization_config"):
            return
        names, options = _select_layers(model, quantized, {})
        for name in names:
            layer = quantized.empty_like(model.get_submodule(name), **options)
            layer.quantize_on_load = True
            replace_module(model, name, layer)

    return prepare


def finish_loading(model: Model) -> Model:
    """Marks the quantized layers as filled, so that the model can be saved; returns the model."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.quantize_on_load = False
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and persistent buffers; tied ones count once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensors.values())


def weight_count(model: nn.Module) -> int:
    """Parameters of a model, those of quantized matrices included, whatever bits hold them; tied ones count once."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    return sum(each.numel() for each in model.parameters()) + sum(
        each.in_features * each.out_features for each in layers
    )
