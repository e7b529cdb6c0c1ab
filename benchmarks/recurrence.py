"""Recurrent families beside transformers: a training pass, and greedy decoding through the engine; the same weights.

Random weights, float32, both sides in one process, in turns. `state` compares what a text keeps at two lengths, and the
time of one step there, with a Llama of the same width: the state of a recurrent layer does not grow. The ratio is the
geometric mean of training and decoding, ours over transformers.

    python benchmarks/recurrence.py [--families mamba2 xlstm ...] [--repeat 3] [--batches 1 8] [--new-tokens 32]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import clock_of, finish, geometric_mean, in_turns, parser, require, seconds_of, spread

ROWS, LENGTH, PROMPT = 4, 512, 64
CLOCK = clock_of(False)
LENGTHS = 256, 4096
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 8192}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM", {"hidden_size": 512, "num_hidden_layers": 4, "num_heads": 16,
                                                     "head_dim": 64, "state_size": 128, "n_groups": 1}),
    "xlstm": ("xLSTMConfig", "xLSTMForCausalLM", {"hidden_size": 512, "num_hidden_layers": 4, "num_heads": 4}),
    "qwen3_5_text": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
        "linear_key_head_dim": 64, "linear_value_head_dim": 64, "full_attention_interval": 4}),
}  # fmt: skip
LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
         "max_position_embeddings": 8192}  # fmt: skip
TINY = {
    "intermediate_size": 64,
    "full_attention_interval": 1,
    "hidden_size": 128,
    "num_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 64,
}


def models(name: str, folder: Path, quick: bool) -> tuple[Any, Any]:
    """Our model and transformers' one, with the same random weights."""
    from quatrain.models.io import model_folder

    transformers = require("transformers")
    config_class, model_class, settings = MODELS[name]
    settings = TOKENS | settings | ({key: TINY[key] for key in TINY if key in settings | TOKENS} if quick else {})
    torch.manual_seed(0)
    theirs = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    theirs.save_pretrained(folder)
    return model_folder.load(folder), theirs


def training(ours: Any, theirs: Any, repeat: int, quick: bool) -> dict[str, Any]:
    """Seconds of a forward and backward pass of each side."""
    from torch.nn.functional import cross_entropy

    rows, length = (2, 16) if quick else (ROWS, LENGTH)
    ids = torch.randint(3, ours.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))

    def mine() -> None:
        ours(ids, ids)[1].mean().backward()

    def peer() -> None:
        logits = theirs(input_ids=ids, use_cache=False).logits
        cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    calls: dict[str, Callable[[], float]] = {
        "quatrain": lambda: seconds_of(mine, clock=CLOCK),
        "transformers": lambda: seconds_of(peer, clock=CLOCK),
    }
    in_turns(calls, 1)
    return {side: spread(values) for side, values in in_turns(calls, repeat).items()}


def decoding(ours: Any, theirs: Any, batch: int, count: int, repeat: int) -> dict[str, Any]:
    """Tokens per second of each side, and the share of equal tokens."""
    from quatrain.generation.engine import Engine, SamplingParams

    engine = Engine(ours, end_ids=[])
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(3, ours.config.vocab_size, (batch, PROMPT), generator=generator)
    texts: dict[str, list[list[int]]] = {}

    def mine() -> None:
        params = SamplingParams(max_new_tokens=count, ignore_eos=True)
        texts["quatrain"] = [each.ids for each in engine.generate(prompts.tolist(), params, batch_size=batch)]

    def peer() -> None:
        with torch.inference_mode():
            found = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0,
                                    max_new_tokens=count, min_new_tokens=count)  # fmt: skip
        texts["transformers"] = found[:, PROMPT:].tolist()

    calls: dict[str, Callable[[], float]] = {
        "quatrain": lambda: batch * count / seconds_of(mine, clock=CLOCK),
        "transformers": lambda: batch * count / seconds_of(peer, clock=CLOCK),
    }
    in_turns(calls, 1)
    rates = {side: spread(values) for side, values in in_turns(calls, repeat).items()}
    pairs = [(a, b) for one, other in zip(*texts.values(), strict=True) for a, b in zip(one, other, strict=True)]
    return rates | {"agreement": sum(a == b for a, b in pairs) / len(pairs)}


def state(model: Any, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Bytes that a text keeps, and seconds of the step behind it, at each length."""
    from quatrain.models.transformer.kv_cache import KVCache

    rows = []
    for length in lengths:
        cache = KVCache(model.config, 1, length + 8)
        with torch.inference_mode():
            model.hidden_states(torch.full((1, length), 5), cache=cache)
            steps = [seconds_of(partial(model, torch.tensor([[5]]), cache=cache), clock=CLOCK) for _ in range(8)]
        rows.append({"length": length, "bytes": cache.nbytes, "step_seconds": min(steps)})
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--families", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--new-tokens", type=int, default=32)
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--processor-time", action="store_true", help="for a busy machine, with one thread")
    chosen = arguments.parse_args()
    global CLOCK
    CLOCK = clock_of(chosen.processor_time)
    batches, count, repeat, lengths = chosen.batches, chosen.new_tokens, chosen.repeat, LENGTHS
    if chosen.quick:
        batches, count, repeat, lengths = [2], 4, 1, (8, 16)
    rows = []
    for name in chosen.families:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = models(name, Path(folder), chosen.quick)
        row: dict[str, Any] = {"family": name, "training": training(ours, theirs, repeat, chosen.quick)}
        mine, peer = (row["training"][side]["median"] for side in ("quatrain", "transformers"))
        row["training_ratio"] = peer / mine
        print(f"{name}: forward and backward {mine * 1e3:,.0f} ms against {peer * 1e3:,.0f} ({peer / mine:.2f}x)")
        row["decoding"] = []
        for batch in batches:
            found = decoding(ours, theirs, batch, count, repeat)
            mine, peer = (found[side]["median"] for side in ("quatrain", "transformers"))
            row["decoding"].append({"batch": batch, "ratio": mine / peer} | found)
            print(f"  batch {batch}: {mine:,.1f} tokens/s against {peer:,.1f} ({mine / peer:.2f}x), "
                  f"{found['agreement']:.1%} of the tokens equal", flush=True)  # fmt: skip
        row["state"] = state(ours, lengths)
        rows.append(row)
    states = {row["family"]: row["state"] for row in rows} | {"llama": state(llama(chosen.quick), lengths)}
    for name, points in states.items():
        for point in points:
            size, seconds = point["bytes"] / 1e6, point["step_seconds"]
            print(f"{name}, {point['length']:,} tokens: {size:.2f} MB, {seconds * 1e3:.1f} ms")
    ratios = [row["training_ratio"] for row in rows]
    ratios += [point["ratio"] for row in rows for point in row["decoding"]]
    finish("recurrence", geometric_mean(ratios), "speed of training and decoding / that of transformers",
           quick=chosen.quick, processor_time=chosen.processor_time, rows=rows, states=states)  # fmt: skip


def llama(quick: bool) -> Any:
    """A Llama of the same width."""
    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.transformer.stack import Model

    sizes = TOKENS | LLAMA | ({"num_hidden_layers": 1, "vocab_size": 64} if quick else {})
    return Model(fresh_config("llama", sizes)).initialize(0).eval()


if __name__ == "__main__":
    main()
