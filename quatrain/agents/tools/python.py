"""Python in the sandbox: a process of its own, without network and files, whose names stay from call to call."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack

from quatrain.agents.sandbox import Function, Limits, Sandbox
from quatrain.agents.tool import Tool, ToolResult, tool
from quatrain.agents.toolbox import ToolSpec

SECONDS = 30.0


def python_tool(sandbox: Sandbox, answered: Callable[[str], None] | None = None) -> Tool:
    """The tool of a sandbox; `answered` receives the value of `final_answer`."""

    def python(code: str) -> ToolResult:
        """Run Python code; what it prints is the result.

        code: the program, which prints what you want to know
        """
        result = sandbox.run(code)
        if result.answer is not None and answered is not None:
            answered(result.answer)
        text = result.output + (f"\n{result.error}" if result.error else "")
        return ToolResult(text.strip() or "(nothing was printed)", failed=bool(result.error))

    return tool(python, seconds=3600.0)


def sandbox_of(functions: Collection[str] = (), answer: Function | None = None) -> Sandbox:
    """The sandbox of an agent's code."""
    return Sandbox(Limits(seconds=SECONDS), functions=functions, answer=answer)


def build(value: str, stack: ExitStack) -> list[Tool]:
    """The tool `python`."""
    return [python_tool(stack.enter_context(sandbox_of()))]


SPEC = ToolSpec("python", build, "Python in the sandbox")
