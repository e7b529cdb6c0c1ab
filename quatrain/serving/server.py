"""Runs a server: the socket, uvicorn's loop, and a shutdown that ends streams properly."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from quatrain.core.errors import InputError
from quatrain.serving.app import create_app
from quatrain.serving.models import LoadOptions, ModelEntry
from quatrain.serving.security import limited_protocol
from quatrain.serving.settings import ServerSettings

MARGIN = 5.0
"""Seconds that cancelled answers have to end after `shutdown_seconds`."""


class Server(uvicorn.Server):
    """A server of some models; `run` serves until a signal or `stop`."""

    def __init__(
        self,
        models: list[ModelEntry],
        settings: ServerSettings | None = None,
        options: LoadOptions | None = None,
        **more: Any,
    ):
        """Raises InputError for models that cannot be served, and an address that cannot be listened on.

        `more` are further options of `uvicorn.Config`.
        """
        self.settings = settings or ServerSettings()
        self.gate = create_app(models, self.settings, options)
        self.service = self.gate.app.state.service
        self._socket = listen(self.settings.host, self.settings.port)
        super().__init__(
            uvicorn.Config(
                self.gate,
                http=limited_protocol(self.settings),
                ws="none",
                lifespan="on",
                loop="asyncio",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_level="error",  # Whoever sends garbage does not fill the log.
                timeout_keep_alive=int(self.settings.header_seconds) + 1,  # Longer than clients keep theirs, 5 s.
                timeout_graceful_shutdown=int(self.settings.shutdown_seconds + MARGIN),
                h11_max_incomplete_event_size=32 * 1024,
                backlog=1024,
                **{"log_config": None, **more},
            )
        )

    @property
    def address(self) -> str:
        """The URL of the server."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, sockets: Any = None) -> None:
        """Serves until the process is told to stop."""
        super().run([self._socket])

    def stop(self) -> None:
        """Ends `run`, from any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Refuses new requests, lets answers end for `shutdown_seconds`, then ends each with an error."""
        self.service.is_stopping = True
        timer = asyncio.get_running_loop().call_later(self.settings.shutdown_seconds, self.service.registry.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises InputError for an address that cannot be listened on."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = infos[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on: {getattr(error, 'strerror', None) or error}") from error
    return listening
