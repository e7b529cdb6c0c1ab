"""Who is answered: the gate in front of all routes, and the limits on connections.

The gate checks the Host header against DNS rebinding, the Origin header against requests from other web sites, and the
key. It answers CORS for pages of this machine only. All of this happens before a route sees the request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.h11_impl import H11Protocol

from quatrain.serving.errors import ApiError, api_error, busy
from quatrain.serving.settings import LOOPBACK_NAMES, ServerSettings

logger = logging.getLogger("quatrain.serving")

PUBLIC = frozenset({"/health"})
"""Paths that need no key."""
LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Scope = dict[str, Any]


class Gate:
    """An ASGI application that lets allowed requests through to `app` and answers all others itself."""

    def __init__(self, app: Any, settings: ServerSettings):
        self.app, self.settings = app, settings
        self._key = None if settings.key is None else _digest(settings.key.encode())

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # No protocol here uses WebSockets.
        headers = _Headers(scope["headers"])
        given = headers.one("x-request-id") or ""
        scope.setdefault("state", {})["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        origin = headers.one("origin")
        own = self._is_own_page(origin, headers.one("host"))
        started = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                more = {"x-request-id": scope["state"]["request_id"], "x-content-type-options": "nosniff"}
                if origin is not None and own:
                    more |= {"access-control-allow-origin": origin, "vary": "Origin"}
                    more["access-control-expose-headers"] = "x-request-id, retry-after"
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode("latin-1")) for name, value in more.items()),
                ]
            await send(message)

        try:
            self._check_host(headers)
            if origin is not None and not own:
                raise ApiError(403, "Pages of other web sites may not use this server.", code="origin_not_allowed")
            if scope["method"] == "OPTIONS" and headers.one("access-control-request-method") is not None:
                await _respond(answer, 204, None, _preflight(headers))
                return
            if scope["path"] not in PUBLIC:
                self._check_key(headers)
            await self.app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("request %s failed", scope["state"]["request_id"])
            if started:
                raise
            shown = api_error(error)
            await _respond(answer, shown.status, error_body(scope["path"], shown), shown.headers)

    def _check_host(self, headers: _Headers) -> None:
        """Raises ApiError for a Host header that this server does not have, as after DNS rebinding."""
        hosts = headers.all("host")
        if len(hosts) != 1:
            raise ApiError(400, f"The request has {len(hosts)} Host headers; send one.", code="host_not_allowed")
        settings = self.settings
        name = _host_name(hosts[0])
        allowed = {*LOOPBACK_NAMES, settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}
        # A key protects a server with an address of the network, which may have any number of names.
        if name is None or (name not in allowed and (settings.is_loopback or settings.allowed_hosts)):
            raise ApiError(
                421,
                "The Host header names another server. Use the server's address, or start it with --allowed-host.",
                code="host_not_allowed",
            )

    def _is_own_page(self, origin: str | None, host: str | None) -> bool:
        if origin is None:
            return False
        if LOCAL_ORIGIN.fullmatch(origin):
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and host is not None and parts.netloc == host

    def _check_key(self, headers: _Headers) -> None:
        """Raises ApiError unless the request carries the key. The time does not depend on how much of it is right."""
        if self._key is None:
            return
        given = [*map(_bearer, headers.all("authorization")), *headers.all("x-api-key")]
        # A digest has one length: comparing it tells nothing of the key's.
        right = [hmac.compare_digest(_digest(key.encode("latin-1")), self._key) for key in given]
        if len(right) == 0 or not all(right):
            message = "The key is wrong." if given else "A key is needed: send it as `Authorization: Bearer KEY`."
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": 'Basic realm="quatrain"'})


class _Headers:
    """The headers of a request; names are in lower case."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]):
        self._raw = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]

    def all(self, name: str) -> list[str]:
        return [value for each, value in self._raw if each == name]

    def one(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _bearer(value: str) -> str:
    """The key of an Authorization header: a bearer token, or the password that a browser asks for."""
    scheme, _, rest = value.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _host_name(host: str) -> str | None:
    """The name of a Host header without its port, in lower case; None for a malformed one."""
    matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?", host)
    return None if matched is None else (matched[1] or matched[2]).lower().rstrip(".")


def _preflight(headers: _Headers) -> dict[str, str]:
    asked = headers.one("access-control-request-headers") or ""
    names = [name for name in asked.split(",") if re.fullmatch(r"[A-Za-z0-9-]{1,64}", name.strip())]
    return {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": ",".join(names[:32]) or "content-type",
        "Access-Control-Max-Age": "600",
    }


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an error in the form of the protocol of a path."""
    if path.startswith("/v1/messages"):
        return error.anthropic_body()
    is_inference = path == "/" or path.startswith(("/models/", "/pipeline/"))
    return error.inference_body() if is_inference and "/v1/" not in path else error.body()


async def _respond(send: Any, status: int, body: Any, headers: dict[str, str]) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw if status != 204 else raw[:-2]})
    await send({"type": "http.response.body", "body": content})


def limited_protocol(settings: ServerSettings) -> type[H11Protocol]:
    """The HTTP protocol of a server, which limits the number of connections and how long a client may be silent."""

    class LimitedProtocol(H11Protocol):
        """A connection that is closed if there are too many, if it sends no request, and if it reads no answer."""

        _deadline: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                self._refuse()
            else:
                self._deadline = self.loop.call_later(settings.header_seconds, self._close_unless_asked)

        def _refuse(self) -> None:
            error = busy("The server has too many connections.", status=503)
            body = json.dumps(error.body()).encode()
            head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            self.transport.close()

        def _close_unless_asked(self) -> None:
            if self.cycle is None:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._deadline, self._unread):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # The head of a further request has as much time; uvicorn's own timer ends with its first byte.
            if self._deadline is not None:
                self._deadline.cancel()
            cycle = self.cycle
            self._deadline = self.loop.call_later(
                settings.header_seconds, lambda: self.transport.close() if self.cycle is cycle else None
            )

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(settings.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def send_400_response(self, msg: str) -> None:
            error = ApiError(400, msg, code="invalid_http")
            body = json.dumps(error.body()).encode()
            head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            self.transport.close()

    return LimitedProtocol
