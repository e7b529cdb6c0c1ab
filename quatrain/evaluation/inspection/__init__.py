"""Inspection of a model as data: its architecture, tokens, predictions, attention and embedding.

The functions take a model, a tokenizer or a configuration and return plain data, for notebooks and `quatrain inspect`;
`open_subject` reads them from a folder. `attention_page` and `attention_picture` draw attention maps, `views_page` the
logit lens, attributions, rollouts, embedding maps and induction heads.
"""

from quatrain.evaluation.inspection.architecture import Architecture, ModulePart, architecture
from quatrain.evaluation.inspection.attention import AttentionMaps, attention_maps
from quatrain.evaluation.inspection.attention_page import attention_page
from quatrain.evaluation.inspection.attention_picture import attention_picture
from quatrain.evaluation.inspection.attribution import Attribution, attribute
from quatrain.evaluation.inspection.choices import choices
from quatrain.evaluation.inspection.embedding_map import (
    EmbeddingMap,
    embedding_map,
    text_vectors,
    token_map,
    vocabulary_tokens,
)
from quatrain.evaluation.inspection.induction import InductionScores, induction_scores
from quatrain.evaluation.inspection.logit_lens import LogitLens, logit_lens
from quatrain.evaluation.inspection.neighbours import Neighbour, find_token, neighbours
from quatrain.evaluation.inspection.predictions import Candidate, Prediction, Predictions, predictions
from quatrain.evaluation.inspection.rollout import attention_rollout
from quatrain.evaluation.inspection.subject import Subject, open_subject
from quatrain.evaluation.inspection.tokens import Token, read_ids, text_ids, tokens
from quatrain.evaluation.inspection.views_page import views_page

__all__ = [
    "Architecture",
    "Attribution",
    "AttentionMaps",
    "Candidate",
    "EmbeddingMap",
    "InductionScores",
    "LogitLens",
    "Neighbour",
    "ModulePart",
    "Prediction",
    "Predictions",
    "Subject",
    "Token",
    "architecture",
    "attention_maps",
    "attention_page",
    "attention_picture",
    "attention_rollout",
    "attribute",
    "choices",
    "embedding_map",
    "find_token",
    "induction_scores",
    "logit_lens",
    "neighbours",
    "open_subject",
    "predictions",
    "read_ids",
    "text_ids",
    "text_vectors",
    "token_map",
    "tokens",
    "views_page",
    "vocabulary_tokens",
]
