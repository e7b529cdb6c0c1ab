"""Smoothing of n-gram counts: every method becomes one probability for each n-gram and one weight for each context.

    p(w | h) = P[h w]               if h w was seen
             = B[h] p(w | h')       otherwise, where h' is h without its first token

Interpolated methods have this form too: P[h w] then contains the share of the shorter contexts (Chen and Goodman 1999,
"An empirical study of smoothing techniques for language modeling"). The weight of a context that was never seen is 1.
Below the single tokens is the uniform distribution 1 / V, so that a token that was never seen has a probability.

A method is a function in `METHODS`. It takes counts and settings and returns P and B of each order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from quatrain.core.errors import InputError
from quatrain.models.classic._counts import Array, NgramCounts

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Discounts where the counts of counts give none, as in small vocabularies; those of KenLM's --discount_fallback."""
GOOD_TURING_LIMIT = 5
"""Katz: counts above this are not discounted."""
EM_STEPS = 50


@dataclass
class Estimate:
    """P (N,) and B (N,) for the n-grams of each order; B weighs the n-gram as a context. `root` weighs 1 / V.

    `details` are the parameters of the method for each order: discounts or weights. `direct`: unseen n-grams get B / V
    instead of going to shorter contexts.
    """

    probabilities: list[Array]
    weights: list[Array]
    root: float
    details: list[dict[str, float]]
    direct: bool = False


@dataclass(frozen=True)
class SmoothingOptions:
    """`k` is what add-k adds, `discount` a fixed discount and `lambdas` fixed weights of the orders, both estimated
    where they are None.
    """

    k: float = 1.0
    discount: float | None = None
    lambdas: tuple[float, ...] | None = None


Method = Callable[[NgramCounts, SmoothingOptions], Estimate]
METHODS: dict[str, Method] = {}
M = TypeVar("M", bound=Method)


def _method(function: M) -> M:
    METHODS[function.__name__] = function
    return function


def estimate(counts: NgramCounts, method: str, options: SmoothingOptions | None = None) -> Estimate:
    """Probabilities by a method. Raises InputError for one that does not exist."""
    if method not in METHODS:
        raise InputError(f"smoothing: {method!r}; must be one of {', '.join(METHODS)}")
    return METHODS[method](counts, options or SmoothingOptions())


# Counts


def raw_counts(counts: NgramCounts) -> list[Array]:
    """The counts of each order as floats. `bos_id` is never predicted: as a single token it counts 0."""
    found = [table.counts.astype(np.float64) for table in counts.tables]
    if counts.bos_id is not None:
        found[0][counts.bos_id] = 0
    return found


def continuation_counts(counts: NgramCounts) -> list[Array]:
    """Kneser and Ney's counts: for the longest n-grams how often they occur, for the others after how many different
    tokens. What begins a text follows nothing else and keeps its count.
    """
    found = raw_counts(counts)
    for order in range(1, counts.order):
        longer = counts.tables[order]
        after = np.bincount(longer.suffix, minlength=len(counts.tables[order - 1])).astype(np.float64)
        seen = found[order - 1] > 0
        kept = np.where(counts.starts_with_bos(order), found[order - 1], np.maximum(after, 1))
        found[order - 1] = np.where(seen, kept, 0)
    return found


def _sums(counts: NgramCounts, order: int, values: Array) -> Array:
    """The sum of `values` over the n-grams of each context; one number for single tokens."""
    size = 1 if order == 1 else len(counts.tables[order - 2])
    return np.bincount(counts.contexts(order), weights=values, minlength=size)


def _one_discount(values: Array) -> float:
    """Ney's estimate n1 / (n1 + 2 n2)."""
    ones, twos = int((values == 1).sum()), int((values == 2).sum())
    return ones / (ones + 2 * twos) if ones and twos else FALLBACK_DISCOUNTS[0]


def _three_discounts(values: Array) -> tuple[float, float, float]:
    """Chen and Goodman's discounts of the counts 1, 2 and 3 or more."""
    n = [int((values == number).sum()) for number in range(5)]
    if not all(n[1:]):
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    first, second, third = (number - (number + 1) * y * n[number + 1] / n[number] for number in (1, 2, 3))
    return tuple(  # type: ignore[return-value]
        value if 0 <= value <= number else FALLBACK_DISCOUNTS[number - 1]
        for number, value in enumerate((first, second, third), 1)
    )


# Methods


