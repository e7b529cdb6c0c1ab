"""Classes of pictures in words, without training: the text that a picture is nearest to (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field as Setting

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings
from quatrain.data.image_text import ImageTextProcessor
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.training.objectives.image_text import image_vectors, text_vectors


class ZeroShotOptions(Settings):
    """`candidate_labels`: a list, or one text with commas. `hypothesis_template` has {} where the label stands."""

    candidate_labels: Listing[str] | str = ()
    hypothesis_template: str = Setting(default="{}", pattern=r".*\{\}.*")


class ZeroShotImageClassification(Pipeline):
    """The candidates for a picture, the likeliest first."""

    task = "zero-shot-image-classification"
    heads = ("contrastive",)
    default_for = ("contrastive",)
    recipes = ("clip-shapes",)
    fields = (Field("image", kind="file"),)
    Options = ZeroShotOptions

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: ZeroShotOptions) -> list[Prediction]:
        given = options.candidate_labels
        labels = [label.strip() for label in (given.split(",") if isinstance(given, str) else given) if label.strip()]
        if not labels:
            raise InputError("candidate_labels: none; name the classes to choose from, such as 'a cat,a dog'")
        texts = [options.hypothesis_template.format(label) for label in labels]
        both = ImageTextProcessor(self.processor, self.tokenizer)
        features = torch.from_numpy(self.processor([each["image"] for each in inputs]))
        similar = image_vectors(self.model, features) @ text_vectors(self.model, both, texts).t()
        chances = (similar * self.model.log_scale.exp().cpu()).softmax(-1).tolist()
        predictions = []
        for row in chances:
            classes = [{"label": label, "score": score} for label, score in zip(labels, row, strict=True)]
            predictions.append(Prediction(sorted(classes, key=lambda each: -each["score"])))
        return predictions

    def record(self, value: Any) -> dict[str, Any]:
        """The likeliest candidate with its score, and the scores of all."""
        return {"label": value[0]["label"], "score": value[0]["score"],
                "scores": {each["label"]: each["score"] for each in value}}  # fmt: skip

    def line(self, text: str, value: Any) -> str:
        record = self.record(value)
        return f"{record['label']}\t{record['score']:.4f}\t{text}"
