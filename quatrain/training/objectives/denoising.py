"""Denoising: BART's pre-training (Lewis et al. 2020, arXiv 1910.13461): text infilling and sentence permutation.

Spans with lengths drawn from Poisson(3) become one mask each, some of length 0 a mask between two tokens; sentences
are put in a random order. The decoder says the text as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import share
from quatrain.training.objectives.corruption import EncoderDecoderCorruption
from quatrain.training.objectives.texts import refuse


class Denoising(EncoderDecoderCorruption):
    """Spoils rows as BART does, and learns to say them whole.

    `share` of a row's tokens are hidden, in spans of Poisson(`mean_span_length`) tokens; `permute` is the share of
    sentences that change places among each other (BART's 1.0; 0 leaves the order). Special tokens within a row are
    never hidden.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        share: float = 0.3,
        mean_span_length: float = 3.0,
        permute: float = 1.0,
        max_length: int | None = None,
    ):
        super().__init__(tokenizer, max_length=max_length)
        refuse(_problems(share, mean_span_length, permute), "Denoising")
        self.share, self.mean_span_length, self.permute = share, mean_span_length, permute
        self.mask_id = self.needed_token(tokenizer.mask_id, "mask")

    def permuted(self, ids: Sequence[int], generator: np.random.Generator) -> list[int]:
        """A row with its sentences in another order."""
        sentences = self.words.sentences(ids)
        order, count = np.arange(len(sentences)), int(np.ceil(len(sentences) * self.permute))
        if count > 1:
            places = np.sort(generator.permutation(len(sentences))[:count])
            order[places] = generator.permutation(places)
        return [token for number in order for token in ids[slice(*sentences[number])]]

    def infilled(self, ids: Sequence[int], generator: np.random.Generator) -> list[int]:
        """A row with spans replaced by one mask each; no two masks of hidden spans stand side by side."""
        hidden, inserted = self._spans(len(ids), generator)
        hidden &= ~self.special(ids)
        # A mask where nothing was stands before these places.
        before = np.bincount(generator.integers(0, len(ids) + 1, inserted), minlength=len(ids) + 1)
        found: list[int] = []
        for place, token in enumerate(ids):
            found.extend([self.mask_id] * int(before[place]))
            if not hidden[place]:
                found.append(int(token))
            elif place == 0 or not hidden[place - 1]:
                found.append(self.mask_id)
        return found + [self.mask_id] * int(before[-1])

    def _spans(self, length: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        """Which tokens (length,) are hidden, and how many masks are put where nothing is hidden."""
        count = min(round(length * self.share), length - 1) if length > 1 else 0
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
        kept = np.ones(len(spans) + 1, dtype=np.int64)
        kept[[0, -1]] = 0
        if not spans:
            return np.zeros(length, dtype=bool), 0
        kept += np.bincount(
            generator.integers(0, len(spans) + 1, length - count - int(kept.sum())), minlength=len(spans) + 1
        )
        parts = np.zeros(2 * len(spans) + 1, dtype=np.int64)
        parts[::2], parts[1::2] = kept, generator.permutation(spans)
        return np.repeat(np.arange(len(parts)) % 2 == 1, parts), inserted

    def pair(self, row: Sequence[int], generator: np.random.Generator) -> tuple[list[int], list[int]]:
        """The spoilt row and the row as it was, both with the tokenizer's special tokens."""
        return self.framed(self.infilled(self.permuted(row, generator), generator)), self.framed(row)


def _problems(hidden: float, mean_span_length: float, permute: float) -> list[str]:
    problems = share("share", hidden) + share("permute", permute, above=False)
    if (
        isinstance(mean_span_length, bool)
        or not isinstance(mean_span_length, int | float)
        or not 0.1 <= mean_span_length < 1e6
    ):
        problems.append(f"mean_span_length: {mean_span_length!r}; must be at least 0.1")
    return problems
