"""One way to read a model folder, whatever it holds: plain weights, int8 weights, or an adapter over a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quatrain.generation.settings import read_file
from quatrain.models import hub
from quatrain.models.stack import Model

ADAPTER_CONFIG = "adapter_config.json"


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Model, Any]:
    """The model of a folder and its tokenizer (None where the folder holds none).

    An adapter folder names its base model; a relative name is looked up beside the adapter first. Raises InputError.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        from quatrain.adaptation.peft_files import base_folder, load_adapter

        base = base_folder(folder)
        model, tokenizer = load_model(base, dtype=dtype, device=device)
        load_adapter(model, folder)
        return model.eval(), load_tokenizer(folder) or tokenizer
    return load_weights(folder, dtype=dtype, device=device), load_tokenizer(folder)


def load_weights(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Model:
    """The model of a folder of plain or int8 weights, in evaluation mode."""
    from quatrain.compression.files import prepare

    return hub.load(folder, dtype=dtype, device=device, prepare=prepare)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model folder, or None where it has no tokenizer file."""
    if not any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        return None
    from quatrain.text.tokenizer import Tokenizer

    return Tokenizer.load(folder)


def end_ids(folder: str | Path) -> list[int]:
    """The ids that end a completion by the folder's `generation_config.json`, if it has one."""
    found = (read_file(folder) or {}).get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]
