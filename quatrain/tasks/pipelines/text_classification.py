"""Classes of texts and of pairs: sentiment, topics, spam, natural-language inference, several labels at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field as Key
from torch import Tensor

from quatrain.core.settings import Settings
from quatrain.tasks.pipelines.base import Alias, Field, Pipeline, Prediction

MANY = 0.5
"""The probability from which a label of several counts, in files."""


class ClassificationOptions(Settings):
    """How scores are computed and how many are returned."""

    top_k: int | None = Key(None, ge=1)
    """The number of labels, the likeliest first; None: the best one alone (a call may also ask for `all_labels`)."""
    all_labels: bool = False
    """Return every label, the likeliest first."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """From logits to scores; None: by the model's kind of problem."""


class TextClassification(Pipeline):
    """The class of a text, as {"label", "score"}.

    As in transformers, a call with one text and without `top_k` returns a list of one; with `top_k`, each text gives a
    list, with `top_k=None` in a call of all labels.
    """

    task = "text-classification"
    aliases = {
        "sentiment-analysis": Alias(recipes=("sentiment", "sentiment-lora")),
        "topic-classification": Alias(recipes=("topic",)),
        "spam-detection": Alias(recipes=("spam",)),
        "natural-language-inference": Alias(recipes=("nli",)),
    }
    heads = ("sequence_classification",)
    default_for = ("sequence_classification",)
    recipes = ("sentiment", "sentiment-lora", "topic", "spam", "nli")
    reads_ahead = 8
    fields = (Field("text"), Field("text_pair", optional=True, part="other"))
    Options = ClassificationOptions

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The classes of inputs; see `Pipeline.__call__`."""
        if "top_k" in options and options["top_k"] is None:
            options["all_labels"] = True
        return super().__call__(inputs, batch_size=batch_size, **options)

    def one(self, given: Any, value: Any) -> Any:
        return [value] if isinstance(given, str) and isinstance(value, Mapping) else value

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: ClassificationOptions) -> list[Prediction]:
        rows = [self.reader.read(each["text"], each.get("text_pair")) for each in inputs]
        return [
            Prediction(self._classes(logits, options), row.cut)
            for logits, row in zip(self.logits(rows), rows, strict=True)
        ]

    def _classes(self, logits: Tensor, options: ClassificationOptions) -> Any:
        scores = scores_of(logits, options.function_to_apply or self.function()).tolist()
        classes = [{"label": label, "score": score} for label, score in zip(self.config.labels, scores, strict=True)]
        classes.sort(key=lambda each: -each["score"])
        if options.all_labels or options.top_k is not None:
            return classes[: options.top_k]
        return classes[0]

    def function(self) -> Literal["softmax", "sigmoid", "none"]:
        """The function that the model's kind of problem asks for."""
        files = self.subject.config_json
        if (files.get("problem_type") if files else self.config.problem_type) == "regression":
            return "none"
        return "sigmoid" if self.config.problem_type == "multi_label" or len(self.config.labels) == 1 else "softmax"

    def served_options(self) -> dict[str, Any]:
        return {"all_labels": True}

    def file_options(self) -> dict[str, Any]:
        return {"all_labels": True}

    def record(self, value: Any) -> dict[str, Any]:
        """The best label with its score, and all scores; of several labels at once those above 0.5."""
        scores = {each["label"]: each["score"] for each in ([value] if isinstance(value, Mapping) else value)}
        if self.config.problem_type == "regression":
            return {"scores": scores}
        if self.config.problem_type == "multi_label":
            order = [label for label in self.config.labels if scores.get(label, 0.0) > MANY]
            return {"labels": order, "scores": scores}
        label = next(iter(scores))
        return {"label": label, "score": scores[label], "scores": scores}

    def line(self, text: str, value: Any) -> str:
        record = self.record(value)
        if "labels" in record:
            labels = ", ".join(f"{label} {record['scores'][label]:.4f}" for label in record["labels"])
            return f"{labels or 'none'}\t{text}"
        if "label" in record:
            return f"{record['label']}\t{record['score']:.4f}\t{text}"
        return "\t".join([*(f"{number:.4f}" for number in record["scores"].values()), text])


def scores_of(logits: Tensor, function: Literal["softmax", "sigmoid", "none"]) -> Tensor:
    """Logits (L) to scores (L)."""
    return {"softmax": lambda: logits.softmax(-1), "sigmoid": logits.sigmoid, "none": lambda: logits}[function]()
