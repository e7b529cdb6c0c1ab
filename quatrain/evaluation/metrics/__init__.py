"""The standard metrics, as functions of plain lists. Errors name the example by its number."""

from quatrain.evaluation.metrics.answers import normalized, squad, token_f1
from quatrain.evaluation.metrics.classification import accuracy, f1, matthews, pearson, spearman
from quatrain.evaluation.metrics.entities import entities, entity_f1
from quatrain.evaluation.metrics.likelihood import bits_per, perplexity
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.evaluation.metrics.speech import error_rates
from quatrain.evaluation.metrics.texts import bleu, chrf, rouge

__all__ = [
    "accuracy",
    "f1",
    "matthews",
    "pearson",
    "spearman",
    "entities",
    "entity_f1",
    "normalized",
    "squad",
    "token_f1",
    "bleu",
    "chrf",
    "rouge",
    "error_rates",
    "perplexity",
    "bits_per",
    "evaluate_objective",
]
