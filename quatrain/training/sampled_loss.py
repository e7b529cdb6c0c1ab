"""Sampled softmax: the loss of a language head over a few words instead of the whole vocabulary (Jean et al. 2015,
arXiv 1412.2007).

In a small model with a large vocabulary nearly all of the work of a step is the softmax. Here every step draws some
words from the text's own frequencies, and each label competes with these alone. A division by the probability of
being drawn makes the estimated sum of all words right on average. Evaluation computes the whole one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX

POWER = 0.75
"""Words are drawn by their frequency to this power, so that rare ones come up more often (word2vec)."""


class SampledSoftmax:
    """Draws `samples` words in each step from a vocabulary with these counts (V,).

    Raises InputError if there are not fewer samples than words.
    """

    def __init__(self, counts: np.ndarray, samples: int):
        if samples >= len(counts):
            raise InputError(
                f"sampled_softmax: {samples:,}; must be below the vocabulary of {len(counts):,} tokens, or 0 for all."
            )
        shares = (counts.astype(np.float64) + 1) ** POWER
        shares /= shares.sum()
        self.samples = samples
        self.shares = torch.from_numpy(shares).float()
        # The probability that a word is among the drawn ones at least once.
        self.log_drawn = torch.from_numpy(np.log(-np.expm1(samples * np.log1p(-shares)))).float()

    def loss(self, model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of labels (B, T) under the head of hidden states (B, T, C); -100 does not count."""
        learned = labels != IGNORE_INDEX
        states, targets = hidden[learned], labels[learned]
        weight, bias = model.lm_head.weight, model.lm_head.bias
        drawn = torch.multinomial(self.shares.to(states.device), self.samples, replacement=True).unique()
        log_drawn = self.log_drawn.to(states.device)
        others = states @ weight[drawn].T - log_drawn[drawn]
        own = (states * weight[targets]).sum(-1)
        if bias is not None:
            others, own = others + bias[drawn], own + bias[targets]
        others = others.masked_fill(drawn[None] == targets[:, None], -torch.inf)
        every = torch.cat((own[:, None], others), dim=1).float()
        return (every.logsumexp(-1) - every[:, 0]).sum()
