"""Translations, by the task's name or by languages: `translation`, `translation_en_to_de`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.tasks.pipelines.generating import GenerationOptions
from quatrain.tasks.pipelines.text2text_generation import Text2TextGeneration

NAME = re.compile(r"translation_([A-Za-z-]+)_to_([A-Za-z-]+)")


class TranslationOptions(GenerationOptions):
    """How a text is translated."""

    src_lang: str | None = None
    """The language of the text, for a model of several languages."""
    tgt_lang: str | None = None
    """The language of the translation."""


class Translation(Text2TextGeneration):
    """A list of {"translation_text"} for a text.

    A model of several languages, such as T5, has a prefix for each pair of languages in its config.json
    (`task_specific_params`), which the task's name or `src_lang` and `tgt_lang` choose. A model of one pair needs
    neither.
    """

    task = "translation"
    default_for = ()
    recipes = ("translate",)
    key = "translation_text"
    Options = TranslationOptions

    @classmethod
    def named(cls, name: str) -> Mapping[str, Any] | None:
        languages = NAME.fullmatch(name)
        if languages is not None:
            return {"src_lang": languages[1], "tgt_lang": languages[2]}
        return super().named(name)

    def settings(self, given: Mapping[str, Any]) -> Any:
        """The options of a call, with the settings of the config.json for its languages."""
        options = super().settings(given)
        tasks = self.subject.config_json.get("task_specific_params")
        tasks = tasks if isinstance(tasks, Mapping) else {}
        pairs = [name for name in tasks if NAME.fullmatch(name)]
        if options.src_lang is None and options.tgt_lang is None:
            return options
        name = f"translation_{options.src_lang}_to_{options.tgt_lang}"
        if not pairs or options.prefix is not None:
            return options
        if name not in pairs:
            raise InputError(
                f"{name}: the model does not name this pair of languages; it names {', '.join(pairs)}. For another one "
                f"give its prefix, such as prefix={format_value('translate English to German: ')}."
            )
        return options.model_copy(update={"prefix": tasks[name].get("prefix")})
