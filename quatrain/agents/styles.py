"""How an agent and its model speak: calls in the model's own form, ReAct's lines of text, or code.

`tools`: the chat template shows the tools, and the model writes calls (OpenAI's form). `react`: Thought, Action and
Action Input as text (Yao et al. 2022, arXiv 2210.03629), for models that know no calls. `code`: the model writes Python
that calls the tools as functions (Wang et al. 2024, arXiv 2402.01030).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quatrain.agents.model import Call, Form, Message, Turn
from quatrain.agents.tool import Tool
from quatrain.generation.turns import forced_schema

PYTHON = "python"
"""The tool that runs the blocks of the code style."""


@dataclass(frozen=True)
class Step:
    """What a turn asks for: calls, or the answer, or nothing that can be read, and why."""

    calls: tuple[Call, ...] = ()
    answer: str | None = None
    fault: str = ""


class Style(Protocol):
    """A way of speaking."""

    name: str

    def system(self, tools: Mapping[str, Tool]) -> str:
        """What the system message says of the tools."""
        ...

    def form(self, tools: Mapping[str, Tool]) -> Form:
        """The form of a turn."""
        ...

    def read(self, turn: Turn) -> Step:
        """What a turn asks for."""
        ...

    def said(self, turn: Turn, step: Step) -> Message:
        """The turn as a message of the conversation."""
        ...

    def results(self, results: Sequence[tuple[Call, str]]) -> list[Message]:
        """The results of a turn's calls as messages."""
        ...


class ToolCalling:
    """Calls in the form that the model was trained on."""

    name = "tools"

    def system(self, tools: Mapping[str, Tool]) -> str:
        return ""

    def form(self, tools: Mapping[str, Tool]) -> Form:
        return Form(tools=[tool.schema for tool in tools.values()])

    def read(self, turn: Turn) -> Step:
        if turn.calls:
            return Step(turn.calls)
        return Step(answer=turn.content)

    def said(self, turn: Turn, step: Step) -> Message:
        message: Message = {"role": "assistant", "content": turn.content}
        return message | ({"tool_calls": [call.message() for call in step.calls]} if step.calls else {})

    def results(self, results: Sequence[tuple[Call, str]]) -> list[Message]:
        return [{"role": "tool", "tool_call_id": call.id, "name": call.name, "content": text} for call, text in results]


class ReAct:
    """Thought, Action, Action Input; Observation; Final Answer."""

    name = "react"
    _ACTION = re.compile(r"Action:\s*([\w-]+)\s*\nAction Input:\s*(.*)", re.DOTALL)

    def system(self, tools: Mapping[str, Tool]) -> str:
        lines = [f"{tool.name}{tool.shown()}: {tool.description}" for tool in tools.values()]
        return (
            "Answer the question. You may use these tools:\n\n" + "\n".join(lines) + "\n\nWrite in this form:\n"
            "Thought: what to do next\nAction: the name of a tool\nAction Input: its arguments as one JSON object\n"
            "Then you read its Observation. Repeat this as often as you need. End with:\n"
            "Thought: I know the answer\nFinal Answer: the answer"
        )

    def form(self, tools: Mapping[str, Tool]) -> Form:
        schemas = [tool.schema for tool in tools.values()]
        actions = [
            f'"Action: {name}\\nAction Input: " %json {json.dumps(forced_schema(schemas, name))}' for name in tools
        ]
        grammar = (
            'start: "Thought: " LINE "\\n" (' + " | ".join([*actions, '"Final Answer: " TEXT']) + ")\n"
            "LINE: /[^\\n]{1,300}/\nTEXT: /(.|\\n)+/\n"
        )
        return Form(grammar=grammar, stop=("\nObservation:",))

    def read(self, turn: Turn) -> Step:
        before, mark, answer = turn.content.partition("Final Answer:")
        found = self._ACTION.search(before if mark else turn.content)
        if found is not None:
            return Step((Call("call_0", found[1], _first_object(found[2])),))
        if mark:
            return Step(answer=answer.strip())
        return Step(fault="Write either Action and Action Input, or Final Answer.")

    def said(self, turn: Turn, step: Step) -> Message:
        return {"role": "assistant", "content": turn.content}

    def results(self, results: Sequence[tuple[Call, str]]) -> list[Message]:
        return [{"role": "user", "content": "\n".join(f"Observation: {text}" for _, text in results)}]


class Code:
    """Python in a fence; what it prints is the observation, and `final_answer(value)` ends the run."""

    name = "code"
    _FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)

    def system(self, tools: Mapping[str, Tool]) -> str:
        lines = [f"{tool.name}{tool.shown()}: {tool.description}" for tool in tools.values() if tool.name != PYTHON]
        known = "These functions are there, called with named arguments:\n" + "\n".join(lines) + "\n" if lines else ""
        return (
            "Answer by writing Python in one fence:\n```python\nprint(...)\n```\n"
            f"It runs in a sandbox without network and files; what it prints is shown to you. {known}"
            "Call final_answer(value) in it when you know the answer."
        )

    def form(self, tools: Mapping[str, Tool]) -> Form:
        return Form()

    def read(self, turn: Turn) -> Step:
        blocks = self._FENCE.findall(turn.content)
        if blocks:
            return Step((Call("call_0", PYTHON, json.dumps({"code": "\n".join(blocks)})),))
        return Step(fault="Write Python in a fence, ```python … ```; call final_answer(value) to answer.")

    def said(self, turn: Turn, step: Step) -> Message:
        return {"role": "assistant", "content": turn.content}

    def results(self, results: Sequence[tuple[Call, str]]) -> list[Message]:
        return [{"role": "user", "content": "\n".join(f"Output:\n{text}" for _, text in results)}]


STYLES: dict[str, type[Style]] = {style.name: style for style in (ToolCalling, ReAct, Code)}


def _first_object(text: str) -> str:
    """The first JSON object of a text; the text itself, on one line, where there is none."""
    start = text.find("{")
    if start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
            return text[start:end] if isinstance(value, dict) else text
        except (ValueError, RecursionError):
            pass
    return text.strip().partition("\n")[0]


def schema_of(call: Call) -> dict[str, Any]:
    """A call as one JSON object, equal for calls that mean the same."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.arguments
    return {"name": call.name, "arguments": arguments}
