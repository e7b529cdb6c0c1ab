"""LoRA adapters as GGUF files, in the form that llama.cpp loads over a model: `NAME.lora_a` and `NAME.lora_b`.

For a tensor NAME of the model's file, A is (rank, inputs) and B (outputs, rank) with its rows in that file's order.
One `adapter.lora.alpha` serves all: llama.cpp scales each product by alpha / rank. Where the file has one tensor
for several of our layers (query, key and value of GPT-2), their A are stacked as rows and their B as columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.adapters.layer import AdapterLayer, adapter_layers
from quatrain.adapters.lora import LoRALinear
from quatrain.core.errors import InputError
from quatrain.core.gguf_file import SUFFIX, GgufFile
from quatrain.models.gguf.architecture import Architecture
from quatrain.models.gguf.architectures import architecture_of
from quatrain.models.gguf.reader import GgufTensors
from quatrain.models.modules import is_linear
from quatrain.models.transformer.stack import Model

ALPHA = "adapter.lora.alpha"
A, B = ".lora_a", ".lora_b"


def is_gguf_adapter(path: str | Path) -> bool:
    """Whether a path is a GGUF file with an adapter."""
    path = Path(path)
    return path.suffix == SUFFIX and path.is_file() and GgufFile(path).metadata.get("general.type") == "adapter"


def problems(model: Model) -> Iterator[str]:
    """Why the adapter of a model has no place in such a file: llama.cpp computes LoRA over the layers of blocks."""
    layers = dict(adapter_layers(model))
    if not layers:
        yield "the model has no adapter over its linear layers"
    for method in sorted({layer.method for layer in layers.values() if type(layer) is not LoRALinear}):
        yield f"{method}: llama.cpp adds LoRA alone; merge it instead: --to gguf"
    if model.soft_prompt is not None:
        yield "a soft prompt: llama.cpp adds LoRA alone"
    if model.trainable_tokens is not None:
        yield "trained rows of the embedding: llama.cpp adds LoRA alone; merge it instead: --to gguf"


def metadata_of(model: Model, name: str) -> dict[str, Any]:
    """The metadata of the file."""
    ranks = [layer.rank for _, layer in _loras(model)]
    return {
        "general.type": "adapter",
        "general.architecture": architecture_of(model.config.family).name,
        "general.name": name,
        "general.quantization_version": 2,
        "adapter.type": "lora",
        ALPHA: float(max(ranks)),
    }


def tensors_of(model: Model) -> dict[str, Tensor]:
    """The tensors of the file by name, float32. Raises InputError for layers that llama.cpp's files do not have."""
    loras = dict(_loras(model))
    alpha = float(max(layer.rank for layer in loras.values()))
    found: dict[str, Tensor] = {}
    covered: set[str] = set()
    for operation in architecture_of(model.config.family).weights(model.config):
        paths = [target.removesuffix(".weight") for target in operation.targets]
        if not any(path in loras for path in paths) or not operation.targets[0].endswith(".weight"):
            continue
        own = {path: loras[path] for path in paths if path in loras}
        shared = len(own) == len(paths) and len({layer.rank for layer in own.values()}) == 1
        first = next(iter(own.values()))
        shared = shared and all(torch.equal(layer.lora_A, first.lora_A) for layer in own.values())
        rank = first.rank if shared else sum(layer.rank for layer in own.values())
        parts: dict[str, Tensor] = {}
        start = 0
        for path in paths:
            base: Any = model.get_submodule(path)
            part = parts[f"{path}.weight"] = torch.zeros(base.out_features, rank)
            if path in own:
                layer = own[path]
                # llama.cpp multiplies by alpha / rank of the file's tensor.
                part[:, start : start + layer.rank] = layer.lora_B.detach().float() * (layer.scaling * rank / alpha)
                start += 0 if shared else layer.rank
        for name, tensor in operation.write(parts.__getitem__):
            rows = [first.lora_A] if shared else [layer.lora_A for layer in own.values()]
            found[f"{name}{A}"] = torch.cat([each.detach().float() for each in rows])
            found[f"{name}{B}"] = tensor.contiguous()
        covered |= set(own)
    if lost := sorted(set(loras) - covered):
        raise InputError("llama.cpp has no place for the adapters of these layers:", lost[:10])
    return found


def _loras(model: Model) -> Iterator[tuple[str, LoRALinear]]:
    for name, layer in adapter_layers(model):
        if isinstance(layer, LoRALinear):
            yield name, layer


def read_layers(model: Model, path: str | Path) -> dict[str, AdapterLayer]:
    """The LoRA layers of a GGUF adapter by the paths of the model's layers, which they wrap; the model does not change.

    Raises InputError naming everything that does not fit.
    """
    architecture = architecture_of(model.config.family)
    with GgufTensors(path) as file:
        _check(path, file.metadata, architecture, model)
        alpha, tensors = float(file.metadata[ALPHA]), {name: file.read(name, torch.float32) for name in file.names}
    layers: dict[str, AdapterLayer] = {}
    problems: list[str] = []
    known = {source: each for each in architecture.weights(model.config) for source in each.sources}
    for name in sorted({name.removesuffix(A).removesuffix(B) for name in tensors}):
        if name not in known or f"{name}{A}" not in tensors or f"{name}{B}" not in tensors:
            problems.append(f"{name}: " + ("lora_a or lora_b is missing" if name in known else "no layer of the model"))
            continue
        thin, wide = tensors[f"{name}{A}"], tensors[f"{name}{B}"]
        paths = [target.removesuffix(".weight") for target in known[name].targets]
        bases: list[Any] = [model.get_submodule(each) for each in paths]
        shape = sum(base.out_features for base in bases if is_linear(base)), len(thin)
        if not all(map(is_linear, bases)) or tuple(wide.shape) != shape or thin.shape[-1] != bases[0].in_features:
            problems.append(f"{name}: lora_a {list(thin.shape)} and lora_b {list(wide.shape)} do not fit the layer")
            continue
        for target, part in known[name].read({name: wide}.__getitem__):
            place = target.removesuffix(".weight")
            layer = LoRALinear(model.get_submodule(place), len(thin), alpha)
            with torch.no_grad():
                layer.lora_A.copy_(thin)
                layer.lora_B.copy_(part)
            layers[place] = layer.train(model.training)
    if problems or not layers:
        raise InputError(f"{path}: the adapter does not fit the model:", problems or ["it contains no tensor"])
    return layers


def _check(path: str | Path, metadata: Mapping[str, Any], architecture: Architecture, model: Model) -> None:
    """Raises InputError for a file that is no LoRA of such a model."""
    expected: Mapping[str, Any] = {
        "general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture.name
    }  # fmt: skip
    wrong = [
        f"{key}: {metadata.get(key)!r}; must be {value!r}"
        for key, value in expected.items()
        if metadata.get(key) != value
    ]
    if not isinstance(metadata.get(ALPHA), float):
        wrong.append(f"{ALPHA}: missing")
    if wrong:
        raise InputError(f"{path}: is no LoRA adapter for this {model.config.family} model:", wrong)
