"""Pipelines beside transformers': texts per second of three tasks, on a BERT of MiniLM's size with random weights.

    python benchmarks/pipelines.py

Both read the same texts of 3 to 40 words from the same folder: ours 32 at once, sorted by length; transformers one at a
time, which is its default, and 32 at once. The outputs are compared before anything is timed.
"""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from common import finish, in_turns, parser, require, seconds_of, spread

WORDS = (
    "the a of and film was is good dull long fine story about people who never knew where they were in Paris".split()
)
TASKS = {
    "text-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "fill-mask": "MaskedLM",
}
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
QUICK = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def folder_of(transformers: Any, place: Path, kind: str, sizes: dict[str, int]) -> Path:
    """A random BERT with a wordpiece tokenizer of the words."""
    import torch

    from quatrain.tokenizers.tokenizer import Tokenizer

    torch.manual_seed(0)
    words = Tokenizer.train([" ".join(WORDS)] * 9, kind="wordpiece", vocab_size=120)
    words.save(place)
    config = transformers.BertConfig(
        vocab_size=30522, max_position_embeddings=512, pad_token_id=words.pad_id, num_labels=5, **sizes
    )
    getattr(transformers, f"BertFor{kind}")(config).save_pretrained(place)
    return place


def alike(one: Any, other: Any) -> bool:
    """Whether two outputs say the same: equal words, and scores within 0.1 %."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return math.isclose(one, other, rel_tol=1e-3) if isinstance(one, float) else bool(one == other)


def main() -> None:
    """Measures, and writes the line of JSON."""
    options = parser(__doc__)
    options.add_argument("--texts", type=int, default=256)
    options.add_argument("--repeat", type=int, default=3)
    given = options.parse_args()
    transformers = require("transformers")
    warnings.simplefilter("ignore")
    import quatrain

    count, repeat = (8, 1) if given.quick else (given.texts, given.repeat)
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(3, 40))) for _ in range(count)]
    rates: dict[str, dict[str, Any]] = {}
    for task, kind in TASKS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = folder_of(transformers, Path(place), kind, QUICK if given.quick else SIZES)
            ours = quatrain.pipeline(task, folder, device="cpu")
            peer = transformers.pipeline(task, model=str(folder), device="cpu")
            own = [f"{text} {ours.tokenizer.id_to_token(ours.tokenizer.mask_id)}" for text in texts]
            inputs = own if task == "fill-mask" else texts
            assert alike(ours(inputs[:2]), peer(inputs[:2])), "the outputs differ"
            calls = {
                "ours": partial(seconds_of, partial(ours, inputs)),
                "transformers": partial(seconds_of, partial(peer, inputs)),
                "transformers, 32 at once": partial(seconds_of, partial(peer, inputs, batch_size=32)),
            }
            times = in_turns(calls, repeat)
        rates[task] = {name: spread(count / second for second in seconds) for name, seconds in times.items()}
        shown = ", ".join(f"{name} {rate['median']:.0f}" for name, rate in rates[task].items())
        print(f"{task}: texts/s: {shown}")
    best = [
        rate["ours"]["median"] / max(each["median"] for name, each in rate.items() if name != "ours")
        for rate in rates.values()
    ]
    finish("pipelines", min(best), "texts/s of ours to the faster way of transformers, in the worst task",
           quick=given.quick, tasks=rates)  # fmt: skip


if __name__ == "__main__":
    main()
