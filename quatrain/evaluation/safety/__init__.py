"""Fairness, safety and memory: stereotypes, word associations, toxicity, refusals, memorized text, planted secrets.

Plain functions; the suites `stereotypes`, `weat`, `toxicity`, `refusals`, `memorization` and `canaries` ask them about
a model. The small files in `files/` were written for this project to try the measures out: a score on them is no
evidence that a model is fair or safe. `card.LIMITS` says what each measure cannot show.
"""

from quatrain.evaluation.safety.association import Association, weat
from quatrain.evaluation.safety.canaries import Canary, exposure
from quatrain.evaluation.safety.card import safety_section, write_safety_section
from quatrain.evaluation.safety.memorization import Memorized, longest_common_run, memorized
from quatrain.evaluation.safety.refusals import is_refusal
from quatrain.evaluation.safety.stereotypes import sentence_scores
from quatrain.evaluation.safety.toxicity import classifier_scores, listed_words

__all__ = [
    "Association",
    "Canary",
    "Memorized",
    "classifier_scores",
    "exposure",
    "is_refusal",
    "listed_words",
    "longest_common_run",
    "memorized",
    "safety_section",
    "sentence_scores",
    "weat",
    "write_safety_section",
]
