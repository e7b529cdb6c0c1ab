"""A GGUF file as a model folder: its config.json, and its tensors by name, dequantized as they are read.

The reader has the interface of `SafetensorsReader`, so the one code that loads weights reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.gguf_file import GgufFile, TensorEntry
from quatrain.core.libraries import require
from quatrain.models.families import get_family
from quatrain.models.gguf.architectures import architecture_named
from quatrain.models.transformer.config import ModelConfig

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""The formats without blocks, and their dtypes."""
NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
ROLES = {
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id", "eot_token_id", "eom_token_id"),
    "pad_token_id": ("padding_token_id",),
}
"""Roles of tokens in config.json, and llama.cpp's keys; several stop tokens become a list."""


class GgufTensors:
    """The tensors of a GGUF file by llama.cpp's names; those in blocks are dequantized to float32.

    Use it in a `with` statement. Raises InputError for a format that cannot be decoded.
    """

    def __init__(self, path: str | Path):
        self._file = GgufFile(path)
        self.folder = self._file.path
        self._entries: dict[str, TensorEntry] = self._file.tensors

    def __enter__(self) -> GgufTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forgets the file, which stays mapped as long as a view of it exists."""
        self._entries = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the file."""
        return self._file.metadata

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in the order of the file."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in the file, in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError for an unknown name."""
        return self._entry(name).shape

    def format(self, name: str) -> str:
        """ggml's format of a tensor, such as Q8_0. Raises InputError for an unknown name."""
        return self._entry(name).format

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of `view`. Raises InputError for an unknown name."""
        return PLAIN.get(self._entry(name).format, torch.float32)

    def view(self, name: str) -> Tensor:
        """A tensor: over the mapped file if its format has no blocks, else dequantized. Do not write to it."""
        entry = self._entry(name)
        if entry.format in PLAIN:
            dtype = PLAIN[entry.format]
            count = entry.nbytes // dtype.itemsize
            flat = torch.frombuffer(self._file.mapping, dtype=dtype, offset=entry.start, count=count)
            return flat.view(entry.shape)
        return torch.from_numpy(_dequantized(self.folder, entry, self._file.data(entry))).view(entry.shape)

    view_whole = view

    def copy(self, view: Tensor, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A contiguous copy of a tensor on `device`; floating-point tensors are converted to `dtype`."""
        dtype = dtype if dtype is not None and view.is_floating_point() else view.dtype
        return torch.empty(view.shape, dtype=dtype, device=device).copy_(view)

    def read(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A copy of a tensor on `device`, in `dtype`. Raises InputError for an unknown name."""
        return self.copy(self.view(name), dtype, device)

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors have equal values."""
        return torch.equal(self.view(first).float(), self.view(second).float())

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._entries:
            raise InputError(f"{self.folder}: no tensor {name!r}.")
        return self._entries[name]


def _dequantized(path: Path, entry: TensorEntry, data: memoryview) -> Any:
    with require(f"{path}: {entry.name} is in {entry.format}; decoding it", "gguf", "export"):
        from gguf import GGMLQuantizationType, quants
    kind = GGMLQuantizationType[entry.format]
    rows = np.frombuffer(data, dtype=np.uint8).reshape(*entry.shape[:-1], -1)
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(quants.dequantize(rows, kind), dtype=np.float32)


def model_config(path: str | Path) -> ModelConfig:
    """The configuration of a GGUF file. Raises InputError for an architecture or option that is not known here."""
    with GgufTensors(path) as tensors:
        metadata = tensors.metadata
        if metadata.get("general.type", "model") != "model":
            raise InputError(f"{path}: holds {metadata['general.type']}, not a model; give its base model.")
        if metadata.get("split.count", 1) > 1:
            raise InputError(
                f"{path}: one of {metadata['split.count']} parts; join them with llama-gguf-split --merge."
            )
        more: dict[str, Any] = {name: tensors.read(name) for name in NOT_WEIGHTS if name in tensors}
        more |= _token_roles(metadata)
        shapes = {name: tensors.shape(name) for name in tensors.names}
        return architecture_named(metadata.get("general.architecture")).config(metadata, shapes, more)


def _token_roles(metadata: Mapping[str, Any]) -> dict[str, Any]:
    roles: dict[str, Any] = {}
    for ours, theirs in ROLES.items():
        ids = [metadata[f"tokenizer.ggml.{key}"] for key in theirs if f"tokenizer.ggml.{key}" in metadata]
        ids = list(dict.fromkeys(ids))
        if ids:
            roles[ours] = ids if len(ids) > 1 else ids[0]
    return roles


def config_json(path: str | Path) -> dict[str, Any]:
    """The config.json of a GGUF file, as the family writes it."""
    config = model_config(path)
    return get_family(config.family).to_hf(config) | {"dtype": "float32"}
