"""A plan that the model writes down, and keeps in sight while it works."""

from __future__ import annotations

from contextlib import ExitStack

from quatrain.agents.tool import Tool, ToolError, tool
from quatrain.agents.toolbox import ToolSpec

MOST = 20
"""The most steps of a plan."""


def build(value: str, stack: ExitStack) -> list[Tool]:
    """The tool `plan`."""

    def plan(steps: list[str], finished: int = 0) -> str:
        """Write down or change the plan before a task of several steps, and mark what is done.

        steps: all steps, in order
        finished: how many of them are done
        """
        if not 1 <= len(steps) <= MOST or not 0 <= finished <= len(steps):
            raise ToolError(f"steps: between 1 and {MOST}; finished: between 0 and their number")
        marks = ["x" if number < finished else " " for number in range(len(steps))]
        lines = [f"[{mark}] {number}. {step}" for number, (mark, step) in enumerate(zip(marks, steps, strict=True), 1)]
        rest = steps[finished:]
        return "\n".join(lines) + (f"\nNext: {rest[0]}" if rest else "\nAll steps are done: answer.")

    return [tool(plan)]


SPEC = ToolSpec("plan", build, "a plan that the model writes down and ticks off")
