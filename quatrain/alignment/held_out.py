"""Measures preferences on held-out examples: how often a model ranks them correctly, beside dumb rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.alignment.dpo import PreferenceExample, pair_values
from quatrain.alignment.kto import RatedExample
from quatrain.alignment.policy import evaluating
from quatrain.data.preference_summary import shorter_is_chosen
from quatrain.evaluation.metrics.objectives import batches_of
from quatrain.models.transformer.stack import Model
from quatrain.training.objectives import Objective
from quatrain.training.objectives.metrics import MetricSums

SHORTER = "the shorter answer wins"
LIKELIHOOD = "the reference's likelihood"
PER_TOKEN = "the reference's likelihood per token"
MAJORITY = "the commoner rating"
"""Rules that need no training on preferences; a trained model has to beat them."""


@torch.no_grad()
def measure(
    model: Model, objective: Objective, examples: Sequence[Any], *, batch_tokens: int = 16384
) -> dict[str, float]:
    """The mean loss and the mean metrics of an objective over examples, in evaluation mode."""
    total: float | Tensor = 0.0
    count, sums = 0, MetricSums()
    with evaluating(model):
        for places in batches_of(examples, batch_tokens):
            batch = objective.collate([examples[place] for place in places]).to(model.device)
            loss, weight, metrics = objective.loss(model, batch)
            total, count = total + loss, count + weight
            sums.add(metrics)
    return {"loss": float(total) / count, **sums.means(count)}


def likelihood_accuracy(model: Model, examples: Sequence[PreferenceExample], *, pad_id: int = 0) -> dict[str, float]:
    """The share of pairs whose chosen answer is more likely under the model: summed over tokens, and per token."""
    values = pair_values(model, examples, pad_id=pad_id, base=False)
    return ranked_by_likelihood(examples, [chosen for chosen, _ in values], [rejected for _, rejected in values])


def ranked_by_likelihood(
    examples: Sequence[PreferenceExample], chosen: Sequence[float], rejected: Sequence[float]
) -> dict[str, float]:
    """The share of pairs that these log-probabilities rank correctly, by sums and per token; ties count one half."""
    pairs = list(zip(examples, chosen, rejected, strict=True))
    whole = sum(_wins(better, worse) for _, better, worse in pairs)
    each = sum(_wins(better / len(e.chosen), worse / len(e.rejected)) for e, better, worse in pairs)
    return {LIKELIHOOD: whole / len(pairs), PER_TOKEN: each / len(pairs)}


def baselines(examples: Sequence[PreferenceExample]) -> dict[str, float]:
    """The accuracy of the dumb rules on pairs that have reference log-probabilities; lengths in tokens."""
    shorter = sum(shorter_is_chosen(len(each.chosen), len(each.rejected)) for each in examples) / len(examples)
    result = {SHORTER: shorter}
    if all(each.reference_chosen is not None and each.reference_rejected is not None for each in examples):
        result |= ranked_by_likelihood(
            examples,
            [each.reference_chosen or 0.0 for each in examples],
            [each.reference_rejected or 0.0 for each in examples],
        )
    return result


def rated_baseline(examples: Sequence[RatedExample]) -> float:
    """The accuracy of calling every answer what most of them are."""
    share = sum(each.desirable for each in examples) / len(examples)
    return max(share, 1 - share)


def _wins(better: float, worse: float) -> float:
    return 1.0 if better > worse else 0.5 if better == worse else 0.0
