"""Other wordings of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.tasks.pipelines.base import Alias
from quatrain.tasks.pipelines.generating import GenerationOptions
from quatrain.tasks.pipelines.text2text_generation import Text2TextGeneration


class Paraphrase(Text2TextGeneration):
    """A list of {"generated_text"} for a text, without repetitions of the text or of each other while others remain."""

    task = "paraphrase"
    aliases = {"paraphrasing": Alias()}
    default_for = ()
    recipes = ()

    def output(self, given: Mapping[str, Any], texts: Sequence[str], options: GenerationOptions) -> Any:
        return super().output(given, _others(given["text"], texts), options)


def _others(text: str, found: Sequence[str]) -> list[str]:
    """The texts with new wordings, in order; the first one where none has one."""
    seen, kept = {_plain(text)}, []
    for each in found:
        if _plain(each) not in seen:
            seen.add(_plain(each))
            kept.append(each)
    return kept or list(found[:1])


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
