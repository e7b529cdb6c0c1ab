"""Quantization methods by name: quantizes a model in place, dequantizes it, and quantizes a folder as it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from quatrain.compression import files
from quatrain.compression.int4 import Int4Linear
from quatrain.compression.int8 import Int8Linear
from quatrain.compression.layer import QuantizedLinear
from quatrain.compression.nf4 import NF4Linear
from quatrain.core.errors import InputError
from quatrain.models.modules import is_adapter, is_in_head, replace_module
from quatrain.models.transformer.stack import Model

METHODS: dict[str, type[QuantizedLinear]] = {layer.method: layer for layer in (Int8Linear, Int4Linear, NF4Linear)}


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


def quantize(model: Model, method: str, **options: Any) -> list[str]:
    """Quantizes the model's linear layers, except the head, in place; returns their paths.

    Options: `double` (double quantization) for nf4; `group` for int4, which skips layers whose inputs it does not
    divide. Raises InputError for unmerged adapters, and if there is nothing to quantize.
    """
    quantized = layer_class(method)
    if adapted := [name for name, module in model.named_modules() if is_adapter(module)]:
        raise InputError("Merge the adapters before quantizing the model:", adapted[:5])
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("No linear layer is left to quantize: the model is quantized already.")
    names, options = _select_layers(model, quantized, options)
    for name in names:
        replace_module(model, name, quantized.from_linear(model.get_submodule(name), **options))
    return names


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
