"""The file layouts of GPTQ (AutoGPTQ, GPTQModel) and AWQ (AutoAWQ's GEMM) for int4 layers, which vLLM reads.

Both store codes 0 to 15 with a zero point, transposed, eight to an int32. Quatrain writes and reads the symmetric form,
in which every zero point is 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.compression.packing import float_layers, plain_paths
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.stack import Model

ZERO = 8
"""The zero point of symmetric codes."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns the nibbles of an AWQ word hold, the lowest first."""
PLAIN_ORDER = tuple(range(8))


@dataclass(frozen=True)
class Layout:
    """What differs between the two. along_inputs: whether a word holds eight inputs, else eight outputs."""

    method: str
    along_inputs: bool
    order: tuple[int, ...]
    zero: int
    has_index: bool
    config: dict[str, Any]


LAYOUTS = {
    "gptq": Layout("gptq", True, PLAIN_ORDER, ZERO - 1, True,
                   {"sym": True, "desc_act": False, "checkpoint_format": "gptq"}),
    "awq": Layout("awq", False, AWQ_ORDER, ZERO, False, {"zero_point": True, "version": "gemm"}),
}  # fmt: skip
"""The layouts by their `quant_method`; `zero` is how the zero point 8 is stored, `config` their fixed entries."""


def pack_words(codes: Tensor, order: tuple[int, ...]) -> Tensor:
    """Codes 0 to 15 (R, C) as int32 (R, C / 8); nibble i of a word holds column `order[i]` of its eight."""
    groups = codes.to(torch.int64).view(len(codes), -1, 8)[:, :, list(order)]
    words = (groups << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_words(words: Tensor, order: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_words`: int32 (R, W) as uint8 (R, 8 W)."""
    nibbles = (words.to(torch.int64)[..., None] >> (4 * torch.arange(8))) & 15
    codes = torch.empty_like(nibbles)
    codes[..., list(order)] = nibbles
    return codes.flatten(1).to(torch.uint8)


@dataclass(frozen=True)
class TransposedOperation:
    """The weight operation of one layer in one of the layouts."""

    theirs: str
    ours: str
    layout: Layout
    group: int

    @property
    def sources(self) -> list[str]:
        """Names in the files."""
        ends = ["qweight", "qzeros", "scales", *(["g_idx"] if self.layout.has_index else [])]
        return [f"{self.theirs}.{end}" for end in ends]

    @property
    def targets(self) -> list[str]:
        """Names in the model."""
        return [f"{self.ours}.weight", f"{self.ours}.scale"]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's tensors. Raises InputError for zero points other than 8, and for reordered inputs."""
        words, zeros, scales = (get(name) for name in self.sources[:3])
        layout = self.layout
        if not (unpack_words(zeros, layout.order) == layout.zero).all():
            raise InputError(
                f"{self.theirs}: its zero points differ; Quatrain reads symmetric {layout.method} weights."
            )
        if layout.has_index:
            index = get(self.sources[3])
            if not torch.equal(index.long(), torch.arange(len(index)) // self.group):
                raise InputError(f"{self.theirs}: its inputs are reordered (desc_act); Quatrain reads them in order.")
        codes = unpack_words(words.t() if layout.along_inputs else words, layout.order)
        codes = codes if layout.along_inputs else codes.t()
        pairs = codes.contiguous().view(torch.int16)
        yield self.targets[0], (pairs | (pairs >> 4)).to(torch.uint8)
        yield self.targets[1], scales.t().contiguous()

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the files. Raises InputError for scales that float16 cannot hold."""
        weight, scale = (get(name) for name in self.targets)
        layout = self.layout
        codes = torch.stack((weight & 15, weight >> 4), dim=-1).flatten(1)  # (out, in)
        scales = scale.to(torch.float16)
        if not torch.equal(scales.float(), scale.float()):
            raise InputError(f"{self.theirs}: a scale is too small or large for float16; take compressed-tensors.")
        words = pack_words(codes, layout.order).t() if layout.along_inputs else pack_words(codes.t(), layout.order)
        zeros = torch.full((scale.shape[1], len(scale)), layout.zero)
        yield self.sources[0], words.contiguous()
        yield self.sources[1], pack_words(zeros, layout.order)
        yield self.sources[2], scales.t().contiguous()
        if layout.has_index:
            yield self.sources[3], (torch.arange(codes.shape[1]) // self.group).to(torch.int32)


def transposed_operation(operation: Any, layout: str, group: int) -> TransposedOperation:
    """The weight operation of an int4 layer. Raises InputError as `plain_paths` does."""
    theirs, ours = plain_paths(operation, layout)
    return TransposedOperation(theirs, ours, LAYOUTS[layout], group)


def layout_config(model: Model, layout: str, group: int) -> dict[str, Any]:
    """The `quantization_config` of a model's config.json."""
    fixed = LAYOUTS[layout].config
    return {
        "quant_method": layout,
        "bits": 4,
        "group_size": group,
        **fixed,
        "modules_to_not_convert": float_layers(model),
    }


def layout_problems(quantization: dict[str, Any]) -> list[str]:
    """The entries of a `quantization_config` of a layout that Quatrain does not read."""
    expected = {"bits": 4, **LAYOUTS[quantization["quant_method"]].config}
    problems = [
        f"{key}: {format_value(quantization.get(key))}; Quatrain reads {format_value(value)}"
        for key, value in expected.items()
        if quantization.get(key, value) != value
    ]
    size = quantization.get("group_size")
    if not isinstance(size, int) or size not in (32, 64, 128):
        problems.append(f"group_size: {format_value(size)}; Quatrain reads 32, 64, 128")
    return problems
