"""How surprised a model is: perplexity, and bits for each byte or character, which tokenizers cannot change."""

from __future__ import annotations

import math

from quatrain.core.errors import InputError


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean loss of a sum of `nats` over `tokens`; infinite where that is beyond a float.

    Raises InputError where there is no token, or the sum is no number of at least 0.
    """
    mean = _mean(nats, tokens, "perplexity", "token")
    return math.exp(mean) if mean < 709 else math.inf


def bits_per(nats: float, units: int, unit: str = "byte") -> float:
    """Bits for each byte (or other unit) of a text whose loss sums up to `nats`. Raises InputError as `perplexity`."""
    return _mean(nats, units, f"bits per {unit}", unit) / math.log(2)


def _mean(nats: float, count: int, metric: str, unit: str) -> float:
    if count < 1:
        raise InputError(f"{metric}: there is no {unit} to measure; at least one is needed.")
    if not nats >= 0:
        raise InputError(f"{metric}: the loss is {nats}; must be at least 0.")
    return nats / count
