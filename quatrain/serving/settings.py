"""`ServerSettings`: the address, the key and the limits of a server, checked when they are created."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, fields

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
LEAST_KEY = 8
"""The fewest characters of a key."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens, whom it answers, and what it limits.

    Raises InputError, all problems at once, for values out of range and for an address beside loopback without a key.
    """

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8000
    """The port to listen on; 0 takes a free one."""
    key: str | None = None
    """The key that every request but /health needs, as `Authorization: Bearer`, `x-api-key` or a Basic password."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header that are answered, besides the own address and loopback."""
    without_models: bool = False
    """Whether the server may have no model, because it answers from an index."""
    max_body: int = 8 * 1024 * 1024
    """The most bytes of a request."""
    max_messages: int = 2048
    """The most messages of a conversation, or texts of a request for embeddings."""
    max_pictures: int = 16
    """The most pictures of a conversation."""
    max_pixels: int = 25_000_000
    """The most pixels of a picture."""
    max_n: int = 16
    """The most completions of a prompt."""
    max_prompts: int = 128
    """The most completions that one request can ask for in all."""
    max_tokens: int = 4096
    """The most new tokens of a completion; also the default for a model without a limit of its own."""
    max_queue: int = 256
    """The most completions that run or wait for one model; beyond them, requests get 429."""
    max_connections: int = 512
    """The most open connections."""
    max_grammar: int = 65_536
    """The most characters of a JSON schema, a regular expression or a grammar."""
    header_seconds: float = 15.0
    """How long a new or kept connection may take to send its request's head."""
    body_seconds: float = 30.0
    """How long a client may take to send the body of a request."""
    request_seconds: float = 600.0
    """How long a request may run."""
    write_seconds: float = 60.0
    """How long a client may take to read what was sent before it is dropped."""
    ping_seconds: float = 15.0
    """A stream without news for this long gets a comment, so that proxies keep it open."""
    shutdown_seconds: float = 10.0
    """How long running answers may continue after the server was told to stop."""
    idle_seconds: float | None = None
    """Unload a model that nobody has used for this long; None keeps it."""
    memory: int | None = None
    """The most bytes of weights that are loaded at once; None: what the machine has free."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError("The server cannot be started:", problems)

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.port <= 65_535:
            yield f"port: {self.port}; must be from 0 to 65535"
        if not self.is_loopback and self.key is None:
            yield (
                f"host: {format_value(self.host)}; other machines can reach this address, so a key is needed: give "
                "one with --key-file or in QUATRAIN_API_KEY, or listen on 127.0.0.1"
            )
        if self.key is not None:
            if len(self.key) < LEAST_KEY:
                yield f"key: {len(self.key)} characters; give at least {LEAST_KEY}"
            if not all(33 <= ord(letter) < 127 for letter in self.key):
                yield "key: must be of ASCII letters, digits and signs, without spaces"
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and value < 1:
                yield f"{field.name}: {value}; must be at least 1"
            if field.name.endswith("_seconds") and value is not None and not value > 0:
                yield f"{field.name}: {value}; must be above 0"
        if self.memory is not None and self.memory < 1:
            yield f"memory: {self.memory}; must be a number of bytes above 0"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
