"""The objectives of word vectors: skip-gram and CBOW with negative sampling, Sent2Vec, and GloVe.

Skip-gram and CBOW read rows of running text. A word's neighbours are the up to `window` words on both sides, of which
as many count as a number drawn for each word, so that near words count more often. All words of a row are compared with
all words near them in one matrix product of which the band beside the diagonal is used. The drawn words are shared by
the batch, so that they too are one matrix product; each pair still weighs against `negatives` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.data.batches import Batch
from quatrain.training.objectives.base import Loss, Seeds

SHARED = 128
"""Drawn words that a batch shares."""
POWER = 0.75
"""Words are drawn by this power of how often they occur."""
PAIR_DROPOUT = 0.2
"""Share of a sentence's pairs of words that Sent2Vec leaves out of a step."""


@dataclass(frozen=True)
class WordBatch(Batch):
    """Words of running text; `size` counts them."""

    unit = "words"

    @property
    def size(self) -> int:
        """Number of words."""
        return int(self.inputs["words"].numel())


class NegativeSampling:
    """What skip-gram and CBOW share: the band of neighbours, and words drawn by their frequencies.

    `collate` takes ids (B, T) of text; -1 is padding. `counts` (V,) are the words' frequencies.
    """

    draws = True
    steps_by_sum = True
    """word2vec steps after each pair: a batch steps as far as its pairs would, one after the other."""

    def __init__(self, counts: np.ndarray, *, window: int = 5, negatives: int = 5):
        weights = counts.astype(np.float64) ** POWER
        self.cumulative = np.cumsum(weights / weights.sum())
        self.window, self.negatives = window, negatives
        self.multiple = 1

    def collate(self, examples: Any, seed: Seeds = 0) -> WordBatch:
        """Draws each word's window and the batch's negatives."""
        rows = torch.from_numpy(np.asarray(examples).astype(np.int64))
        generator = np.random.default_rng(seed)
        windows = torch.from_numpy(generator.integers(1, self.window + 1, rows.shape))
        drawn = np.searchsorted(self.cumulative, generator.random(SHARED)).clip(max=len(self.cumulative) - 1)
        return WordBatch({"words": rows, "windows": windows, "drawn": torch.from_numpy(drawn)})

    def band(self, batch: WordBatch) -> Tensor:
        """Whether word j of a row is a neighbour of word i, (B, T, T) as 0 and 1."""
        words, windows = batch.inputs["words"], batch.inputs["windows"]
        places = torch.arange(words.shape[1], device=words.device)
        distance = (places[:, None] - places[None]).abs()
        known = words >= 0
        near = (distance > 0) & (distance <= windows[..., None]) & known[..., None] & known[:, None]
        return near.float()

    def summed(self, vectors: Tensor, targets: Tensor, drawn: Tensor, pairs: Tensor, counts: Tensor) -> Tensor:
        """The loss summed over all pairs: -log σ(v · t) of each, and -log σ(-v · n) for `negatives` drawn words.

        vectors (B, T, D), targets (B, T, D); pairs (B, T, T) weigh v_i · t_j, counts (B, T) are the pairs of each v.
        """
        positive = (F.softplus(-(vectors @ targets.transpose(1, 2))) * pairs).sum()
        negative = F.softplus(vectors @ drawn.T).sum(dim=-1) * (self.negatives / len(drawn))
        return positive + (negative * counts).sum()


class SkipGram(NegativeSampling):
    """Skip-gram: each word's vector predicts the words around it. The weight of the loss is the number of pairs."""

    def loss(self, model: Any, batch: WordBatch) -> Loss:
        band, words = self.band(batch), batch.inputs["words"].clamp_min(0)
        pairs = band.sum(dim=-1)
        drawn = model.context(batch.inputs["drawn"])
        total = self.summed(model.embed_tokens(words), model.context(words), drawn, band, pairs)
        return total, max(int(pairs.sum()), 1), {}


class Cbow(NegativeSampling):
    """CBOW: the mean of the vectors around a word predicts the word. The weight of the loss is the number of words."""

    def loss(self, model: Any, batch: WordBatch) -> Loss:
        band, words = self.band(batch), batch.inputs["words"].clamp_min(0)
        around = band.sum(dim=-1)
        has_any = (around > 0).float()
        means = (band @ model.embed_tokens(words)) / around.clamp_min(1)[..., None]
        targets = model.context(words)
        positive = (F.softplus(-(means * targets).sum(dim=-1)) * has_any).sum()
        drawn = model.context(batch.inputs["drawn"])
        negative = F.softplus(means @ drawn.T).sum(dim=-1) * (self.negatives / len(drawn))
        return positive + (negative * has_any).sum(), max(int(has_any.sum()), 1), {}


