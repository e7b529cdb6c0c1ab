"""How good an answer is, by a reward model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from quatrain.core.errors import InputError
from quatrain.tasks.answer_reader import AnswerReader
from quatrain.tasks.pipelines.base import Alias, Field, Pipeline, Prediction, is_chat
from quatrain.tasks.pipelines.subject import Subject


class Reward(Pipeline):
    """The score of an answer, as {"score"}; it has no bounds, and only differences mean something.

    An input is a chat that ends with the answer, as a list of messages or {"messages"}, or {"prompt", "completion"}. A
    text alone is an answer without a prompt.
    """

    task = "reward"
    aliases = {"reward-scores": Alias()}
    heads = ("sequence_classification",)
    recipes = ("reward",)
    reads_ahead = 8
    fields = (
        Field("completion", optional=True, part="text"),
        Field("prompt", optional=True),
        Field("messages", optional=True, kind="messages"),
    )

    def __init__(self, subject: Subject, **options: Any):
        super().__init__(subject, **options)
        if len(self.config.labels) != 1:
            raise InputError(
                f"reward: needs a model with one score, and this one has the labels {', '.join(self.config.labels)}. "
                "`quatrain run reward` trains one."
            )

    @classmethod
    def required(cls, given: Mapping[str, Any]) -> Iterable[Field]:
        return () if "messages" in given else cls.fields[:1]

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or is_chat(inputs)

    @cached_property
    def answers(self) -> AnswerReader:
        """Encodes chats as the model has learned to read them."""
        return AnswerReader(self.tokenizer, self.limit)

    def read(self, given: Any, place: str) -> dict[str, Any]:
        fields = super().read({"messages": given} if is_chat(given) else given, place)
        if fields.get("messages") and fields["messages"][-1].get("role") != "assistant":
            raise InputError(f"{place}: messages: end with the assistant's answer, which is scored")
        return fields

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: Any) -> list[Prediction]:
        rows = []
        for each in inputs:
            if "messages" in each:
                prompt, answer = each["messages"][:-1], each["messages"][-1]
            else:
                prompt = [{"role": "user", "content": each["prompt"]}] if each.get("prompt") else []
                answer = {"role": "assistant", "content": each["completion"]}
            rows += self.answers.read(prompt, [[answer]])
        return [
            Prediction({"score": float(logits[0])}, row.cut)
            for logits, row in zip(self.logits(rows), rows, strict=True)
        ]
