"""MXFP4 weights: 4-bit floats in blocks of 32 that share a power of two, as GPT-OSS's files store its experts.

OCP Microscaling Formats 1.0 (2023), Rouhani et al. 2023 (arXiv 2310.10537). A value is E2M1: one of 0, 0.5, 1, 1.5, 2,
3, 4, 6 with a sign; a scale is a byte s for 2^(s - 127). Both are kept as they are in the files, so that a folder that
is read and written has the same bytes, and products are computed from the dequantized weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.compression.layer import QuantizedLinear, check_finite, dequantize_by_lookup, matmul_in_strips
from quatrain.core.errors import InputError
from quatrain.models.families.weights import Stacked

METHOD = "mxfp4"
"""The `quant_method` of a config.json."""

SKIP_KEY = "modules_to_not_convert"
BLOCK = 32
"""Weights that share a scale."""

POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of the codes 0 to 7; codes 8 to 15 are the same with a minus sign."""

BIAS = 127
"""Subtracted from a scale's byte to give its exponent."""

FLOAT_PARTS = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
"""What OpenAI's config.json names as not quantized."""


@cache
def _pairs() -> Tensor:
    """The two float32 values (256, 2) of each byte, the lower four bits first."""
    values = torch.tensor([*POSITIVE, *(-value for value in POSITIVE)])
    codes = torch.arange(256)
    with torch.inference_mode(False):
        return torch.stack((values[codes & 15], values[codes >> 4]), dim=-1)


class MXFP4Linear(QuantizedLinear):
    """y = x W^T + bias; `blocks` (out_features, in_features / 32, 16) hold two weights a byte, `scales` the exponents.

    Raises InputError for in_features that 32 does not divide.
    """

    method: ClassVar[str] = METHOD
    fixed_dtype: ClassVar[tuple[str, ...]] = ("blocks", "scales")
    blocks: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__(in_features, out_features, bias, device)
        if in_features % BLOCK:
            raise InputError(f"mxfp4: {in_features} inputs; blocks of {BLOCK} weights must divide them")
        shape = out_features, in_features // BLOCK
        self.register_buffer("blocks", torch.zeros(*shape, BLOCK // 2, dtype=torch.uint8, device=device))
        self.register_buffer("scales", torch.full(shape, BIAS, dtype=torch.uint8, device=device))

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        weight = weight.float()
        check_finite(weight)
        grouped = weight.view(self.out_features, -1, BLOCK)
        # The largest power of two of a block becomes that of the largest value, 4; what is above 6 is rounded to 6.
        exponent = torch.frexp(grouped.abs().amax(-1)).exponent - 3
        scales = (exponent + BIAS).clamp(0, 254)
        scaled = torch.ldexp(grouped, (BIAS - scales)[..., None])
        codes = (scaled.abs()[..., None] - torch.tensor(POSITIVE, device=weight.device)).abs().argmin(-1)
        codes = codes + 8 * (scaled < 0)
        blocks = codes[..., ::2] + 16 * codes[..., 1::2]
        return {"blocks": blocks.to(torch.uint8), "scales": scales.to(torch.uint8)}

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rows(0, self.out_features, dtype)

    def _rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        blocks, scales = self.blocks[start:stop], self.scales[start:stop]
        exponents = scales.flatten().int() - BIAS
        factors = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
        pairs = _pairs().to(blocks.device)
        count = (stop - start) * self.in_features
        return dequantize_by_lookup(blocks, pairs, factors, BLOCK, count, dtype).view(-1, self.in_features)

    def matmul(self, x: Tensor) -> Tensor:
        return matmul_in_strips(x, self.out_features, lambda start, stop: self._rows(start, stop, x.dtype))

    def folder_operation(self, operation: Any) -> Any:
        if not isinstance(operation, Stacked):
            raise InputError(f"{', '.join(operation.sources)}: mxfp4 files hold the experts of a layer as one tensor")
        return StackedBlocks(operation)

    def quantization_config(self, model: Any) -> dict[str, Any]:
        return {"quant_method": METHOD, SKIP_KEY: FLOAT_PARTS}


@dataclass(frozen=True)
class StackedBlocks:
    """The blocks and scales of all experts of a layer: one tensor each in the files, two buffers of each layer here."""

    operation: Stacked

    @property
    def sources(self) -> list[str]:
        """Names in the files."""
        return [f"{self.operation.theirs}_{part}" for part in ("blocks", "scales")]

    @property
    def targets(self) -> list[str]:
        """Names in the model."""
        return [
            f"{name.removesuffix('.weight')}.{part}" for part in ("blocks", "scales") for name in self.operation.targets
        ]

    def _part(self, part: str) -> Stacked:
        """The operation of blocks or of scales: rows are outputs, so that nothing is transposed."""
        ours = tuple(f"{name.removesuffix('.weight')}.{part}" for name in self.operation.ours)
        theirs = f"{self.operation.theirs}_{part}"
        return Stacked(theirs, ours, False, self.operation.interleaved, self.operation.experts)

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's tensors; `get` returns a tensor of the files by name."""
        for part in ("blocks", "scales"):
            yield from self._part(part).read(get)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the files; `get` returns one of the model by name."""
        for part in ("blocks", "scales"):
            yield from self._part(part).write(get)


def is_quantized(name: str, module: nn.Module) -> bool:
    """Whether files in MXFP4 hold this module quantized: a projection of an expert."""
    return isinstance(module, nn.Linear) and ".experts." in name
