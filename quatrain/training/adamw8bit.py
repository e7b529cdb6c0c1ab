"""AdamW with 8-bit moments and one scale per block of 256 elements: a quarter of AdamW's memory.

Dettmers et al. 2021 (arXiv 2110.02861), with the constants of bitsandbytes: the first moment uses the signed dynamic
table, the second the unsigned one; tensors of fewer than 4,096 elements stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from quatrain.compression.blockwise import dequantize, dynamic_code, quantize
from quatrain.planning.counts import STATE_BLOCK as BLOCK
from quatrain.planning.counts import STATE_LEAST as LEAST

SLICE = {"cpu": 1 << 18, "else": 1 << 22}
"""Elements that are updated in float32 at a time, a multiple of the block size."""

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""The two states, named as in PyTorch's AdamW, and whether their table is signed; scales are `NAME_scales`."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) for float32 parameters, with 8-bit states.

    States are dequantized, updated and quantized one slice at a time; the parameter update uses the values before
    quantization. Sharded parameters are not supported.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _start(self, parameter: Tensor) -> dict[str, Tensor]:
        """The initial states of a parameter: zero moments, and a step count on the CPU."""
        count, device = parameter.numel(), parameter.device
        state: dict[str, Tensor] = {"step": torch.zeros(())}
        for name, signed in MOMENTS.items():
            if count < LEAST:
                state[name] = torch.zeros(parameter.shape, dtype=torch.float32, device=device)
                continue
            zero = int(dynamic_code(signed).eq(0).nonzero())
            state[name] = torch.full(parameter.shape, zero, dtype=torch.uint8, device=device)
            state[f"{name}_scales"] = torch.zeros(-(-count // BLOCK), device=device)
        return state

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._start(parameter))
        state["step"] += 1
        weights = parameter.detach()
        flat = weights.contiguous().view(-1)
        gradient = parameter.grad.reshape(-1)  # type: ignore[union-attr]
        size = SLICE.get(flat.device.type, SLICE["else"])
        for start in range(0, len(flat), size):
            part = slice(start, min(start + size, len(flat)))
            moments = {name: self._read(state, name, part) for name in MOMENTS}
            _adamw(flat[part], gradient[part].float(), *moments.values(), step=int(state["step"]), group=group)
            for name, values in moments.items():
                self._write(state, name, part, values)
        if flat.data_ptr() != weights.data_ptr():
            weights.copy_(flat.view(weights.shape))

    @staticmethod
    def _read(state: dict[str, Tensor], name: str, part: slice) -> Tensor:
        stored = state[name].view(-1)[part]
        if stored.dtype != torch.uint8:
            return stored
        return dequantize(stored, state[f"{name}_scales"][_blocks(part)], BLOCK, dynamic_code(MOMENTS[name]))

    @staticmethod
    def _write(state: dict[str, Tensor], name: str, part: slice, values: Tensor) -> None:
        stored = state[name].view(-1)[part]
        if stored.dtype == torch.uint8:
            indices, scales = quantize(values, BLOCK, dynamic_code(MOMENTS[name]))
            stored.copy_(indices)
            state[f"{name}_scales"][_blocks(part)] = scales


def _blocks(part: slice) -> slice:
    """The blocks of a slice that begins at a block."""
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


def _adamw(
    weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *, step: int, group: dict[str, Any]
) -> None:
    """One AdamW step in place; all tensors are (n,) in float32."""
    beta1, beta2 = group["betas"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    below = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    weights.addcdiv_(mean, below, value=-group["lr"] / (1 - beta1**step))
