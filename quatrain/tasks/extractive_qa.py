"""The span of a text that answers a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quatrain.data.records import Row
from quatrain.tasks.records import RecordTask, overlap
from quatrain.tasks.task import Score
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import ExtractiveQA, best_answers
from quatrain.training.settings import TaskSettings

STRIDE = 128
"""Tokens that two windows of a long text share, unless the stage says otherwise or the context is short."""


class QuestionAnswering(RecordTask):
    """Questions about a text, answered by a span of it; an empty answer where the text has none."""

    name = "answer"
    format = "qa"
    head = "question_answering"
    baseline_name = "the sentence that shares most words with the question"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> ExtractiveQA:
        stride = min(STRIDE, limit // 3) if settings.stride is None else settings.stride
        return ExtractiveQA(tokenizer, max_length=limit, stride=stride)

    def question(self, example: Row) -> str:
        return f"{example.value['context']}\n\n{example.value['question']}"

    def reference(self, example: Row) -> str:
        answers = example.value["answers"]["text"]
        return answers[0] if answers else ""

    def score(self, example: Row, completion: str) -> Score:
        answers = example.value["answers"]["text"] or [""]
        return Score({"exact_match": float(completion.strip() in answers)})

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        return best_answers(examples, predictions, may_be_none=True)[0][0].text

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The sentence of each text that shares most words with the question, the first among equals."""
        return [nearest_sentence(example.value["context"], example.value["question"]) for example in examples]


def nearest_sentence(context: str, question: str) -> str:
    """The sentence of a text that shares most words with a question, the first among equals."""
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", context) if sentence.strip()]
    return max(sentences, key=lambda sentence: overlap(sentence, question), default="")
