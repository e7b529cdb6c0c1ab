"""Training objectives. Each one collates examples into a batch and computes (summed loss, weight, metrics)."""

from quatrain.training.objectives.answers import Answer, ExtractiveQA, best_answers
from quatrain.training.objectives.base import CarriedCausal, Causal, Objective, collate
from quatrain.training.objectives.bidirectional import Bidirectional
from quatrain.training.objectives.classification import MultipleChoice, SequenceClassification
from quatrain.training.objectives.denoising import Denoising
from quatrain.training.objectives.embedding import Contrastive, CosineSimilarity
from quatrain.training.objectives.masked import Masked
from quatrain.training.objectives.replaced import ReplacedTokens
from quatrain.training.objectives.seq2seq import Seq2Seq
from quatrain.training.objectives.spans import SpanCorruption
from quatrain.training.objectives.tagging import TokenClassification
from quatrain.training.objectives.texts import TextObjective

__all__ = [
    "Objective",
    "TextObjective",
    "collate",
    "Causal",
    "CarriedCausal",
    "Bidirectional",
    "Masked",
    "ReplacedTokens",
    "SpanCorruption",
    "Denoising",
    "Seq2Seq",
    "SequenceClassification",
    "TokenClassification",
    "ExtractiveQA",
    "Answer",
    "best_answers",
    "MultipleChoice",
    "Contrastive",
    "CosineSimilarity",
]
