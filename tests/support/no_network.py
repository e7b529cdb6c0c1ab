"""No test reaches another host: sockets of the test process connect to this machine only.

An attempt raises `Refused`, an OSError as of a machine without network, and fails the test even where the code handles
it: what a test needs is on this machine. Processes that tests start get `QUATRAIN_OFFLINE` and `HF_HUB_OFFLINE`. Names
below `.invalid` are those that never exist (RFC 2606), for tests of what is said about such a name.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

LOCAL_NAMES = {"localhost", "localhost.localdomain", "ip6-localhost", ""}
ATTEMPTS: list[str] = []
"""Addresses that were refused since the list was cleared."""


class Refused(OSError):
    """A test tried to reach another host."""


def is_local(host: Any) -> bool:
    """Whether a host's name or number means this machine; None and empty names are addresses to listen on."""
    if host is None:
        return True
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name.lower() in LOCAL_NAMES or name == socket.gethostname():
        return True
    if not is_number(name):
        return False
    address = ipaddress.ip_address(name.partition("%")[0])
    return address.is_loopback or address.is_unspecified


def is_number(name: str) -> bool:
    """Whether a host is given by its number."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def check(host: Any) -> None:
    """Raises Refused for another host, and remembers it."""
    if not is_local(host):
        ATTEMPTS.append(str(host))
        raise Refused(f"tests reach no other host, and this one tried {host}")


def block() -> None:
    """Let the sockets of this process connect to this machine only."""
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    lookup = socket.getaddrinfo

    def host_of(own: socket.socket, address: Any) -> Any:
        return address[0] if own.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) else None

    def local_connect(self: socket.socket, address: Any) -> None:
        check(host_of(self, address))
        return connect(self, address)

    def local_connect_ex(self: socket.socket, address: Any) -> int:
        check(host_of(self, address))
        return connect_ex(self, address)

    def local_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        check(host_of(self, rest[-1]))
        return sendto(self, data, *rest)

    def local_lookup(host: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if not is_number(name):  # a number asks no name server
            check(host)
        return lookup(host, *rest, **more)

    socket.socket.connect = local_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = local_connect_ex  # type: ignore[method-assign]
    socket.socket.sendto = local_sendto  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = local_lookup
