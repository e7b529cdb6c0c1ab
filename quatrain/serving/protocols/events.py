"""Answers over HTTP: whole ones that end when the client leaves, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from quatrain.serving.errors import ApiError, api_error
from quatrain.serving.settings import ServerSettings

logger = logging.getLogger("quatrain.serving")
T = TypeVar("T")

PING = b": ping\n\n"


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event; `data` becomes JSON, which has no line breaks."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


class Json(Response):
    """A JSON body; characters beyond ASCII are escaped, so that any text can be written."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, separators=(",", ":")).encode()


class Gone(Exception):
    """The client has left."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled if the client leaves. Raises Gone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events.

    `events` are the bytes to send; what they raise before the first one becomes an answer with its status, what they
    raise later an event, which `failed` writes. They are closed when the client leaves.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        settings: ServerSettings,
        failed: Callable[[ApiError], bytes],
        ping: bytes = PING,
    ):
        super().__init__(None, 200)
        self.events, self.settings, self.failed, self.ping = events, settings, failed, ping

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the stream."""
        leaving = asyncio.ensure_future(_left(receive))
        next_bytes: asyncio.Future[bytes] | None = None
        started = False
        try:
            while True:
                next_bytes = next_bytes or asyncio.ensure_future(_next(self.events))
                waited: set[asyncio.Future[Any]] = {next_bytes, leaving}
                done, _ = await asyncio.wait(
                    waited, timeout=self.settings.ping_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if leaving in done:
                    return
                if next_bytes not in done:
                    started = await self._start(send, started)
                    await send(_body(self.ping))
                    continue
                try:
                    content = next_bytes.result()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    if not started:
                        raise
                    shown = api_error(error)
                    if shown.status >= 500 and not isinstance(error, ApiError):
                        logger.exception("a stream failed")
                    await send(_body(self.failed(shown)))
                    break
                next_bytes = None
                started = await self._start(send, started)
                await send(_body(content))
            await self._start(send, started)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            if next_bytes is not None:
                next_bytes.cancel()
            await asyncio.gather(leaving, *([next_bytes] if next_bytes else []), return_exceptions=True)
            await self.events.aclose()  # type: ignore[attr-defined]

    async def _start(self, send: Any, started: bool) -> bool:
        if not started:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ]  # fmt: skip
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        return True


def _body(content: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)
