"""Other wordings of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.tasks.pipelines.base import Alias, Prediction
from quatrain.tasks.pipelines.generating import GenerationOptions
from quatrain.tasks.pipelines.text2text_generation import Text2TextGeneration


class Paraphrase(Text2TextGeneration):
    """A list of {"generated_text"} for a text, without repetitions of the text or of each other while others remain."""

    task = "paraphrase"
    aliases = {"paraphrasing": Alias()}
    default_for = ()
    recipes = ()

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: GenerationOptions) -> list[Prediction]:
        predictions = super().predict_batch(inputs, options)
        return [
            Prediction(_others(each["text"], prediction.value, self.key), prediction.cut)
            for each, prediction in zip(inputs, predictions, strict=True)
        ]


def _others(text: str, outputs: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The outputs with new wordings, in order; the first output where none has one."""
    seen, kept = {" ".join(text.lower().split())}, []
    for output in outputs:
        plain = " ".join(output[key].lower().split())
        if plain not in seen:
            seen.add(plain)
            kept.append(output)
    return kept or outputs[:1]
