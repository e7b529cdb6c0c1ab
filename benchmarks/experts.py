"""Mixtures of experts beside transformers: forward and backward, and decoding, with the limit of each.

The same random weights on both sides, in float32. transformers runs twice: with its loop over the experts ("eager"),
and with what it chooses by itself (PyTorch's grouped product). Both sides take turns. The limit of a training pass is
its operations over the measured rate of matrix products; the limit of decoding one text is the bytes of the weights
that a token uses over the measured rate of reading memory. The ratio is the loop's time over ours, the geometric mean
over families and over forward and backward, and decoding.

    python benchmarks/experts.py [--families mixtral qwen3_moe ...] [--repeat 5] [--processor-time]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import finish, geometric_mean, in_turns, parser, require, spread

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
SIDES = ("quatrain", "loop", "grouped")


def reading_rate() -> float:
    """Bytes per second that one thread reads from memory, of an array that no cache holds."""
    import torch

    data = torch.ones(64 * 1024 * 1024)
    data.sum()
    spans = []
    for _ in range(3):
        start = CLOCK()
        data.sum()
        spans.append(CLOCK() - start)
    return data.nbytes / min(spans)


def product_rate(size: int) -> float:
    """Operations per second of the product of two square float32 matrices."""
    import torch

    one, other = torch.randn(2, size, size)
    one @ other
    spans = []
    for _ in range(3):
        start = CLOCK()
        one @ other
        spans.append(CLOCK() - start)
    return 2 * size**3 / min(spans)


def decoder(model: Any, prompt: Any, new: int) -> Callable[[], float]:
    """Seconds of a token when transformers' model continues one prompt greedily, after its first token."""
    import torch

    def run() -> float:
        with torch.inference_mode():
            output = model(input_ids=prompt, use_cache=True)
            start = CLOCK()
            for _ in range(new):
                token = output.logits[:, -1:].argmax(-1)
                output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        return (CLOCK() - start) / new

    return run


def our_decoder(model: Any, prompt: Any, new: int) -> Callable[[], float]:
    """The same for our model."""
    import torch

    from quatrain.models.transformer.kv_cache import KVCache

    def run() -> float:
        cache = KVCache(model.config, 1, prompt.shape[1] + new)
        with torch.inference_mode():
            logits = model(prompt, cache=cache)[0]
            start = CLOCK()
            for _ in range(new):
                logits = model(logits[:, -1:].argmax(-1), cache=cache)[0]
        return (CLOCK() - start) / new

    return run


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


def compare(name: str, repeat: int, rates: tuple[float, float], quick: bool) -> dict[str, Any]:
    """All sides of one family, in turns; prints a line for each part."""
    import torch
    from torch.nn.functional import cross_entropy

    from quatrain.models.io import model_folder
    from quatrain.planning import counts

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
    prompt, new = ids[:1, :PROMPT], 3 if quick else NEW
    passes = {side: trainer(models[side], losses[side], 1 if quick else 2) for side in SIDES}
    decodes = {side: (our_decoder if side == "quatrain" else decoder)(models[side], prompt, new) for side in SIDES}
    found: dict[str, Any] = {"family": name, "losses": {side: float(losses[side]().detach()) for side in SIDES}}
    config = ours.config
    limits = {
        "both": rows * length * counts.flops_per_token(config, length) / rates[0],
        "decode": (counts.active_parameters(config) - config.vocab_size * config.hidden_size) * 4 / rates[1],
    }
    found |= {"parameters": ours.num_parameters(), "active_parameters": counts.active_parameters(config)}
    for part, calls in (("both", passes), ("decode", decodes)):
        in_turns(calls, 1)
        runs = in_turns(calls, repeat)
        times = {side: spread(values) for side, values in runs.items()}
        ratios = {side: times[side]["median"] / times["quatrain"]["median"] for side in SIDES[1:]}
        share = limits[part] / times["quatrain"]["median"]
        found[part] = {"seconds": times, "ratios": ratios, "limit_seconds": limits[part], "share_of_limit": share}
        print(
            f"{name:<12} {part:<7}"
            + "  ".join(f"{side} {times[side]['median'] * 1e3:8.2f} ms" for side in SIDES)
            + f"  loop / ours {ratios['loop']:.2f}  grouped / ours {ratios['grouped']:.2f}  {share:.0%} of the limit",
            flush=True,
        )
    return found


def main() -> None:
    """Runs the benchmark; the last line is JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--families", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument("--repeat", type=int, default=5)
    arguments.add_argument("--processor-time", action="store_true", help="for a busy machine, with one thread")
    given = arguments.parse_args()
    require("transformers")
    if given.processor_time:
        global CLOCK
        CLOCK = time.process_time
    rates = product_rate(256 if given.quick else 1024), reading_rate()
    print(f"matrix products {rates[0] / 1e9:.0f} GFLOP/s, memory {rates[1] / 1e9:.1f} GB/s", flush=True)
    found = [compare(name, 1 if given.quick else given.repeat, rates, given.quick) for name in given.families]
    finish(
        "experts",
        geometric_mean(result[part]["ratios"]["loop"] for result in found for part in ("both", "decode")),
        "time of transformers' loop over ours, geometric mean over families, passes and decoding",
        quick=given.quick,
        processor_time=given.processor_time,
        matmul_flops_per_second=rates[0],
        bytes_per_second=rates[1],
        results=found,
    )


if __name__ == "__main__":
    main()
