"""The trained tensors of a model with adapters in a checkpoint, by our names, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

FILE = "adapter_state.safetensors"


def trained_tensors(model: Model) -> dict[str, Tensor]:
    """Every trainable tensor by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(model: Model, folder: str | Path) -> None:
    """Writes the trained tensors. Raises QuatrainError on a full disk."""
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_tensors(model).items()}
    with atomic_write(Path(folder) / FILE, "wb") as file:
        file.write(save(tensors, {"format": "pt"}))


@torch.no_grad()
def load(model: Model, folder: str | Path) -> None:
    """Restores what `save` wrote. Raises InputError if names or shapes differ; the model is then unchanged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; it holds the trained tensors of the adapter.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: incomplete or invalid safetensors file ({error}).") from error
    ours = trained_tensors(model)
    problems = [f"{name}: missing" for name in ours if name not in tensors]
    problems += [f"{name}: unexpected" for name in tensors if name not in ours]
    problems += [
        f"{name}: has shape {tuple(tensors[name].shape)}, the model {tuple(tensor.shape)}"
        for name, tensor in ours.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise InputError(f"{path}: does not match the model's trainable tensors:", problems)
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])
