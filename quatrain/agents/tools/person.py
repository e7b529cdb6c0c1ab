"""Hand-over to a person: the run ends with a question, and goes on with the answer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from quatrain.agents.tool import Tool, ToolError, tool
from quatrain.agents.toolbox import ToolSpec


def ask_person(question: str) -> str:
    """Ask the person who gave the task: for a missing fact, a decision, or help.

    question: what you need to know
    """
    if not question.strip():
        raise ToolError("question: is empty")
    return question


def build(value: str, stack: ExitStack) -> list[Tool]:
    """The tool `ask_person`."""
    return [replace(tool(ask_person), ends=True)]


SPEC = ToolSpec("person", build, "hands over to you with a question")
