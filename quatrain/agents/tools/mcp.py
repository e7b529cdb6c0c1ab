"""The tools of an MCP server: a command such as `mcp="python server.py"`, or an address."""

from __future__ import annotations

from contextlib import ExitStack

from quatrain.agents.mcp import McpServer
from quatrain.agents.tool import Tool
from quatrain.agents.toolbox import ToolSpec


def build(value: str, stack: ExitStack) -> list[Tool]:
    """The tools of the server `value`. Raises InputError for one that cannot be started."""
    return stack.enter_context(McpServer(value)).tools()


SPEC = ToolSpec("mcp", build, "the tools of an MCP server", "a command, or an address")
