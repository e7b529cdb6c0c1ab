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


_encode = json.JSONEncoder(separators=(",", ":")).encode


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event; `data` becomes JSON, which has no line breaks."""
    text = data if isinstance(data, str) else _encode(data)
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


class Json(Response):
    """A JSON body; characters beyond ASCII are escaped, so that any text can be written."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return _encode(content).encode()


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
        self._started, self._ended, self._last = False, False, 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the stream."""
        sending = asyncio.ensure_future(self._send_events(send))
        others = [asyncio.ensure_future(_left(receive)), asyncio.ensure_future(self._send_pings(send))]
        try:
            await asyncio.wait({sending, others[0]}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, *others):
                task.cancel()
            await asyncio.gather(sending, *others, return_exceptions=True)
            await self.events.aclose()  # type: ignore[attr-defined]

    async def _send_events(self, send: Any) -> None:
        try:
            async for content in self.events:
                await self._send(send, content)
        except Exception as error:
            if not self._started:
                raise
            shown = api_error(error)
            if shown.status >= 500 and not isinstance(error, ApiError):
                logger.exception("a stream failed")
            await self._send(send, self.failed(shown))
        self._ended = True
        await self._start(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_pings(self, send: Any) -> None:
        """Sends a comment whenever nothing was sent for `ping_seconds`."""
        loop, seconds = asyncio.get_running_loop(), self.settings.ping_seconds
        self._last = loop.time()
        while not self._ended:
            if (rest := self._last + seconds - loop.time()) > 0:
                await asyncio.sleep(rest)
            else:
                await self._send(send, self.ping)

    async def _send(self, send: Any, content: bytes) -> None:
        await self._start(send)
        self._last = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": content, "more_body": True})

    async def _start(self, send: Any) -> None:
        if not self._started:
            self._started = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ]  # fmt: skip
            await send({"type": "http.response.start", "status": 200, "headers": headers})
