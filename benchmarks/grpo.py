"""Samples per second of GRPO, and its peak memory, beside TRL's GRPOTrainer: the same model, prompts, lengths and loss.

A sample is a completion that is generated, rewarded and learned from once. Both generate with their own engine and
train in float32 with AdamW. The model has first learned to end after 16 tokens on average, and at most after
`--tokens`: completions of real models differ in length too. Each has a process of its own and they take turns. Ours
also says which share of a step is sampling.

    python benchmarks/grpo.py [--repeat 3] [--steps 3] [--prompts 16] [--samples 8] [--tokens 48]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Worker, finish, in_turns, parser, require, serve, spread

OURS, PEER = "quatrain", "trl"
SHAPE = {
    "family": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
"""The model of the quickstart recipe."""
VOCABULARY = 1024
WORDS = "which orders of customers cost more than average in the last month of year and how many were sent late".split()
MEAN_LENGTH = 16
"""Tokens after which the model has learned to end, on average."""
WARM = 2
"""Steps of a turn that are not counted."""
LEARNING_RATE = 1e-5


def questions(count: int) -> list[str]:
    """Prompts of 12 words."""
    import random

    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(count)]


def reward(completions: Sequence[str]) -> list[float]:
    """Different for every completion, and quick."""
    return [len(set(text)) / 10 for text in completions]


def ours(folder: Path, sizes: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Trains a number of steps with the Trainer; the shares of a step are those of the last turn."""
    from quatrain.alignment.grpo import GRPO
    from quatrain.alignment.rewards.base import WeightedRewards
    from quatrain.alignment.rollouts import Prompt, RolloutPlan, RolloutStream, Sampler
    from quatrain.generation.engine import Engine
    from quatrain.generation.params import SamplingParams
    from quatrain.loading.model import load_model
    from quatrain.training.settings import TrainSettings
    from quatrain.training.trainer import Hooks, Trainer

    model, tokenizer = load_model(folder)
    prompts = [Prompt(tokenizer.encode(text), text, text) for text in questions(4 * sizes.prompts)]
    rows = sizes.prompts * sizes.samples
    params = SamplingParams(max_new_tokens=sizes.tokens, temperature=1.0, logprobs_mode="temperature")
    rewards = WeightedRewards({"letters": (lambda examples, completions: reward(completions), 1.0)})
    settings = TrainSettings(
        steps=WARM + sizes.steps, learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0, weight_decay=0.0,
        precision="float32", accumulation=sizes.accumulation,
    )  # fmt: skip

    def train() -> dict[str, Any]:
        engine = Engine(model, tokenizer, max_rows=rows)
        sampler = Sampler(engine, prompts, rewards, params, samples=sizes.samples, rows=rows)
        objective = GRPO("grpo", limit=sizes.tokens)
        plan = RolloutPlan(sizes.prompts, sizes.samples, accumulation=sizes.accumulation)
        stream = RolloutStream(model, objective, sampler, plan)
        times: dict[int, float] = {}
        spent: dict[int, dict[str, float]] = {}

        def progress(step: int, **metrics: Any) -> None:
            times[step], spent[step] = time.perf_counter(), dict(stream.seconds)

        last = WARM + sizes.steps
        Trainer(model, objective, stream, settings, steps=last, hooks=Hooks(progress=progress)).train()
        seconds = times[last] - times[WARM]
        shares = {name: (spent[last][name] - spent[WARM][name]) / seconds for name in stream.seconds}
        return {"seconds": seconds, "shares": shares | {"optimizer": 1 - sum(shares.values())}}

    return train


