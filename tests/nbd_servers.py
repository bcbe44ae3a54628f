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

from target.disks.nbd.disk import CLIENT_VARIABLE
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
        def take(length: int) -> bytes:
            taken = peer.recv(length, socket.MSG_WAITALL)
            if len(taken) < length:
                raise ConnectionResetError
            return taken

        peer.sendall(GREETING)
        take(4)
        option = 0
        while option != 7:
            _, option, length = struct.unpack("!8sII", take(16))
            take(length)
            # Options other than GO are unknown.
            pieces = option_reply(1 << 31 | 1, option=option)
            if option == 7:
                export = struct.pack("!HQH", 0, self.size, self.flags)
                pieces = [*option_reply(3, export), *option_reply(1)]
            peer.sendall(b"".join(pieces))
        while reply := self._reply(take(28)):
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
