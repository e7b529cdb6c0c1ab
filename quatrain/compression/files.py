"""How quantized linear layers stand in a model folder: the layout of compressed-tensors, which transformers reads."""

from __future__ import annotations

from typing import Any

from quatrain.errors import InputError
from quatrain.models.stack import Model


def prepare(model: Model, config: dict[str, Any]) -> None:
    """Puts the layers that a folder's `quantization_config` asks for into a model about to be filled.

    Raises InputError for a quantization that is not known.
    """
    if config.get("quantization_config"):
        raise InputError("quantization_config: a quantization that Quatrain does not know.")
