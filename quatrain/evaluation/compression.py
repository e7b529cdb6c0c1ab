"""What compression costs and gains: bytes, perplexity and speed of models on the same text, side by side.

The speeds are measured in turns on this machine, so that other work slows all models alike. The verdict begins with a
loss of speed, or with a size that is no smaller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from quatrain.compression.methods import weight_bytes, weight_count
from quatrain.compression.pruning.unstructured import sparsity_of
from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.data.documents import read_chunks
from quatrain.evaluation.perplexity import text_loss
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.transformer.config import CacheFormat
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import kv_cache_bytes
from quatrain.tokenizers.tokenizer import Tokenizer

TURNS = 6
"""Runs of each model; the fastest counts."""
NEW_TOKENS = 32
"""Tokens of a run."""
SLOWER = 0.97
"""A result below this share of the speed before counts as slower: smaller differences are noise."""
CACHE_COLUMNS = ("cache", "bytes a token", "perplexity", "divergence", "same token", "tokens/s")
COLUMNS = ("model", "weights", "zeros", "bytes", "perplexity", "tokens/s")


@dataclass(frozen=True)
class Footprint:
    """What a model takes and does: weights, their share of zeros in linear layers, bytes, and on the same text the
    perplexity (None without a text) and the generated tokens per second, one text at a time (None: not measured).
    """

    name: str
    parameters: int
    zeros: float
    bytes: int
    perplexity: float | None = None
    tokens_per_second: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def row(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`."""
        perplexity = "" if self.perplexity is None else f"{self.perplexity:,.2f}"
        speed = "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f}"
        zeros = f"{self.zeros:.0%}" if self.zeros >= 0.005 else ""
        return self.name, f"{self.parameters:,}", zeros, format_bytes(self.bytes), perplexity, speed


def footprint(name: str, model: Model, tokens: np.ndarray | None = None, *, context: int | None = None) -> Footprint:
    """Measures a model without its speed; perplexity over `tokens` (N,) in windows of `context` tokens."""
    perplexity = None
    if tokens is not None and len(tokens) > 1:
        perplexity = text_loss(model, tokens, context=context or model.config.context_length).perplexity
    return Footprint(name, weight_count(model), sparsity_of(model), weight_bytes(model), perplexity)


