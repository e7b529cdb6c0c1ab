"""The best of several choices for a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.training.objectives.base import forward
from quatrain.training.objectives.classification import ChoiceExample
from quatrain.training.objectives.classification import MultipleChoice as Objective


class MultipleChoice(Pipeline):
    """The chosen answer of a question, as {"choice", "number" (from 0), "score", "scores"}."""

    task = "multiple-choice"
    heads = ("multiple_choice",)
    default_for = ("multiple_choice",)
    recipes = ("choice",)
    fields = (Field("question", empty=False), Field("choices", kind="texts", empty=False))
    format = "choice"

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: Any) -> list[Prediction]:
        objective = Objective(self.tokenizer, max_length=self.limit)
        rows = [[self.reader.read(each["question"], choice) for choice in each["choices"]] for each in inputs]
        examples = [ChoiceExample(each, 0, cut=sum(row.cut for row in each)) for each in rows]
        batch = objective.collate(examples).to(self.model.device)
        logits = forward(self.model, batch)[0].float().cpu()
        predictions = []
        for each, example, own in zip(inputs, examples, logits, strict=True):
            scores = own[: len(example.choices)].softmax(-1)
            best = int(scores.argmax())
            value = {
                "choice": each["choices"][best], "number": best, "score": float(scores[best]),
                "scores": scores.tolist(),
            }  # fmt: skip
            predictions.append(Prediction(value, example.cut))
        return predictions

    def line(self, text: str, value: Any) -> str:
        return f"{value['choice']}\t{value['score']:.4f}"
