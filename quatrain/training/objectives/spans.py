"""Span corruption: T5's pre-training (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4).

Each span is replaced by a sentinel in the source; the target lists every sentinel followed by its span:
"Thank you <extra_id_0> me to your party <extra_id_1> week." and "<extra_id_0> for inviting <extra_id_1> last </s>".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from quatrain.core.errors import InputError
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import check_number
from quatrain.training.objectives.corruption import EncoderDecoderCorruption
from quatrain.training.objectives.texts import refuse


class SpanCorruption(EncoderDecoderCorruption):
    """Masks `mask_ratio` of a row's tokens in spans of `mean_span_length` tokens on average, and learns the spans.

    Spans are drawn as in T5's random_spans_noise_mask; special tokens within a row are never masked. The tokenizer
    needs sentinels <extra_id_0>, <extra_id_1>, … and an end token. `max_length` limits the source; since a span becomes
    one token, rows are longer (568 tokens for T5's 512).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        mask_ratio: float = 0.15,
        mean_span_length: float = 3.0,
        max_length: int | None = None,
    ):
        super().__init__(tokenizer, max_length=max_length)
        problems = check_number("mask_ratio", mask_ratio, 0, 0.9, above=True)
        refuse(problems + check_number("mean_span_length", mean_span_length, 1, 1e6), "SpanCorruption")
        self.mask_ratio, self.mean_span_length = mask_ratio, mean_span_length
        self.end_id = self.required_token(tokenizer.eos_id, "end")
        self.sentinels: list[int] = []
        while (sentinel := tokenizer.token_to_id(f"<extra_id_{len(self.sentinels)}>")) is not None:
            self.sentinels.append(sentinel)
        self.required_token(next(iter(self.sentinels), None), "sentinel <extra_id_0>")
        self._unhidden = tokenizer.special_ids | set(self.sentinels)

    @cached_property
    def row_length(self) -> int | None:
        """The longest row whose source fits `max_length`."""
        return None if self.max_length is None else lengths(self.max_length, self.mask_ratio, self.mean_span_length)[0]

    def pair(self, row: Sequence[int], generator: np.random.Generator) -> tuple[list[int], list[int]]:
        """Source and target of a row. Raises InputError if the row needs more sentinels than the tokenizer has."""
        hidden = noise_mask(len(row), generator, self.mask_ratio, self.mean_span_length)
        special = self.special(row, self._unhidden)
        hidden &= ~special
        if not hidden.any() and not special.all():
            hidden[generator.choice(np.flatnonzero(~special))] = True
        source, target, spans = list[int](), list[int](), 0
        for place, token in enumerate(row):
            if not hidden[place]:
                source.append(int(token))
                continue
            if place == 0 or not hidden[place - 1]:
                if spans == len(self.sentinels):
                    raise InputError(
                        f"A row of {len(row)} tokens needs more than the tokenizer's {spans} sentinels. Make rows "
                        "shorter (max_length), spans longer (mean_span_length) or mask_ratio smaller."
                    )
                source.append(self.sentinels[spans])
                target.append(self.sentinels[spans])
                spans += 1
            target.append(int(token))
        return [*source, self.end_id], [*target, self.end_id]


def counts(length: int, noise: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """The numbers of masked tokens and of spans in a row, as in T5."""
    hidden = min(max(round(length * noise), 1), length - 1)
    return hidden, min(max(round(hidden / mean_span_length), 1), length - hidden)


def noise_mask(
    length: int, generator: np.random.Generator, noise: float = 0.15, mean_span_length: float = 3.0
) -> np.ndarray:
    """A mask (length,) of the tokens to hide: T5's random_spans_noise_mask.

    Masked and kept tokens are each divided at random into the same number of spans, every division equally likely.
    The spans alternate, beginning with a kept one. A single token is never masked.
    """
    if length < 2:
        return np.zeros(length, dtype=bool)
    hidden, spans = counts(length, noise, mean_span_length)
    parts = np.stack([_cut(length - hidden, spans, generator), _cut(hidden, spans, generator)], axis=1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, parts)


def _cut(items: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Lengths (parts,) of at least 1 that add up to `items`, every division equally likely."""
    first = np.zeros(items, dtype=np.int64)
    first[1:] = generator.permutation(np.arange(items - 1) < parts - 1)
    return np.bincount(np.cumsum(first), minlength=parts)


def lengths(source: int, noise: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """The length of the longest row whose source has at most `source` tokens, and the length of its target.

    Both counts include the end token. T5's compute_input_and_target_lengths: 568 and 114 for 512.
    """

    def both(row: int) -> tuple[int, int]:
        hidden, spans = counts(row, noise, mean_span_length)
        return row - hidden + spans + 1, hidden + spans + 1

    row = 2
    while both(row + 1)[0] <= source:
        row += 1
    return row, both(row)[1]
