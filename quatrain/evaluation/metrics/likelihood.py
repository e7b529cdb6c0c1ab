"""Perplexity, and bits per byte or character, which do not depend on the tokenizer."""

from __future__ import annotations

import math

from quatrain.core.errors import InputError


def perplexity(nats: float, tokens: int) -> float:
    """exp(nats / tokens), for a loss of `nats` summed over `tokens`; infinite if that overflows a float.

    Raises InputError for fewer than one token, or a sum below 0.
    """
    mean = _mean(nats, tokens, "perplexity", "token")
    return math.exp(mean) if mean < 709 else math.inf


def bits_per(nats: float, units: int, unit: str = "byte") -> float:
    """Bits per byte (or other unit) of a text whose summed loss is `nats`. Raises InputError as `perplexity` does."""
    return _mean(nats, units, f"bits per {unit}", unit) / math.log(2)


def _mean(nats: float, count: int, metric: str, unit: str) -> float:
    if count < 1:
        raise InputError(f"{metric}: there is no {unit} to measure; at least one is needed.")
    if not nats >= 0:
        raise InputError(f"{metric}: the loss is {nats}; must be at least 0.")
    return nats / count
