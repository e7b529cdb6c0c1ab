"""Weight-only int4 linear layers: a scale for each group of a row's weights, symmetric, rounded to the nearest.

Groups as in Dettmers and Zettlemoyer 2022 (The case for 4-bit precision, arXiv 2212.09720); numbers are those of
compressed-tensors' groups. With 128 weights to a scale of 16 bits a weight takes 4.125 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.compression import packing
from quatrain.compression.int4_kernels import Kernel, kernel_of
from quatrain.compression.layer import QuantizedLinear, bucket, check_finite, in_strips, is_faster, looked_up
from quatrain.core.errors import InputError

LOWEST, HIGHEST = -8, 7
"""The whole numbers of a weight."""
GROUPS = (128, 64, 32)
"""Sizes of a group that files and kernels know, the smallest in bits first."""
MOST_ROWS = 512
"""What is faster for this many rows is faster for more of them."""


class Int4Linear(QuantizedLinear):
    """y = x W^T + bias, W the numbers of `weight` times the `scale` of their group.

    Buffers: `weight` (out_features, in_features / 2) uint8, two numbers a byte, raised by 8, the first in its lower
    half; `scale` (out_features, in_features / group) bfloat16, so that products in bfloat16 round it no further.

    PyTorch has kernels that read four bits, in an order of their own. In evaluation, where one is faster (measured once
    for each dtype, shape and number of rows), the layer holds its weight in that order instead, never in both; it goes
    back to its own for training, for another device and for files.
    """

    method: ClassVar[str] = "int4"
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
        self.held: Tensor | None = None  # the weight in the kernel's order, while that is where it is
        self.factors: dict[torch.dtype, Tensor] = {}

    @classmethod
    def options(cls, linears: list[nn.Linear], **wanted: Any) -> dict[str, Any]:
        """The largest group that divides as many layers as the smallest does, unless one is wanted."""
        if wanted.get("group") is None:
            counts = {size: sum(cls.fits(linear, group=size) for linear in linears) for size in GROUPS}
            wanted["group"] = next(size for size in GROUPS if counts[size] == max(counts.values()))
        return wanted

    @classmethod
    def fits(cls, linear: nn.Linear, **options: Any) -> bool:
        """Whether the group divides the layer's inputs."""
        return linear.in_features % int(options["group"]) == 0

    def rounded(self, weight: Tensor) -> dict[str, Tensor]:
        check_finite(weight)
        groups = weight.float().reshape(weight.shape[0], -1, self.group)
        largest = groups.abs().amax(dim=2)
        scale = (largest / ((HIGHEST - LOWEST) / 2)).bfloat16()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        numbers = (groups / scale.float()[..., None]).round_().clamp_(LOWEST, HIGHEST) - LOWEST
        return {"weight": in_pairs(numbers.to(torch.uint8).view(weight.shape)), "scale": scale}

    def rows(self) -> Tensor:
        """The numbers as `weight` has them, wherever they are held."""
        if self.held is None:
            return self.weight
        return self._kernel().unpack(self.held, self.out_features, self.in_features)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return worked_out(self.rows(), self.scale, self.group, dtype)

    def product(self, x: Tensor) -> Tensor:
        return product(x, self.rows(), self.scale, self.group)

    def inference(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if self.training or not rows:
            return self.product(x)
        sizes = self.in_features, self.out_features, self.group, bucket(rows, MOST_ROWS)
        if not kernel_is_faster(x.dtype, x.device.type, *sizes, self.held is not None):
            return self.product(x)
        kernel = self._kernel()
        if self.held is None:
            with torch.inference_mode(False), torch.no_grad():
                self.held = kernel.pack(self.weight)
                self._buffers["weight"] = None
        if x.dtype not in self.factors:
            with torch.inference_mode(False), torch.no_grad():
                self.factors = {x.dtype: factors_of(self.scale, x.dtype)}
        y = kernel.product(x.reshape(-1, self.in_features), self.held, self.group, self.factors[x.dtype])
        return y.view(*x.shape[:-1], self.out_features)

    def _kernel(self) -> Kernel:
        kernel = kernel_of(self.scale.device.type)
        if kernel is None:
            raise RuntimeError(f"{self.scale.device.type} has no int4 kernel")
        return kernel

    def release_packed(self) -> None:
        """Holds the weight in its own order again."""
        if self.held is not None:
            with torch.inference_mode(False), torch.no_grad():
                self._buffers["weight"] = self.rows()
            self.held, self.factors = None, {}

    def train(self, mode: bool = True) -> Int4Linear:
        """For training the weight is in its own order."""
        if mode:
            self.release_packed()
        return super().train(mode)

    def _apply(self, *arguments: Any, **named: Any) -> Any:
        self.release_packed()
        self.factors = {}
        return super()._apply(*arguments, **named)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self.release_packed()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.release_packed()
        self.factors = {}
        super()._load_from_state_dict(*arguments)

    def files(self, operation: Any) -> Any:
        return packing.packed(operation, self.method, 4, self.in_features)

    def folder_entries(self, model: Any) -> dict[str, Any]:
        return packing.quantization_config(model, packing.WEIGHTS[4] | {"group_size": self.group})

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"


def in_pairs(numbers: Tensor) -> Tensor:
    """Numbers from 0 to 15 (out, in) uint8 as (out, in / 2), the first of two in the lower half of their byte."""
    words = numbers.contiguous().view(torch.int16)
    return (words | (words >> 4)).to(torch.uint8)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two numbers that each byte stands for (256, 2)."""
    number = torch.arange(16, dtype=dtype) + LOWEST
    return torch.stack([number.repeat(16), number.repeat_interleave(16)], dim=1).to(device)


def worked_out(rows: Tensor, scale: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """W (out, in) in `dtype`: numbers (out, in / 2) of two a byte, times the scale (out, in / group) of their group."""
    # Numbers and scales are bfloat16 without rounding, so that their product is the same as from float32.
    within = torch.bfloat16 if dtype == torch.bfloat16 and scale.dtype == dtype else torch.float32
    count = 2 * rows.numel()
    pairs = _pairs(within, rows.device)
    return looked_up(rows, pairs, scale.to(within).reshape(-1), group, count, dtype).view(rows.shape[0], -1)


def product(x: Tensor, rows: Tensor, scale: Tensor, group: int) -> Tensor:
    """x W^T for the W of `worked_out`."""

    def strip(start: int, stop: int) -> Tensor:
        return worked_out(rows[start:stop], scale[start:stop], group, x.dtype)

    return in_strips(x, len(rows), strip)


def factors_of(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales (out, groups) as the kernels take them: (groups, out, 2), with the zero that is added to each."""
    scales = scale.t().to(dtype)
    return torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()


@cache
def kernel_is_faster(
    dtype: torch.dtype, device: str, in_features: int, out_features: int, group: int, rows: int, held: bool
) -> bool:
    """Whether the device's kernel multiplies `rows` rows faster than working the weight out, measured here.

    `held`: the weight is in the kernel's order already. A kernel that fails, disagrees or does not give the numbers
    back is never taken.
    """
    kernel = kernel_of(device)
    if kernel is None or not kernel.fits(in_features, out_features, dtype):
        return False
    # The kernel's time grows with every row; to work the weight out takes the same for all of them.
    if rows > 1 and not kernel_is_faster(dtype, device, in_features, out_features, group, rows // 2, held):
        return False
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=draw).to(device, dtype)
    weight = torch.randint(256, (out_features, in_features // 2), dtype=torch.uint8, generator=draw).to(device)
    scale = torch.full((out_features, in_features // group), 0.01, dtype=torch.bfloat16, device=device)
    factors = factors_of(scale, dtype)
    try:
        packed = kernel.pack(weight)
        if not torch.equal(kernel.unpack(packed, out_features, in_features), weight):
            return False
    except (RuntimeError, NotImplementedError):
        return False

    def plain() -> Tensor:
        numbers = kernel.unpack(packed, out_features, in_features) if held else weight
        return product(x, numbers, scale, group)

    return is_faster(lambda: kernel.product(x, packed, group, factors), plain, dtype)
