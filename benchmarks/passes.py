"""The hand-written passes of `quatrain.models.kernels.cpu` beside PyTorch's: forward and backward, both precisions.

Attention is measured as the stack calls it, from the projections' layout to the output projection's, with and without
rotary positions; RMSNorm and SwiGLU are beside `rms_norm` and `silu(gate) * up`. Sizes are those of the module's
docstring: 4,096 tokens of width 256 (32 texts of 128 tokens, 4 heads; SwiGLU at quickstart's 768). Each pair is
checked to agree first. The ratio is the geometric mean of PyTorch's time over ours, over all rows.

    python benchmarks/passes.py [--repeat 15]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import finish, geometric_mean, in_turns, parser, seconds_of, spread
from torch import Tensor
from torch.nn import functional as F

Pass = Callable[..., Tensor]
FULL, TINY = (
    {"batch": 32, "length": 128, "heads": 4, "width": 64, "inner": 768},
    {"batch": 2, "length": 16, "heads": 2, "width": 8, "inner": 48},
)
AGREE = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
"""Largest difference between the two, as a share of the largest value."""


def cases(size: dict[str, int], dtype: torch.dtype) -> dict[str, tuple[Pass, Pass, list[tuple[int, ...]]]]:
    """Name to (ours, PyTorch's, shapes of the inputs that have gradients)."""
    from quatrain.models.kernels import cpu
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.context import AttentionMask
    from quatrain.models.transformer.positions import Rotary, rotate

    batch, length, heads, width = (size[name] for name in ("batch", "length", "heads", "width"))
    hidden = heads * width
    config = ModelConfig("llama", 1, hidden, 1, 1, heads, heads, length)
    rotary = Rotary(config, config.rope_theta, None, config.head_dim)
    cos, sin = (table.to(dtype) for table in rotary.tables(length, length))
    half_cos, half_sin = (table[..., : width // 2].unsqueeze(-2) for table in (cos, sin))
    bias = AttentionMask(causal=True).additive(length, length, torch.empty(0, dtype=dtype))

    def attention(turn: bool) -> Pass:
        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            if turn:
                query, key = rotate(query, cos, sin), rotate(key, cos, sin)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            return mixed.transpose(1, 2).reshape(batch, length, hidden)

        return run

    def by_hand(*tables: Tensor | None) -> Pass:
        return lambda query, key, value: cpu.AttentionFunction.apply(
            query, key, value, *tables, bias, width**-0.5, None, True
        )

    projected, tokens, wide = (batch, length, heads, width), (batch, length, hidden), (batch, length, size["inner"])
    return {
        "attention, rotary": (by_hand(half_cos, half_sin), attention(True), [projected] * 3),
        "attention": (by_hand(None, None), attention(False), [projected] * 3),
        "RMSNorm": (
            lambda x, weight: cpu.RMSNormFunction.apply(x, weight, 1e-5),
            lambda x, weight: F.rms_norm(x, (hidden,), weight, 1e-5),
            [tokens, (hidden,)],
        ),
        "SwiGLU": (
            lambda gate, up: cpu.SwiGLUFunction.apply(gate, up),
            lambda gate, up: F.silu(gate) * up,
            [wide, wide],
        ),
    }


def forward_and_backward(function: Pass, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def measure(name: str, dtype: torch.dtype, size: dict[str, int], repeat: int) -> dict[str, Any]:
    """One row: both in turns, after a check that they agree."""
    ours, theirs, shapes = cases(size, dtype)[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    gradient = torch.randn(ours(*inputs).shape, generator=generator).to(dtype)
    pairs = zip(*(forward_and_backward(function, inputs, gradient) for function in (ours, theirs)), strict=True)
    difference = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    if difference > AGREE[dtype]:
        raise SystemExit(f"{name} in {dtype}: the two differ by {difference:.2g} of the largest value")
    calls = {
        who: lambda function=function: forward_and_backward(function, inputs, gradient)
        for who, function in (("ours", ours), ("torch", theirs))
    }
    slow = max(seconds_of(call, 2) for call in calls.values())
    times = max(1, min(50, int(0.05 / slow)))
    found = in_turns({who: lambda call=call: seconds_of(call, times) for who, call in calls.items()}, repeat)
    seconds = {who: spread(values) for who, values in found.items()}
    ratio = seconds["torch"]["median"] / seconds["ours"]["median"]
    shown = {
        who: f"{values['median'] * 1000:.2f} ms ({values['min'] * 1000:.2f} to {values['max'] * 1000:.2f})"
        for who, values in seconds.items()
    }
    label = str(dtype).removeprefix("torch.")
    print(f"{name:<18} {label:<9} ours {shown['ours']:<28} PyTorch {shown['torch']:<28} {ratio:.2f}x", flush=True)
    return {"pass": name, "dtype": label, "seconds": seconds, "ratio": ratio, "largest_difference": difference}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeat", type=int, default=15)
    chosen = arguments.parse_args()
    size, repeat = (TINY, 2) if chosen.quick else (FULL, chosen.repeat)
    rows = [measure(name, dtype, size, repeat) for dtype in AGREE for name in cases(size, dtype)]
    finish(
        "passes",
        geometric_mean(row["ratio"] for row in rows),
        "PyTorch's time / ours, geometric mean of all rows",
        quick=chosen.quick,
        size=size,
        rows=rows,
    )


if __name__ == "__main__":
    main()
