"""Real servers in a thread of their own, and what clients ask them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from quatrain.serving.models import LoadOptions, entries_of
from quatrain.serving.server import Server
from quatrain.serving.settings import ServerSettings
from quatrain.tasks.task import ANSWER_BYTES, spec_of_database

ASKED: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
TURN = '<think>a call</think>I look.<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@contextmanager
def running(
    models: list[str],
    adapters: Any = None,
    database: Path | None = None,
    draft: Path | None = None,
    options: LoadOptions | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """A server that answers, until the end of the context."""
    server = Server(entries_of(models, adapters, draft=draft), ServerSettings(port=0, **settings), options)
    stack = ExitStack()
    if database is not None:
        opened = spec_of_database().database(database, rows=20, size=ANSWER_BYTES, show_schema=False)
        server.service.database = stack.enter_context(opened)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        headers = {"Authorization": f"Bearer {settings['key']}"} if settings.get("key") else {}
        until(lambda: server.started, 30)
        until(lambda: httpx.get(f"{server.address}/health", headers=headers).status_code == 200, 60)
        yield server
    finally:
        server.stop()
        thread.join(30)
        stack.close()
        assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)
