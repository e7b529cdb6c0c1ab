"""A reward model trained by ours and by TRL's RewardTrainer: pairs per second and peak memory, on the same pairs.

Every turn is a process of its own, and the sides take turns. Both train the same weights on the same pairs of
conversations in float32, with AdamW, as many pairs a step on average, and no gradient checkpointing (TRL's default
would save memory and cost time). Ours sorts pairs by length, which is its default; --group gives TRL the same sampling.
Steps are counted after the first two. That both compute the same loss and gradients is a test
(tests/alignment/test_reward_model.py).

    python benchmarks/reward.py [--shape llama] [--pairs 8] [--steps 20] [--repeat 3] [--source FILE] [--group]

The pairs are those of `--source` (a preference file, such as HH-RLHF), or without it random ones with its lengths.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import Worker, finish, in_turns, parser, require, serve, spread

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024},
    "tiny": {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128},
}  # fmt: skip
SIDES = ("quatrain", "trl")
WARM = 2
"""Steps of a turn that are not counted."""


def random_pairs(vocabulary: int, longest: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of rows with lengths like those of HH-RLHF: long conversations that share a prompt, short answers."""
    import numpy as np

    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        prompt = int(min(generator.gamma(1.6, 75.0), longest // 2))
        answers = [int(np.clip(generator.gamma(1.3, 35.0), 4, longest // 2 - 1)) for _ in range(2)]
        ids = [generator.integers(5, vocabulary, size).tolist() for size in (prompt, *answers)]
        pairs.append((ids[0] + ids[1], ids[0] + ids[2]))
    return pairs


def real_pairs(source: str, vocabulary: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """The pairs of a preference file, with a tokenizer that is trained on it."""
    from quatrain.alignment.reward_model import AnswerReader
    from quatrain.data.documents import read_preferences
    from quatrain.data.messages import content_text
    from quatrain.tokenizers.tokenizer import Tokenizer

    records = list(read_preferences(source))
    texts = (content_text(message) for record in records for message in (*record.prompt, *record.chosen))
    tokenizer = Tokenizer.train(texts, vocab_size=vocabulary, chat_template="chatml")
    reader = AnswerReader(tokenizer, longest)
    rows = (reader.read(record.prompt, (record.chosen, record.rejected)) for record in records)
    return [(chosen.ids, rejected.ids) for chosen, rejected in rows]


def pairs_of(chosen: Any) -> list[tuple[list[int], list[int]]]:
    """The pairs of both sides."""
    shape = SHAPES[chosen.shape]
    sizes = shape["vocab_size"], shape["max_position_embeddings"]
    return real_pairs(chosen.source, *sizes) if chosen.source else random_pairs(*sizes, 40 * chosen.pairs)


def ours(folder: Path, chosen: Any) -> dict[str, Any]:
    """Trains with our Trainer; returns the pairs per second, and tokens without padding."""
    from quatrain.alignment.reward_model import PairwiseReward, RewardExample
    from quatrain.models.io import model_folder
    from quatrain.tokenizers.tokenizer import Tokenizer
    from quatrain.training.objectives.texts import EncodedText
    from quatrain.training.settings import TrainSettings
    from quatrain.training.streams import ExampleStream
    from quatrain.training.trainer import Hooks, Trainer

    examples = [RewardExample(EncodedText(one), EncodedText(other)) for one, other in pairs_of(chosen)]
    tokens = sum(map(len, examples)) * chosen.pairs // len(examples)
    seen: list[int] = []

    class Counted(ExampleStream):
        def next(self) -> Any:
            batch = super().next()
            seen.append(len(batch))
            return batch

    steps = WARM + chosen.steps
    settings = TrainSettings.model_validate(
        {"steps": steps, "batch_tokens": tokens, "precision": "float32", "learning_rate": 1e-4, "device": "cpu"}
    )
    times: list[float] = []
    hooks = Hooks(progress=lambda step, **metrics: times.append(time.perf_counter()))
    model = model_folder.load(folder)
    objective = PairwiseReward(Tokenizer.load(folder))
    Trainer(
        model, objective, Counted(examples, batch_tokens=tokens, seed=0), settings, steps=steps, hooks=hooks
    ).train()
    return {"pairs_per_second": sum(seen[WARM:steps]) / (times[-1] - times[WARM - 1])}


def theirs(folder: Path, chosen: Any) -> dict[str, Any]:
    """The same with TRL's RewardTrainer."""
    require("trl")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock, pairs = Clock(), pairs_of(chosen)
    with tempfile.TemporaryDirectory() as out:
        more = {"train_sampling_strategy": "group_by_length"} if chosen.group else {}
        arguments = RewardConfig(
            out, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None,
            per_device_train_batch_size=chosen.pairs, max_steps=WARM + chosen.steps, learning_rate=1e-4,
            save_strategy="no", logging_steps=10**6, disable_tqdm=True, **more,
        )  # fmt: skip
        trainer = RewardTrainer(
            AutoModelForSequenceClassification.from_pretrained(folder),
            args=arguments,
            train_dataset=Dataset.from_dict(
                {"chosen_ids": [one for one, _ in pairs], "rejected_ids": [other for _, other in pairs]}
            ),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)  # It writes to the worker's answers.
        trainer.train()
    return {"pairs_per_second": chosen.steps * chosen.pairs / (clock.times[-1] - clock.times[WARM - 1])}


def work(side: str, folder: Path, chosen: Any) -> None:
    """A worker's side: one training."""

    def measure() -> dict[str, Any]:
        from quatrain.core.process_memory import peak_memory

        result = {"quatrain": ours, "trl": theirs}[side](folder, chosen)
        return result | {"peak_bytes": peak_memory()}

    serve(measure)


def write(folder: Path, shape: dict[str, Any]) -> None:
    """A reward model with fresh weights and a tokenizer, which both sides read."""
    from quatrain.alignment.reward_model import LABELS
    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["a few words for a tokenizer"] * 2, vocab_size=300, chat_template="chatml")
    head = {"labels": LABELS, "problem_type": "regression", "pad_token_id": tokenizer.pad_id}
    config = fresh_config("llama", shape, head="sequence_classification").replace(**head)
    model_folder.save(Model(config).initialize(0), folder)
    tokenizer.save(folder)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shape", choices=SHAPES, default="llama")
    arguments.add_argument("--pairs", type=int, default=8, help="pairs of a step")
    arguments.add_argument("--steps", type=int, default=20, help="measured steps of a turn")
    arguments.add_argument("--repeat", type=int, default=3, help="turns of each side")
    arguments.add_argument("--source", help="a preference file")
    arguments.add_argument("--group", action="store_true", help="TRL batches pairs of similar lengths too")
    arguments.add_argument("--worker", nargs=2, metavar=("SIDE", "FOLDER"), help="(how it starts its own processes)")
    chosen = arguments.parse_args()
    if chosen.worker:
        return work(chosen.worker[0], Path(chosen.worker[1]), chosen)
    if chosen.quick:
        chosen.shape, chosen.pairs, chosen.steps, chosen.repeat = "tiny", 2, 2, 1
    for peer in ("trl", "datasets"):
        require(peer)
    flags = ["--shape", chosen.shape, "--pairs", str(chosen.pairs), "--steps", str(chosen.steps)]
    flags += ["--source", chosen.source] if chosen.source else []
    flags += ["--group"] if chosen.group else []
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), SHAPES[chosen.shape])
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}

        def turn(side: str) -> float:
            worker = Worker(__file__, "--worker", side, place, *flags)
            runs[side].append(worker.turn())
            worker.close()
            return float(runs[side][-1]["pairs_per_second"])

        speeds = in_turns({side: lambda side=side: turn(side) for side in SIDES}, chosen.repeat)
    peaks = {side: max(run["peak_bytes"] for run in runs[side]) for side in SIDES}
    for side in SIDES:
        print(f"{side:<10}{median(speeds[side]):>8.2f} pairs/s ({min(speeds[side]):.2f} to {max(speeds[side]):.2f})  "
              f"peak {peaks[side] / 1e9:.2f} GB", flush=True)  # fmt: skip
    ratio, memory = median(speeds["quatrain"]) / median(speeds["trl"]), peaks["quatrain"] / peaks["trl"]
    print(f"{ratio:.2f}x their pairs/s, {memory:.2f}x their memory")
    finish(
        "reward", ratio, "pairs/s of ours over TRL's", quick=chosen.quick, memory_ratio=memory, shape=chosen.shape,
        pairs=chosen.pairs, grouped=chosen.group, source=chosen.source,
        sides={side: {"pairs_per_second": spread(speeds[side]), "peak_bytes": peaks[side]} for side in SIDES},
    )  # fmt: skip


if __name__ == "__main__":
    main()
