"""What stands on a stack's last hidden states: a vocabulary, labels, spans, choices, an embedding or a value; and the losses.

Devlin et al. 2018 (arXiv 1810.04805) for masked tokens, next sentences and spans; Reimers & Gurevych 2019
(arXiv 1908.10084) for pooled sentence embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.errors import InputError
from quatrain.models.config import CLASSIFIERS, ModelConfig
from quatrain.models.feed_forward import ACTIVATIONS
from quatrain.models.norms import make_norm

IGNORE = -100
"""The label of a position where nothing is learned."""


class Dense(nn.Module):
    """A dense layer, an activation and perhaps a norm: what BERT calls a pooler, or a prediction head's transform."""

    def __init__(self, config: ModelConfig, activation: str, *, norm: bool, bias: bool = True):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = make_norm(config) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, hidden_size) to the same shape."""
        x = self.activation(self.dense(x))
        return x if self.norm is None else self.norm(x)


def make_transform(config: ModelConfig) -> Dense | None:
    """What a masked language head has before its vocabulary."""
    if config.head not in ("masked", "pretraining") or config.head_transform == "none":
        return None
    return Dense(config, config.head_transform, norm=True, bias=config.pooler_bias)


def make_pooler(config: ModelConfig) -> Dense | None:
    """What a classifier of texts, or of token pairs, has before its labels."""
    if config.pooler == "none" or config.head in ("causal", "masked", "seq2seq", "value"):
        return None
    return Dense(config, config.pooler, norm=config.pooler_norm, bias=config.pooler_bias)


def make_score(config: ModelConfig) -> nn.Linear | None:
    """The layer whose outputs are labels, a span's start and end, a choice's score or a value."""
    if config.head not in (*CLASSIFIERS, "question_answering", "pretraining"):
        return None
    if config.num_labels < 1:
        raise InputError(f"labels: none; the head {config.head} needs the names of what it tells apart.")
    return nn.Linear(config.hidden_size, config.num_labels, bias=config.score_bias)


def pool(hidden: Tensor, config: ModelConfig, input_ids: Tensor, segments: Tensor | None) -> Tensor:
    """One state (B, C) for each text of hidden states (B, T, C); padding (segment 0) does not count."""
    text = torch.ones_like(input_ids, dtype=torch.bool) if segments is None else segments != 0
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    if config.pooling == "mean":
        weights = text[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    slots = torch.arange(hidden.shape[1], device=hidden.device)
    if config.pooling == "first":
        return hidden[rows, torch.where(text, slots, hidden.shape[1] - 1).amin(1)]
    if config.pooling == "end":
        ends = torch.tensor(_end_ids(config), device=hidden.device)
        ended = torch.isin(input_ids, ends) & text
        if not bool(ended.any(1).all()):
            missing = (~ended.any(1)).nonzero().flatten().tolist()
            raise InputError(f"Texts {missing} of the batch have no end token {_end_ids(config)}, which this head reads.")
        text = ended
    return hidden[rows, torch.where(text, slots, 0).amax(1)]


def _end_ids(config: ModelConfig) -> list[int]:
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats (B, T) of logits (B, T, V), 0 where the label is -100."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORE, reduction="none").view(labels.shape)


def label_loss(logits: Tensor, labels: Tensor, problem: str) -> Tensor:
    """The loss (B) of each text's logits (B, L): cross-entropy, for several labels the mean of the binary ones, or MSE."""
    logits = logits.float()
    if problem == "single":
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    wanted = labels.float().view(logits.shape)
    measure = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    return measure(logits, wanted, reduction="none").mean(-1)


def span_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the cross-entropies of start and end (B) for logits (B, T, 2), labels (B, 2); a place outside counts nothing."""
    length = logits.shape[1]
    total = torch.zeros(logits.shape[0], device=logits.device)
    for part, wanted in zip(logits.float().unbind(-1), labels.unbind(-1), strict=True):
        inside = torch.where((wanted < 0) | (wanted >= length), IGNORE, wanted)
        total = total + F.cross_entropy(part, inside, ignore_index=IGNORE, reduction="none")
    return total / 2


def value_loss(values: Tensor, labels: Tensor) -> Tensor:
    """Squared error (B, T) of values (B, T), 0 where the label is not a number."""
    known = ~labels.isnan()
    return torch.where(known, values.float() - torch.where(known, labels, 0.0), 0.0).square()
