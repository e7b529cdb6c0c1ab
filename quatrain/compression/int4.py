"""Weight-only int4 linear layers: symmetric, one scale per group of a row's weights, rounded to the nearest.

Groups as in Dettmers and Zettlemoyer 2022 (The case for 4-bit precision, arXiv 2212.09720). The quantized values equal
those of compressed-tensors' group strategy. With groups of 128 and 16-bit scales, a weight takes 4.125 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.compression import gptq_files, packing
from quatrain.compression.int4_kernels import Kernel, device_kernel
from quatrain.compression.integers import IntegerLinear
from quatrain.compression.layer import (
    dequantize_by_lookup,
    is_faster,
    matmul_in_strips,
    row_bucket,
)
from quatrain.core.errors import InputError
from quatrain.models.kernels.stored import StoredWeight

LOWEST, HIGHEST = -8, 7
"""The range of a quantized weight."""
GROUPS = (128, 64, 32)
"""Group sizes that the file format and the kernels support; the first takes the fewest bits."""
MAX_MEASURED_ROWS = 512
"""An implementation that is faster for so many rows is faster for more."""


class Int4Linear(IntegerLinear):
    """y = x W^T + bias, with W the 4-bit values of `weight` times the `scale` of their group.

    Buffers: `weight` (out_features, in_features / 2) uint8, two values a byte, each with an offset of 8, the first in
    the lower half; `scale` (out_features, in_features / group) bfloat16, so that bfloat16 products do not round it.

    PyTorch's int4 kernels need their own memory layout. In evaluation, if the kernel is faster (measured once for each
    dtype, shape and number of rows), the layer converts its weight to that layout and keeps only the converted copy. It
    converts back for training, for a move to another device and for files.
    """

    method: ClassVar[str] = "int4"
    levels: ClassVar[tuple[int, int]] = (LOWEST, HIGHEST)
    fixed_dtype: ClassVar[tuple[str, ...]] = ("scale",)
    weight: Tensor
    scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, device: Any = None, *, group: int = GROUPS[0]
    ):
        super().__init__(in_features, out_features, bias, device)
        if group not in GROUPS or in_features % group:
            raise InputError(
                f"group: {group}, for a layer of {in_features} inputs; must be one of {', '.join(map(str, GROUPS))}, "
                "and divide them."
            )
        self.group = group
        self.register_buffer("weight", torch.zeros(out_features, in_features // 2, dtype=torch.uint8, device=device))
        scale = torch.ones(out_features, in_features // group, dtype=torch.bfloat16, device=device)
        self.register_buffer("scale", scale)
        self.kernel_weight: Tensor | None = None  # replaces `weight` while the kernel is used
        self.kernel_scales: dict[torch.dtype, Tensor] = {}
        self.layout: str | None = None
        """The layout of files: "gptq" or "awq"; None: compressed-tensors'."""
        self.is_read_natively = False
        """Whether native code reads `weight` (`stored_weight`), so that it stays in its own layout."""

    @classmethod
    def shared_options(cls, linears: list[nn.Linear], **options: Any) -> dict[str, Any]:
        """Unless `group` is given, the largest one that divides as many layers as the smallest one does."""
        if options.get("group") is None:
            counts = {size: sum(cls.supports(linear, group=size) for linear in linears) for size in GROUPS}
            options["group"] = next(size for size in GROUPS if counts[size] == max(counts.values()))
        return options

    @classmethod
    def supports(cls, linear: nn.Linear, **options: Any) -> bool:
        return linear.in_features % int(options["group"]) == 0

    @property
    def columns_per_scale(self) -> int:
        return self.group

    def rounded_scale(self, absmax: Tensor) -> Tensor:
        return (absmax / ((HIGHEST - LOWEST) / 2)).bfloat16()

    def pack(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"weight": pack_pairs((codes - LOWEST).to(torch.uint8)), "scale": scale}

    def unpacked(self, buffers: dict[str, Tensor]) -> Tensor:
        return dequantize(buffers["weight"], buffers["scale"], self.group, torch.float32)

    def packed_weight(self) -> Tensor:
        """The values in the layout of `weight`, whichever layout the layer holds."""
        if self.kernel_weight is None:
            return self.weight
        return self._kernel().unpack(self.kernel_weight, self.out_features, self.in_features)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize(self.packed_weight(), self.scale, self.group, dtype)

    def matmul(self, x: Tensor) -> Tensor:
        return dequantized_matmul(x, self.packed_weight(), self.scale, self.group)

    def inference(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if self.training or self.is_read_natively or not rows:
            return self.matmul(x)
        sizes = self.in_features, self.out_features, self.group, row_bucket(rows, MAX_MEASURED_ROWS)
        if not kernel_is_faster(x.dtype, x.device.type, *sizes, self.kernel_weight is not None):
            return self.matmul(x)
        kernel = self._kernel()
        with torch.inference_mode(False), torch.no_grad():
            if self.kernel_weight is None:
                self.kernel_weight = kernel.pack(self.weight)
                self._buffers["weight"] = None
            if x.dtype not in self.kernel_scales:
                self.kernel_scales = {x.dtype: scales_for_kernel(self.scale, x.dtype)}
        flat = x.reshape(-1, self.in_features)
        y = kernel.matmul(flat, self.kernel_weight, self.group, self.kernel_scales[x.dtype])
        return y.view(*x.shape[:-1], self.out_features)

    def _kernel(self) -> Kernel:
        kernel = device_kernel(self.scale.device.type)
        if kernel is None:
            raise RuntimeError(f"{self.scale.device.type} has no int4 kernel")
        return kernel

    def release_kernel_weight(self) -> None:
        """Converts the weight back to the layout of files and training."""
        if self.kernel_weight is not None:
            with torch.inference_mode(False), torch.no_grad():
                self._buffers["weight"] = self.packed_weight()
        self.kernel_weight, self.kernel_scales = None, {}

    def train(self, mode: bool = True) -> Int4Linear:
        if mode:
            self.release_kernel_weight()
        return super().train(mode)

    def _apply(self, *arguments: Any, **named: Any) -> Any:
        self.release_kernel_weight()
        return super()._apply(*arguments, **named)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self.release_kernel_weight()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.release_kernel_weight()
        super()._load_from_state_dict(*arguments)

    @property
    def stored_format(self) -> str | None:  # type: ignore[override]
        """None for scales that are not bfloat16, as other programs' files have them: native code reads no others."""
        return "int4" if self.scale.dtype == torch.bfloat16 else None

    def stored_weight(self) -> StoredWeight:
        self.release_kernel_weight()
        self.is_read_natively = True
        scale = self.scale.bfloat16()
        return StoredWeight("int4", self.weight, self.out_features, self.in_features, scale, self.group)

    def folder_operation(self, operation: Any) -> Any:
        if self.layout is not None:
            return gptq_files.transposed_operation(operation, self.layout, self.group)
        return packing.packed_operation(operation, 4, self.in_features)

    def quantization_config(self, model: Any) -> dict[str, Any]:
        if self.layout is not None:
            return gptq_files.layout_config(model, self.layout, self.group)
        return packing.quantization_config(model, packing.WEIGHTS[4] | {"group_size": self.group})

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"


def pack_pairs(values: Tensor) -> Tensor:
    """Packs values 0 to 15 (out, in) uint8 into (out, in / 2), the first of a pair in the lower half of a byte."""
    words = values.contiguous().view(torch.int16)
    return (words | (words >> 4)).to(torch.uint8)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two values of each byte (256, 2)."""
    values = torch.arange(16, dtype=dtype) + LOWEST
    return torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1).to(device)


def dequantize(packed: Tensor, scale: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """W (out, in) in `dtype`, from packed values (out, in / 2) and the scale (out, in / group) of each group."""
    # Values and scales are exact in bfloat16, so that their bfloat16 product equals the rounded float32 product.
    within = torch.bfloat16 if dtype == torch.bfloat16 and scale.dtype == dtype else torch.float32
    pairs, scales = _pairs(within, packed.device), scale.to(within).reshape(-1)
    return dequantize_by_lookup(packed, pairs, scales, group, 2 * packed.numel(), dtype).view(packed.shape[0], -1)


def dequantized_matmul(x: Tensor, packed: Tensor, scale: Tensor, group: int) -> Tensor:
    """x W^T, with strips of W dequantized as they are needed."""

    def strip(start: int, stop: int) -> Tensor:
        return dequantize(packed[start:stop], scale[start:stop], group, x.dtype)

    return matmul_in_strips(x, len(packed), strip)


def scales_for_kernel(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales (out, groups) in the kernels' layout (groups, out, 2): each with a zero point, which is 0."""
    scales = scale.t().to(dtype)
    return torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()


@cache
def kernel_is_faster(
    dtype: torch.dtype, device: str, in_features: int, out_features: int, group: int, rows: int, converted: bool
) -> bool:
    """Whether the device's kernel multiplies `rows` rows faster than the dequantized weight does, measured here.

    `converted`: the weight is in the kernel's layout already. A kernel that fails, disagrees or does not unpack to the
    same values is never used.
    """
    kernel = device_kernel(device)
    if kernel is None or not kernel.supports(in_features, out_features, dtype):
        return False
    # The kernel's time grows with the rows, the dequantization's does not.
    if rows > 1 and not kernel_is_faster(dtype, device, in_features, out_features, group, rows // 2, converted):
        return False
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=draw).to(device, dtype)
    weight = torch.randint(256, (out_features, in_features // 2), dtype=torch.uint8, generator=draw).to(device)
    scale = torch.full((out_features, in_features // group), 0.01, dtype=torch.bfloat16, device=device)
    scales = scales_for_kernel(scale, dtype)
    try:
        packed = kernel.pack(weight)
        if not torch.equal(kernel.unpack(packed, out_features, in_features), weight):
            return False
    except (RuntimeError, NotImplementedError):
        return False

    def reference() -> Tensor:
        values = kernel.unpack(packed, out_features, in_features) if converted else weight
        return dequantized_matmul(x, values, scale, group)

    return is_faster(lambda: kernel.matmul(x, packed, group, scales), reference, dtype)
