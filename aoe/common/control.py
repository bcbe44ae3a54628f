"""How others ask a program of ours that runs: a socket, a line of JSON each way.

::

    {"command": "clear-mask", "address": "e0.0"}
    {"ok": {...}}    {"error": {"exit_code": 3, "what": ..., "why": ..., "fix": ...}}

Every one listens on an abstract name that belongs to the network namespace, as its AoE
addresses do, so that all of a kind can be found: targets, for ``aoe-target status``;
and on a path, where one is given. Root is listened to, and the user that it runs as.
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
_PATIENCE: Final = 2.0
"""Seconds that somebody who asks gets to do so."""
_LONGEST: Final = 60.0
"""Seconds that an answer may take: a reload opens disks and asks the wire."""


class ControlServer(threading.Thread):
    """Answers those who ask, one after the other, in a thread of its own.

    Args:
        ask: answers a command, given its name and its arguments; runs in the thread.
        path: a socket to listen on as well.
        kind: what we are, as ``find_running`` looks for it.
        log: told of our own mistakes.

    Raises:
        BusyError: there is something at the path.
        AoEError: the socket cannot be made there.
    """

    def __init__(
        self,
        ask: Callable[[str, dict[str, Any]], dict[str, Any]],
        path: Path | None = None,
        *,
        kind: str,
        log: logging.Logger,
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._ask = partial(_answer, ask, log)
        self._kind = kind
        self._path = path
        self._queue: list[str] = []
        self._awake, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Two containers may share the network, and have the same process ids.
        prefix = _PREFIX.format(kind=kind)
        name = f"\0{prefix}{os.getpid()}-{secrets.token_hex(4)}"
        self._listeners = [_listen(name)]
        try:
            if path is not None:
                self._listeners.append(_listen_at(path, kind))
        except BaseException:
            self._close()
            raise

    def request(self, command: str) -> None:
        """Have a command done that nobody waits for; from anywhere."""
        self._queue.append(command)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wakeup, b"\0")

    def run(self) -> None:
        """Answer until ``close``."""
        poller = select.poll()
        for fd in (self._awake, *(each.fileno() for each in self._listeners)):
            poller.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._awake in ready:
                os.read(self._awake, 4096)
            while self._queue:
                command = self._queue.pop(0)
                if not command:
                    return
                # What became of it is in the log.
                self._ask(command, {})
            for listener in self._listeners:
                if listener.fileno() in ready:
                    self._hear(listener)

    def _hear(self, listener: socket.socket) -> None:
        # A caller that is slow, or gone by now, is no reason to end.
        with contextlib.suppress(OSError), listener.accept()[0] as caller:
            caller.settimeout(_PATIENCE)
            line = _read_line(caller)
            if _may_ask(caller):
                reply = self._reply(line)
            else:
                reply = _refusal(AccessError(self._kind, "belongs to another user"))
            caller.sendall(msgspec.json.encode(reply) + b"\n")

    def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            command = str(request.pop("command"))
        except (msgspec.MsgspecError, KeyError):
            return _refusal(UsageError("control", "not a command"))
        return self._ask(command, request)

    def close(self) -> None:
        """End the thread, and give up the sockets."""
        if self.is_alive():
            self.request("")
            self.join()
        self._close()

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        if len(self._listeners) > 1 and self._path is not None:
            # The user that we have become may not be allowed to.
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._awake)
        os.close(self._wakeup)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(
    ask: Callable[[str, dict[str, Any]], dict[str, Any]],
    log: logging.Logger,
    command: str,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    try:
        return {"ok": ask(command, arguments)}
    except AoEError as error:
        return _refusal(error)
    except Exception as error:
        # A mistake of ours, or half an installation: it must not end the thread.
        log.exception("%s", command)
        return _refusal(AoEError(command, f"{type(error).__name__}: {error}"))


def _refusal(error: AoEError) -> dict[str, Any]:
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
    # What is left of a target that was killed answers nobody, and is in the way.
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            try:
                caller.connect(str(path))
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


def _may_ask(caller: socket.socket) -> bool:
    # The kernel vouches for who it is.
    raw = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("=iII", raw)
    return user in (0, os.geteuid())


def _read_line(caller: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
        part = caller.recv(_LINE_LIMIT)
        if not part:
            break
        line += part
    return line


# --- the other end --------------------------------------------------------------------


def find_running(kind: str) -> list[tuple[int, str]]:
    """Find those of a kind that run in this network namespace.

    Returns:
        For each the process id, and the name of its socket, as ``ask`` takes it.
    """
    prefix = _PREFIX.format(kind=kind)
    names = re.compile(rf"@({prefix}(\d+)-\w+)$", re.MULTILINE)
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:  # noqa: PTH123 - a table of the kernel's
        found = names.findall(table.read())
    return sorted((int(number), f"\0{name}") for name, number in found)


def send_command(
    name: str,
    command: str,
    *,
    kind: str,
    timeout: float | None = _LONGEST,
    **arguments: str,
) -> dict[str, Any]:
    """Ask one that runs, and wait for its answer.

    Args:
        name: its socket: a path, or what ``find_running`` says.
        command: what is asked for.
        kind: what it is.
        timeout: seconds that the answer may take; None is for ever.
        arguments: those of the command.

    Raises:
        AoEError: what it says, or that it does not.
    """
    line = msgspec.json.encode({"command": command, **arguments}) + b"\n"
    what = name.removeprefix("\0")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(timeout)
            server.connect(name)
            server.sendall(line)
            with server.makefile("rb") as answer:
                raw = answer.read()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotFoundError(what, f"no {kind} listens there") from error
    except OSError as error:
        raise from_os_error(what, error) from error
    try:
        reply = msgspec.json.decode(raw, type=dict[str, dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise AoEError(what, "gave no answer") from error
    if "error" in reply:
        raise _told(reply["error"])
    return reply["ok"]


def _told(error: dict[str, Any]) -> AoEError:
    kinds = {
        kind.exit_code: kind
        for kind in (UsageError, NotFoundError, AccessError, BusyError)
    }
    kind = kinds.get(error["exit_code"], AoEError)
    return kind(error["what"], error["why"], error["fix"])
