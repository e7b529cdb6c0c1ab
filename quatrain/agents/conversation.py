"""The memory of a conversation: its messages, whether text from outside is among them, and what fits the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.agents.model import ChatModel, Message
from quatrain.agents.tool import shortened

SHORT = 200
"""Characters that are left of an old result."""
CHARACTERS = 3
"""Characters of a token where a model does not count them."""


@dataclass
class Conversation:
    """Messages in OpenAI's form; `tainted`: text from outside is among them."""

    messages: list[Message] = field(default_factory=list)
    tainted: bool = False

    def fit(self, model: ChatModel, tools: Sequence[Mapping[str, Any]], room: int) -> list[str]:
        """Shorten old results, then forget the oldest exchanges, until `room` tokens are left for the turn.

        The system message, the last question and what follows it stay. Returns what was done, for the record.
        """
        done: list[str] = []
        if model.context is None:
            return done
        limit = model.context - room
        for shrink in (self._shorten_result, self._forget_exchange):
            while self._size(model, tools) > limit and (what := shrink()):
                done.append(what)
        return done

    def _size(self, model: ChatModel, tools: Sequence[Mapping[str, Any]]) -> int:
        counted = model.count(self.messages, tools)
        return len(str(self.messages)) // CHARACTERS if counted is None else counted

    def _shorten_result(self) -> str:
        """Shorten the oldest long result but the last."""
        results = [each for each in self.messages if each["role"] == "tool" or _is_observation(each)]
        for message in results[:-1]:
            if len(message["content"]) > 2 * SHORT:
                before = len(message["content"])
                message["content"] = shortened(message["content"], SHORT)
                return f"a result of {before:,} characters was shortened to {len(message['content']):,}"
        return ""

    def _forget_exchange(self) -> str:
        """Forget the oldest question with its turns, up to the next question."""
        asked = [place for place, each in enumerate(self.messages) if _is_question(each)]
        if len(asked) < 2:
            return ""
        first, second = asked[:2]
        del self.messages[first:second]
        return f"{second - first} old messages were forgotten"


def _is_question(message: Message) -> bool:
    return message["role"] == "user" and not _is_observation(message)


def _is_observation(message: Message) -> bool:
    return message["role"] == "user" and str(message["content"]).startswith(("Observation: ", "Output:\n"))
