"""The importance matrix: how large the inputs of every linear layer are on a text, column by column.

The error of a rounded weight reaches the output multiplied by its input, so columns with large inputs deserve smaller
errors. llama.cpp's `imatrix` weighs the squared error of a column with the mean square of its input; so does this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.data.documents import read_documents
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

TOKENS = 16_384
"""The most tokens of a calibration text that are read."""
LENGTH = 512
"""The most tokens of one text in the model."""


def importance(
    model: Model, tokenizer: Tokenizer | None, text: Path
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The mean square of each input column of every linear layer, by the path of the layer: (in_features,), float32.

    Raises InputError without a tokenizer, and for a text of fewer than two tokens.
    """
    rows = _rows(model, tokenizer, text)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            seen = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + (seen * seen).sum(0)
            counts[name] = counts.get(name, 0) + len(seen)

        return hook

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(watch(name)) for name, module in layers]
    try:
        with torch.inference_mode():
            for row in rows:
                inputs = torch.tensor([row])
                if model.config.architecture == "encoder-decoder":
                    model(inputs, decoder_input_ids=inputs)
                else:
                    model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).numpy().astype(np.float32) for name, total in sums.items()}


def _rows(model: Model, tokenizer: Tokenizer | None, text: Path) -> list[list[int]]:
    if tokenizer is None:
        raise InputError(f"--calibration {text}: the model has no tokenizer to read it; leave it out.")
    length = min(LENGTH, model.config.context_length)
    rows: list[list[int]] = []
    left = TOKENS
    for document in read_documents(str(text)):
        ids = tokenizer.encode(document[: 20 * left])[:left]
        rows += [ids[start : start + length] for start in range(0, len(ids), length)]
        left -= len(ids)
        if left <= 0:
            break
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise InputError(f"--calibration {text}: has fewer than two tokens; name a text of some pages.")
    return rows
