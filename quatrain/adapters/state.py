"""What an adapted model has learned, as a checkpoint keeps it: its trained tensors by our names, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

FILE = "adapter_state.safetensors"


def trained_tensors(model: Model) -> dict[str, Tensor]:
    """Every tensor that learns, by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(model: Model, folder: str | Path) -> None:
    """Writes what has been learned. Raises QuatrainError on a full disk."""
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_tensors(model).items()}
    with atomic_write(Path(folder) / FILE, "wb") as file:
        file.write(save(tensors, {"format": "pt"}))


@torch.no_grad()
def load(model: Model, folder: str | Path) -> None:
    """Puts back what `save` wrote. Raises InputError where names or shapes differ; the model is then as before."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing. It is what an adapted model has learned.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}).") from error
    ours = trained_tensors(model)
    problems = [f"{name}: missing" for name in ours if name not in tensors]
    problems += [f"{name}: unexpected" for name in tensors if name not in ours]
    problems += [
        f"{name}: has shape {tuple(tensors[name].shape)}, the model {tuple(tensor.shape)}"
        for name, tensor in ours.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise InputError(f"{path}: does not fit what learns in the model:", problems)
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])
