"""How a model reads a prompt: an engine by token ids, an endpoint by a text or a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from quatrain.core.errors import InputError
from quatrain.generation.endpoint import Endpoint
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.params import SamplingParams
from quatrain.generation.runner import context_limit

Content = str | list[dict[str, Any]]
"""A prompt: a text, or the messages of a conversation."""


class Reader(Protocol):
    """What a prompter asks of a model."""

    @property
    def chats(self) -> bool:
        """Whether the model takes turns."""

    @property
    def continues(self) -> bool:
        """Whether the model continues the prompt itself, so that its text needs a stop string."""

    @property
    def limit(self) -> int | None:
        """The tokens of the model's context; None where it has no limit, or the limit is not known."""

    def ids(self, content: Content) -> list[int] | None:
        """The ids that the model reads; None where only the endpoint knows them."""

    def count(self, content: Content) -> int | None:
        """How many tokens the model reads; None where that is not known."""

    def fits(self, tokens: int, new: int) -> bool:
        """Whether a prompt of so many tokens, and so many new ones, fit into the model's context."""

    def complete(self, contents: Sequence[Content], params: SamplingParams) -> list[Completion]:
        """The completion of each prompt."""

    def totals(self, contents: Sequence[Content], answers: Sequence[str]) -> list[float]:
        """The log-probability of each answer after its prompt."""


def reader_of(model: Engine | Endpoint) -> Reader:
    """The reader of a model."""
    return EngineReader(model) if isinstance(model, Engine) else EndpointReader(model)


class EngineReader:
    """A model on this machine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        if engine.tokenizer is None:
            raise InputError("The model has no tokenizer: a prompt cannot be read without its tokens.")

    @property
    def chats(self) -> bool:
        return not self.engine.has_encoder and bool(getattr(self.engine.tokenizer, "chat_templates", None))

    @property
    def continues(self) -> bool:
        return not self.engine.has_encoder

    @property
    def limit(self) -> int | None:
        return context_limit(self.engine.model, self.engine.adapter)

    def ids(self, content: Content) -> list[int]:
        if isinstance(content, str):
            return self.engine.encode(content, self.engine.adapter)
        return self.engine.render(content, adapter=self.engine.adapter)

    def count(self, content: Content) -> int:
        return len(self.ids(content))

    def fits(self, tokens: int, new: int) -> bool:
        # An encoder has a context of its own.
        return self.limit is None or tokens + (0 if self.engine.has_encoder else new) <= self.limit

    def complete(self, contents: Sequence[Content], params: SamplingParams) -> list[Completion]:
        return self.engine.generate([self.ids(content) for content in contents], params)

    def totals(self, contents: Sequence[Content], answers: Sequence[str]) -> list[float]:
        prompts = [content if isinstance(content, str) else self.ids(content) for content in contents]
        return [score.total for score in self.engine.score(prompts, answers)]


class EndpointReader:
    """A model behind an address."""

    chats = continues = True

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint

    @property
    def limit(self) -> int | None:
        return self.endpoint.context_length

    def ids(self, content: Content) -> None:
        return None

    def count(self, content: Content) -> int | None:
        return self.endpoint.count_tokens(content)

    def fits(self, tokens: int, new: int) -> bool:
        return self.limit is None or tokens + new <= self.limit

    def complete(self, contents: Sequence[Content], params: SamplingParams) -> list[Completion]:
        texts = [content for content in contents if isinstance(content, str)]
        turns = [content for content in contents if not isinstance(content, str)]
        generated = iter(self.endpoint.generate(texts, params, skip_long=True) if texts else ())
        answered = iter(self.endpoint.chat(turns, params, skip_long=True) if turns else ())
        return [next(generated if isinstance(content, str) else answered) for content in contents]

    def totals(self, contents: Sequence[Content], answers: Sequence[str]) -> list[float]:
        texts = [content for content in contents if isinstance(content, str)]
        if len(texts) < len(contents):
            raise InputError('decide "likelihood": an endpoint scores texts only; set style = "text"')
        return [score.total for score in self.endpoint.score(texts, answers)]


def shown(content: Content) -> str:
    """A prompt as people read it where its tokens are not known."""
    if isinstance(content, str):
        return content
    turns: Sequence[Mapping[str, Any]] = content
    return "\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
