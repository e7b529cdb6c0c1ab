"""Texts that a decoder continues, and chats that it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from quatrain.core.settings import Settings
from quatrain.generation.pictures import split_pictures
from quatrain.tasks.pipelines.base import Alias, Field, is_chat
from quatrain.tasks.pipelines.generating import GeneratingPipeline, GenerationOptions


class TextGenerationOptions(GenerationOptions):
    """How a text is continued."""

    return_full_text: bool = True
    """Whether the output begins with the prompt, or with the messages of the chat."""
    continue_final_message: bool | None = None
    """Continue the last message; None: if it is the assistant's."""
    tools: Any = None
    """Tools that the chat template shows to the model."""


class TextGeneration(GeneratingPipeline):
    """A list of {"generated_text"} for each prompt: one, or `num_return_sequences`.

    A prompt is a text, or a chat: a list of messages {"role", "content"}, or an object {"messages"}. The generated text
    of a chat is the list of messages with the answer.
    """

    task = "text-generation"
    aliases = {"conversational": Alias(recipes=("instruct",)), "dialogue": Alias(recipes=("instruct",))}
    heads = ("causal",)
    default_for: ClassVar[tuple[str, ...]] = ("causal",)
    recipes: ClassVar[tuple[str, ...]] = ("instruct", "gpt-pretrain", "sherlock", "reviews", "shakespeare-char")
    fields: ClassVar[tuple[Field, ...]] = (
        Field("text", optional=True),
        Field("messages", optional=True, kind="messages"),
    )
    Options: ClassVar[type[Settings]] = TextGenerationOptions

    @classmethod
    def required(cls, given: Mapping[str, Any]) -> Iterable[Field]:
        return () if "messages" in given else cls.fields[:1]

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or is_chat(inputs)

    def read(self, given: Any, place: str) -> dict[str, Any]:
        """A prompt's fields; a chat may stand by itself, and a text may be called `prompt`."""
        if isinstance(given, Mapping) and "prompt" in given and "text" not in given:
            given = {**given, "text": given["prompt"]}
        return super().read({"messages": given} if is_chat(given) else given, place)

    def prompt(self, given: Mapping[str, Any], options: TextGenerationOptions) -> str | list[int]:
        if "messages" not in given:
            return (options.prefix or "") + str(given["text"])
        return self.engine.render(given["messages"], options.tools, continue_final=_continues(given, options))

    def output(self, given: Mapping[str, Any], texts: Sequence[str], options: TextGenerationOptions) -> Any:
        return [{"generated_text": self._text(given, text, options)} for text in texts]

    def _text(self, given: Mapping[str, Any], text: str, options: TextGenerationOptions) -> Any:
        if not options.return_full_text:
            return text
        if "messages" not in given:
            return str(given["text"]) + text
        messages = [dict(each) for each in given["messages"]]
        if _continues(given, options):
            return [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + text}]
        return [*messages, {"role": "assistant", "content": text}]

    def refusal(self, inputs: Any, parameters: Mapping[str, Any]) -> str:
        """A chat may name pictures by their paths, and a server must not read its own files for whoever asks."""
        chats = [inputs] if self.is_one(inputs) else list(inputs)
        messages = [each["messages"] if isinstance(each, Mapping) and "messages" in each else each for each in chats]
        if any(is_chat(each) and split_pictures(each)[1] for each in messages):
            return "messages: pictures of chats are read at /v1/chat/completions alone."
        return ""

    def served_options(self) -> dict[str, Any]:
        return {"return_full_text": False}

    def file_options(self) -> dict[str, Any]:
        return {"return_full_text": False}

    def record(self, value: Any) -> dict[str, Any]:
        """The generated text, and all of several as `samples`."""
        texts = [each["generated_text"] for each in value]
        return {"generated_text": texts[0]} | ({"samples": texts} if len(texts) > 1 else {})

    def line(self, text: str, value: Any) -> str:
        return "\n".join(str(each["generated_text"]) for each in value)


def _continues(given: Mapping[str, Any], options: TextGenerationOptions) -> bool:
    """Whether the last message of a chat is continued."""
    if options.continue_final_message is not None:
        return options.continue_final_message
    return bool(given["messages"][-1].get("role") == "assistant")
