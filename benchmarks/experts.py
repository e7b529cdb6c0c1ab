"""Mixtures of experts beside transformers: forward and backward, and decoding, with the limit of each.

The same random weights on both sides, in float32; decoding in bfloat16 too, and ours in 8 bits. transformers runs
twice: with its loop over the experts ("eager"), and with what it chooses by itself (PyTorch's grouped product). Both
sides take turns. Decoding is a greedy completion, prompt included: ours through the engine, transformers' in a plain
loop without what `generate` adds. The limit of a training pass is its operations over the measured rate of matrix
products; the limit of decoding one text is the bytes of the weights that a token uses over the measured rate of reading
memory. The ratio is the loop's time over ours, the geometric mean over families and over forward and backward, and
decoding in float32.

    python benchmarks/experts.py [--families mixtral qwen3_moe ...] [--repeat 5] [--processor-time]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    clock_of,
    continue_greedily,
    finish,
    geometric_mean,
    in_turns,
    our_decoder,
    parser,
    product_rate,
    reading_rate,
    require,
    spread,
)

SIZE = {"vocab_size": 4096, "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0}  # fmt: skip
MANY = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 256}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"intermediate_size": 1024, "num_local_experts": 8}),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", MANY | {"shared_expert_intermediate_size": 512}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", MANY | {"head_dim": 64, "norm_topk_prob": True}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {"intermediate_size": 256, "num_experts": 32,
                                                  "num_experts_per_tok": 4}),
    "granitemoe": ("GraniteMoeConfig", "GraniteMoeForCausalLM", {"intermediate_size": 256, "num_local_experts": 32,
                                                                 "num_experts_per_tok": 4}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"intermediate_size": 512, "num_local_experts": 16, "head_dim": 64,
                                                      "num_experts_per_tok": 4, "sliding_window": 128}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {
        "intermediate_size": 1024, "moe_intermediate_size": 256, "n_routed_experts": 32, "num_experts_per_tok": 4,
        "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "num_key_value_heads": 8, "q_lora_rank": 256,
        "kv_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64}),
}  # fmt: skip
TINY = {"hidden_size": 32, "vocab_size": 64, "head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}  # fmt: skip
ROWS, LENGTH, PROMPT, NEW = 4, 128, 16, 32
CLOCK: Callable[[], float] = time.perf_counter
"""`--processor-time` replaces it: on a busy machine the clock measures the others too."""
PARTS = ["both", "decode"]
SIDES = ("quatrain", "loop", "grouped")


def trainer(model: Any, loss_of: Callable[[], Any], times: int) -> Callable[[], float]:
    """Seconds of a forward and backward pass, after one that is not counted."""

    def run() -> float:
        loss_of().backward()
        start = CLOCK()
        for _ in range(times):
            model.zero_grad(set_to_none=True)
            loss_of().backward()
        seconds = (CLOCK() - start) / times
        model.zero_grad(set_to_none=True)
        return seconds

    return run


def decoding(way: Callable[[Any, int], Any], prompt: Any, new: int) -> float:
    """Seconds of a token when a way of decoding continues a prompt."""
    start = CLOCK()
    way(prompt, new)
    return (CLOCK() - start) / new


def measured(name: str, part: str, calls: dict[str, Callable[[], float]], limit: float, repeat: int) -> dict[str, Any]:
    """Seconds of each side, in turns, after a turn that does not count; prints a line."""
    in_turns(calls, 1)
    times = {side: spread(values) for side, values in in_turns(calls, repeat).items()}
    mine = times["quatrain"]["median"]
    ratios = {side: times[side]["median"] / mine for side in calls if side != "quatrain"}
    print(
        f"{name:<12} {part:<15} "
        + "  ".join(f"{side} {value['median'] * 1e3:8.2f} ms" for side, value in times.items())
        + "".join(f"  {side} / ours {ratio:.2f}" for side, ratio in ratios.items())
        + f"  {limit / mine:.0%} of the limit",
        flush=True,
    )
    return {"seconds": times, "ratios": ratios, "limit_seconds": limit, "share_of_limit": limit / mine}


def compare(name: str, rates: tuple[float, float], given: argparse.Namespace) -> dict[str, Any]:
    """All sides of one family, in turns; prints a line for each part."""
    import torch
    from torch.nn.functional import cross_entropy

    from quatrain.compression import methods
    from quatrain.models.io import model_folder
    from quatrain.planning import counts

    repeat, quick, parts = 1 if given.quick else given.repeat, given.quick, given.parts
    transformers = require("transformers")
    config_class, model_class, settings = MODELS[name]
    settings = (
        SIZE | settings | ({key: value for key, value in TINY.items() if key in SIZE | settings} if quick else {})
    )
    torch.manual_seed(0)
    first = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        first.save_pretrained(folder)
        models["quatrain"] = model_folder.load(Path(folder))
        for side, way in (("loop", "eager"), ("grouped", "grouped_mm")):
            loaded = getattr(transformers, model_class).from_pretrained(folder, experts_implementation=way)
            models[side] = loaded.eval()
    rows, length = (2, 16) if quick else (ROWS, LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(3, settings["vocab_size"], (rows, length), generator=generator) for _ in range(2))
    ours = models["quatrain"]
    losses: dict[str, Callable[[], Any]] = {"quatrain": lambda: ours(ids, labels)[1].mean()}
    for side in SIDES[1:]:
        losses[side] = lambda model=models[side]: cross_entropy(
            model(input_ids=ids, use_cache=False).logits.flatten(0, 1), labels.flatten()
        )
    passes = {side: trainer(models[side], losses[side], 1 if quick else 2) for side in SIDES}
    config = ours.config
    found: dict[str, Any] = {"family": name, "losses": {side: float(losses[side]().detach()) for side in SIDES}}
    found |= {"parameters": ours.num_parameters(), "active_parameters": counts.active_parameters(config)}
    flops = rows * length * counts.flops_per_token(config, length)
    if "both" in parts:
        found["both"] = measured(name, "both", passes, flops / rates[0], repeat)
    read = counts.active_parameters(config) - config.vocab_size * config.hidden_size
    if "decode" not in parts:
        return found
    prompt, new = ids[:1, :PROMPT], 3 if quick else NEW
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        part = f"decode {str(dtype).removeprefix('torch.')}"
        for model in models.values():
            model.to(dtype)
        engine = our_decoder(ours)
        ways: dict[str, Callable[[Any, int], Any]] = {"quatrain": engine}
        ways |= {side: partial(continue_greedily, models[side]) for side in SIDES[1:]}
        decodes = {side: partial(decoding, way, prompt, new) for side, way in ways.items()}
        found[part] = measured(name, part, decodes, read * size / rates[1], repeat)
        found[part]["decoder"] = engine(prompt, 2).decoder
    methods.quantize(ours, "int8")
    eight = {"quatrain": partial(decoding, our_decoder(ours), prompt, new)}
    found["decode int8"] = measured(name, "decode int8", eight, read / rates[1], repeat)
    return found


def main() -> None:
    """Runs the benchmark; the last line is JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--families", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments.add_argument("--repeat", type=int, default=5)
    arguments.add_argument("--processor-time", action="store_true", help="for a busy machine, with one thread")
    given = arguments.parse_args()
    import torch

    require("transformers")
    global CLOCK
    CLOCK = clock_of(given.processor_time)
    rates = product_rate(torch.float32, 256 if given.quick else 1024, CLOCK), reading_rate(CLOCK)
    print(f"matrix products {rates[0] / 1e9:.0f} GFLOP/s, memory {rates[1] / 1e9:.1f} GB/s", flush=True)
    found = [compare(name, rates, given) for name in given.families]
    finish(
        "experts",
        geometric_mean(
            result[part]["ratios"]["loop"] for result in found for part in ("both", "decode float32") if part in result
        ),
        "time of transformers' loop over ours, geometric mean over families, passes and decoding",
        quick=given.quick,
        processor_time=given.processor_time,
        matmul_flops_per_second=rates[0],
        bytes_per_second=rates[1],
        results=found,
    )


if __name__ == "__main__":
    main()
