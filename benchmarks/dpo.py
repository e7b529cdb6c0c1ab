"""Direct preference optimization: samples per second and peak memory, beside TRL's DPOTrainer.

Every way trains the same model (float32, all weights, AdamW) on the same pairs, as many a step, and its time includes
the reference's log-probabilities. Prompts and answers have about the lengths of HH-RLHF's. Ours computes references
once and lets both answers of a pair share their prompt. TRL runs with its defaults (a second model, activation
checkpointing), without checkpointing, and with precomputed references too. Each way has a process of its own; they
take turns. The ratios are ours over TRL's fastest way, and our peak over that of TRL's smallest way.

    python benchmarks/dpo.py [--repeat 3] [--pairs 96] [--rows 8]
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Worker, finish, in_turns, parser, require, serve, spread

OURS, OURS_APART = "quatrain", "quatrain, two rows a pair"
THEIRS: dict[str, dict[str, Any]] = {
    "trl, defaults": {},
    "trl, no checkpointing": {"gradient_checkpointing": False},
    "trl, no checkpointing, precomputed": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
}
"""Ways of TRL: the options that differ from its defaults."""
WAYS = (OURS, OURS_APART, *THEIRS)
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 4, "max_position_embeddings": 1024}  # fmt: skip
TINY = SHAPE | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
VOCABULARY = 4096
QUARTILES = {"prompt": (16, 40, 85, 180), "answer": (6, 14, 28, 64)}
"""Lengths in words: the bounds of the middle half and the median lie at about a quarter of HH-RLHF's characters."""


def rows(count: int, words: Sequence[str]) -> dict[str, list[str]]:
    """Pairs of random words with the lengths of QUARTILES."""
    generator = random.Random(0)

    def text(kind: str) -> str:
        bounds = QUARTILES[kind]
        part = generator.randrange(len(bounds) - 1)
        return " ".join(generator.choices(words, k=generator.randint(bounds[part], bounds[part + 1])))

    return {
        "prompt": [text("prompt") for _ in range(count)],
        "chosen": [" " + text("answer") for _ in range(count)],
        "rejected": [" " + text("answer") for _ in range(count)],
    }


def prepare(folder: Path, count: int, shape: dict[str, int]) -> None:
    """Writes the model with its tokenizer, and the pairs as texts."""
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnoprstuw", k=generator.randint(2, 7))) for _ in range(3000)]
    tokenizer = Tokenizer.train([" ".join(words)] * 3, vocab_size=VOCABULARY)
    tokenizer.save(folder)
    config = ModelConfig(family="llama", vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, **shape)
    model_folder.save(Model(config).initialize(0), folder)
    (folder / "pairs.json").write_text(json.dumps(rows(count, words)))