@_method
def mle(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Maximum likelihood: c(h w) / c(h). What was not seen after a known context has probability 0."""
    values = raw_counts(counts)
    probabilities, weights = [], []
    for order, own in enumerate(values, 1):
        sums = _sums(counts, order, own)
        probabilities.append(own / np.maximum(sums[counts.contexts(order)], 1e-300))
        if order > 1:
            weights.append(np.where(sums > 0, 0.0, 1.0))
    weights.append(np.ones(len(values[-1])))
    return Estimate(probabilities, weights, 0.0, [{} for _ in values])


@_method
def add_k(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Additive smoothing: (c(h w) + k) / (c(h) + k V); k = 1 is Laplace's."""
    if not options.k > 0:
        raise InputError(f"k: {options.k}; must be above 0 (mle adds nothing)")
    size = _predicted(counts)
    probabilities, weights, root = [], [], 1.0
    for order, own in enumerate(raw_counts(counts), 1):
        sums = _sums(counts, order, own)
        of_context = sums + options.k * size
        probabilities.append((own + options.k) / of_context[counts.contexts(order)])
        if order == 1:
            root = float(options.k * size / of_context[0])
        else:
            weights.append(options.k * size / of_context)
    weights.append(np.ones(len(counts.tables[-1])))
    details = [{"k": options.k} for _ in probabilities]
    return Estimate(_without_bos(counts, probabilities), weights, root, details, direct=True)


@_method
def jelinek_mercer(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Interpolation with one weight for each order: p(w | h) = l c(h w) / c(h) + (1 - l) p(w | h').

    The weights are those of deleted interpolation: expectation maximization where each token is left out of the counts
    that predict it (Jelinek and Mercer 1980).
    """
    values = raw_counts(counts)
    lambdas = options.lambdas
    if lambdas is None:
        lambdas = _deleted_interpolation(counts, values)
    if len(lambdas) != counts.order or not all(0 <= each <= 1 for each in lambdas):
        raise InputError(f"lambdas: {list(lambdas)}; must be {counts.order} numbers from 0 to 1, one for each order")

    def split(order: int, own: Array, sums: Array) -> tuple[Array, Array]:
        return own * lambdas[order - 1], sums * (1 - lambdas[order - 1])

    return _interpolated(counts, values, split, [{"lambda": each} for each in lambdas])


def _deleted_interpolation(counts: NgramCounts, values: Sequence[Array]) -> tuple[float, ...]:
    """The share of each order in what it and the shorter ones predict, from leaving one token out at a time.

    A share is at most n / (n + 1) for n tokens, so that something is always left to shorter contexts.
    """
    top = max(order for order in range(1, counts.order + 1) if len(counts.tables[order - 1]))
    place = np.arange(len(counts.tables[top - 1]))
    often = values[top - 1]
    columns = []
    for order in range(top, 0, -1):
        own, sums = values[order - 1][place], _sums(counts, order, values[order - 1])
        rest = sums[counts.contexts(order)[place]] - 1
        columns.append(np.where(rest > 0, (own - 1) / np.maximum(rest, 1), 0.0))
        place = counts.tables[order - 1].suffix[place]
    columns.append(np.full(len(often), 1 / _predicted(counts)))
    predicted = np.stack(columns[::-1]).clip(min=0)  # (order + 1, N): uniform, single tokens, …
    mixture = np.full(top + 1, 1 / (top + 1))
    for _ in range(EM_STEPS):
        shares = mixture[:, None] * predicted
        mixture = (shares / np.maximum(shares.sum(0), 1e-300)) @ often
        mixture /= mixture.sum()
    total = np.cumsum(mixture)
    most = counts.tokens / (counts.tokens + 1)
    found = [min(float(mixture[order] / total[order]), most) for order in range(1, top + 1)]
    return tuple([*found, *[0.5] * (counts.order - top)])


@_method
def absolute_discounting(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Interpolated absolute discounting: (c(h w) - D) / c(h), and what is saved goes to the shorter context."""
    return _discounted(counts, raw_counts(counts), options, _single)


@_method
def kneser_ney(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Interpolated Kneser-Ney: absolute discounting where shorter n-grams count after how many tokens they occur."""
    return _discounted(counts, continuation_counts(counts), options, _single)


@_method
def modified_kneser_ney(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Kneser-Ney with three discounts, for counts of 1, 2 and 3 or more (Chen and Goodman 1999), as in KenLM."""
    return _discounted(counts, continuation_counts(counts), options, _triple)


@_method
def backoff(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Absolute discounting with backoff: the shorter context predicts only what was not seen after the longer one."""
    values = raw_counts(counts)
    discounts = [_single(own, options) for own in values]
    kept = [own - np.minimum(_per_count(own, each), own) for own, each in zip(values, discounts, strict=True)]
    return _backed_off(counts, values, kept, [_named(each) for each in discounts])


@_method
def katz(counts: NgramCounts, options: SmoothingOptions) -> Estimate:
    """Katz's backoff: counts up to 5 are discounted by Good and Turing's estimate (Katz 1987)."""
    values = raw_counts(counts)
    kept, details = [], []
    for order, own in enumerate(values, 1):
        ratios = _good_turing(own) if order > 1 else np.ones(GOOD_TURING_LIMIT + 1)
        kept.append(own * ratios[np.minimum(own, GOOD_TURING_LIMIT + 1).astype(np.int64) - 1])
        details.append({f"d{number}": float(ratios[number - 1]) for number in range(1, GOOD_TURING_LIMIT + 1)})
    return _backed_off(counts, values, kept, details)


def _good_turing(values: Array) -> Array:
    """d_r for r = 1 … 5, and 1: Katz's equation 13. Where it gives no share between 0 and 1, absolute discounting."""
    limit = GOOD_TURING_LIMIT
    n = np.bincount(np.minimum(values, limit + 2).astype(np.int64), minlength=limit + 3).astype(np.float64)
    ratios = np.ones(limit + 1)
    plain = np.array([1 - _one_discount(values) / number for number in range(1, limit + 1)])
    if not n[1]:
        ratios[:limit] = plain
        return ratios
    rest = (limit + 1) * n[limit + 1] / n[1]
    for number in range(1, limit + 1):
        ratio = np.nan
        if n[number] and rest < 1:
            ratio = ((number + 1) * n[number + 1] / (number * n[number]) - rest) / (1 - rest)
        ratios[number - 1] = ratio if 0 < ratio < 1 else plain[number - 1]
    return ratios


# The two forms


def _single(values: Array, options: SmoothingOptions) -> tuple[float, float, float]:
    discount = _one_discount(values) if options.discount is None else options.discount
    if not 0 <= discount <= 1:
        raise InputError(f"discount: {discount}; must be from 0 to 1")
    return discount, discount, discount


def _triple(values: Array, options: SmoothingOptions) -> tuple[float, float, float]:
    return _three_discounts(values)


def _named(discounts: Sequence[float]) -> dict[str, float]:
    names = ("d1", "d2", "d3+")
    return {"d": discounts[0]} if len(set(discounts)) == 1 else dict(zip(names, discounts, strict=True))


def _per_count(values: Array, discounts: Sequence[float]) -> Array:
    """The discount of each count: none of 0, then those of 1, 2, and 3 or more."""
    return np.array([0.0, *discounts])[np.minimum(np.ceil(values), 3).astype(np.int64)]


def _discounted(
    counts: NgramCounts,
    values: list[Array],
    options: SmoothingOptions,
    discounts_of: Callable[[Array, SmoothingOptions], tuple[float, float, float]],
) -> Estimate:
    discounts = [discounts_of(own, options) for own in values]

    def split(order: int, own: Array, sums: Array) -> tuple[Array, Array]:
        taken = np.minimum(_per_count(own, discounts[order - 1]), own)
        return own - taken, _sums(counts, order, taken)

    return _interpolated(counts, values, split, [_named(each) for each in discounts])


def _interpolated(
    counts: NgramCounts,
    values: list[Array],
    split: Callable[[int, Array, Array], tuple[Array, Array]],
    details: list[dict[str, float]],
) -> Estimate:
    """p(w | h) = kept / sum + rest(h) / sum · p(w | h'). `split` gives what is kept of each n-gram and the rest of each
    context; contexts that were never seen leave everything to h'.
    """
    probabilities: list[Array] = []
    weights: list[Array] = []
    root = 1.0
    for order, own in enumerate(values, 1):
        sums = _sums(counts, order, own)
        kept, rest = split(order, own, sums)
        weight = np.where(sums > 0, rest / np.maximum(sums, 1e-300), 1.0)
        context = counts.contexts(order)
        if order == 1:
            root, shorter = float(weight[0]), np.full(len(own), 1 / _predicted(counts))
        else:
            weights.append(weight)
            shorter = probabilities[-1][counts.tables[order - 1].suffix]
        probabilities.append(kept / np.maximum(sums[context], 1e-300) + weight[context] * shorter)
    weights.append(np.ones(len(values[-1])))
    return Estimate(_without_bos(counts, probabilities), weights, root, details)


def _backed_off(
    counts: NgramCounts, values: list[Array], kept: list[Array], details: list[dict[str, float]]
) -> Estimate:
    """p(w | h) = kept / sum where h w was seen, and otherwise a share of p(w | h') such that all sum to 1.

    Single tokens share what was taken from them, and one more count, among all tokens of the vocabulary.
    """
    probabilities, weights, root = [], [], 1.0
    for order, own in enumerate(values, 1):
        sums, context = _sums(counts, order, own), counts.contexts(order)
        if order == 1:
            total = sums[0] + 1
            root = float(1 - kept[0].sum() / total)
            probabilities.append(kept[0] / total + root / _predicted(counts))
            continue
        own_share = kept[order - 1] / np.maximum(sums[context], 1e-300)
        left = np.maximum(1 - _sums(counts, order, own_share), 0.0)
        shorter = probabilities[-1][counts.tables[order - 1].suffix]
        unseen = np.maximum(1 - _sums(counts, order, shorter), 0.0)
        # Where every token was seen after a context, nothing is left to back off to: the shares are scaled to 1.
        closed = (unseen < 1e-9) & (sums > 0)
        scale = np.where(closed, 1 / np.maximum(1 - left, 1e-300), 1.0)
        probabilities.append(own_share * scale[context])
        weights.append(np.where(sums > 0, np.where(closed, 0.0, left / np.maximum(unseen, 1e-300)), 1.0))
    weights.append(np.ones(len(values[-1])))
    return Estimate(_without_bos(counts, probabilities), weights, root, details)


def _predicted(counts: NgramCounts) -> int:
    """How many tokens can be predicted: all but `bos_id`."""
    return counts.vocab_size - (counts.bos_id is not None)


def _without_bos(counts: NgramCounts, probabilities: list[Array]) -> list[Array]:
    if counts.bos_id is not None:
        probabilities[0][counts.bos_id] = 0.0
    return probabilities
