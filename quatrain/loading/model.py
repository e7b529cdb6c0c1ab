"""One way to read a model folder, whatever it holds: plain weights, quantized ones, or an adapter over a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quatrain.models.hub import ADAPTER_CONFIG, ADAPTERS, BASE, resolve
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer


def load_model(
    model: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> tuple[Model, Any]:
    """The model of a folder or hub id, and its tokenizer (None where it has none).

    An adapter folder names its base model; a relative name is looked up beside the adapter first. One with several
    holds their base, and `model.adapter_set` chooses. `quantize` = "int8", "int4" or "nf4" reads the base's linear
    layers straight into that. Raises InputError.
    """
    folder = resolve(model)
    if (folder / ADAPTERS).is_dir() and not (folder / "config.json").is_file():
        from quatrain.adapters.adapter_set import AdapterSet

        network = load_weights(folder / BASE, dtype=dtype, device=device, quantize=quantize)
        each = {place.name: place for place in sorted((folder / ADAPTERS).iterdir()) if place.is_dir()}
        AdapterSet.load(network, each)
        return network.eval(), Tokenizer.find(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        from quatrain.adapters.peft_config import base_folder
        from quatrain.adapters.peft_files import head_of, load_adapter

        base = base_folder(folder)
        network = load_weights(base, dtype=dtype, device=device, quantize=quantize, **head_of(folder))
        load_adapter(network, folder)
        return network.eval(), Tokenizer.find(folder) or Tokenizer.find(base)
    return load_weights(folder, dtype=dtype, device=device, quantize=quantize), Tokenizer.find(folder)


def load_weights(
    model: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    **head: Any,
) -> Model:
    """The model of a folder or hub id, in evaluation mode.

    A folder of adapters gives the model with them. `quantize` as for `load_model`; `head` as `hub.load` takes it.
    """
    from quatrain.compression import methods

    folder = resolve(model)
    if not (folder / "config.json").is_file() and any((folder / name).exists() for name in (ADAPTER_CONFIG, ADAPTERS)):
        return load_model(folder, dtype=dtype, device=device, quantize=quantize)[0]
    prepare = methods.preparation(quantize)
    bits = 4 if quantize else None
    return methods.filled(model_folder.load(model, dtype=dtype, device=device, prepare=prepare, bits=bits, **head))
