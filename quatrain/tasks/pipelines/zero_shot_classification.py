"""Classes that a model was not trained for: each label becomes a hypothesis that the text may entail.

Yin et al. 2019 (arXiv 1909.00161), with a model of natural-language inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings
from quatrain.core.wording import format_names, format_value
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.tokenizers.tokenizer import EncodedPair
from quatrain.training.objectives.texts import EncodedText


class ZeroShotOptions(Settings):
    """The labels, and how they become hypotheses."""

    candidate_labels: str | Listing[str] = ()
    """The labels, as a list or as a text with commas between."""
    hypothesis_template: str = "This example is {}."
    """The hypothesis, with {} in the label's place."""
    multi_label: bool = False
    """Score each label by itself, entailment against contradiction, instead of all labels against each other."""

    @property
    def labels(self) -> list[str]:
        """The labels as a list."""
        given = self.candidate_labels
        return [label.strip() for label in given.split(",") if label.strip()] if isinstance(given, str) else list(given)


class ZeroShotClassification(Pipeline):
    """Labels by likelihood, as {"sequence", "labels", "scores"}."""

    task = "zero-shot-classification"
    heads = ("sequence_classification",)
    recipes = ("nli",)
    reads_ahead = 8
    fields = (Field("text", empty=False),)
    Options = ZeroShotOptions

    def __call__(
        self, inputs: Any, candidate_labels: Any = None, *, batch_size: int | None = None, **options: Any
    ) -> Any:
        """The likelihoods of `candidate_labels` for inputs; see `Pipeline.__call__`."""
        return super().__call__(inputs, batch_size=batch_size, candidate_labels=candidate_labels, **options)

    def _index(self, prefix: str) -> int | None:
        places = [place for place, label in enumerate(self.config.labels) if label.lower().startswith(prefix)]
        return places[0] if places else None

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: ZeroShotOptions) -> list[Prediction]:
        labels = options.labels
        entailment = self._index("entail")
        problems = []
        if entailment is None:
            problems.append(
                f"model: its labels are {format_names(self.config.labels, 6)}; a model of natural-language inference "
                "has one that begins with entail"
            )
        if not labels:
            problems.append("candidate_labels: none; give the labels to choose from")
        if options.hypothesis_template.format("") == options.hypothesis_template:
            problems.append(
                f"hypothesis_template: {format_value(options.hypothesis_template)}; must have {{}} in the label's place"
            )
        if problems or entailment is None:
            raise InputError("Zero-shot classification cannot start:", problems)
        rows = [
            self._pair(each["text"], options.hypothesis_template.format(label)) for each in inputs for label in labels
        ]
        logits = torch.stack(self.logits(rows)).view(len(inputs), len(labels), -1)
        return [
            Prediction(
                self._ranked(each["text"], labels, own, entailment, options.multi_label),
                max(row.cut for row in rows[number * len(labels) : (number + 1) * len(labels)]),
            )
            for number, (each, own) in enumerate(zip(inputs, logits, strict=True))
        ]

    def _ranked(
        self, text: str, labels: Sequence[str], logits: Tensor, entailment: int, multi_label: bool
    ) -> dict[str, Any]:
        """The output for a text from the logits (labels, L) of its pairs."""
        if multi_label or len(labels) == 1:
            contradiction = self._index("contra")
            if contradiction is None:
                contradiction = -1 if entailment == 0 else 0
            scores = logits[:, [contradiction, entailment]].softmax(-1)[:, 1]
        else:
            scores = logits[:, entailment].softmax(0)
        order = sorted(range(len(labels)), key=lambda place: (-float(scores[place]), -place))
        return {
            "sequence": text,
            "labels": [labels[place] for place in order],
            "scores": [float(scores[place]) for place in order],
        }

    def _pair(self, text: str, hypothesis: str) -> EncodedText:
        """A text with its hypothesis; where they are too long together, the text loses its end."""
        pair = self.tokenizer.encode_pair(text, hypothesis)
        over = len(pair.ids) - self.limit
        if over <= 0:
            return EncodedText(pair.ids, pair.token_types)
        own = [place for place, part in enumerate(pair.parts) if part == 0]
        if over >= len(own):
            raise InputError(
                f"hypothesis {format_value(hypothesis[:80])}: leaves no room for the text in the model's context of "
                f"{self.limit} tokens"
            )
        return _without(pair, set(own[-over:]))

    def served(self, value: Any) -> Any:
        """A list of {"label", "score"}, the likeliest first."""
        pairs = zip(value["labels"], value["scores"], strict=True)
        return [{"label": label, "score": score} for label, score in pairs]

    def record(self, value: Any) -> dict[str, Any]:
        """The labels by likelihood, and their scores."""
        best = value["labels"][0]
        scores = dict(zip(value["labels"], value["scores"], strict=True))
        return {"label": best, "score": scores[best], "scores": scores}

    def line(self, text: str, value: Any) -> str:
        labels = ", ".join(
            f"{label} {score:.4f}" for label, score in zip(value["labels"], value["scores"], strict=True)
        )
        return f"{labels}\t{text}"


def _without(pair: EncodedPair, places: set[int]) -> EncodedText:
    kept = [place for place in range(len(pair.ids)) if place not in places]
    return EncodedText(
        [pair.ids[place] for place in kept], [pair.token_types[place] for place in kept], cut=len(places)
    )
