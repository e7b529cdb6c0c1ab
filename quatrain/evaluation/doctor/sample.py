"""A large model, sampled: a model folder with the first layers of another, so that copies of it fit in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.loading.model import ResolvedModel
from quatrain.models.families import family_of
from quatrain.models.hub import TOKENIZER
from quatrain.models.io.model_folder import GENERATION_CONFIG, config_of, read_config
from quatrain.models.io.safetensors_reader import WEIGHTS, SafetensorsReader
from quatrain.models.io.safetensors_writer import write_safetensors
from quatrain.models.io.weights import TensorNames
from quatrain.models.transformer.config import ModelConfig
from quatrain.planning.counts import parameters
from quatrain.planning.machine import available_memory

SHARE = 8
"""The checks hold the model, a copy in float64, gradients and a reference: so many times its weights."""


def cut_model(
    model: ResolvedModel, folder: Path, memory: int | None, device: torch.device
) -> tuple[ResolvedModel, str | None]:
    """The model itself if its weights in float32 take at most `memory` bytes, else its first layers in `folder`.

    Without `memory`, an eighth of the free memory of the device, and of this machine. Also returns a note about what
    was left out. Raises InputError if not even one layer fits, and for adapters and quantized models that are too
    large, of which no part can be taken.
    """
    if memory is None:
        free = [available for place in {"cpu", str(device)} if (available := available_memory(place)) is not None]
        memory = min(free) // SHARE if free else 1 << 62
    raw = read_config(model.base)
    config = config_of(raw)
    size = 4 * parameters(config)
    if size <= memory:
        return model, None
    if model.is_adapter or model.adapters or raw.get("quantization_config"):
        raise InputError(
            f"{model.folder}: {format_bytes(size)} of weights in float32, and at most {format_bytes(memory)} are "
            "allowed. An adapter or a quantized model cannot be sampled; examine its base model, or allow more with "
            "--memory."
        )
    layers = _layers_that_fit(config, memory)
    if not layers:
        raise InputError(
            f"{model.folder}: not even one layer fits into {format_bytes(memory)} of memory in float32. Allow more "
            "with --memory, or examine a smaller model of the same family."
        )
    write_first_layers(model.base, folder, layers)
    total = config.num_hidden_layers
    return ResolvedModel(folder, folder), (
        f"The whole model needs {format_bytes(size)} in float32, and {format_bytes(memory)} are allowed (--memory): "
        f"the first {layers} of its {total} layers stand for all."
    )


def _cut(config: ModelConfig, layers: int) -> ModelConfig:
    changes = {}
    if config.architecture == "encoder-decoder":
        changes["num_encoder_layers"] = min(layers, config.num_encoder_layers)
    return config.with_layers(range(layers), **changes)


def _layers_that_fit(config: ModelConfig, memory: int) -> int:
    """The most layers, by bisection; 0 if one is too many."""
    low, high = 0, config.num_hidden_layers
    while low < high:
        middle = (low + high + 1) // 2
        if 4 * parameters(_cut(config, middle)) <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def write_first_layers(source: Path, folder: Path, layers: int) -> None:
    """Writes a model folder with the first layers of the one in `source`, its embedding, head and tokenizer.

    The tensors keep their names, dtypes and values; one at a time is in memory twice.
    """
    raw = read_config(source)
    family = family_of(raw)
    config = _cut(config_of(raw), layers)
    written = family.to_hf(config)
    folder.mkdir(parents=True, exist_ok=True)
    with SafetensorsReader(source) as reader:
        names = TensorNames(family, family.heads[family.head_of(raw)], reader, strict=False)
        wanted = [name for operation in family.weights(config) for name in operation.sources]
        found = dict.fromkeys(name for each in wanted if (name := names.find(each)) is not None)
        tensors = {name: reader.read(name) for name in found}
        dtype = next(iter(tensors.values())).dtype
        with atomic_write(folder / WEIGHTS, "wb") as file:
            write_safetensors(file, tensors, {"format": "pt"})
    write_json(folder / "config.json", written | {"dtype": str(dtype).removeprefix("torch.")})
    for pattern in (*TOKENIZER, GENERATION_CONFIG):
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
