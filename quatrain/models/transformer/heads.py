"""Heads and their losses: vocabulary, labels, spans, choices, sentence embedding and value.

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
from quatrain.models.transformer.config import CLASSIFICATION_HEADS, LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.cross_entropy import CrossEntropyFunction
from quatrain.models.transformer.feed_forward import ACTIVATIONS
from quatrain.models.transformer.norms import make_norm

IGNORE_INDEX = -100
"""The label of positions that are excluded from the loss."""

LOG_SCALE = 2.6592
"""The first logarithm of the factor of similarities: ln(1 / 0.07)."""

LARGE_VOCABULARY = 4096
"""The smallest vocabulary for which `CrossEntropyFunction` is faster than PyTorch's cross-entropy."""


class Dense(nn.Module):
    """A dense layer, an activation and an optional norm: BERT's pooler, and the transform of its prediction head."""

    def __init__(self, config: ModelConfig, activation: str, *, norm: bool, bias: bool = True, width: int = 0):
        super().__init__()
        width = width or config.output_hidden_size
        self.dense = nn.Linear(config.output_hidden_size, width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = make_norm(config, width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, output_hidden_size) to (…, width)."""
        x = self.activation(self.dense(x))
        return x if self.norm is None else self.norm(x)


def make_transform(config: ModelConfig) -> Dense | None:
    """The layer between the hidden states and the vocabulary of a masked language head, or None."""
    if config.head not in LANGUAGE_HEADS or config.head_transform == "none":
        return None
    width = config.embedding_size or config.hidden_size
    return Dense(config, config.head_transform, norm=True, bias=config.pooler_bias, width=width)


def make_pooler(config: ModelConfig) -> Dense | None:
    """The layer between the pooled hidden state and the labels, or None."""
    if config.pooler == "none" or config.head in ("causal", "masked", "seq2seq", "value"):
        return None
    return Dense(config, config.pooler, norm=config.pooler_norm, bias=config.pooler_bias)


def make_embedding_layers(config: ModelConfig) -> nn.ModuleList | None:
    """The dense layers behind the pooling of a sentence embedding, or None."""
    if config.head != "embedding" or not config.embedding_layers:
        return None
    widths = [config.output_hidden_size, *(size for size, _, _ in config.embedding_layers)]
    return nn.ModuleList(
        nn.Linear(width, size, bias=bias)
        for width, (size, _, bias) in zip(widths, config.embedding_layers, strict=False)
    )


def through_layers(pooled: Tensor, layers: nn.ModuleList | None, config: ModelConfig) -> Tensor:
    """Pooled states (B, C) through the dense layers of a sentence embedding: (B, vector_size)."""
    if layers is None:
        return pooled
    for layer, (_, activation, _) in zip(layers, config.embedding_layers, strict=True):
        pooled = layer(pooled)
        pooled = pooled if activation == "none" else ACTIVATIONS[activation](pooled)
    return pooled


def make_score(config: ModelConfig) -> nn.Linear | None:
    """The output layer of classifiers, span heads, choices and values, or None. Raises InputError without labels."""
    if config.head not in (*CLASSIFICATION_HEADS, "question_answering", "pretraining"):
        return None
    if config.num_labels < 1:
        raise InputError(f"labels: none; the head {config.head} needs the names of its classes.")
    return nn.Linear(config.output_hidden_size, config.num_labels, bias=config.score_bias)


def make_distillation_score(config: ModelConfig) -> nn.Linear | None:
    """The output layer that reads the distillation token (DeiT), or None."""
    if config.head != "distilled_classification":
        return None
    return nn.Linear(config.output_hidden_size, config.num_labels, bias=config.score_bias)


def make_projection(config: ModelConfig) -> nn.Linear | None:
    """The projection of the pooled state of an embedding, or None."""
    if not config.projection_size or config.head not in ("embedding", "contrastive"):
        return None
    return nn.Linear(config.output_hidden_size, config.projection_size, bias=False)


def contrastive_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """The loss (B) of similarities (B, B) of texts and pictures: the mean of both cross-entropies of each pair.

    `matches` (B, B) is 1 where a text describes a picture; several may, and share the probability then. Raises
    InputError for labels of another shape, and rows without a match.
    """
    _check_labels(matches, logits.shape, "1 for each text and picture that belong together", integers=False)
    wanted = matches.float()
    if logits.shape[0] != logits.shape[1] or not bool((wanted.sum(0) > 0).all() and (wanted.sum(1) > 0).all()):
        raise InputError("labels: have a text or a picture that belongs to none; must be pairs.")
    logits = logits.float()
    parts = [
        -(scores.log_softmax(-1) * target / target.sum(-1, keepdim=True)).sum(-1)
        for scores, target in ((logits, wanted), (logits.t(), wanted.t()))
    ]
    return (parts[0] + parts[1]) / 2


def pool(hidden: Tensor, config: ModelConfig, input_ids: Tensor | None, segments: Tensor | None) -> Tensor:
    """Pools hidden states (B, T, C) to one state per text (B, C), without padding (segment 0).

    Raises InputError if `pooling` is `eos` and a text has no end-of-sequence token.
    """
    is_text = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if segments is None else segments != 0
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    if config.pooling in ("mean", "mean_sqrt", "weighted_mean"):
        weights = (is_text.long().cumsum(1) * is_text if config.pooling == "weighted_mean" else is_text)[
            ..., None
        ].float()
        count = weights.sum(1).clamp(min=1e-9)  # In float32: bfloat16 cannot count past 256.
        total = (hidden * weights).sum(1)
        return (total / (count.sqrt() if config.pooling == "mean_sqrt" else count)).to(hidden.dtype)
    if config.pooling == "max":
        return hidden.masked_fill(~is_text[..., None], torch.finfo(hidden.dtype).min).amax(1)
    slots = torch.arange(hidden.shape[1], device=hidden.device)
    if config.pooling == "first":
        return hidden[rows, torch.where(is_text, slots, hidden.shape[1] - 1).amin(1)]
    if config.pooling == "eos":
        ends = torch.tensor(_end_ids(config), device=hidden.device)
        if input_ids is None:
            raise InputError("pooling: 'eos'; reads the state of a token, and this input has none.")
        ended = torch.isin(input_ids, ends) & is_text
        if not bool(ended.any(1).all()):
            missing = (~ended.any(1)).nonzero().flatten().tolist()
            raise InputError(
                f"Texts {missing} of the batch have no end-of-sequence token {_end_ids(config)}, which this head reads."
            )
        is_text = ended
    return hidden[rows, torch.where(is_text, slots, 0).amax(1)]


def _end_ids(config: ModelConfig) -> list[int]:
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


def _check_labels(labels: Any, shape: Sequence[int], expected: str, *, integers: bool) -> None:
    """Raises InputError for labels of another shape or dtype than the head needs."""
    if not isinstance(labels, Tensor):
        raise InputError(
            f"labels: {type(labels).__name__}; this head needs {expected}, a tensor of shape {tuple(shape)}."
        )
    if tuple(labels.shape) != tuple(shape):
        raise InputError(f"labels: have shape {tuple(labels.shape)}; this head needs {expected}, shape {tuple(shape)}.")
    if integers and (labels.is_floating_point() or labels.dtype == torch.bool):
        kind = str(labels.dtype).removeprefix("torch.")
        raise InputError(f"labels: are {kind}; this head needs {expected}, whole numbers (torch.long).")


def _check_range(labels: Tensor, outputs: int) -> None:
    """Raises InputError for labels that are neither outputs of the head nor -100."""
    if not labels.numel() or labels.is_meta:
        return
    low, high = (int(end) for end in torch.aminmax(labels))
    if low >= 0 and high < outputs:
        return
    wrong = ((labels < 0) | (labels >= outputs)) & (labels != IGNORE_INDEX)
    if bool(wrong.any()):
        first = wrong.nonzero()[0].tolist()
        raise InputError(
            f"labels: {int(labels[tuple(first)])} at {first}, {int(wrong.sum())} such labels in all; must be 0 to "
            f"{outputs - 1}, or {IGNORE_INDEX} for positions without a label."
        )


def check_token_labels(labels: Tensor, shape: Sequence[int]) -> None:
    """Raises InputError for labels that do not fit logits of shape (B, T, V).

    Their range is checked on the CPU only; on a GPU the check would wait for the device.
    """
    _check_labels(labels, shape[:-1], "a label for each token", integers=True)
    if labels.device.type == "cpu":
        _check_range(labels, shape[-1])


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats (B, T) of logits (B, T, V), 0 where the label is -100.

    Raises InputError as `check_token_labels`.
    """
    check_token_labels(labels, logits.shape)
    flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    if logits.shape[-1] < LARGE_VOCABULARY:
        loss = F.cross_entropy(flat.float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
    else:
        loss = CrossEntropyFunction.apply(flat, targets, IGNORE_INDEX)
    return loss.view(labels.shape)


def label_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The loss (B) of logits (B, L), by problem type.

    `single_label`: cross-entropy; `multi_label`: mean binary cross-entropy; `regression`: mean squared error. Raises
    InputError for labels of another shape, outside the outputs, or, with `multi_label`, outside 0 to 1.
    """
    logits = logits.float()
    if problem_type == "single_label":
        _check_labels(labels, logits.shape[:1], "one label for each text", integers=True)
        _check_range(labels, logits.shape[1])
        return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    flat = logits.shape[1] == 1 and isinstance(labels, Tensor) and labels.dim() == 1
    shape = logits.shape[:1] if flat else logits.shape
    expected = "a number for each output" if problem_type == "regression" else "0 or 1 for each label"
    _check_labels(labels, shape, expected, integers=False)
    targets = labels.float().view(logits.shape)
    if problem_type == "multi_label" and bool(((targets < 0) | (targets > 1)).any()):
        raise InputError(f"labels: {float(targets.min())} to {float(targets.max())}; this head needs {expected}.")
    measure = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return measure(logits, targets, reduction="none").mean(-1)


def span_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of the cross-entropies of start and end (B), from logits (B, T, 2) and labels (B, 2).

    A label outside the text has loss 0. Raises InputError for labels of another shape or dtype.
    """
    _check_labels(labels, (logits.shape[0], 2), "the first and last token of each span", integers=True)
    length = logits.shape[1]
    total = torch.zeros(logits.shape[0], device=logits.device)
    for part, targets in zip(logits.float().unbind(-1), labels.unbind(-1), strict=True):
        inside = torch.where((targets < 0) | (targets >= length), IGNORE_INDEX, targets)
        total = total + F.cross_entropy(part, inside.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return total / 2


def replaced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy (B, T) of logits (B, T), 0 where the label is -100; 1 is a token that was replaced.

    Raises InputError for labels of another shape or dtype, or other than 0, 1 and -100.
    """
    _check_labels(labels, logits.shape, "0, 1 or -100 for each token", integers=True)
    _check_range(labels, 2)
    known = labels != IGNORE_INDEX
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.clamp(min=0).float(), reduction="none")
    return loss.masked_fill(~known, 0.0)


def value_loss(values: Tensor, labels: Tensor) -> Tensor:
    """Squared error (B, T) of values (B, T), 0 where the label is NaN.

    Raises InputError for labels of another shape.
    """
    _check_labels(labels, values.shape, "a value for each token", integers=False)
    known = ~labels.isnan()
    return torch.where(known, values.float() - torch.where(known, labels, 0.0), 0.0).square()
