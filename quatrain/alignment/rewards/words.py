"""The log-odds of a label by the words of a text: naive Bayes over words and pairs of words (Wang and Manning 2012).

The label is learned from labelled texts when the reward is built, in seconds and without a neural network. It errs in
other ways than a neural classifier, which makes it a true metric to hold out beside one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings, field_of
from quatrain.core.errors import InputError
from quatrain.core.settings import Problem
from quatrain.core.wording import format_names, format_value

_WORD = re.compile(r"[\w']+|[^\w\s]")


class WordsReward(RewardSettings):
    """The log-odds of a label of the texts in `source`, by words and pairs of words of the completion.

    `label` is the rewarded one; `label_field` names the field of an example that holds its own. For an example that
    asks for `undecided`, the reward is the negative distance from even odds.
    """

    kind: Literal["words"] = "words"
    source: str = Field(min_length=1, description="labelled texts: a catalog name, a file or a data set")
    label: str | None = Field(default=None, description="the rewarded label")
    label_field: str | None = Field(default=None, description="the field of an example with its label")
    undecided: str | None = Field(default=None, description="what an example asks for that wants neither label")
    flip: bool = Field(default=False, description="reward the opposite: the score with the other sign")

    def conflicts(self) -> Iterator[Problem]:
        both = (("label",), ("label_field",))
        if (self.label is None) == (self.label_field is None):
            have = "has neither label nor label_field" if self.label is None else "has both label and label_field"
            yield Problem((), f'{have}; must have exactly one, such as label = "1"', both)

    def build(self, context: RewardContext) -> Reward:
        from quatrain.data.corpus import Corpus
        from quatrain.data.records import LabelledText

        records = (each for each in Corpus(self.source, format="labelled") if isinstance(each, LabelledText))
        model = WordModel((each.text, str(each.label)) for each in records)
        field = self.label_field

        def asked(example: Any) -> str:
            return str(self.label if field is None else field_of(example, field))

        sign = -1.0 if self.flip else 1.0

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            scores = []
            for example, text in zip(examples, completions, strict=True):
                label = asked(example)
                odds = -abs(model.log_odds(text)) if label == self.undecided else model.log_odds(text, label)
                scores.append(sign * odds)
            return scores

        return reward


class WordModel:
    """Naive Bayes of (text, label) pairs with two labels: the presence of words and of pairs of neighbours.

    Raises InputError for any other number of labels.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], *, smoothing: float = 1.0):
        counts: dict[str, Counter[str]] = {}
        sizes: Counter[str] = Counter()
        for text, label in texts:
            counts.setdefault(label, Counter()).update(_features(text))
            sizes[label] += 1
        self.labels = sorted(counts)
        if len(self.labels) != 2:
            raise InputError(f"source: has the labels {format_names(self.labels) or 'none'}; words need two labels.")
        first, second = (counts[label] for label in self.labels)
        known = first.keys() | second.keys()
        totals = [sum(each.values()) + smoothing * len(known) for each in (first, second)]
        self.prior = math.log(sizes[self.labels[1]] / sizes[self.labels[0]])
        self.weights = {
            each: math.log((second[each] + smoothing) / totals[1]) - math.log((first[each] + smoothing) / totals[0])
            for each in known
        }

    def log_odds(self, text: str, label: str | None = None) -> float:
        """The log-odds of a label, by default the second; unknown words say nothing."""
        if label is not None and label not in self.labels:
            raise InputError(f"label: {format_value(label)}; the source has {format_names(self.labels)}.")
        odds = self.prior + math.fsum(self.weights.get(each, 0.0) for each in _features(text))
        return -odds if label == self.labels[0] else odds


def _features(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


SETTINGS = WordsReward