def theirs(folder: Path, sizes: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """The same by TRL."""
    require("trl")
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    times: list[float] = []

    class Clock(TrainerCallback):
        """Notes when a step has ended."""

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            times.append(time.perf_counter())

    rows = sizes.prompts * sizes.samples
    settings = trl.GRPOConfig(
        str(folder / "trl"),
        per_device_train_batch_size=rows // sizes.accumulation,
        gradient_accumulation_steps=sizes.accumulation,
        num_generations=sizes.samples,
        max_completion_length=sizes.tokens,
        beta=0.0,
        loss_type="grpo",
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=WARM + sizes.steps,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )

    def train() -> dict[str, Any]:
        times.clear()
        trl.GRPOTrainer(
            model,
            reward_funcs=lambda completions, **more: reward(completions),
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": questions(4 * sizes.prompts)}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        ).train()
        return {"seconds": times[-1] - times[WARM - 1]}

    return train


def work(way: str, folder: Path, sizes: argparse.Namespace) -> None:
    """A worker's side: trains some steps a turn."""
    import contextlib
    import sys

    from quatrain.core.process_memory import peak_memory, reset_peak_memory

    train = (ours if way == OURS else theirs)(folder, sizes)

    def measure() -> dict[str, Any]:
        reset_peak_memory()
        with contextlib.redirect_stdout(sys.stderr):
            result = train()
        rows = sizes.prompts * sizes.samples * sizes.steps
        return result | {"samples_per_second": rows / result["seconds"], "peak_bytes": peak_memory()}

    serve(measure)


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """A folder with a tokenizer of the prompts' words, and a model that has learned where texts end."""
    import random

    from quatrain.data.batches import TokenExample
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer
    from quatrain.training.objectives import Causal
    from quatrain.training.settings import TrainSettings
    from quatrain.training.streams import ExampleStream
    from quatrain.training.trainer import Trainer

    tokenizer = Tokenizer.train(questions(2000), vocab_size=VOCABULARY)
    config = ModelConfig(
        vocab_size=max(VOCABULARY, tokenizer.vocab_size),
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        **shape,
    )
    model, draw, examples = Model(config).initialize(0), random.Random(1), []
    for question in questions(400):
        ids, length = tokenizer.encode(question), min(1 + int(draw.expovariate(1 / MEAN_LENGTH)), 96)
        answer = [*draw.choices(tokenizer.encode(" ".join(WORDS)), k=length), tokenizer.eos_id]
        examples.append(TokenExample([*ids, *answer], [False] * len(ids) + [True] * len(answer)))
    settings = TrainSettings(steps=40, batch_tokens=1024, learning_rate=5e-3, warmup_steps=5, precision="float32")
    Trainer(model, Causal(), ExampleStream(examples, batch_tokens=1024, seed=0), settings, steps=40).train()
    tokenizer.save(folder)
    model_folder.save(model, folder)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeat", type=int, default=3, help="turns of each")
    arguments.add_argument("--steps", type=int, default=3, help="measured steps of a turn")
    arguments.add_argument("--prompts", type=int, default=16, help="prompts of a step")
    arguments.add_argument("--samples", type=int, default=8, help="completions of a prompt")
    arguments.add_argument("--tokens", type=int, default=96, help="most tokens of a completion")
    arguments.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step")
    arguments.add_argument("--worker", nargs=2, metavar=("WAY", "FOLDER"), help="(how it starts its own processes)")
    sizes = arguments.parse_args()
    if sizes.worker:
        work(sizes.worker[0], Path(sizes.worker[1]), sizes)
        return
    require("trl")
    shape = SHAPE
    if sizes.quick:
        sizes.repeat, sizes.steps, sizes.prompts, sizes.samples, sizes.tokens = 1, 1, 2, 2, 4
        sizes.accumulation = 1
        shape = SHAPE | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    numbers = [f"--{name}={getattr(sizes, name)}" for name in ("steps", "prompts", "samples", "tokens", "accumulation")]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), shape)
        workers = {way: Worker(__file__, "--worker", way, folder, *numbers) for way in (OURS, PEER)}
        found: dict[str, Any] = in_turns({way: worker.turn for way, worker in workers.items()}, sizes.repeat)
        for worker in workers.values():
            worker.close()
    rates = {way: spread(run["samples_per_second"] for run in runs) for way, runs in found.items()}
    peaks = {way: max(run["peak_bytes"] for run in runs) for way, runs in found.items()}
    for way, rate in rates.items():
        print(
            f"{way:<10} {rate['median']:8.1f} samples/s ({rate['min']:.1f} to {rate['max']:.1f}), "
            f"peak {peaks[way] / 1e6:,.0f} MB"
        )
    shares = found[OURS][-1]["shares"]
    print("of a step of ours: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    finish(
        "grpo",
        rates[OURS]["median"] / rates[PEER]["median"],
        "samples/s of GRPO / of TRL's GRPOTrainer",
        quick=sizes.quick,
        memory_ratio=peaks[OURS] / peaks[PEER],
        samples_per_second=rates,
        peak_bytes=peaks,
        shares_of_a_step=shares,
        batch=[sizes.prompts, sizes.samples, sizes.tokens],
    )


if __name__ == "__main__":
    main()
