"""Opens tools by name: `calculator`, `files=FOLDER`, and whatever else has a file in `quatrain/agents/tools`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quatrain.agents.tool import Tool
from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean
from quatrain.core.wording import format_value


@dataclass(frozen=True)
class ToolSpec:
    """A kind of tools. `takes` is what its value names, such as "a folder"; None for a kind without a value."""

    name: str
    build: Callable[[str, ExitStack], list[Tool]]
    """The tools of a value; the stack closes what they keep open. Raises InputError for what cannot be opened."""
    description: str
    """What the tools do, on one line."""
    takes: str | None = None


@cache
def specs() -> dict[str, ToolSpec]:
    """The kinds of tools, by name."""
    names = sorted(path.stem for path in (Path(__file__).parent / "tools").glob("*.py") if path.stem[0] != "_")
    found = [importlib.import_module(f"quatrain.agents.tools.{name}").SPEC for name in names]
    return {spec.name: spec for spec in found}


def open_tools(named: Sequence[str], stack: ExitStack) -> list[Tool]:
    """The tools of texts such as "calculator" and "files=notes"; the stack closes what they keep open.

    Raises InputError, all problems at once.
    """
    problems: list[str] = []
    tools: list[Tool] = []
    for text in named:
        name, equals, value = text.partition("=")
        spec = specs().get(name)
        if spec is None:
            problems.append(f"{format_value(name)} is no tool{did_you_mean(name, list(specs()))}")
        elif spec.takes is None and equals:
            problems.append(f"{name}: takes no value, but has {format_value(value)}")
        elif spec.takes is not None and not value:
            problems.append(f"{name}: needs {spec.takes}; write {name}=VALUE")
        else:
            try:
                tools += spec.build(value, stack)
            except InputError as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise InputError("These tools cannot be opened:", problems)
    return tools