def ours(folder: Path, per_step: int, *, share: bool) -> Callable[[], tuple[float, float, int]]:
    """What trains one epoch: seconds, the mean loss, and tokens that the model reads in training."""
    from quatrain.alignment.dpo import DPO, PreferenceExample
    from quatrain.models.io import model_folder
    from quatrain.tokenizers.tokenizer import Tokenizer
    from quatrain.training.settings import TrainSettings
    from quatrain.training.streams import ShuffledStream
    from quatrain.training.trainer import Hooks, Trainer

    tokenizer = Tokenizer.load(folder)
    texts = json.loads((folder / "pairs.json").read_text())
    pairs = [
        PreferenceExample(tokenizer.encode(prompt), *([*tokenizer.encode(each), tokenizer.eos_id] for each in answers))
        for prompt, *answers in zip(texts["prompt"], texts["chosen"], texts["rejected"], strict=True)
    ]
    model = model_folder.load(folder)

    def train() -> tuple[float, float, int]:
        start = time.perf_counter()
        objective = DPO(share_prompts=share, pad_id=tokenizer.eos_id)
        examples = objective.add_references(model, pairs)
        stream = ShuffledStream(examples, rows=per_step, seed=0)
        steps = -(-len(pairs) // per_step)
        settings = TrainSettings(steps=steps, learning_rate=1e-6, schedule="constant", warmup_steps=0, weight_decay=0.0,
                                 precision="float32")  # fmt: skip
        result = Trainer(model, objective, stream, settings, steps=steps, hooks=Hooks()).train()
        return time.perf_counter() - start, result.loss, result.size

    return train


def theirs(folder: Path, per_step: int, options: dict[str, Any]) -> Callable[[], tuple[float, float, int]]:
    """The same by TRL; precomputing belongs to the time, tokenizing does not."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trl = require("trl")
    texts = json.loads((folder / "pairs.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    precompute = options.pop("precompute_ref_log_probs", False)
    arguments = trl.DPOConfig(
        str(folder / "out"), report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=per_step,
        num_train_epochs=1, learning_rate=1e-6, lr_scheduler_type="constant", warmup_steps=0, save_strategy="no",
        logging_strategy="no", disable_tqdm=True, max_length=None, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenized = trl.DPOTrainer(model, args=arguments, train_dataset=Dataset.from_dict(texts),
                               processing_class=tokenizer).train_dataset  # fmt: skip
    arguments.precompute_ref_log_probs = precompute

    def train() -> tuple[float, float, int]:
        trainer = trl.DPOTrainer(
            model, args=arguments, train_dataset=Dataset.from_dict(texts).select(range(per_step)),
            processing_class=tokenizer,
        )  # fmt: skip
        start = time.perf_counter()
        trainer.train_dataset = tokenized
        if precompute:
            trainer.train_dataset = trainer._precompute_ref_logps(tokenized, "train", per_step)
        with contextlib.redirect_stdout(sys.stderr):  # TRL prints its summary; a worker's output is its answer
            loss = trainer.train().training_loss
        return time.perf_counter() - start, loss, 0

    return train


def work(way: str, folder: Path, per_step: int) -> None:
    """A worker's side: an epoch a turn."""
    from quatrain.core.process_memory import peak_memory, reset_peak_memory

    apart = way == OURS_APART
    train = theirs(folder, per_step, dict(THEIRS[way])) if way in THEIRS else ours(folder, per_step, share=not apart)

    def measure() -> dict[str, Any]:
        reset_peak_memory()
        seconds, loss, tokens = train()
        return {"seconds": seconds, "loss": loss, "tokens": tokens, "peak_bytes": peak_memory()}

    serve(measure)


def compare(ways: Sequence[str], pairs: int, per_step: int, repeat: int, shape: dict[str, int]) -> dict[str, Any]:
    """The ways in turns, the first turn of each not counted; prints a line each."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), pairs, shape)
        workers = {way: Worker(__file__, "--worker", way, place, "--rows", str(per_step)) for way in ways}
        in_turns({way: worker.turn for way, worker in workers.items()}, 1)
        found: dict[str, Any] = in_turns({way: worker.turn for way, worker in workers.items()}, repeat)
        for worker in workers.values():
            worker.close()
    for way, runs in found.items():
        rate = spread(pairs / run["seconds"] for run in runs)
        peak = max(run["peak_bytes"] for run in runs)
        results[way] = {"samples_per_second": rate, "peak_bytes": peak, "losses": [run["loss"] for run in runs]}
        print(f"  {way:<36} {rate['median']:>7.1f} samples/s ({rate['min']:.1f} to {rate['max']:.1f})"
              f"  peak {peak / 1e6:>6,.0f} MB", flush=True)  # fmt: skip
    return results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=96)
    arguments.add_argument("--rows", type=int, default=8, help="pairs of a step")
    arguments.add_argument("--repeat", type=int, default=3, help="turns of each way")
    arguments.add_argument("--worker", nargs=2, metavar=("WAY", "FOLDER"), help="(how it starts its own processes)")
    chosen = arguments.parse_args()
    if chosen.worker:
        work(chosen.worker[0], Path(chosen.worker[1]), chosen.rows)
        return
    require("trl")
    ways: Sequence[str] = WAYS
    pairs, repeat, shape = chosen.pairs, chosen.repeat, SHAPE
    if chosen.quick:
        ways, pairs, repeat, shape = (OURS, "trl, defaults"), 8, 1, TINY
    print(f"{pairs} pairs, {chosen.rows} a step")
    results = compare(ways, pairs, chosen.rows, repeat, shape)
    peers = [results[way] for way in ways if way in THEIRS]
    fastest = max(each["samples_per_second"]["median"] for each in peers)
    smallest = min(each["peak_bytes"] for each in peers)
    speed = results[OURS]["samples_per_second"]["median"] / fastest
    memory = results[OURS]["peak_bytes"] / smallest
    print(f"  speed {speed:.2f}x of TRL's fastest way, peak memory {memory:.2f}x of its smallest")
    finish("dpo", speed, "samples/s of ours / of TRL's fastest way", quick=chosen.quick, memory_ratio=memory,
           ratios={way: results[OURS]["samples_per_second"]["median"] / results[way]["samples_per_second"]["median"]
                   for way in ways if way != OURS},
           memory_ratios={way: results[OURS]["peak_bytes"] / results[way]["peak_bytes"] for way in ways if way != OURS},
           results=results)  # fmt: skip


if __name__ == "__main__":
    main()
