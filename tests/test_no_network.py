"""The suite blocks the network: another host is refused, this machine is not."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import no_network
import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 443)])
def test_another_host_is_refused_and_remembered(address: tuple[str, int]) -> None:
    with pytest.raises(no_network.Refused, match=address[0]):
        socket.create_connection(address, timeout=1)
    with pytest.raises(no_network.Refused), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.sendto(b"x", address)
    with socket.socket() as plain, pytest.raises(no_network.Refused):
        plain.connect_ex(address)
    assert [address[0]] * 3 == no_network.ATTEMPTS
    no_network.ATTEMPTS.clear()


def test_code_that_handles_the_refusal_is_found_out() -> None:
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen("https://example.org", timeout=1)
    assert no_network.ATTEMPTS == ["example.org"]  # the fixture of every test would fail it
    no_network.ATTEMPTS.clear()


def test_this_machine_is_reached_by_name_and_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with socket.create_connection((host, port), timeout=5) as connected:
                assert connected.getpeername()[1] == port
    left, right = socket.socketpair()
    left.sendall(b"x")
    assert right.recv(1) == b"x"
    left.close()
    right.close()


def test_a_name_that_never_exists_is_not_found() -> None:
    with pytest.raises(socket.gaierror):
        socket.create_connection(("nowhere.invalid", 80), timeout=1)
    assert no_network.ATTEMPTS == []
