"""The control socket of a running program: server and client.

Request and response are one line of JSON each::

    {"command": "clear-mask", "address": "e0.0"}
    {"ok": {...}}    {"error": {"exit_code": 3, "what": ..., "why": ..., "fix": ...}}

Each server listens on an abstract Unix socket, whose name is scoped to the network
namespace like AoE addresses are: ``aoe-target status`` finds all targets of a namespace
by listing these names. A server can listen on a path as well. It accepts commands from
root and from the user that it runs as (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import socket
import struct
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aoe.errors import (
    AccessError,
    AoEError,
    BusyError,
    NotFoundError,
    UsageError,
    from_os_error,
)

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

_PREFIX: Final = "pyaoe/{kind}/control/"
_LINE_LIMIT: Final = 1 << 16
_REQUEST_TIMEOUT: Final = 2.0
"""Seconds in which a client must send its request and read the response."""
_RESPONSE_TIMEOUT: Final = 60.0
"""Seconds to wait for a response: a reload opens disks and probes the network."""


class ControlServer(threading.Thread):
    """A thread that serves the control socket, one client at a time.

    Args:
        handle: executes a command, given its name and arguments, and returns the
            result; called in this thread.
        path: a path to listen on, in addition to the abstract name.
        kind: the kind of program, as ``find_running`` takes it.
        log: receives unexpected exceptions of ``handle``.

    Raises:
        BusyError: another server listens at the path.
        AoEError: the socket cannot be created there.
    """

    def __init__(
        self,
        handle: Callable[[str, dict[str, Any]], dict[str, Any]],
        path: Path | None = None,
        *,
        kind: str,
        log: logging.Logger,
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._execute = partial(_execute, handle, log)
        self._kind = kind
        self._path = path
        self._queue: list[str] = []
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The random part: containers with PID namespaces of their own may share a
        # network namespace, and so have equal process IDs.
        prefix = _PREFIX.format(kind=kind)
        name = f"\0{prefix}{os.getpid()}-{secrets.token_hex(4)}"
        self._listeners = [_listen(name)]
        try:
            if path is not None:
                self._listeners.append(_listen_at(path, kind))
        except BaseException:
            self._close()
            raise

    def schedule(self, command: str) -> None:
        """Queue a command whose result is discarded; safe in threads and handlers."""
        self._queue.append(command)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wakeup_write, b"\0")

    def run(self) -> None:
        """Serve clients until ``close`` is called."""
        poller = select.poll()
        for fd in (self._wakeup_read, *(each.fileno() for each in self._listeners)):
            poller.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._wakeup_read in ready:
                os.read(self._wakeup_read, 4096)
            while self._queue:
                command = self._queue.pop(0)
                if not command:
                    return
                # The handler logs what it has done.
                self._execute(command, {})
            for listener in self._listeners:
                if listener.fileno() in ready:
                    self._serve_one(listener)

    def _serve_one(self, listener: socket.socket) -> None:
        # A client that times out or has disconnected must not end the thread.
        with contextlib.suppress(OSError), listener.accept()[0] as client:
            client.settimeout(_REQUEST_TIMEOUT)
            line = _read_line(client)
            if _is_authorized(client):
                response = self._respond(line)
            else:
                error = AccessError(self._kind, "belongs to another user")
                response = _error_response(error)
            client.sendall(msgspec.json.encode(response) + b"\n")

    def _respond(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            command = str(request.pop("command"))
        except (msgspec.MsgspecError, KeyError):
            return _error_response(UsageError("control", "not a command"))
        return self._execute(command, request)

    def close(self) -> None:
        """End the thread and close the sockets."""
        if self.is_alive():
            self.schedule("")
            self.join()
        self._close()

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        if len(self._listeners) > 1 and self._path is not None:
            # After dropping privileges, the directory may not be writable.
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _execute(
    handle: Callable[[str, dict[str, Any]], dict[str, Any]],
    log: logging.Logger,
    command: str,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    try:
        return {"ok": handle(command, arguments)}
    except AoEError as error:
        return _error_response(error)
    except Exception as error:
        # A bug, or an installation with files missing: it must not end the thread.
        log.exception("%s", command)
        return _error_response(AoEError(command, f"{type(error).__name__}: {error}"))


def _error_response(error: AoEError) -> dict[str, Any]:
    return {
        "error": {
            "exit_code": error.exit_code,
            "what": error.what,
            "why": error.why,
            "fix": error.fix,
        }
    }


def _listen(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(name)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_at(path: Path, kind: str) -> socket.socket:
    # A server that was killed leaves its socket file behind, and bind would fail.
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise BusyError(str(path), f"another {kind} listens there")
    mask = os.umask(0o077)
    try:
        return _listen(str(path))
    except OSError as error:
        raise from_os_error(str(path), error, "Choose another --control") from error
    finally:
        os.umask(mask)


def _is_authorized(client: socket.socket) -> bool:
    # struct ucred { pid, uid, gid }, filled in by the kernel at connect.
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("=iII", raw)
    return user in (0, os.geteuid())


def _read_line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
        part = client.recv(_LINE_LIMIT)
        if not part:
            break
        line += part
    return line


# --- client ---------------------------------------------------------------------------


def find_running(kind: str) -> list[tuple[int, str]]:
    """Find the servers of a kind that run in this network namespace.

    Returns:
        Process ID and socket name of each, for ``send_command``.
    """
    prefix = _PREFIX.format(kind=kind)
    names = re.compile(rf"@({prefix}(\d+)-\w+)$", re.MULTILINE)
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:  # noqa: PTH123 - a file of procfs
        found = names.findall(table.read())
    return sorted((int(number), f"\0{name}") for name, number in found)


def send_command(
    name: str,
    command: str,
    *,
    kind: str,
    timeout: float | None = _RESPONSE_TIMEOUT,
    **arguments: str,
) -> dict[str, Any]:
    """Send a command to a running server and return its result.

    Args:
        name: its socket: a path, or a name from ``find_running``.
        command: the command's name.
        kind: the kind of program, for error messages.
        timeout: seconds to wait for the response; None waits indefinitely.
        arguments: the command's arguments.

    Raises:
        AoEError: the server's own error, or there is no valid response.
    """
    line = msgspec.json.encode({"command": command, **arguments}) + b"\n"
    what = name.removeprefix("\0")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(timeout)
            server.connect(name)
            server.sendall(line)
            with server.makefile("rb") as stream:
                raw = stream.read()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotFoundError(what, f"no {kind} listens there") from error
    except OSError as error:
        raise from_os_error(what, error) from error
    try:
        response = msgspec.json.decode(raw, type=dict[str, dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise AoEError(what, "sent no valid response") from error
    if "error" in response:
        raise _to_exception(response["error"])
    return response["ok"]


def _to_exception(error: dict[str, Any]) -> AoEError:
    classes = {
        each.exit_code: each
        for each in (UsageError, NotFoundError, AccessError, BusyError)
    }
    error_class = classes.get(error["exit_code"], AoEError)
    return error_class(error["what"], error["why"], error["fix"])
