"""A model's own task as a tool: classes, entities, translations, whatever its head or recipe was trained for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from quatrain.agents.tool import Tool, ToolResult, outcome_text, tool
from quatrain.agents.toolbox import ToolSpec
from quatrain.tasks.pipelines import pipeline


def build(value: str, stack: ExitStack) -> list[Tool]:
    """A tool that asks the model `value` with the pipeline of its head. Raises InputError where there is none."""
    pipe: Any = pipeline(model=value)

    def predict(text: str) -> ToolResult:
        """Give a text to a model.

        text: the input
        """
        (prediction,) = pipe.predict([text])
        return outcome_text(pipe.record(prediction.value), untrusted=True)

    return [tool(predict, description=f"What a model says of a text: {pipe.task}.", untrusted=True)]


SPEC = ToolSpec("predict", build, "a model's own task: its pipeline on a text", "a model folder or run")
