"""Questions with given answers in the forms of ARC, HellaSwag, PIQA and of a plain file.

The prompt is the question, an answer its continuation. Clark et al. 2018 (arXiv 1803.05457); Zellers et al. 2019
(arXiv 1905.07830); Bisk et al. 2019 (arXiv 1911.11641).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quatrain.data.records import Row
from quatrain.evaluation.suite import Choices, ChoiceSuite
from quatrain.evaluation.suites.mmlu import number_of


class Choice(ChoiceSuite):
    """Multiple choice by the likelihood of the answers' texts."""

    name = "choice"
    title = "multiple choice, answers as texts"
    columns = (
        "ARC's columns question, choices {text, label} and answerKey; HellaSwag's ctx, endings and label; PIQA's goal, "
        "sol1, sol2 and label; or question, choices (a list) and answer"
    )

    def parse(self, value: Mapping[str, Any]) -> Choices:
        if "endings" in value:
            context = value["ctx"] if "ctx" in value else f"{value['ctx_a']} {value['ctx_b']}"
            group = str(value.get("activity_label", ""))
            shown = f"{group}: {context}" if group else str(context)
            answers = tuple(cleaned(ending) for ending in value["endings"])
            return Choices(cleaned(shown), answers, (number_of(value["label"], len(answers)),), group)
        if "goal" in value:
            answers = (str(value["sol1"]), str(value["sol2"]))
            return Choices(f"Question: {value['goal']}\nAnswer:", answers, (number_of(value["label"], 2),))
        choices, shown = value["choices"], f"Question: {value['question']}\nAnswer:"
        if isinstance(choices, Mapping):
            names = [str(name) for name in choices["label"]]
            if str(value["answerKey"]) not in names:
                raise ValueError(f"answerKey {value['answerKey']!r}: must be one of {', '.join(names)}")
            return Choices(shown, tuple(map(str, choices["text"])), (names.index(str(value["answerKey"])),))
        answers = tuple(map(str, choices))
        right = value["answer"] if "answer" in value else value["label"]
        return Choices(shown, answers, (number_of(right, len(answers)),), str(value.get("subject", "")))

    def question(self, example: Row) -> str:
        return super().question(example).removeprefix("Question: ").replace("\nAnswer:", "", 1)


def cleaned(text: str) -> str:
    """A text of HellaSwag without the marks of WikiHow, as lm-eval cleans it."""
    text = str(text).strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


SUITE = Choice
