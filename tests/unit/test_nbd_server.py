"""The NBD server in a host's event loop: several clients, errors, shutdown."""

from __future__ import annotations

import random
import socket
import stat
import struct
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AoEError, BusyError, UsageError
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.driver.bio import Op
from initiator.export.nbd.handshake import NbdExport
from initiator.export.nbd.listener import Listener, planned_uri
from initiator.export.nbd.server import NbdServer
from initiator.io.host import Host
from tests.bio_disk import BioDisk
from tests.links import QueueLink
from tests.nbd_clients import (
    ABORT,
    CLIENT_FLAGS,
    DISCONNECT,
    FLUSH,
    GO,
    READ,
    STRUCTURED,
    WRITE,
    ZEROES,
    info_option,
    option,
    parse_replies,
    request,
)
from tests.nbd_servers import exported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 22
HANDSHAKE = 18 + 20 + 20 + 12 + 20
"""Bytes that the server sends before the first reply."""


class Served:
    """A server of a disk in memory, and the host whose event loop it runs in."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.platter = BioDisk(SIZE // 512, at_once=True)
        self.platter.data[:] = random.Random(0).randbytes(SIZE)
        self.host = stack.enter_context(Host([QueueLink()]))
        export = NbdExport(name="e7.3", size=SIZE)
        view = ReadModifyWriteView(self.platter.submit)
        self.server = NbdServer(self.host, view, export, Listener(str(path)))
        stack.callback(self.server.close)
        self._stack = stack

    def run(self, count: int = 20) -> None:
        """Run ``count`` iterations of the event loop."""
        for _ in range(count):
            self.host.run_once(0)

    def client(self, *, greet: bool = True) -> Client:
        client = Client(self)
        self._stack.callback(client.socket.close)
        if greet:
            client.send(CLIENT_FLAGS + option(STRUCTURED) + info_option(GO))
            client.receive(HANDSHAKE)
        return client


class Client:
    """A client that runs the server's event loop while it waits."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(served.path))
        self.socket.setblocking(False)

    def send(self, raw: bytes) -> None:
        while raw:
            try:
                raw = raw[self.socket.send(raw) :]
            except BlockingIOError:
                self.served.run(1)
        self.served.run(2)

    def receive(self, length: int = 1 << 30) -> bytes:
        """Return ``length`` bytes, or fewer at EOF or if the server sends no more."""
        received = bytearray()
        idle = 0
        while len(received) < length and idle < 20:
            self.served.run(1)
            try:
                piece = self.socket.recv(min(1 << 20, length - len(received)))
            except BlockingIOError:
                idle += 1
                continue
            if not piece:
                break
            received += piece
            idle = 0
        return bytes(received)

    def is_closed(self) -> bool:
        self.served.run()
        try:
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        yield Served(tmp_path / "socket", stack)


def read(client: Client, offset: int, length: int) -> bytes:
    client.send(request(READ, offset, length))
    [reply] = parse_replies(client.receive(28 + length))
    assert reply.data[:8] == struct.pack("!Q", offset)
    return reply.data[8:]


def test_a_client_reads_what_another_wrote(served: Served) -> None:
    first, other = served.client(), served.client()
    data = random.Random(1).randbytes(3_000_001)
    first.send(request(WRITE, 12_345, data=data))
    assert [reply.error for reply in parse_replies(first.receive(16))] == [0]
    assert read(other, 12_345, len(data)) == data
    first.send(request(ZEROES, 12_346, 5000) + request(FLUSH))
    assert [reply.error for reply in parse_replies(first.receive(32))] == [0, 0]
    assert read(other, 12_345, 5002) == data[:1] + bytes(5000) + data[5001:5002]
    assert served.platter.done[-2][0] is Op.FLUSH


