"""Summaries of texts and dialogues."""

from __future__ import annotations

from quatrain.tasks.pipelines.text2text_generation import Text2TextGeneration


class Summarization(Text2TextGeneration):
    """A list of {"summary_text"} for a text."""

    task = "summarization"
    default_for = ()
    recipes = ("summarize", "summarize-lora")
    key = "summary_text"
