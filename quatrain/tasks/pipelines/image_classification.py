"""Classes of pictures. Names and outputs are those of Hugging Face's pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field as Setting

from quatrain.core.settings import Settings
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.tasks.pipelines.text_classification import scores_of


class ImageClassificationOptions(Settings):
    """How many classes are shown, and how logits become scores."""

    top_k: int = Setting(default=5, ge=1, le=1_000_000)
    function_to_apply: Literal["softmax", "sigmoid", "none"] = "softmax"


class ImageClassification(Pipeline):
    """The likeliest classes of a picture: a path, a `data:` URI, bytes, an array or a Pillow image."""

    task = "image-classification"
    heads = ("image_classification", "distilled_classification")
    default_for = ("image_classification", "distilled_classification")
    recipes = ("digits", "images")
    fields = (Field("image", kind="file"),)
    Options = ImageClassificationOptions
    needs_tokenizer = False

    def predict_batch(
        self, inputs: Sequence[Mapping[str, Any]], options: ImageClassificationOptions
    ) -> list[Prediction]:
        features = torch.from_numpy(self.processor([each["image"] for each in inputs]))
        parts = features.split(self._rows_at_once)
        logits = torch.cat([self.model(features=part.to(self.model.device))[0].float().cpu() for part in parts])
        predictions = []
        for row in logits:
            scores = scores_of(row, options.function_to_apply).tolist()
            classes = [
                {"label": label, "score": score} for label, score in zip(self.config.labels, scores, strict=True)
            ]
            classes.sort(key=lambda each: -each["score"])
            predictions.append(Prediction(classes[: options.top_k]))
        return predictions

    def record(self, value: Any) -> dict[str, Any]:
        """The likeliest class with its score, and the scores of the classes shown."""
        scores = {each["label"]: each["score"] for each in value}
        label = next(iter(scores))
        return {"label": label, "score": scores[label], "scores": scores}

    def line(self, text: str, value: Any) -> str:
        record = self.record(value)
        return f"{record['label']}\t{record['score']:.4f}\t{text}"