def test_replies_are_sent_in_order_of_completion(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.send(b"".join(request(READ, 512 * n, 512, cookie=n) for n in range(10)))
    served.run()
    served.platter.end_all(random.Random(3))
    replies = parse_replies(client.receive())
    cookies = [reply.cookie for reply in replies]
    assert sorted(cookies) == list(range(10))
    assert cookies != sorted(cookies)
    for reply in replies:
        at = 512 * reply.cookie
        assert reply.data[8:] == served.platter.data[at : at + 512]


def test_all_requests_beyond_the_limit_are_served(served: Served) -> None:
    client = served.client()
    client.send(b"".join(request(READ, n, 1, cookie=n) for n in range(2000)))
    replies = parse_replies(client.receive(2000 * 29))
    assert [reply.cookie for reply in replies] == list(range(2000))


def test_client_that_reads_no_replies_is_throttled_alone(
    served: Served,
) -> None:
    slow, other = served.client(), served.client()
    requests = b"".join(request(READ, 0, 1 << 20, cookie=n) for n in range(150))
    slow.send(requests)
    served.run(100)
    waiting = sum(
        len(piece)
        for connection in served.server.connections
        for piece in connection.session.output
    )
    assert 32 << 20 < waiting < 100 << 20
    assert read(other, 0, 512) == served.platter.data[:512]
    received = slow.receive(150 * (28 + (1 << 20)))
    assert len(received) == 150 * (28 + (1 << 20))


@pytest.mark.parametrize("closed", ["reads", "all"])
def test_disconnect_with_requests_outstanding_removes_the_client(
    served: Served, closed: str
) -> None:
    served.platter.at_once = False
    client, other = served.client(), served.client()
    client.send(request(WRITE, 0, data=b"x" * 512) + request(READ, 0, 1 << 20))
    served.run()
    if closed == "all":
        client.socket.close()
    else:
        client.socket.shutdown(socket.SHUT_RD)
    served.run()
    assert served.server.outstanding == 2
    served.platter.end_all()
    served.run()
    assert served.server.outstanding == 0
    assert served.platter.data[:512] == b"x" * 512
    assert len(served.server.connections) == 1
    served.platter.at_once = True
    assert read(other, 0, 3) == b"xxx"


def test_half_closed_client_receives_its_replies(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.send(request(READ, 0, 512))
    client.socket.shutdown(socket.SHUT_WR)
    served.run()
    served.platter.end_all()
    [reply] = parse_replies(client.receive())
    assert reply.data[8:] == served.platter.data[:512]
    assert client.is_closed()


def test_disconnect_request_waits_for_outstanding_replies(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.send(request(READ, 0, 512) + request(DISCONNECT))
    served.run()
    served.platter.end_all()
    assert len(parse_replies(client.receive(28 + 512))) == 1
    assert client.is_closed()
    assert served.server.connections == set()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        CLIENT_FLAGS + b"nonsense" * 9,
        CLIENT_FLAGS + info_option(GO) + b"nonsense" * 9,
    ],
)
def test_protocol_error_closes_only_that_connection(
    served: Served, data: bytes
) -> None:
    other = served.client()
    client = served.client(greet=False)
    client.send(data)
    client.receive()
    assert client.is_closed()
    assert read(other, 0, 1) == served.platter.data[:1]


def test_client_may_close_the_socket_after_abort(served: Served) -> None:
    client = served.client(greet=False)
    client.socket.send(CLIENT_FLAGS + option(ABORT))
    client.socket.close()
    served.run()
    assert served.server.connections == set()


def test_65th_client_is_accepted_after_a_disconnect(served: Served) -> None:
    clients = [served.client() for _ in range(64)]
    late = served.client(greet=False)
    assert late.receive(18) == b""
    clients[7].socket.close()
    assert late.receive(18).startswith(b"NBDMAGIC")


def test_stop_completes_outstanding_requests_and_refuses_new_ones(
    served: Served,
) -> None:
    served.platter.at_once = False
    client = served.client()
    client.send(request(WRITE, 0, data=b"x" * 512, cookie=1))
    served.run()
    served.server.stop()
    client.send(request(WRITE, 512, data=b"y" * 512, cookie=2))
    assert not served.server.is_idle
    served.platter.end_all()
    served.run()
    assert served.server.is_idle
    errors = {reply.cookie: reply.error for reply in parse_replies(client.receive())}
    assert errors == {1: 0, 2: 108}
    late = served.client(greet=False)
    assert late.receive(18) == b""


def test_socket_has_mode_0700_and_is_removed_at_close(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o700
    served.server.close()
    assert not served.path.exists()


# --- the listening socket ---------------------------------------------------------


def test_stale_socket_is_replaced_but_not_one_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(path))
    with closing(Listener(str(path))) as listener:
        assert listener.uri("e7.3") == exported(tmp_path / "a socket", "e7.3")
        assert listener.uri("e7.3").endswith("/a%20socket")
        assert planned_uri(str(path), "e7.3") == listener.uri("e7.3")
        with pytest.raises(BusyError, match="another server listens there"):
            Listener(str(path))
    assert not path.exists()


def test_regular_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UsageError, match="exists and is not a socket"):
        Listener(str(path))
    assert path.read_text() == "data"


def test_close_does_not_remove_the_socket_of_another_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = Listener(str(path))
    path.rename(tmp_path / "old")
    with closing(Listener(str(path))):
        first.close()
        assert path.exists()


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":0"])
def test_port_0_selects_a_free_port(address: str) -> None:
    with closing(Listener(address)) as listener:
        port = listener.socket.getsockname()[1]
        uri = listener.uri("e7.3")
        assert uri.endswith(f":{port}/e7.3")
        # localhost is ::1 on some machines.
        where = uri.removeprefix("nbd://").removesuffix("/e7.3")
        with pytest.raises(AoEError, match="in use"):
            Listener(where)
    with pytest.raises(UsageError, match="the port is not known yet"):
        planned_uri(address, "e7.3")


def resolve_to(
    monkeypatch: pytest.MonkeyPatch, *found: tuple[socket.AddressFamily, int]
) -> None:
    """Make ``getaddrinfo`` return 127.0.0.1 with these families and ports."""
    results = [
        (family, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        for family, port in found
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: results)


def test_listener_tries_each_resolved_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Listener("127.0.0.1:0")) as other:
        port = other.socket.getsockname()[1]
        resolve_to(monkeypatch, (socket.AF_INET, port), (socket.AF_INET, 0))
        with closing(Listener("localhost:0")) as listener:
            assert listener.socket.getsockname()[1] not in (0, port)


def test_listener_reports_the_first_error_if_all_addresses_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(Listener("127.0.0.1:0")) as other:
        port = other.socket.getsockname()[1]
        # An IPv4 address is none of AF_INET6.
        resolve_to(monkeypatch, (socket.AF_INET6, port), (socket.AF_INET, port))
        with pytest.raises(AoEError, match=r"^localhost:7: address family"):
            Listener("localhost:7")


def test_planned_uri_of_a_port() -> None:
    assert planned_uri("example.org:10809", "e7.3") == "nbd://example.org/e7.3"
    assert planned_uri("[::1]:7", "e7.3") == "nbd://[::1]:7/e7.3"
    assert planned_uri(":7", "e7.3") == "nbd://localhost:7/e7.3"
    with pytest.raises(UsageError, match="no such port"):
        Listener("127.0.0.1:77777")
