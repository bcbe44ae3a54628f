"""Real NBD servers, and a fake one with replies of the test."""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from target.disks.nbd.opening import CLIENT_VARIABLE
from tests.requirements import need_libnbd, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest

SIZE = 4 << 20
TIMEOUT = 10.0
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack("!H", 3)
CLIENTS = ("own", "libnbd")


def use_client(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Select the NBD client, for child processes as well."""
    if name == "libnbd":
        need_libnbd()
    monkeypatch.setenv(CLIENT_VARIABLE, name)


def is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


@contextmanager
def server(command: Sequence[object], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; return when it listens, and kill it at the end.

    Data that it has not written by then is lost.
    """
    path.unlink(missing_ok=True)
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + TIMEOUT
        while not is_listening(path):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def nbdkit(path: Path, *words: object) -> list[str]:
    return [program("nbdkit"), "-f", "-U", str(path), *map(str, words)]


def qemu_nbd(path: Path, image: Path, *words: object) -> list[str]:
    name = program("qemu-nbd")
    fixed = ["-t", "-f", "qcow2", "-x", "disk", "-k", str(path)]
    return [name, *fixed, *map(str, words), str(image)]


def make_qcow2(path: Path, size: int = SIZE) -> Path:
    tool = program("qemu-img")
    subprocess.run([tool, "create", "-q", "-f", "qcow2", path, str(size)], check=True)
    return path


def raw_bytes(source: Path | str) -> bytes:
    """Return the contents of an image or a URI, read by qemu-img."""
    tool = program("qemu-img")
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        subprocess.run([tool, "convert", "-O", "raw", source, raw], check=True)
        return raw.read_bytes()


def exported(path: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={quote(str(path))}"


def option_reply(kind: int, data: bytes = b"", option: int = 7) -> list[bytes]:
    """Return an option reply, in the pieces that a client reads."""
    head = struct.pack("!QIII", 0x3E889045565A9, option, kind, len(data))
    return [head, data] if data else [head]


def take(peer: socket.socket, length: int) -> bytes:
    """Receive exactly this number of bytes."""
    taken = bytearray()
    while len(taken) < length:
        piece = peer.recv(length - len(taken))
        if not piece:
            raise ConnectionResetError
        taken += piece
    return bytes(taken)


def negotiate(peer: socket.socket, size: int, flags: int) -> None:
    """Serve the handshake: options other than GO are unknown."""
    peer.sendall(GREETING)
    take(peer, 4)
    option = 0
    while option != 7:
        _, option, length = struct.unpack("!8sII", take(peer, 16))
        take(peer, length)
        pieces = option_reply(1 << 31 | 1, option=option)
        if option == 7:
            export = struct.pack("!HQH", 0, size, flags)
            pieces = [*option_reply(3, export), *option_reply(1)]
        peer.sendall(b"".join(pieces))


class FakeServer:
    """A server with a valid handshake, and replies that the test provides.

    Args:
        path: the path of its socket.
        reply: returns the reply to a request's header; empty closes the connection.
        flags: the transmission flags.
        size: the size of the export in bytes.
    """

    def __init__(
        self,
        path: Path,
        reply: Callable[[bytes], bytes],
        *,
        flags: int = 1,
        size: int = SIZE,
    ) -> None:
        self._reply = reply
        self.flags, self.size = flags, size
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _where = self._listener.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                self._talk(peer)

    def _talk(self, peer: socket.socket) -> None:
        negotiate(peer, self.size, self.flags)
        while reply := self._reply(take(peer, 28)):
            peer.sendall(reply)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def simple_reply(request: bytes, error: int = 0, data: bytes = b"") -> bytes:
    """Return a simple reply to a request, given its header."""
    return struct.pack("!II8s", 0x67446698, error, request[8:16]) + data


class StallingServer:
    """A server that executes a request late, even if its connection is closed by then.

    Args:
        path: the path of its socket.
        flags: the transmission flags; by default FLUSH and FUA.
    """

    def __init__(self, path: Path, *, flags: int = 0b1101) -> None:
        self.content = bytearray(SIZE)
        self.executed: list[tuple[int, int, int]] = []
        """Command, offset and length of each request."""
        self.stalls = False
        """Requests are not executed before ``release``, nor received completely."""
        self.stalled = threading.Event()
        self._flags = flags
        self._released = threading.Event()
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._start(self._accept)

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _where = self._listener.accept()
                self._peers.append(peer)
                self._start(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):
            negotiate(peer, SIZE, self._flags)
            while True:
                head = take(peer, 28)
                command, offset, length = struct.unpack("!6xH8xQI", head)
                data = b""
                is_stalled = self.stalls
                if command == 1 and not (is_stalled and length > 65536):
                    data = take(peer, length)
                if is_stalled:
                    self.stalled.set()
                    assert self._released.wait(TIMEOUT)
                if command == 1 and not data:
                    data = take(peer, length)
                peer.sendall(self._execute(head, command, offset, length, data))

    def _execute(
        self, head: bytes, command: int, offset: int, length: int, data: bytes
    ) -> bytes:
        self.executed.append((command, offset, length))
        place = slice(offset, offset + length)
        if command == 1:
            self.content[place] = data
        data = bytes(self.content[place]) if command == 0 else b""
        return simple_reply(head, data=data)

    def drop(self) -> None:
        """Close all connections; stalled requests are still executed."""
        for peer in self._peers:
            peer.shutdown(socket.SHUT_RDWR)
        self._peers.clear()

    def go_on(self) -> None:
        """Execute the stalled requests, and all later ones at once."""
        self.stalls = False
        self._released.set()

    def release(self) -> None:
        """Do the same, and wait until the stalled request has been executed."""
        count = len(self.executed)
        self.go_on()
        end = time.monotonic() + TIMEOUT
        while self.stalled.is_set() and len(self.executed) == count:
            assert time.monotonic() < end
            time.sleep(0.001)
        self.stalled.clear()

    def close(self) -> None:
        self._released.set()
        for peer in (self._listener, *self._peers):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
