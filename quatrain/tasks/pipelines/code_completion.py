"""Code that a decoder continues, or fills in between a beginning and an end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from quatrain.core.errors import InputError
from quatrain.tasks.pipelines.base import Alias, Field
from quatrain.tasks.pipelines.text_generation import TextGeneration, TextGenerationOptions

STOPS: dict[str, tuple[str, ...]] = {
    "line": ("\n",),
    "block": ("\ndef ", "\nclass ", "\nasync def ", "\nif __name__", "\nprint(", "\n#", "\n@", "\n```"),
    "none": (),
}
"""Texts that end a completion: those of `block` are the ones with which evaluations of Python functions stop (Chen et
al. 2021, arXiv 2107.03374)."""
FILLS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""Special tokens of models that fill in (Bavarian et al. 2022, arXiv 2207.14255): before the beginning, the end and
the middle."""


class CodeOptions(TextGenerationOptions):
    """How code is completed."""

    return_full_text: bool = False
    until: Literal["line", "block", "none"] = "block"
    """Where a completion ends: with the line, with the block of a Python function, or where the model ends it."""


class CodeCompletion(TextGeneration):
    """A list of {"generated_text"} for each beginning of code; with a `suffix`, the code between both."""

    task = "code-completion"
    aliases = {"code-generation": Alias()}
    default_for = ()
    recipes = ()
    fields = (Field("text", optional=True), Field("suffix", optional=True))
    Options = CodeOptions

    @classmethod
    def required(cls, given: Mapping[str, Any]) -> Iterable[Field]:
        return cls.fields[:1]

    def settings(self, given: Mapping[str, Any]) -> Any:
        options = super().settings(given)
        if options.stop is None and options.stop_sequence is None and STOPS[options.until]:
            return options.model_copy(update={"stop": STOPS[options.until]})
        return options

    def prompt(self, given: Mapping[str, Any], options: TextGenerationOptions) -> str | list[int]:
        if given.get("suffix") is None:
            return super().prompt(given, options)
        for prefix, suffix, middle in FILLS:
            if all(self.tokenizer.token_to_id(token) is not None for token in (prefix, suffix, middle)):
                return f"{prefix}{given['text']}{suffix}{given['suffix']}{middle}"
        raise InputError(
            "suffix: this model's tokenizer has no tokens for filling in, such as <fim_prefix>; leave the suffix out, "
            "or take a model that was trained to fill in (StarCoder, Qwen2.5-Coder, CodeLlama)"
        )