def speeds(models: Sequence[Model], *, prompt: Sequence[int] = (), turns: int = TURNS) -> list[float]:
    """Generated tokens per second of each model, one text at a time: the best of several turns. Greedy."""
    best = [0.0] * len(models)
    engines = [Engine(model) for model in models]
    for turn in range(turns + 1):
        for number, engine in enumerate(engines):
            room = engine.model.config.context_length if engine.model.config.has_position_limit else 2 * NEW_TOKENS
            ids = list(prompt)[: max(1, min(16, room // 2))] or [0]
            params = SamplingParams(max_new_tokens=min(NEW_TOKENS, room - len(ids)), ignore_eos=True)
            began = time.perf_counter()
            completion = engine.generate([ids], params)[0]
            if turn:  # The first one warms up.
                best[number] = max(best[number], len(completion.ids) / (time.perf_counter() - began))
    return best


def side_by_side(
    models: Sequence[tuple[str, Model]], tokens: np.ndarray | None, *, context: int | None = None, speed: bool = True
) -> list[Footprint]:
    """The footprints of models on the same text, with their speeds where they generate text."""
    found = [footprint(name, model, tokens, context=context) for name, model in models]
    if not speed or any(model.config.head != "causal" for _, model in models):
        return found
    prompt = [] if tokens is None else tokens[:16].tolist()
    rates = speeds([model for _, model in models], prompt=prompt)
    return [Footprint(**{**asdict(each), "tokens_per_second": rate}) for each, rate in zip(found, rates, strict=True)]


@dataclass(frozen=True)
class CacheCost:
    """What a form of the KV cache takes and does to a model: bytes of a token, perplexity of a text, the mean
    Kullback-Leibler divergence from the probabilities with the float cache in nats, how often the likeliest token is
    the same, and generated tokens per second, one text at a time.
    """

    form: str
    token_bytes: int
    perplexity: float
    divergence: float
    same: float
    tokens_per_second: float

    def row(self) -> tuple[str, ...]:
        """The cells of `CACHE_COLUMNS`."""
        shown = f"{self.divergence:.1e}" if self.divergence else "0"
        speed = f"{self.tokens_per_second:,.0f}"
        return self.form, f"{self.token_bytes:,}", f"{self.perplexity:,.3f}", shown, f"{self.same:.1%}", speed


@torch.inference_mode()
def cache_costs(model: Model, tokens: np.ndarray, *, context: int, windows: int = 16) -> list[CacheCost]:
    """The costs of the KV cache in the model's dtype, in int8 and in int4, on the first windows of tokens (N,).

    Every token attends to the stored numbers, as in generation. Speeds are those of the engine after half a window, for
    all forms in turns. Raises InputError for a model without a cache or a language head.
    """
    if model.config.architecture != "decoder" or model.config.head != "causal":
        raise InputError(f"This {model.config.family} model generates no text from a cache of its own.")
    length = min(context, len(tokens))
    ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64))[: len(tokens) // length * length].view(-1, length)
    ids = ids[:windows].to(model.device)
    forms: tuple[CacheFormat | None, ...] = (None, *get_args(CacheFormat))
    engines = [Engine(model, kv_cache=form, native="compiled") for form in forms]
    rates = _rates(engines, ids[0, : max(1, length // 2)].tolist())
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    expected: list[Tensor] = []
    found = []
    for form, rate in zip(forms, rates, strict=True):
        loss = divergence = same = 0.0
        for number, row in enumerate(ids):
            cache = KVCache(model.config, 1, length, dtype=model.embed_tokens.weight.dtype, device=model.device,
                            form=form)  # fmt: skip
            scores = model(row[None, :-1], cache=cache)[0][0].float().log_softmax(-1)
            if form is None:
                expected.append(scores)
            loss -= float(scores.gather(-1, row[1:, None]).mean())
            divergence += float((expected[number].exp() * (expected[number] - scores)).sum(-1).mean())
            same += float((expected[number].argmax(-1) == scores.argmax(-1)).float().mean())
        size = kv_cache_bytes(model.config, 1, 1, form or dtype)
        mean = (each / len(ids) for each in (loss, divergence, same))
        loss, divergence, same = mean
        found.append(CacheCost(form or dtype, size, math.exp(loss), max(divergence, 0.0), same, rate))
    return found


def cache_verdict(costs: Sequence[CacheCost]) -> Iterator[str]:
    """What each rounded cache gains and loses against the first; losses of speed come first."""
    before = costs[0]
    for each in costs[1:]:
        ratio = each.tokens_per_second / before.tokens_per_second
        if ratio < SLOWER:
            yield f"SLOWER: {each.form} generates {ratio:.2f} times the tokens per second of {before.form} here."
    for each in costs[1:]:
        yield f"{each.form}: {each.token_bytes / before.token_bytes:.0%} of the bytes of a token in the cache."


def _rates(engines: Sequence[Engine], prompt: list[int]) -> list[float]:
    """Generated tokens per second of engines after a prompt, which they read in the first turn: the best turn."""
    best = [0.0] * len(engines)
    for turn in range(TURNS + 1):
        for number, engine in enumerate(engines):
            room = engine.model.config.context_length if engine.model.config.has_position_limit else 1 << 30
            count = max(1, min(NEW_TOKENS, room - len(prompt)))
            began = time.perf_counter()
            engine.generate([prompt], SamplingParams(max_new_tokens=count, ignore_eos=True))
            if turn:
                best[number] = max(best[number], count / (time.perf_counter() - began))
    return best


def slower(found: Sequence[Footprint]) -> Iterator[str]:
    """A line for each model that generates more slowly than the first."""
    for each in found[1:]:
        if found[0].tokens_per_second and each.tokens_per_second:
            ratio = each.tokens_per_second / found[0].tokens_per_second
            if ratio < SLOWER:
                yield f"SLOWER: {each.name} generates {ratio:.2f} times the tokens per second of {found[0].name} here."


def verdict(before: Footprint, after: Footprint) -> Iterator[str]:
    """What the second model gains and loses against the first; a loss of speed or no smaller size comes first."""
    smaller = f"{format_bytes(before.bytes)} became {format_bytes(after.bytes)}"
    yield from slower([before, after])
    if after.bytes >= before.bytes:
        what = f"no smaller: {smaller}"
        if after.zeros > before.zeros:
            what += f"; {after.zeros:.0%} of the weights are zeros, and dense files and products do not gain from them"
        yield f"{after.name} is {what}."
    else:
        yield f"{smaller}, {after.bytes / before.bytes:.0%}."
    if before.perplexity and after.perplexity and math.isfinite(after.perplexity):
        change = after.perplexity / before.perplexity - 1
        yield f"The perplexity went from {before.perplexity:,.2f} to {after.perplexity:,.2f} ({change:+.1%})."


def text_tokens(source: str, tokenizer: Tokenizer, count: int, *, skip: int = 0) -> np.ndarray:
    """At most `count` ids of the texts of a source, after the first `skip`. Raises InputError if there are none."""
    parts: list[np.ndarray] = []
    found, wanted = 0, skip + count
    for chunk in read_chunks(source):
        ids = np.asarray(tokenizer.encode(chunk.text), dtype=np.int64)
        parts.append(ids)
        found += len(ids)
        if found >= wanted:
            break
    tokens = np.concatenate(parts)[skip:wanted] if parts else np.zeros(0, dtype=np.int64)
    if len(tokens) < 2:
        raise InputError(f"{source}: has {found:,} tokens, too few: more than {skip + 1:,} are needed.")
    return tokens


def calibration_batches(tokens: np.ndarray, *, context: int, rows: int = 8) -> list[dict[str, Tensor]]:
    """Ids (N,) as batches {"input_ids": (B, T)} of whole windows of `context` tokens, or one shorter window."""
    length = min(context, len(tokens))
    whole = len(tokens) // length
    windows = torch.from_numpy(np.asarray(tokens[: whole * length], dtype=np.int64)).view(whole, length)
    return [{"input_ids": part} for part in windows.split(rows)]
