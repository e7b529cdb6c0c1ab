"""Choosing the next tokens of a batch, beside transformers' processors: time of a step, for the usual settings.

Ours is `TokenChooser.choose` on rows with 200 tokens of history, which also gives each token's log-probability and
looks for broken logits; theirs is the list of processors that `generate` builds for the same settings, then argmax, or
softmax and multinomial. The logits are random, with the spread of a language model's. The ratio is the geometric mean
of their time over ours.

    python benchmarks/choosing.py [--vocabulary 32000] [--rows 1 16] [--repeat 15]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import finish, geometric_mean, in_turns, parser, require, seconds_of, spread

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "repetition penalty": {"repetition_penalty": 1.1},
    "no repeated 3-grams": {"no_repeat_ngram_size": 3},
}
HISTORY = 200


def ours(settings: dict[str, Any], logits: torch.Tensor, history: torch.Tensor) -> Callable[[], Any]:
    """A step of our chooser."""
    from quatrain.generation.choosing import TokenChooser
    from quatrain.generation.params import SamplingParams
    from quatrain.generation.requests import SequenceState

    chooser, params = TokenChooser(), SamplingParams(**settings)
    rows = [SequenceState(ids, params, 10**6, seed, (2,)) for seed, ids in enumerate(history.tolist())]

    def step() -> None:
        chooser.choose(logits, rows).append_to(rows)

    return step


def theirs(settings: dict[str, Any], logits: torch.Tensor, history: torch.Tensor) -> Callable[[], Any]:
    """A step of transformers' processors."""
    from transformers.generation import logits_process as process

    makers: dict[str, Callable[[Any], Any]] = {
        "repetition_penalty": process.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": process.NoRepeatNGramLogitsProcessor,
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    chain = process.LogitsProcessorList([make(settings[name]) for name, make in makers.items() if name in settings])
    ids = history

    def step() -> None:
        nonlocal ids
        scores = chain(ids, logits.clone())
        if "temperature" in settings:
            tokens = torch.multinomial(scores.softmax(dim=-1), 1)
        else:
            tokens = scores.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, tokens], dim=-1)
        tokens.tolist()

    return step


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--vocabulary", type=int, default=32000)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    options.add_argument("--repeat", type=int, default=15)
    arguments = options.parse_args()
    require("transformers")
    vocabulary, repeat, steps = arguments.vocabulary, arguments.repeat, 10
    if arguments.quick:
        vocabulary, repeat, steps = 500, 1, 2
    results, ratios = [], []
    for rows in arguments.rows:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, vocabulary, generator=generator) * 3
        history = torch.randint(0, vocabulary, (rows, HISTORY), generator=generator)
        for name, settings in SETTINGS.items():
            sides = {side: make(settings, logits, history) for side, make in (("ours", ours), ("transformers", theirs))}
            calls = {side: (lambda step=step: seconds_of(step, steps)) for side, step in sides.items()}
            for call in calls.values():
                call()
            times = in_turns(calls, repeat)
            micro = {side: spread(1e6 * value for value in values) for side, values in times.items()}
            ratio = micro["transformers"]["median"] / micro["ours"]["median"]
            ratios.append(ratio)
            results.append({"rows": rows, "settings": name, "microseconds": micro, "ratio": ratio})
            print(
                f"{rows:3} rows, {name:20} ours {micro['ours']['median']:8.0f} µs, "
                f"transformers {micro['transformers']['median']:8.0f} µs, ratio {ratio:.2f}"
            )
    finish(
        "choosing", geometric_mean(ratios), "transformers' time over ours",
        quick=arguments.quick, vocabulary=vocabulary, results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
