"""Loading a model folder beside transformers' `from_pretrained`: memory's peak over the weights, and the time.

A Llama of 1 GB in bfloat16, in shards, is written with random weights and read as bfloat16 and as float32. Each load
has a process of its own that has imported everything and loaded a tiny model before; its peak is what memory grew by
from there, over the bytes of the weights in memory. The files are in the page cache. A load ends when every weight
was read once: transformers may leave them in the file until then. Both must give the same weights.
The ratio is the geometric mean, over the dtypes, of transformers' peak over ours; ours may be 1.2 at most.

    python benchmarks/load_memory.py [--repeat 5] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, geometric_mean, in_turns, parser, require, run_child, spread

LIMIT = 1.2
DTYPES = ("bfloat16", "float32")
FULL = {"hidden_size": 1536, "intermediate_size": 4096, "layers": 15, "heads": 12, "vocab_size": 32_000}
QUICK = {"hidden_size": 512, "intermediate_size": 1024, "layers": 4, "heads": 4, "vocab_size": 8000}
WARM = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "vocab_size": 512}


def write_model(folder: Path, size: dict[str, int], shards: int) -> int:
    """A Llama's folder with random weights in bfloat16; returns its parameters."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, vocabulary = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
        "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"], "rope_theta": 10000.0,
        "num_key_value_heads": size["heads"], "max_position_embeddings": 2048, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(size["layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    generator, names, weight_map = torch.Generator().manual_seed(0), list(shapes), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        made = {
            name: torch.empty(shapes[name], dtype=torch.bfloat16).uniform_(-1, 1, generator=generator) for name in part
        }
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def load(who: str, folder: str, dtype: str) -> Any:
    """The model of a folder in `dtype`, by ours or by transformers."""
    import torch

    if who == "ours":
        from quatrain.models.io import model_folder

        return model_folder.load(folder, dtype=getattr(torch, dtype))
    return require("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def measure(who: str, warm: str, folder: str, dtype: str, report: str) -> None:
    """What a child does: a tiny load, then the one that counts; its figures go to a file."""
    import torch

    from quatrain.core.process_memory import peak_memory, reset_peak_memory

    load(who, warm, dtype)
    reset_peak_memory()
    before, start = peak_memory(), time.perf_counter()
    weights = [parameter.detach() for parameter in load(who, folder, dtype).parameters()]
    loaded = time.perf_counter() - start
    largest = [float(weight.flatten().amax()) for weight in weights]  # which needs no memory
    seconds, peak = time.perf_counter() - start, peak_memory() - before
    sums = [float(weight.sum(dtype=torch.float64)) for weight in weights]
    found = {
        "seconds": seconds,
        "seconds_before_the_weights_are_read": loaded,
        "over_weights": peak / sum(weight.nbytes for weight in weights),
        "gigabytes": sum(weight.nbytes for weight in weights) / 1e9,
        "sums": sorted(zip(map(list, (weight.shape for weight in weights)), largest, sums, strict=True)),
    }
    Path(report).write_text(json.dumps(found))


def compare(place: Path, dtype: str, repeat: int) -> dict[str, Any]:
    """One row: both in turns."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "transformers": []}

    def turn(who: str) -> float:
        report = place / "report.json"
        folders = [str(place / name) for name in ("warm", "model")]
        run_child([sys.executable, __file__, "--measure", who, *folders, dtype, str(report)])
        found[who].append(json.loads(report.read_text()))
        return 0.0

    in_turns({who: lambda who=who: turn(who) for who in found}, repeat)
    sums = [each["sums"] for runs in found.values() for each in runs]
    if any(each != sums[0] for each in sums):
        raise SystemExit(f"{dtype}: the two did not load the same weights")
    row: dict[str, Any] = {"dtype": dtype, "gigabytes": found["ours"][0]["gigabytes"]}
    for what in ("over_weights", "seconds", "seconds_before_the_weights_are_read"):
        row[what] = {who: spread(each[what] for each in runs) for who, runs in found.items()}
        row[f"{what}_ratio"] = row[what]["transformers"]["median"] / row[what]["ours"]["median"]
    shown = [
        f"{who} {row['over_weights'][who]['median']:.3f} x the weights, {row['seconds'][who]['median']:.2f} s "
        f"({row['seconds'][who]['min']:.2f} to {row['seconds'][who]['max']:.2f})"
        for who in found
    ]
    print(f"{dtype:<9} {row['gigabytes']:.2f} GB   {'   '.join(shown)}", flush=True)
    return row


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeat", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="where the model is written (default: a temporary folder)")
    arguments.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.measure:
        measure(*chosen.measure)
        return
    require("transformers")
    size, repeat = (QUICK, 1) if chosen.quick else (FULL, chosen.repeat)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        write_model(Path(name) / "warm", WARM, 1)
        parameters = write_model(Path(name) / "model", size, 3)
        rows = [compare(Path(name), dtype, repeat) for dtype in DTYPES]
    peaks = [row["over_weights"]["ours"]["max"] for row in rows]
    finish(
        "load_memory",
        geometric_mean(row["over_weights_ratio"] for row in rows),
        "transformers' peak / ours, geometric mean over the dtypes",
        quick=chosen.quick,
        parameters=parameters,
        limit=LIMIT,
        within_limit=max(peaks) <= LIMIT,
        time_ratio=geometric_mean(row["seconds_ratio"] for row in rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
