"""Questions about pictures for a decoder that reads them (LLaVA). Names are those of Hugging Face's pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from quatrain.core.settings import Settings
from quatrain.tasks.pipelines.base import Alias, Field, Pipeline, is_chat
from quatrain.tasks.pipelines.text_generation import TextGeneration, TextGenerationOptions


class ImageTextToTextOptions(TextGenerationOptions):
    """How an answer is generated."""

    return_full_text: bool = False
    """Whether the output of a chat begins with its messages."""


class ImageTextToText(TextGeneration):
    """A list of {"generated_text"} for each picture with its question: one, or `num_return_sequences`.

    A picture is a path, a `data:` URI, bytes, an array or a Pillow image. An input may also be a chat whose messages
    have parts {"type": "image", "image": …}.
    """

    task = "image-text-to-text"
    aliases = {"visual-question-answering": Alias()}
    default_for: ClassVar[tuple[str, ...]] = ("causal",)
    reads = "pictures"
    recipes: ClassVar[tuple[str, ...]] = ("picture-qa",)
    fields: ClassVar[tuple[Field, ...]] = (
        Field("image", kind="file", optional=True),
        Field("question", optional=True, empty=False),
        Field("messages", optional=True, kind="messages"),
    )
    Options: ClassVar[type[Settings]] = ImageTextToTextOptions

    @classmethod
    def required(cls, given: Mapping[str, Any]) -> Iterable[Field]:
        return () if "messages" in given else cls.fields[:2]

    def read(self, given: Any, place: str) -> dict[str, Any]:
        """The fields of an input; the question may be called `text` or `prompt`, and the picture `images`."""
        if isinstance(given, Mapping):
            names = {"text": "question", "prompt": "question", "images": "image"}
            given = {names.get(name, name): value for name, value in given.items()}
        return super().read(given, place)

    def prompt(self, given: Mapping[str, Any], options: TextGenerationOptions) -> str | list[int]:
        if "messages" in given:
            return super().prompt(given, options)
        parts = [{"type": "image", "image": given["image"]}, {"type": "text", "text": given["question"]}]
        return self.engine.render([{"role": "user", "content": parts}])

    def _text(self, given: Mapping[str, Any], text: str, options: TextGenerationOptions) -> Any:
        return super()._text(given, text, options) if "messages" in given else text.strip()

    def refusal(self, inputs: Any, parameters: Mapping[str, Any]) -> str:
        """As of chats, and of other tasks that read files."""
        chats = [inputs] if self.is_one(inputs) else inputs
        if all(is_chat(each) or (isinstance(each, Mapping) and "messages" in each) for each in chats):
            return super().refusal(inputs, parameters)
        return Pipeline.refusal(self, inputs, parameters)

    def line(self, text: str, value: Any) -> str:
        return "\n".join(f"{each['generated_text']}\t{text}" for each in value)
