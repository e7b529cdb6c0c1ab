"""Engines for tests of what runs together: tiny models, prompts, and what each gives alone."""

from __future__ import annotations

import random

import battery
import pytest
from tiny_models import bloom, gpt2, llama

from quatrain.generation.engine import Engine
from quatrain.models.transformer.config import RotaryScaling

SPEAKERS = [
    case
    for case in battery.all_cases()
    if case.head is None and case.model.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel"))
]
LONG = {
    "long_factor": (4.0, 3.0, 2.0, 1.5), "short_factor": (1.0, 1.1, 1.2, 1.3), "original_max_position_embeddings": 24,
    "factor": 4.0,
}  # fmt: skip
CONFIGS = {
    "llama": llama(vocab_size=120),
    "gpt2": gpt2(vocab_size=120),
    "bloom": bloom(vocab_size=120),
    "sliding": llama(family="mistral", vocab_size=120, sliding_window=5, layer_types=("sliding", "full")),
    "longrope": llama(
        family="phi3", vocab_size=120, rope_scaling=RotaryScaling("longrope", tuple(sorted(LONG.items())))
    ),
    "dynamic": llama(
        vocab_size=120, max_position_embeddings=32, rope_scaling=RotaryScaling("dynamic", (("factor", 4.0),))
    ),
}


def engine_of(model, **settings):
    """An engine whose prompts are read in small parts and reused from the first token on."""
    engine = Engine(model, end_ids=settings.pop("end_ids", list(range(5, 20))))
    engine.scheduler.min_reuse, engine.scheduler.chunk = 1, 7
    for name, value in settings.items():
        setattr(engine.scheduler, name, value)
    return engine


def prompts(count, seed=0, low=1, high=20, vocabulary=97, stem=()):
    generator = random.Random(seed)
    return [
        [*stem, *(generator.randrange(21, vocabulary) for _ in range(generator.randrange(low, high)))]
        for _ in range(count)
    ]


def alone(model, prompt, params, ends, adapter=None):
    """The completion of a prompt on an engine that has nothing else to do and nothing in its cache."""
    engine = Engine(model, end_ids=ends)
    return engine.generate([prompt], params, adapters=adapter)[0]


def assert_nothing_is_left(engine):
    scheduler = engine.scheduler
    assert scheduler.is_idle and scheduler.rows == 0 and not scheduler.searches
    assert all(slot.sequence is None and not slot.pending for slot in scheduler.slots)
    assert len(scheduler.slots) == scheduler.runner.cache.slots
    for slot, length in zip(scheduler.slots, scheduler.runner.cache.lengths, strict=True):
        assert length >= len(slot.tokens) and (length > 0) == bool(slot.tokens)


def assert_same(found, expected):
    assert found.ids == expected.ids and found.finish_reason == expected.finish_reason
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
