"""Inspection of a model as data: its architecture, tokens, predictions, attention and embedding.

The functions take a model, a tokenizer or a configuration and return plain data, for notebooks and `quatrain inspect`;
`open_subject` reads them from a folder. `attention_page` and `attention_picture` draw attention maps.
"""

from quatrain.evaluation.inspection.architecture import Architecture, ModulePart, architecture
from quatrain.evaluation.inspection.attention import AttentionMaps, attention_maps
from quatrain.evaluation.inspection.attention_page import attention_page
from quatrain.evaluation.inspection.attention_picture import attention_picture
from quatrain.evaluation.inspection.choices import choices
from quatrain.evaluation.inspection.neighbours import Neighbour, find_token, neighbours
from quatrain.evaluation.inspection.predictions import Candidate, Prediction, Predictions, predictions
from quatrain.evaluation.inspection.subject import Subject, open_subject
from quatrain.evaluation.inspection.tokens import Token, read_ids, text_ids, tokens

__all__ = [
    "Architecture",
    "AttentionMaps",
    "Candidate",
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
    "choices",
    "find_token",
    "neighbours",
    "open_subject",
    "predictions",
    "read_ids",
    "text_ids",
    "tokens",
]
