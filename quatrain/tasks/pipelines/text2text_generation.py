"""Texts that an encoder-decoder writes for texts; summaries and translations have pipelines of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from quatrain.tasks.pipelines.base import Field
from quatrain.tasks.pipelines.generating import GeneratingPipeline, GenerationOptions


class Text2TextGeneration(GeneratingPipeline):
    """A list of {"generated_text"} for a text: one, or `num_return_sequences`.

    As in transformers 4, a list of texts with one answer each gives a list of these answers. What stands before each
    text (`prefix`) is by default what the model's files name for the task, or the recipe that trained it.
    """

    task = "text2text-generation"
    heads = ("seq2seq",)
    default_for: ClassVar[tuple[str, ...]] = ("seq2seq",)
    recipes: ClassVar[tuple[str, ...]] = ("summarize", "translate")
    fields: ClassVar[tuple[Field, ...]] = (Field("text", part="source"),)
    new_tokens = 120
    key = "generated_text"
    """The key of the output."""

    def task_settings(self) -> Mapping[str, Any]:
        prefix = self._recipe_prefix()
        return ({} if prefix is None else {"prefix": prefix}) | dict(super().task_settings())

    def _recipe_prefix(self) -> str | None:
        """The `source_prefix` of the recipe that trained the model."""
        if self.subject.resolved is None:
            return None
        try:
            recipe = tomllib.loads((self.subject.resolved.folder / "recipe.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        stages = recipe.get("stage")
        prefixes = [each.get("source_prefix") for each in stages if isinstance(each, Mapping)] if stages else []
        return next((each for each in reversed(prefixes) if isinstance(each, str) and each), None)

    def several(self, values: list[Any]) -> Any:
        return [value[0] for value in values] if all(len(value) == 1 for value in values) else values

    def prompt(self, given: Mapping[str, Any], options: GenerationOptions) -> str:
        return (options.prefix or "") + str(given["text"])

    def output(self, given: Mapping[str, Any], texts: Sequence[str], options: GenerationOptions) -> Any:
        return [{self.key: text} for text in texts]

    def record(self, value: Any) -> dict[str, Any]:
        """The text, and all of several as `samples`."""
        texts = [each[self.key] for each in value]
        return {"text": texts[0]} | ({"samples": texts} if len(texts) > 1 else {})

    def line(self, text: str, value: Any) -> str:
        return "\n".join(str(each[self.key]) for each in value)
