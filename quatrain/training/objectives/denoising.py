"""Denoising: BART's pre-training (Lewis et al. 2020, arXiv 1910.13461): text infilling and sentence permutation.

Spans with lengths drawn from Poisson(3) become one mask each, some of length 0 a mask between two tokens; sentences
are put in a random order. The decoder restores the original text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import check_number
from quatrain.training.objectives.corruption import EncoderDecoderCorruption
from quatrain.training.objectives.texts import refuse


class Denoising(EncoderDecoderCorruption):
    """Corrupts rows as BART does and learns to restore them.

    `mask_ratio` of a row's tokens are masked, in spans of Poisson(`mean_span_length`) tokens. `permute` is the fraction
    of sentences that are shuffled (BART: 1.0). Special tokens within a row are never masked.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        mask_ratio: float = 0.3,
        mean_span_length: float = 3.0,
        permute: float = 1.0,
        max_length: int | None = None,
    ):
        super().__init__(tokenizer, max_length=max_length)
        problems = check_number("mask_ratio", mask_ratio, 0, 1, above=True) + check_number("permute", permute, 0, 1)
        refuse(problems + check_number("mean_span_length", mean_span_length, 0.1, 1e6), "Denoising")
        self.mask_ratio, self.mean_span_length, self.permute = mask_ratio, mean_span_length, permute
        self.mask_id = self.required_token(tokenizer.mask_id, "mask")

    def permuted(self, ids: Sequence[int], generator: np.random.Generator) -> list[int]:
        """A row with its sentences shuffled."""
        sentences = self.words.sentences(ids)
        order, count = np.arange(len(sentences)), int(np.ceil(len(sentences) * self.permute))
        if count > 1:
            places = np.sort(generator.permutation(len(sentences))[:count])
            order[places] = generator.permutation(places)
        return [token for number in order for token in ids[slice(*sentences[number])]]

    def infilled(self, ids: Sequence[int], generator: np.random.Generator) -> list[int]:
        """A row with each span replaced by one mask token. Masks of two spans are never adjacent."""
        hidden, inserted = self._spans(len(ids), generator)
        hidden &= ~self.special(ids)
        # Masks of empty spans are inserted before these positions.
        before = np.bincount(generator.integers(0, len(ids) + 1, inserted), minlength=len(ids) + 1)
        row: list[int] = []
        for place, token in enumerate(ids):
            row.extend([self.mask_id] * int(before[place]))
            if not hidden[place]:
                row.append(int(token))
            elif place == 0 or not hidden[place - 1]:
                row.append(self.mask_id)
        return row + [self.mask_id] * int(before[-1])

    def _spans(self, length: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        """A mask (length,) of the tokens to hide, and the number of empty spans to insert."""
        count = min(round(length * self.mask_ratio), length - 1) if length > 1 else 0
        spans, inserted = list[int](), 0
        while sum(spans) < count:
            drawn = int(generator.poisson(self.mean_span_length))
            if drawn:
                spans.append(min(drawn, count - sum(spans)))
            else:
                inserted += 1
        # Every two spans need a token between them; a row must not grow.
        while len(spans) > length - count + 1:
            spans[0] += spans.pop()
        inserted = min(inserted, count - len(spans))
        gaps = np.ones(len(spans) + 1, dtype=np.int64)
        gaps[[0, -1]] = 0
        if not spans:
            return np.zeros(length, dtype=bool), 0
        gaps += np.bincount(
            generator.integers(0, len(spans) + 1, length - count - int(gaps.sum())), minlength=len(spans) + 1
        )
        parts = np.zeros(2 * len(spans) + 1, dtype=np.int64)
        parts[::2], parts[1::2] = gaps, generator.permutation(spans)
        return np.repeat(np.arange(len(parts)) % 2 == 1, parts), inserted

    def pair(self, row: Sequence[int], generator: np.random.Generator) -> tuple[list[int], list[int]]:
        """The corrupted row and the original row, both with special tokens."""
        return self.framed(self.infilled(self.permuted(row, generator), generator)), self.framed(row)
