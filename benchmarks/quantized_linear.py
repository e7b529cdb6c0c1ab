"""Quantized linear layers beside plain ones, bitsandbytes' and PyTorch's own products, without gradients.

One row is decoding, 64 are the reading of a prompt. Each kind has so many layers of one shape that their weights are
larger than the processor's cache, and a turn goes through all of them. All are checked to agree with their weights
worked out. The limit is that of memory: the bytes of a layer over the rate at which a large tensor is summed here; a
layer's share is what its time would be by that limit over its time. Torch's own are its products for int8 and int4
called by themselves; bitsandbytes' are its linear layers. The ratio is the geometric mean of the time of
bitsandbytes' NF4 over ours.

    python benchmarks/quantized_linear.py [--repeat 7] [--width 4096] [--outputs 4096] [--dtypes bfloat16 float32]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import finish, geometric_mean, in_turns, parser, require, seconds_of, spread
from torch import Tensor, nn

from quatrain.compression import int4_kernels
from quatrain.compression.int4 import scales_for_kernel
from quatrain.compression.int8 import kernel_matmul
from quatrain.compression.methods import METHODS

ROWS = (1, 64)
CACHE, LITTLE = 160_000_000, 100_000
"""Bytes that the layers of a kind have together at least: several times a processor's cache; and for --quick."""
Call = Callable[[Tensor], Tensor]


def bandwidth() -> float:
    """Bytes a second at which a large tensor is read."""
    large = torch.ones(CACHE // 4)
    return large.nbytes / min(seconds_of(large.sum) for _ in range(7))


def held(layer: nn.Module) -> int:
    """Bytes that a layer reads."""
    return sum(tensor.nbytes for tensor in layer.state_dict().values())


def peers(layer: Any, linear: nn.Linear, dtype: torch.dtype) -> dict[str, tuple[Call, int]]:
    """The others' ways with the same weight, and the bytes that they read."""
    library = require("bitsandbytes", "test")
    found: dict[str, tuple[Call, int]] = {}
    if layer.method == "nf4":
        theirs = library.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, compress_statistics=True,
            quant_type="nf4",
        )  # fmt: skip
        theirs.load_state_dict(linear.state_dict())
        found["bitsandbytes nf4"] = theirs.to("cpu"), held(layer)
    elif layer.method == "int8":
        found["torch int8"] = (lambda x: kernel_matmul(x, layer.weight, layer.scale)), held(layer)
    elif layer.method == "int4":
        kernel = int4_kernels.device_kernel("cpu")
        if kernel is not None:
            packed, factors = kernel.pack(layer.packed_weight()), scales_for_kernel(layer.scale, dtype)
            found["torch int4"] = (lambda x: kernel.matmul(x, packed, layer.group, factors)), held(layer)
    return found


def ways(sizes: tuple[int, int], dtype: torch.dtype, quick: bool) -> dict[str, list[tuple[Call, int]]]:
    """Name -> the layers of each kind and the bytes of one, checked to agree with their weights worked out."""
    linear = nn.Linear(*sizes, bias=False).requires_grad_(False).eval()
    x = torch.randn(3, sizes[0]).to(dtype)
    at_least = LITTLE if quick else CACHE
    made: dict[str, list[tuple[Call, int]]] = {"plain": []}
    plain_bytes = linear.weight.numel() * dtype.itemsize
    for _ in range(math.ceil(at_least / plain_bytes)):
        made["plain"].append((nn.Linear(*sizes, bias=False).to(dtype).requires_grad_(False), plain_bytes))
    for method, kind in METHODS.items():
        first = kind.from_linear(linear)
        for _ in range(math.ceil(at_least / held(first))):
            layer = kind.from_linear(linear)
            for name, way in {method: (layer, held(layer)), **peers(layer, linear, dtype)}.items():
                made.setdefault(name, []).append(way)
    for name, layers in made.items():
        method = name.rpartition(" ")[2]
        if method in METHODS:
            expected = nn.functional.linear(x.float(), METHODS[method].from_linear(linear).dequantized_weight())
            apart = float((layers[0][0](x).float() - expected).abs().max() / expected.abs().max())
            rounds_inputs = method == "w8a8"
            if apart > (3e-2 if dtype == torch.bfloat16 or rounds_inputs else 1e-3):
                raise SystemExit(f"{name} in {dtype}: {apart:.2g} of the largest value from its weights")
    return made


def measure(sizes: tuple[int, int], dtype: torch.dtype, rate: float, repeat: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of one dtype: every kind in turns, for each number of rows."""
    made, rows = ways(sizes, dtype, quick), []
    label = str(dtype).removeprefix("torch.")
    for count in ROWS:
        x = torch.randn(count, sizes[0]).to(dtype)

        def turn(layers: Sequence[tuple[Call, int]], x: Tensor = x) -> float:
            return seconds_of(lambda: [call(x) for call, _ in layers]) / len(layers)

        with torch.inference_mode():
            for layers in made.values():
                turn(layers)
            calls = {name: lambda layers=layers: turn(layers) for name, layers in made.items()}
            found = in_turns(calls, repeat)
        print(f"\n{label}, {count} rows of {sizes[0]} to {sizes[1]}", flush=True)
        for name, seconds in found.items():
            size = made[name][0][1]
            row = {"way": name, "dtype": label, "rows": count, "bytes": size, "seconds": spread(seconds)}
            row["share_of_bandwidth"] = size / rate / row["seconds"]["median"]
            rows.append(row)
            shown = " ".join(f"{1000 * row['seconds'][key]:.3f}" for key in ("median", "min", "max"))
            share = f"{row['share_of_bandwidth']:.1%} of the limit"
            print(f"  {name:<18}{size / 1e6:>7.1f} MB  {shown} ms  {share}", flush=True)
    return rows


def main() -> None:
    """Reads the arguments and writes the JSON line."""
    options = parser(__doc__)
    options.add_argument("--repeat", type=int, default=7)
    options.add_argument("--width", type=int, default=4096, help="inputs, a multiple of 128")
    options.add_argument("--outputs", type=int, default=4096, help="a multiple of 64")
    options.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=("bfloat16", "float32"))
    chosen = options.parse_args()
    if chosen.quick:
        chosen.width, chosen.outputs, chosen.repeat = 256, 128, 2
    torch.manual_seed(0)
    rate = bandwidth()
    print(f"memory is read at {rate / 1e9:.1f} GB/s")
    sizes = chosen.width, chosen.outputs
    rows = []
    for dtype in chosen.dtypes:
        rows += measure(sizes, getattr(torch, dtype), rate, chosen.repeat, chosen.quick)
    times = {(row["way"], row["dtype"], row["rows"]): row["seconds"]["median"] for row in rows}
    against = {
        f"{name}, {dtype}, {count} rows": times[other, dtype, count] / times[name, dtype, count]
        for name, other in (("nf4", "bitsandbytes nf4"), ("int8", "plain"), ("int4", "plain"))
        for dtype in chosen.dtypes
        for count in ROWS
    }
    finish(
        "quantized_linear",
        geometric_mean(value for name, value in against.items() if name.startswith("nf4")),
        "bitsandbytes' NF4's time / ours, geometric mean of all dtypes and rows",
        quick=chosen.quick,
        bytes_per_second=rate,
        ratios=against,
        rows=rows,
    )


if __name__ == "__main__":
    main()
