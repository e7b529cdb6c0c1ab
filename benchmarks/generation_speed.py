"""Generated tokens per second of the engine, beside transformers' `generate`: same model, same prompts, greedy.

The model has quickstart's shape with random weights, in float32 and in int8; the peer reads the same folders (int8
through compressed-tensors where that is installed). End tokens are ignored, so that each completion has the full
length. Everything runs in one process, in turns. The ratio is ours over transformers in float32, the geometric mean
of the batch sizes.

    python benchmarks/generation_speed.py [--repeat 5] [--batches 1 64] [--new-tokens 64]
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import finish, geometric_mean, in_turns, parser, require, seconds_of, spread

TINY = [
    "model.hidden_size=64",
    "model.intermediate_size=64",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
]
PROMPT = 32
"""Tokens of each prompt."""
OURS, PEER = "quatrain", "transformers"


def write_models(folder: Path, overrides: list[str]) -> dict[str, Path]:
    """Random weights of the quickstart recipe's shape, as float32 and as int8 model folders."""
    from quatrain.compression import methods
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model
    from quatrain.runs.recipe import load

    recipe = load("quickstart", overrides)
    model = Model(recipe.model.config(recipe.tokenizer.vocab_size))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
            else:
                parameter.fill_(1.0)
    model_folder.save(model, folder / "float32")
    methods.quantize(model, "int8")
    model_folder.save(model, folder / "int8")
    return {name: folder / name for name in ("float32", "int8")}


Generate = Callable[[list[list[int]], int], list[list[int]]]


def ours(folder: Path) -> Generate:
    """The engine."""
    from quatrain.generation.engine import Engine, SamplingParams

    engine = Engine.load(folder)

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=count, ignore_eos=True)
        return [completion.ids for completion in engine.generate(prompts, params, batch_size=len(prompts))]

    return generate


def theirs(folder: Path) -> Generate:
    """`generate` of transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                pad_token_id=0,
            )
        return found[:, ids.shape[1] :].tolist()

    return generate


def engines(folders: dict[str, Path]) -> dict[str, Generate]:
    """Every way to generate that is installed."""
    found = {f"{OURS} {name}": ours(folder) for name, folder in folders.items()}
    found[f"{PEER} float32"] = theirs(folders["float32"])
    if importlib.util.find_spec("compressed_tensors") is None:
        print("compressed-tensors is not installed, so transformers in int8 is left out")
    else:
        found[f"{PEER} int8"] = theirs(folders["int8"])
    return found


def compare(generators: dict[str, Generate], batch: int, count: int, repeat: int) -> dict[str, Any]:
    """All ways for one batch size; prints a line each. `agreement` is the share of tokens equal to transformers'."""
    prompts = torch.randint(0, 256, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).tolist()
    texts = {name: generate(prompts, count) for name, generate in generators.items()}  # warms up, too
    if wrong := [name for name, text in texts.items() if any(len(ids) != count for ids in text)]:
        raise SystemExit(f"{', '.join(wrong)}: did not generate {count} tokens for each prompt")
    calls = {
        name: lambda generate=generate: batch * count / seconds_of(lambda: generate(prompts, count))
        for name, generate in generators.items()
    }
    rates = {name: spread(values) for name, values in in_turns(calls, repeat).items()}
    print(f"\nbatch {batch}: {PROMPT} tokens read, {count} generated")
    for name, rate in rates.items():
        print(f"  {name:<24} {rate['median']:>9,.0f} tokens/s ({rate['min']:,.0f} to {rate['max']:,.0f})", flush=True)
    pairs = [
        (a, b)
        for left, right in zip(texts[f"{OURS} float32"], texts[f"{PEER} float32"], strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    agreement = sum(a == b for a, b in pairs) / len(pairs)
    ratio = rates[f"{OURS} float32"]["median"] / rates[f"{PEER} float32"]["median"]
    print(f"  float32: {ratio:.2f}x transformers; {agreement:.1%} of the tokens are the same")
    return {
        "batch": batch,
        "tokens_per_second": rates,
        "ratio": ratio,
        "agreement": agreement,
        "int8_over_float32": rates[f"{OURS} int8"]["median"] / rates[f"{OURS} float32"]["median"],
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--repeat", type=int, default=5)
    chosen = arguments.parse_args()
    require("transformers")
    overrides, sizes, count, repeat = [], chosen.batches, chosen.new_tokens, chosen.repeat
    if chosen.quick:
        overrides, sizes, count, repeat = TINY, [1, 2], 4, 1
    with tempfile.TemporaryDirectory() as folder:
        generators = engines(write_models(Path(folder), overrides))
        rows = [compare(generators, batch, count, repeat) for batch in sizes]
    ratio = geometric_mean(row["ratio"] for row in rows)
    finish(
        "generation_speed",
        ratio,
        "tokens/s of the engine / of transformers, float32",
        quick=chosen.quick,
        rows=rows,
        prompt_tokens=PROMPT,
        new_tokens=count,
    )


if __name__ == "__main__":
    main()
