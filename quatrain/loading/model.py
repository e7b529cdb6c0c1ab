"""Loads any model folder: plain weights, quantized weights, or one or several adapters over a base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quatrain.models.hub import ADAPTER_CONFIG, ADAPTERS, BASE, resolve
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class ResolvedModel:
    """The folders of a model on this disk: its own, and that of its weights, `base`.

    They are the same for a model without adapters. `is_adapter`: `folder` is the one adapter over the base. `adapters`
    are the folders of several, from which each sequence chooses.
    """

    folder: Path
    base: Path
    is_adapter: bool = False
    adapters: tuple[Path, ...] = ()

    @classmethod
    def of(cls, model: str | Path | ResolvedModel) -> ResolvedModel:
        """The folders of a model folder, a hub id (downloaded if it is not cached) or a run.

        An adapter folder names its base model; a relative name is looked up beside the adapter first.
        Raises InputError.
        """
        if isinstance(model, ResolvedModel):
            return model
        folder = resolve(model)
        if (folder / ADAPTERS).is_dir() and not (folder / "config.json").is_file():
            places = sorted(place for place in (folder / ADAPTERS).iterdir() if place.is_dir())
            return cls(folder, folder / BASE, adapters=tuple(places))
        if (folder / ADAPTER_CONFIG).is_file():
            from quatrain.adapters.peft_config import base_folder

            return cls(folder, base_folder(folder), is_adapter=True)
        return cls(folder, folder)

    def tokenizer(self, *, target: bool = False) -> Tokenizer | None:
        """The tokenizer of the folder, or of its base; None if neither has one. `target` as for `Tokenizer.load`."""
        return Tokenizer.find(self.folder, target=target) or Tokenizer.find(self.base, target=target)


def load_model(
    model: str | Path | ResolvedModel,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> tuple[Model, Any]:
    """The model of a folder, hub id or run as `load_weights` reads it, and its tokenizer (None if it has none)."""
    resolved = ResolvedModel.of(model)
    return load_weights(resolved, dtype=dtype, device=device, quantize=quantize), resolved.tokenizer()


def load_weights(
    model: str | Path | ResolvedModel,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    **head: Any,
) -> Model:
    """The model of a folder, hub id or run, in evaluation mode.

    The folder of an adapter gives its base with the adapter, which also determines the head. The folder of several
    gives their base with `model.adapter_set`, which chooses. `quantize` = "int8", "int4" or "nf4" reads the base's
    linear layers straight into that format; `head` and its options are those of `model_folder.load`. Raises InputError.
    """
    resolved = ResolvedModel.of(model)
    if resolved.is_adapter:
        from quatrain.adapters.peft_files import head_of, load_adapter

        head = head_of(resolved.folder)

    def replace_layers(network: Model, config: dict[str, Any]) -> None:
        if quantize or config.get("quantization_config"):
            from quatrain.compression.methods import loading_hook

            loading_hook(quantize)(network, config)

    bits = 4 if quantize else None
    network = model_folder.load(resolved.base, dtype=dtype, device=device, prepare=replace_layers, bits=bits, **head)
    if quantize:
        from quatrain.compression.methods import finish_loading

        finish_loading(network)
    if resolved.is_adapter:
        load_adapter(network, resolved.folder)
    elif resolved.adapters:
        from quatrain.adapters.adapter_set import AdapterSet

        AdapterSet.load(network, {place.name: place for place in resolved.adapters})
    return network.eval()
