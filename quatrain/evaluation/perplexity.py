"""Perplexity of texts and of marked tokens; the loss of token frequencies alone is its dumb baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenExample, pad, windows
from quatrain.models.transformer.stack import Model


@dataclass(frozen=True)
class TextLoss:
    """Mean loss in nats per token over `count` predicted tokens."""

    loss: float
    count: int

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite if that overflows a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


BATCH_TOKENS = 4096
"""Tokens that are read at once. More is not faster on a processor, and the logits alone take 4 bytes for each token and
each token of the vocabulary."""


@torch.inference_mode()
def text_loss(model: Model, tokens: np.ndarray, *, context: int, batch_tokens: int = BATCH_TOKENS) -> TextLoss:
    """The mean loss of a text of ids (N,) in windows of `context` tokens without overlap; the last window is shorter.

    Every token but the first is predicted exactly once. A model that carries a state reads the text in one pass.
    Raises InputError for a text of fewer than two tokens.
    """
    predicted = len(tokens) - 1
    if predicted < 1:
        raise InputError(f"A text of {len(tokens)} tokens has nothing to predict; at least 2 are needed.")
    if model.carries_state:
        was_training = model.training
        total, count = cast(Any, model.eval()).text_loss(tokens)
        model.train(was_training)
        return TextLoss(total / count, count)
    was_training = model.training
    model.eval()
    total = 0.0
    whole = predicted // context
    rows = max(1, batch_tokens // context)
    starts = np.arange(whole) * context
    for begin in range(0, whole, rows):
        total += _summed(model, tokens, starts[begin : begin + rows], context)
    if rest := predicted - whole * context:
        total += _summed(model, tokens, np.array([whole * context]), rest)
    model.train(was_training)
    return TextLoss(total / predicted, predicted)


@torch.inference_mode()
def examples_loss(model: Model, examples: Sequence[TokenExample], *, batch_tokens: int = BATCH_TOKENS) -> TextLoss:
    """The mean loss over the marked tokens of examples, each in a row of its own.

    Raises InputError if no token is marked.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    order = sorted(examples, key=len)
    while order:
        rows = max(1, batch_tokens // len(order[-1]))
        part, order = order[-rows:], order[:-rows]
        # No marked token attends to padding, so its id does not matter.
        batch = pad(part, 0).to(model.device)
        _, loss = model(labels=batch.labels, **batch.inputs)
        total += loss.double().sum().item()
        count += batch.num_labels
    model.train(was_training)
    if count == 0:
        raise InputError("There is no token to measure the loss on.")
    return TextLoss(total / count, count)


def unigram_loss(examples: Sequence[TokenExample]) -> TextLoss:
    """The lowest mean loss of a model that knows only token frequencies: the entropy of the learned tokens in nats.

    Raises InputError if no token is marked.
    """
    pairs = (pair for example in examples for pair in zip(example.ids[1:], example.mask[1:], strict=True))
    tokens = [token for token, learned in pairs if learned]
    if not tokens:
        raise InputError("There is no token to measure the loss on.")
    return token_entropy(np.asarray(tokens, dtype=np.int64))


def token_entropy(tokens: np.ndarray) -> TextLoss:
    """The entropy of a text's own token frequencies in nats per token, the dumb baseline of perplexity."""
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    return TextLoss(float(-(shares * np.log(shares)).sum()), len(tokens))


def _summed(model: Model, tokens: np.ndarray, starts: np.ndarray, length: int) -> float:
    batch = windows(tokens, starts, length).to(model.device)
    loss: Tensor = model(labels=batch.labels, **batch.inputs)[1]
    return loss.double().sum().item()
