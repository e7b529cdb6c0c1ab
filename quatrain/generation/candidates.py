"""The completions of prompts of which some may exceed the context, or candidates from a search for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quatrain.generation.engine import Completion, Engine, SamplingParams


def completions_of(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    candidates: int = 1,
    adapter: str | None = None,
) -> list[Completion]:
    """The completion of each prompt; empty, and cut, for one longer than the model's context.

    More `candidates` are searched for by beam search, unless `params` ask for another decoding.
    """
    if candidates > 1 and params.temperature == 0 and params.num_beams == 1:
        params = replace(params, num_beams=candidates, num_return_sequences=candidates)
    limit = engine.model.config.max_position_embeddings
    fits = [len(ids) < limit for ids in prompts]
    fitting = [ids for ids, fit in zip(prompts, fits, strict=True) if fit]
    generated = iter(engine.generate(fitting, params, adapters=adapter))
    return [next(generated) if fit else Completion("", [], "length", []) for fit in fits]
