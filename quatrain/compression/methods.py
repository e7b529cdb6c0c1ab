"""The ways to quantize a model's linear layers, by name: in place, back again, and straight from a folder of floats."""

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

METHODS: dict[str, type[QuantizedLinear]] = {kind.method: kind for kind in (Int8Linear, Int4Linear, NF4Linear)}


def kind_of(method: str) -> type[QuantizedLinear]:
    """The layer of a method. Raises InputError for a word that names none."""
    if method not in METHODS:
        raise InputError(f"quantize: {method!r}; must be one of {', '.join(METHODS)}")
    return METHODS[method]


def _chosen(model: Model, kind: type[QuantizedLinear], wanted: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The paths of the linear layers that become one of a kind, and what these have in common.

    The head stays: its rounding reaches every prediction undamped, and a tied head is the embedding. Raises InputError
    where there are none.
    """
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and not is_in_head(name)
    }
    options = kind.options(list(linears.values()), **wanted)
    names = [name for name, module in linears.items() if kind.fits(module, **options)]
    if not names:
        asked = "".join(f", {key} = {value}" for key, value in options.items())
        raise InputError(f"No linear layer can be quantized: none is of a size that {kind.method}{asked} divides.")
    return names, options


def quantize(model: Model, method: str, **options: Any) -> list[str]:
    """Turns the model's linear layers, but the head, into those of a method, in place; returns their paths.

    Options are `double` for nf4, and `group` for int4, which leaves layers as they are whose inputs it does not divide.
    Raises InputError for unmerged adapters, and where nothing is left to quantize.
    """
    kind = kind_of(method)
    if adapted := [name for name, module in model.named_modules() if is_adapter(module)]:
        raise InputError("Merge the adapters before quantizing the model:", adapted[:5])
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("No linear layer is left to quantize: the model is quantized already.")
    names, options = _chosen(model, kind, options)
    for name in names:
        replace_module(model, name, kind.from_linear(model.get_submodule(name), **options))
    return names


def dequantize(model: nn.Module) -> list[str]:
    """Turns quantized layers back into plain ones, in place; returns their paths."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    for name, module in found:
        replace_module(model, name, module.dequantize())
    return [name for name, _ in found]


def preparation(method: str | None) -> Callable[[Model, dict[str, Any]], None]:
    """What `hub.load` is to do with a model before it is filled: put quantized layers into it.

    Those of a folder that is quantized already are as they are there. Into those of a `method` the weights of a folder
    of floats go straight, one after the other; `filled` ends it. Raises InputError for a word that names no method.
    """
    kind = None if method is None else kind_of(method)

    def prepare(model: Model, config: dict[str, Any]) -> None:
        files.prepare(model, config)
        if kind is None or config.get("quantization_config"):
            return
        names, options = _chosen(model, kind, {})
        for name in names:
            linear: Any = model.get_submodule(name)
            sizes = linear.in_features, linear.out_features, linear.bias is not None, linear.weight.device
            layer = kind(*sizes, **options)
            layer.from_float = True
            replace_module(model, name, layer)

    return prepare


def filled(model: Model) -> Model:
    """The model, its layers ready to be written, after the reading."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.from_float = False
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and persistent buffers, tied ones once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensors.values())
