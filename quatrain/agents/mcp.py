"""The Model Context Protocol (modelcontextprotocol.io): tools of other servers for our agents, and ours for others.

A server of others is a program that speaks over its standard input and output, or an address. Its tools, and what it
says of them, come from outside: every call needs permission, every result is untrusted, and whoever only lists the
tools has already read text from outside. A server that never answers times out. The extra `agents` installs the
library.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import quatrain
from quatrain.agents.permission import broken_marks
from quatrain.agents.tool import NAME, Tool, ToolError, ToolResult, check_tools, shortened
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.libraries import require

START_SECONDS, CALL_SECONDS = 30.0, 60.0
MAX_DESCRIPTION = 1_000
"""Characters of a description that are shown to a model."""


def _library() -> Any:
    with require("MCP", "mcp", "agents"):
        import mcp
    return mcp


class McpServer:
    """A connection to an MCP server: a command line such as "python server.py", or an http address.

    A start may take `start_seconds`, a call `call_seconds`. Raises InputError for a server that cannot be started, and
    QuatrainError for one that does not answer in time.
    """

    def __init__(self, server: str, *, start_seconds: float = START_SECONDS, call_seconds: float = CALL_SECONDS):
        self.name, self.call_seconds = server, call_seconds
        library = _library()
        self._target: Any = server
        if not server.startswith(("http://", "https://")):
            try:
                command, *arguments = shlex.split(server)
            except ValueError as error:
                raise InputError(f"mcp: {server!r} is no command: {error}") from None
            self._target = library.StdioServerParameters(command=command, args=arguments)
        self._client: Any = None
        self._fault: BaseException | None = None
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._closing: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._work, args=(library,), name="mcp", daemon=True)
        self._thread.start()
        if not self._ready.wait(start_seconds):
            self.close()
            raise QuatrainError(f"mcp: {server} did not answer within {start_seconds:g} s; is it an MCP server?")
        if self._fault is not None:
            raise InputError(f"mcp: {server} cannot be used: {_reason(self._fault)}")

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and the server's process."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(5)

    def tools(self) -> list[Tool]:
        """The server's tools. Raises QuatrainError for a server that does not answer."""
        listed = self._wait(lambda client: client.list_tools(), self.call_seconds).tools
        return [self._tool(each) for each in listed if NAME.fullmatch(each.name)]

    def _tool(self, shown: Any) -> Tool:
        def call(arguments: dict[str, Any]) -> ToolResult:
            try:
                answer = self._wait(lambda client: client.call_tool(shown.name, arguments), self.call_seconds)
            except QuatrainError as error:
                raise ToolError(str(error)) from None
            text = "\n".join(block.text for block in answer.content if block.type == "text")
            return ToolResult(text, failed=bool(answer.is_error), untrusted=True)

        said = shortened(broken_marks(shown.description or ""), MAX_DESCRIPTION)
        schema = shown.input_schema or {"type": "object", "properties": {}}
        return Tool(
            shown.name, said, schema, call, "act", untrusted=True, seconds=self.call_seconds + 5, described_outside=True
        )

    def _wait(self, ask: Callable[[Any], Coroutine[Any, Any, Any]], seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(ask(self._client), self._loop)
        try:
            return future.result(seconds)
        except FutureTimeout:
            future.cancel()
            raise QuatrainError(f"mcp: {self.name} did not answer within {seconds:g} s") from None
        except CancelledError:
            raise QuatrainError(f"mcp: {self.name} was closed") from None
        except Exception as error:
            raise QuatrainError(f"mcp: {self.name}: {_reason(error)}") from None

    def _work(self, library: Any) -> None:
        """The thread of the connection."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(library))
        except BaseException as error:
            self._fault = error
        finally:
            self._ready.set()

    async def _serve(self, library: Any) -> None:
        self._closing = asyncio.Event()
        self._task = asyncio.current_task()
        async with library.Client(self._target, read_timeout_seconds=self.call_seconds) as client:
            self._client = client
            self._ready.set()
            await self._closing.wait()

    def _stop(self) -> None:
        if self._client is None:
            task = getattr(self, "_task", None)
            if task is not None:
                task.cancel()
        elif self._closing is not None:
            self._closing.set()


def _reason(error: BaseException) -> str:
    """An error, or the first one of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def server_of(tools: Sequence[Tool], *, allow: Sequence[str] = ()) -> Any:
    """An MCP server of tools (`mcp.server.Server`). Tools that act are offered only where `allow` names them."""
    library = _library()
    from mcp.server import Server

    offered = {name: each for name, each in check_tools(tools).items() if each.effect != "act" or name in allow}
    types = library.types

    async def list_tools(context: Any, params: Any) -> Any:
        shown = [
            types.Tool(name=each.name, description=each.description, input_schema=dict(each.parameters))
            for each in offered.values()
        ]
        return types.ListToolsResult(tools=shown)

    async def call_tool(context: Any, params: Any) -> Any:
        result = await asyncio.to_thread(_called, offered, params.name, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=result.text)], is_error=result.failed)

    return Server("quatrain", version=quatrain.__version__, on_list_tools=list_tools, on_call_tool=call_tool)


def _called(offered: Mapping[str, Tool], name: str, arguments: dict[str, Any]) -> ToolResult:
    tool = offered.get(name)
    if tool is None:
        return ToolResult(f"Error: there is no tool {name!r}", failed=True)
    try:
        return tool.run(tool.check(arguments))
    except ToolError as error:
        return ToolResult(f"Error: {error}", failed=True)


def serve(tools: Sequence[Tool], *, allow: Sequence[str] = ()) -> None:
    """Serve tools over standard input and output until the client ends the connection."""
    server = server_of(tools, allow=allow)
    from mcp.server.stdio import stdio_server

    async def work() -> None:
        async with stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())

    asyncio.run(work())
