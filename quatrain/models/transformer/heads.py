"""What stands on a stack's last hidden states: vocabulary, labels, spans, choices, embedding, value; and the losses.

Devlin et al. 2018 (arXiv 1810.04805) for masked tokens, next sentences and spans; Reimers & Gurevych 2019
(arXiv 1908.10084) for pooled sentence embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import CLASSIFICATION_HEADS, ModelConfig
from quatrain.models.transformer.cross_entropy import CrossEntropyFunction
from quatrain.models.transformer.feed_forward import ACTIVATIONS
from quatrain.models.transformer.norms import make_norm

IGNORE_INDEX = -100
"""The label of a position where nothing is learned."""

LARGE_VOCABULARY = 4096
"""From this many logits on, the loss that keeps no log-probabilities is the faster one."""


class Dense(nn.Module):
    """A dense layer, an activation and perhaps a norm: what BERT calls a pooler, or a prediction head's transform."""

    def __init__(self, config: ModelConfig, activation: str, *, norm: bool, bias: bool = True):
        super().__init__()
        self.dense = nn.Linear(config.output_hidden_size, config.output_hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = make_norm(config, config.output_hidden_size) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, output_size) to the same shape."""
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
    if config.head not in (*CLASSIFICATION_HEADS, "question_answering", "pretraining"):
        return None
    if config.num_labels < 1:
        raise InputError(f"labels: none; the head {config.head} needs the names of what it tells apart.")
    return nn.Linear(config.output_hidden_size, config.num_labels, bias=config.score_bias)


def pool(hidden: Tensor, config: ModelConfig, input_ids: Tensor, segments: Tensor | None) -> Tensor:
    """One state (B, C) for each text of hidden states (B, T, C); padding (segment 0) does not count."""
    text = torch.ones_like(input_ids, dtype=torch.bool) if segments is None else segments != 0
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    if config.pooling in ("mean", "mean_sqrt", "weighted_mean"):
        weights = (text.long().cumsum(1) * text if config.pooling == "weighted_mean" else text)[..., None].float()
        count = weights.sum(1).clamp(min=1e-9)  # in float32: bfloat16 cannot count past 256
        total = (hidden * weights).sum(1)
        return (total / (count.sqrt() if config.pooling == "mean_sqrt" else count)).to(hidden.dtype)
    if config.pooling == "max":
        return hidden.masked_fill(~text[..., None], torch.finfo(hidden.dtype).min).amax(1)
    slots = torch.arange(hidden.shape[1], device=hidden.device)
    if config.pooling == "first":
        return hidden[rows, torch.where(text, slots, hidden.shape[1] - 1).amin(1)]
    if config.pooling == "eos":
        ends = torch.tensor(_end_ids(config), device=hidden.device)
        ended = torch.isin(input_ids, ends) & text
        if not bool(ended.any(1).all()):
            missing = (~ended.any(1)).nonzero().flatten().tolist()
            raise InputError(
                f"Texts {missing} of the batch have no end token {_end_ids(config)}, which this head reads."
            )
        text = ended
    return hidden[rows, torch.where(text, slots, 0).amax(1)]


def _end_ids(config: ModelConfig) -> list[int]:
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


def _fit(labels: Any, shape: Sequence[int], what: str, *, whole: bool) -> None:
    """Raises InputError for labels of another shape or kind than a head wants."""
    if not isinstance(labels, Tensor):
        raise InputError(f"labels: {type(labels).__name__}; this head wants {what}, a tensor of shape {tuple(shape)}.")
    if tuple(labels.shape) != tuple(shape):
        raise InputError(f"labels: have shape {tuple(labels.shape)}; this head wants {what}, shape {tuple(shape)}.")
    if whole and (labels.is_floating_point() or labels.dtype == torch.bool):
        kind = str(labels.dtype).removeprefix("torch.")
        raise InputError(f"labels: are {kind}; this head wants {what}, whole numbers (torch.long).")


def _in_range(labels: Tensor, outputs: int) -> None:
    """Raises InputError for labels past a head's outputs, which a kernel would fail on; -100 may be among them."""
    if not labels.numel() or labels.is_meta:
        return
    low, high = (int(end) for end in torch.aminmax(labels))
    if low >= 0 and high < outputs:
        return
    wrong = ((labels < 0) | (labels >= outputs)) & (labels != IGNORE_INDEX)
    if bool(wrong.any()):
        first = wrong.nonzero()[0].tolist()
        raise InputError(
            f"labels: {int(labels[tuple(first)])} at {first}, {int(wrong.sum())} such in all; must be 0 to "
            f"{outputs - 1}, or {IGNORE_INDEX} where nothing is learned."
        )


def check_token_labels(labels: Tensor, shape: Sequence[int]) -> None:
    """Raises InputError for labels that do not fit logits of shape (B, T, V); ids past V are looked for on the CPU
    only.
    """
    _fit(labels, shape[:-1], "a label for each token", whole=True)
    if labels.device.type == "cpu":
        _in_range(labels, shape[-1])


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats (B, T) of logits (B, T, V), 0 where the label is -100.

    Raises InputError for labels of another shape; on the CPU, where looking costs no waiting, also past the outputs.
    """
    check_token_labels(labels, logits.shape)
    flat, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    if logits.shape[-1] < LARGE_VOCABULARY:
        loss = F.cross_entropy(flat.float(), wanted, ignore_index=IGNORE_INDEX, reduction="none")
    else:
        loss = CrossEntropyFunction.apply(flat, wanted, IGNORE_INDEX)
    return loss.view(labels.shape)


def label_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The loss (B) of each text's logits (B, L): cross-entropy, for several labels the mean of the binary ones, or MSE.

    Raises InputError for labels of another shape, past the outputs, or for several labels other than 0 and 1.
    """
    logits = logits.float()
    if problem_type == "single_label":
        _fit(labels, logits.shape[:1], "one label for each text", whole=True)
        _in_range(labels, logits.shape[1])
        return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    numbers = (
        logits.shape[:1] if logits.shape[1] == 1 and isinstance(labels, Tensor) and labels.dim() == 1 else logits.shape
    )
    what = "a number for each output" if problem_type == "regression" else "0 or 1 for each of several labels"
    _fit(labels, numbers, what, whole=False)
    wanted = labels.float().view(logits.shape)
    if problem_type == "multi_label" and bool(((wanted < 0) | (wanted > 1)).any()):
        raise InputError(f"labels: {float(wanted.min())} to {float(wanted.max())}; this head wants {what}.")
    measure = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return measure(logits, wanted, reduction="none").mean(-1)


def span_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the cross-entropies of start and end (B), logits (B, T, 2), labels (B, 2); a place outside counts nothing.

    Raises InputError for labels of another shape, or that are no whole numbers.
    """
    _fit(labels, (logits.shape[0], 2), "the first and last token of each span", whole=True)
    length = logits.shape[1]
    total = torch.zeros(logits.shape[0], device=logits.device)
    for part, wanted in zip(logits.float().unbind(-1), labels.unbind(-1), strict=True):
        inside = torch.where((wanted < 0) | (wanted >= length), IGNORE_INDEX, wanted)
        total = total + F.cross_entropy(part, inside.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return total / 2


def value_loss(values: Tensor, labels: Tensor) -> Tensor:
    """Squared error (B, T) of values (B, T), 0 where the label is not a number.

    Raises InputError for labels of another shape.
    """
    _fit(labels, values.shape, "a value for each token", whole=False)
    known = ~labels.isnan()
    return torch.where(known, values.float() - torch.where(known, labels, 0.0), 0.0).square()