class Sent2Vec(NegativeSampling):
    """Sent2Vec (Pagliardini et al. 2018, arXiv 1703.02507): the rest of a sentence predicts each of its words.

    The rest is the mean of the vectors of all its other words, and of the neighbouring pairs without the word.
    `collate` takes one sentence a row; some pairs are left out at random, as in the paper. The weight of the loss is
    the number of words that have others beside them.
    """

    def collate(self, examples: Any, seed: Seeds = 0) -> WordBatch:
        """Draws the pairs that stay and the batch's negatives; cuts the padding that every row has."""
        rows = np.asarray(examples).astype(np.int64)
        rows = rows[:, : max(1, int((rows >= 0).sum(axis=1).max(initial=1)))]
        generator = np.random.default_rng(seed)
        kept = torch.from_numpy(generator.random((len(rows), rows.shape[1] - 1)) >= PAIR_DROPOUT)
        drawn = np.searchsorted(self.cumulative, generator.random(SHARED)).clip(max=len(self.cumulative) - 1)
        return WordBatch({"words": torch.from_numpy(rows), "kept": kept, "drawn": torch.from_numpy(drawn)})

    def loss(self, model: Any, batch: WordBatch) -> Loss:
        words = batch.inputs["words"].clamp_min(0)
        known = batch.inputs["words"] >= 0
        pairs = (known[:, 1:] & known[:, :-1] & batch.inputs["kept"]).float()
        own, beside = (
            model.embed_tokens(words) * known[..., None],
            model.pairs(model.pair_ids(words)) * pairs[..., None],
        )
        # The pairs that hold a word: the one that it ends and the one that it begins.
        touching = F.pad(beside, (0, 0, 1, 0)) + F.pad(beside, (0, 0, 0, 1))
        rest = own.sum(dim=1, keepdim=True) + beside.sum(dim=1, keepdim=True) - own - touching
        others = known.sum(dim=1, keepdim=True) - 1 + pairs.sum(dim=1, keepdim=True)
        others = others - F.pad(pairs, (1, 0)) - F.pad(pairs, (0, 1))
        means = rest / others.clamp_min(1)[..., None]
        counted = (known & (others > 0)).float()
        positive = (F.softplus(-(means * model.context(words)).sum(dim=-1)) * counted).sum()
        drawn = model.context(batch.inputs["drawn"])
        negative = F.softplus(means @ drawn.T).sum(dim=-1) * (self.negatives / len(drawn))
        return positive + (negative * counted).sum(), max(int(counted.sum()), 1), {}


class Glove:
    """GloVe: (w_i · c_j + b_i + b_j - log X_ij)² weighted by min(1, (X_ij / most)^0.75), summed over pairs."""

    def __init__(self, *, most: float = 100.0):
        self.most = most
        self.multiple = 1

    def collate(self, examples: Sequence[np.ndarray]) -> Batch:
        """Examples are three arrays: words, words beside them, and how often they stand together."""
        first, second, often = examples
        return Batch(
            {"words": torch.from_numpy(first.astype(np.int64)), "others": torch.from_numpy(second.astype(np.int64))},
            torch.from_numpy(often.astype(np.float32)),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        words, others, often = batch.inputs["words"], batch.inputs["others"], batch.labels
        found = (model.embed_tokens(words) * model.context(others)).sum(dim=-1)
        found = found + model.word_bias[words] + model.context_bias[others]
        weights = (often / self.most).clamp(max=1) ** POWER
        return (weights * (found - often.log()) ** 2).sum(), len(words), {}


def cooccurrences(ids: np.ndarray, size: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often words stand within `window` words of each other, each time counted by 1 / distance; -1 is no word.

    Returns words, words beside them, and counts, each (P,), in both directions.
    """
    keys: np.ndarray = np.zeros(0, dtype=np.int64)
    weights: np.ndarray = np.zeros(0)
    for distance in range(1, window + 1):
        first, second = ids[:-distance].astype(np.int64), ids[distance:].astype(np.int64)
        known = (first >= 0) & (second >= 0)
        own = np.concatenate([first * size + second, second * size + first])[np.tile(known, 2)]
        new, counts = np.unique(own, return_counts=True)
        both, inverse = np.unique(np.concatenate([keys, new]), return_inverse=True)
        weights = np.bincount(inverse, weights=np.concatenate([weights, counts / distance]), minlength=len(both))
        keys = both
    return keys // size, keys % size, weights


def subsampled(ids: np.ndarray, counts: np.ndarray, sample: float, generator: np.random.Generator) -> np.ndarray:
    """The text without some of its frequent words; see `thinned`."""
    return ids[thinned(ids, counts, sample, generator)]


def thinned(ids: np.ndarray, counts: np.ndarray, sample: float, generator: np.random.Generator) -> np.ndarray:
    """Which words of a text stay: one of share f does with √(sample / f) + sample / f, as in word2vec."""
    if not sample:
        return np.ones(len(ids), dtype=bool)
    shares = counts / max(counts.sum(), 1)
    with np.errstate(divide="ignore"):
        keep = np.minimum(1, np.sqrt(sample / shares) + sample / shares)
    return generator.random(len(ids)) < keep[ids]


def sentence_rows(ids: np.ndarray, sentences: np.ndarray, length: int) -> np.ndarray:
    """Rows (N, length) of one sentence each, filled up with -1; longer sentences are cut into several rows.

    `sentences` numbers each word's sentence, rising. Sentences of a single word are left out: nothing predicts it.
    """
    if not len(ids):
        return np.zeros((0, length), dtype=np.int64)
    begins = np.flatnonzero(np.diff(sentences, prepend=sentences[0] - 1))
    places = np.arange(len(ids)) - np.repeat(begins, np.diff(begins, append=len(ids)))
    rows = np.cumsum(places % length == 0) - 1
    found = np.full((int(rows[-1]) + 1, length), -1, dtype=np.int64)
    found[rows, places % length] = ids
    several: np.ndarray = found[found[:, 1] >= 0] if length > 1 else found[:0]
    return several
