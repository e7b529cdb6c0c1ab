"""The word embedding association test (WEAT): are two sets of words differently near to two sets of attributes?

Caliskan et al. 2017 (arXiv 1608.07187). The association of a word is its mean cosine with the attributes A, less that
with B. The effect size is the difference of the mean associations of the target sets X and Y over their standard
deviation; the p-value is the share of equal divisions of X ∪ Y whose difference is at least as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

MOST_DIVISIONS = 200_000
"""Up to so many divisions are all counted; of more, so many are drawn."""
DRAWN = 100_000


@dataclass(frozen=True)
class Association:
    """The effect size (from -2 to 2; positive: X is nearer to A), the one-sided p-value, and how it was found."""

    effect_size: float
    p_value: float
    divisions: int
    exact: bool


def weat(x: Tensor, y: Tensor, a: Tensor, b: Tensor, *, seed: int = 0) -> Association:
    """The test on vectors of targets X (N, C) and Y (N, C) and attributes A and B (M, C).

    Raises InputError for target sets of different sizes or fewer than two words, and for zero vectors.
    """
    if len(x) != len(y) or len(x) < 2 or not len(a) or not len(b):
        raise InputError(
            f"X has {len(x)} words and Y {len(y)}: both need the same number, at least 2; A ({len(a)}) and B "
            f"({len(b)}) need at least 1."
        )
    sets = [np.asarray(each.detach().cpu().double()) for each in (x, y, a, b)]
    norms = [np.linalg.norm(each, axis=1, keepdims=True) for each in sets]
    if any((norm == 0).any() or not np.isfinite(norm).all() for norm in norms):
        raise InputError("A word has no direction: its vector is zero, NaN or inf.")
    x_, y_, a_, b_ = (each / norm for each, norm in zip(sets, norms, strict=True))
    targets = np.concatenate([x_, y_])
    associations = (targets @ a_.T).mean(1) - (targets @ b_.T).mean(1)
    half = len(x_)
    observed = associations[:half].mean() - associations[half:].mean()
    spread = associations.std(ddof=1)
    effect = float(observed / spread) if spread > 0 else 0.0
    count = math.comb(2 * half, half)
    exact = count <= MOST_DIVISIONS
    chosen = _all_divisions(half) if exact else _drawn_divisions(half, seed)
    sums = associations[chosen].sum(1)
    differences = (2 * sums - associations.sum()) / half
    # Of equal divisions one is X itself; rounding must not leave it out.
    at_least = int((differences >= observed - 1e-12).sum())
    p = at_least / count if exact else (at_least + 1) / (len(chosen) + 1)
    return Association(effect, p, count if exact else len(chosen), exact)


def _all_divisions(half: int) -> np.ndarray:
    return np.array(list(combinations(range(2 * half), half)))


def _drawn_divisions(half: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(2 * half)[:half] for _ in range(DRAWN)])


@torch.no_grad()
def word_vectors(model: Model, tokenizer: Tokenizer, words: Sequence[str]) -> Tensor:
    """The vector (N, C) of each word: the mean of the input embeddings of its tokens, after a space."""
    rows = []
    for word in words:
        ids = tokenizer.encode(f" {word}")
        if not ids:
            raise InputError(f"the word {word!r} has no tokens")
        rows.append(model.embed(torch.tensor(ids, device=model.device)).float().mean(0).cpu())
    return torch.stack(rows)
