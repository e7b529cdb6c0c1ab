"""The file layout of int8 and int4 layers: compressed-tensors' `pack-quantized`, which transformers and vLLM read.

It stores four 8-bit or eight 4-bit weights in an int32, the lowest bits first, each with an offset of 128 or 8 added,
and a scale for each output channel or group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.stack import Model

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
INTEGER_FORMAT = "int-quantized"
FLOAT_FORMAT = "float-quantized"
OFFSET = 128
SHARED = {"type": "int", "symmetric": True, "dynamic": False}
WEIGHTS: dict[int, dict[str, Any]] = {
    8: {"num_bits": 8, **SHARED, "strategy": "channel", "group_size": None},
    4: {"num_bits": 4, **SHARED, "strategy": "group", "actorder": None},
}
"""The `weights` entry of a `quantization_config`, by bits; 4-bit weights have a group size too."""
ACTIVATIONS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
"""The `input_activations` entry of weights and activations of 8 bits."""
FLOAT_WEIGHTS: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False,
                                 "strategy": "channel", "group_size": None}  # fmt: skip
"""The `weights` entry of FP8."""


@dataclass(frozen=True)
class PackedOperation:
    """In the files: `weight_packed` (out, in / 4 or 8) int32, `weight_scale` (out, groups), `weight_shape`."""

    theirs: str
    ours: str
    columns: int
    bits: int

    @property
    def sources(self) -> list[str]:
        """Names in the files."""
        return [f"{self.theirs}.weight_packed", f"{self.theirs}.weight_scale", f"{self.theirs}.weight_shape"]

    @property
    def targets(self) -> list[str]:
        """Names in the model."""
        return [f"{self.ours}.weight", f"{self.ours}.scale"]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's tensors; `get` returns a tensor of the files by name."""
        words, scale, shape = (get(name) for name in self.sources)
        eight = self.bits == 8
        yield f"{self.ours}.weight", unpack(words, int(shape[1])) if eight else words.view(torch.uint8)
        yield f"{self.ours}.scale", scale.reshape(-1) if eight else scale

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the files; `get` returns a tensor of the model by name."""
        weight, scale = (get(name) for name in self.targets)
        # Bytes of two 4-bit weights, the first in the lower half, already have the layout of the int32 words.
        words = pack(weight) if self.bits == 8 else weight.contiguous().view(torch.int32)
        shape = torch.tensor([len(weight), self.columns])
        yield from zip(self.sources, (words, scale.reshape(len(weight), -1), shape), strict=True)


@dataclass(frozen=True)
class PlainOperation:
    """In the files: `weight` (out, in) in int8 or float8, `weight_scale` (out, 1)."""

    theirs: str
    ours: str

    @property
    def sources(self) -> list[str]:
        """Names in the files."""
        return [f"{self.theirs}.weight", f"{self.theirs}.weight_scale"]

    @property
    def targets(self) -> list[str]:
        """Names in the model."""
        return [f"{self.ours}.weight", f"{self.ours}.scale"]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's tensors; `get` returns a tensor of the files by name."""
        weight, scale = (get(name) for name in self.sources)
        yield self.targets[0], weight
        yield self.targets[1], scale.reshape(-1)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the files; `get` returns a tensor of the model by name."""
        weight, scale = (get(name) for name in self.targets)
        yield self.sources[0], weight
        yield self.sources[1], scale.reshape(-1, 1)


def integer_operation(operation: Any) -> PlainOperation:
    """The weight operation of a layer whose codes are stored as they are. Raises InputError as `plain_paths` does."""
    return PlainOperation(*plain_paths(operation, METHOD))


def packed_operation(operation: Any, bits: int, in_features: int) -> PackedOperation:
    """The weight operation of an int8 or int4 layer. Raises InputError as `plain_paths` does."""
    theirs, ours = plain_paths(operation, METHOD)
    return PackedOperation(theirs, ours, in_features, bits)


def plain_paths(operation: Any, file_format: str) -> tuple[str, str]:
    """The paths, in the files and in the model, of a layer that the files store as one plain linear layer.

    Raises InputError for any other layer: quantized folders cannot store it.
    """
    if not isinstance(operation, Rename) or operation.transpose:
        raise InputError(
            f"{operation.theirs}: this family fuses or transposes it in its files, and {file_format}, the format of "
            "quantized model folders, has no place for that. Quantize a model of another family, such as llama, or "
            "keep the quantized model in memory."
        )
    return operation.theirs.removesuffix(".weight"), operation.ours.removesuffix(".weight")


def pack(weight: Tensor) -> Tensor:
    """int8 (out, in) as int32 (out, ceil(in / 4)): four weights a word, offset by 128, lowest byte first."""
    values = (weight.to(torch.int16) + OFFSET).to(torch.uint8)
    words = nn.functional.pad(values, (0, -weight.shape[1] % 4)).view(weight.shape[0], -1, 4).to(torch.int64)
    shifts = torch.tensor([0, 8, 16, 24])
    unsigned = (words << shifts).sum(dim=-1)
    return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).to(torch.int32)


def unpack(words: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`: int32 (out, ceil(columns / 4)) as int8 (out, columns)."""
    values = (words.to(torch.int64)[..., None] >> torch.tensor([0, 8, 16, 24])) & 0xFF
    return (values.flatten(1)[:, :columns] - OFFSET).to(torch.int8)


def quantization_config(
    model: Model, weights: dict[str, Any], *, format: str = FORMAT, activations: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The `quantization_config` of a model's config.json, with the format of its `weights` and activations."""
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
    }
    return {
        "quant_method": METHOD,
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": float_layers(model),
    }


def float_layers(model: Model) -> list[str]:
    """The paths in the family's files of the linear layers that are not quantized, sorted."""
    paths = paths_in_files(model)
    return sorted(paths.get(name, name) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def paths_in_files(model: Model) -> dict[str, str]:
    """Maps the path of each layer in the model to its path in the family's files."""
    operations = get_family(model.config.family).weights(model.config)
    return {
        operation.ours.removesuffix(".weight"): operation.theirs.removesuffix(".weight")
        for operation in operations
        if isinstance(operation, Rename) and operation.theirs.endswith(".weight")
    }
