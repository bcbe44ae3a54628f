"""An NBD server on a host's loop: many clients, and all that clients can do."""

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
from tests.links import QueueLink
from tests.nbd_clients import (
    ABORT,
    DISCONNECT,
    FLUSH,
    GO,
    HELLO,
    READ,
    STRUCTURED,
    WRITE,
    ZEROES,
    chunks,
    option,
    request,
    wish,
)
from tests.platters import Platter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 22
HANDSHAKE = 18 + 20 + 20 + 12 + 20
"""Bytes that a client hears before the first answer."""


class Served:
    """A disk in memory behind a server, and the host whose turns it takes."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self.platter = Platter(SIZE // 512, at_once=True)
        self.platter.data[:] = random.Random(0).randbytes(SIZE)
        self.host = stack.enter_context(Host([QueueLink()]))
        export = NbdExport(name="e7.3", size=SIZE)
        view = ReadModifyWriteView(self.platter.submit)
        self.server = NbdServer(self.host, view, export, Listener(str(place)))
        stack.callback(self.server.close)
        self._stack = stack

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.host.run_once(0)

    def client(self, *, greet: bool = True) -> Client:
        client = Client(self)
        self._stack.callback(client.socket.close)
        if greet:
            client.say(HELLO + option(STRUCTURED) + wish(GO))
            client.hear(HANDSHAKE)
        return client


class Client:
    """A client that lets the server have its turns while it waits."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(served.place))
        self.socket.setblocking(False)

    def say(self, raw: bytes) -> None:
        while raw:
            try:
                raw = raw[self.socket.send(raw) :]
            except BlockingIOError:
                self.served.turns(1)
        self.served.turns(2)

    def hear(self, length: int = 1 << 30) -> bytes:
        """Return so many bytes, or all there are after many turns or until the end."""
        heard = bytearray()
        idle = 0
        while len(heard) < length and idle < 20:
            self.served.turns(1)
            try:
                piece = self.socket.recv(min(1 << 20, length - len(heard)))
            except BlockingIOError:
                idle += 1
                continue
            if not piece:
                break
            heard += piece
            idle = 0
        return bytes(heard)

    def is_hung_up(self) -> bool:
        self.served.turns()
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
    client.say(request(READ, offset, length))
    [reply] = chunks(client.hear(28 + length))
    assert reply.data[:8] == struct.pack("!Q", offset)
    return reply.data[8:]


def test_what_is_written_is_read_by_another_client(served: Served) -> None:
    one, other = served.client(), served.client()
    data = random.Random(1).randbytes(3_000_001)
    one.say(request(WRITE, 12_345, data=data))
    assert [reply.error for reply in chunks(one.hear(16))] == [0]
    assert read(other, 12_345, len(data)) == data
    one.say(request(ZEROES, 12_346, 5000) + request(FLUSH))
    assert [reply.error for reply in chunks(one.hear(32))] == [0, 0]
    assert read(other, 12_345, 5002) == data[:1] + bytes(5000) + data[5001:5002]
    assert served.platter.done[-2][0] is Op.FLUSH


