"""The states of the last layer for each token of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from quatrain.core.settings import Settings
from quatrain.tasks.pipelines.base import Pipeline, Prediction, check_tokens
from quatrain.training.objectives.base import inputs_of


class FeatureOptions(Settings):
    """The form of the output."""

    truncation: bool | None = None
    """Accepted for transformers' sake: a text that exceeds the model's context is cut, and a warning says so."""
    return_tensors: bool = False
    """Return tensors instead of lists."""


class FeatureExtraction(Pipeline):
    """The hidden states (1, T, H) of a text, special tokens included, as nested lists.

    Of an encoder-decoder these are the encoder's. Models of every head have them; for one vector per text see
    `sentence-embeddings`.
    """

    task = "feature-extraction"
    default_for = ("none",)
    recipes = ("bert-pretrain",)
    Options = FeatureOptions

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: FeatureOptions) -> list[Prediction]:
        rows = [self.reader.read(each["text"]) for each in inputs]
        check_tokens(rows)
        batch = self.reader.batch(rows, None).to(self.model.device)
        given = inputs_of(self.model, batch)
        if self.config.architecture == "encoder-decoder":
            states = self.model.encode(given.pop("input_ids"), **given)[0]
        else:
            states = self.model.hidden_states(given.pop("input_ids"), **given)
        states = states.float().cpu()
        found = [each[None, : len(row)] for each, row in zip(states, rows, strict=True)]
        return [
            Prediction(each if options.return_tensors else each.tolist(), row.cut)
            for each, row in zip(found, rows, strict=True)
        ]

    def record(self, value: Any) -> dict[str, Any]:
        return {"features": value.tolist() if isinstance(value, torch.Tensor) else value}

    def line(self, text: str, value: Any) -> str:
        return "\n".join(" ".join(f"{number:.6g}" for number in state) for state in value[0])
