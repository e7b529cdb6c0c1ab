"""Objectives: what a step learns. Each collates plain examples to a batch and gives its loss as (sum, weight,
metrics).
"""

from quatrain.training.objectives.base import Causal, Objective, collate
from quatrain.training.objectives.classification import MultipleChoice, SequenceClassification

__all__ = ["Causal", "MultipleChoice", "Objective", "SequenceClassification", "collate"]