def test_answers_come_as_the_disk_gives_them(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.say(b"".join(request(READ, 512 * n, 512, cookie=n) for n in range(10)))
    served.turns()
    served.platter.end_all(random.Random(3))
    replies = chunks(client.hear())
    cookies = [reply.cookie for reply in replies]
    assert sorted(cookies) == list(range(10))
    assert cookies != sorted(cookies)
    for reply in replies:
        at = 512 * reply.cookie
        assert reply.data[8:] == served.platter.data[at : at + 512]


def test_a_burst_larger_than_what_is_taken_at_once_is_all_answered(
    served: Served,
) -> None:
    client = served.client()
    client.say(b"".join(request(READ, n, 1, cookie=n) for n in range(2000)))
    replies = chunks(client.hear(2000 * 29))
    assert [reply.cookie for reply in replies] == list(range(2000))


def test_who_does_not_read_is_not_listened_to_and_harms_nobody(
    served: Served,
) -> None:
    slow, other = served.client(), served.client()
    asked = b"".join(request(READ, 0, 1 << 20, cookie=n) for n in range(150))
    slow.say(asked)
    served.turns(100)
    waiting = sum(
        len(piece)
        for connection in served.server.connections
        for piece in connection.session.output
    )
    assert 32 << 20 < waiting < 100 << 20
    assert read(other, 0, 512) == served.platter.data[:512]
    heard = slow.hear(150 * (28 + (1 << 20)))
    assert len(heard) == 150 * (28 + (1 << 20))


@pytest.mark.parametrize("closes", ["reads", "all"])
def test_who_vanishes_with_requests_outstanding_is_forgotten(
    served: Served, closes: str
) -> None:
    served.platter.at_once = False
    client, other = served.client(), served.client()
    client.say(request(WRITE, 0, data=b"x" * 512) + request(READ, 0, 1 << 20))
    served.turns()
    if closes == "all":
        client.socket.close()
    else:
        client.socket.shutdown(socket.SHUT_RD)
    served.turns()
    assert served.server.outstanding == 2
    served.platter.end_all()
    served.turns()
    assert served.server.outstanding == 0
    assert served.platter.data[:512] == b"x" * 512
    assert len(served.server.connections) == 1
    served.platter.at_once = True
    assert read(other, 0, 3) == b"xxx"


def test_who_has_said_all_gets_his_answers(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.say(request(READ, 0, 512))
    client.socket.shutdown(socket.SHUT_WR)
    served.turns()
    served.platter.end_all()
    [reply] = chunks(client.hear())
    assert reply.data[8:] == served.platter.data[:512]
    assert client.is_hung_up()


def test_who_takes_his_leave_gets_his_answers_first(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.say(request(READ, 0, 512) + request(DISCONNECT))
    served.turns()
    served.platter.end_all()
    assert len(chunks(client.hear(28 + 512))) == 1
    assert client.is_hung_up()
    assert served.server.connections == set()


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff" * 64, HELLO + b"nonsense" * 9, HELLO + wish(GO) + b"nonsense" * 9],
)
def test_who_talks_nonsense_is_hung_up_on_alone(
    served: Served, nonsense: bytes
) -> None:
    other = served.client()
    client = served.client(greet=False)
    client.say(nonsense)
    client.hear()
    assert client.is_hung_up()
    assert read(other, 0, 1) == served.platter.data[:1]


def test_who_drops_the_socket_after_abort_is_no_trouble(served: Served) -> None:
    client = served.client(greet=False)
    client.socket.send(HELLO + option(ABORT))
    client.socket.close()
    served.turns()
    assert served.server.connections == set()


def test_the_65th_client_waits_for_one_to_leave(served: Served) -> None:
    clients = [served.client() for _ in range(64)]
    late = served.client(greet=False)
    assert late.hear(18) == b""
    clients[7].socket.close()
    assert late.hear(18).startswith(b"NBDMAGIC")


def test_a_server_that_stops_finishes_what_is_under_way(served: Served) -> None:
    served.platter.at_once = False
    client = served.client()
    client.say(request(WRITE, 0, data=b"x" * 512, cookie=1))
    served.turns()
    served.server.stop()
    client.say(request(WRITE, 512, data=b"y" * 512, cookie=2))
    assert not served.server.is_idle
    served.platter.end_all()
    served.turns()
    assert served.server.is_idle
    errors = {reply.cookie: reply.error for reply in chunks(client.hear())}
    assert errors == {1: 0, 2: 108}
    late = served.client(greet=False)
    assert late.hear(18) == b""


def test_the_socket_is_its_owners_and_goes_with_the_server(served: Served) -> None:
    assert stat.S_IMODE(served.place.stat().st_mode) == 0o700
    served.server.close()
    assert not served.place.exists()


# --- where it listens -------------------------------------------------------------


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    place = tmp_path / "a socket"
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(place))
    with closing(Listener(str(place))) as listener:
        assert listener.uri("e7.3") == f"nbd+unix:///e7.3?socket={tmp_path}/a%20socket"
        assert planned_uri(str(place), "e7.3") == listener.uri("e7.3")
        with pytest.raises(BusyError, match="another server listens there"):
            Listener(str(place))
    assert not place.exists()


def test_a_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    place = tmp_path / "precious"
    place.write_text("data")
    with pytest.raises(UsageError, match="exists and is not a socket"):
        Listener(str(place))
    assert place.read_text() == "data"


def test_a_socket_that_somebody_else_has_put_there_stays(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    first = Listener(str(place))
    place.rename(tmp_path / "old")
    with closing(Listener(str(place))):
        first.close()
        assert place.exists()


@pytest.mark.parametrize("place", ["127.0.0.1:0", ":0"])
def test_a_port_may_be_any_that_is_free(place: str) -> None:
    with closing(Listener(place)) as listener:
        port = listener.socket.getsockname()[1]
        assert listener.uri("e7.3").endswith(f":{port}/e7.3")
        with pytest.raises(AoEError, match="in use"):
            Listener(f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match="the port is not known yet"):
        planned_uri(place, "e7.3")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Make ``getaddrinfo`` return these IPv4 addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_listener_tries_each_resolved_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # 192.0.2.1 is reserved for documentation (RFC 5737): bind fails.
    resolve_to(monkeypatch, ("192.0.2.1", 0), ("127.0.0.1", 0))
    with closing(Listener("localhost:0")) as listener:
        assert listener.socket.getsockname()[0] == "127.0.0.1"


def test_listener_reports_the_first_error_if_all_addresses_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(Listener("127.0.0.1:0")) as other:
        port = other.socket.getsockname()[1]
        resolve_to(monkeypatch, ("192.0.2.1", port), ("127.0.0.1", port))
        with pytest.raises(AoEError, match="^localhost:7: .*annot assign requested"):
            Listener("localhost:7")


def test_a_port_is_known_beforehand() -> None:
    assert planned_uri("example.org:10809", "e7.3") == "nbd://example.org/e7.3"
    assert planned_uri("[::1]:7", "e7.3") == "nbd://[::1]:7/e7.3"
    assert planned_uri(":7", "e7.3") == "nbd://localhost:7/e7.3"
    with pytest.raises(UsageError, match="no such port"):
        Listener("127.0.0.1:77777")
