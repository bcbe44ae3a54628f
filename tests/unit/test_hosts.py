from __future__ import annotations

import socket

import pytest

from aoe.common.hosts import resolve


def fail_for_names(
    host: str, port: int, **_: object
) -> list[tuple[socket.AddressFamily, int, int, str, tuple[str, int]]]:
    """Resolve as a system without /etc/hosts and without a name server."""
    if not host.startswith((":", "1")):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return [(family, socket.SOCK_STREAM, 6, "", (host, port))]


def test_localhost_is_loopback_even_if_the_system_does_not_resolve_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", fail_for_names)
    assert resolve("localhost", 80) == [
        (socket.AF_INET, ("127.0.0.1", 80)),
        (socket.AF_INET6, ("::1", 80)),
    ]
    with pytest.raises(socket.gaierror, match="not known"):
        resolve("other", 80)


def test_addresses_are_those_of_the_system() -> None:
    assert resolve("127.0.0.1", 7) == [(socket.AF_INET, ("127.0.0.1", 7))]
    assert {each.sockaddr[1] for each in resolve("localhost", 7)} == {7}
