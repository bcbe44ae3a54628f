from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aoe.common import control
from aoe.errors import AccessError, AoEError, BusyError, NotFoundError, UsageError
from target.admin.control import ControlServer, find_targets, send_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def respond(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if command == "fail":
        raise BusyError("this", "is busy", "Wait")
    if command == "crash":
        raise ZeroDivisionError("a mistake")
    return {"command": command, "arguments": arguments, "padding": "x" * 100_000}


@contextmanager
def listening(path: Path) -> Iterator[ControlServer]:
    with ControlServer(respond, path) as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control"
    with listening(path):
        yield path


def raw(path: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return msgspec.json.decode(stream.read(), type=dict[str, Any])


def test_a_long_response_is_received_whole(path: Path) -> None:
    response = send_command(str(path), "status", address="e0.0")
    assert response["command"] == "status"
    assert response["arguments"] == {"address": "e0.0"}
    assert len(response["padding"]) == 100_000


@pytest.mark.usefixtures("path")
def test_a_target_is_found_in_its_network_namespace() -> None:
    [name] = [name for number, name in find_targets() if number == os.getpid()]
    assert send_command(name, "status")["command"] == "status"


def test_an_error_keeps_its_class_and_text(path: Path) -> None:
    with pytest.raises(BusyError) as caught:
        send_command(str(path), "fail")
    assert str(caught.value) == "this: is busy. Wait"


def test_an_unexpected_exception_is_reported_and_the_server_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AoEError, match="crash: ZeroDivisionError: a mistake"):
        send_command(str(path), "crash")
    assert "Traceback" in caplog.text
    assert send_command(str(path), "status")["command"] == "status"


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b"[]", b'{"address": 1}\n', b"\xff\n", b"x" * 10_000]
)
def test_an_invalid_request_is_refused_and_the_next_one_served(
    path: Path, line: bytes
) -> None:
    assert raw(path, line)["error"]["exit_code"] == UsageError.exit_code
    assert send_command(str(path), "status")["command"] == "status"


def test_a_silent_client_delays_others_for_the_timeout_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_REQUEST_TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(path))
        assert send_command(str(path), "status")["command"] == "status"


def test_other_users_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As for a target of another user, asked by a user other than root.
    monkeypatch.setattr(control, "_is_authorized", lambda _: False)
    with pytest.raises(AccessError, match="belongs to another user"):
        send_command(str(path), "status")


def test_the_socket_file_of_a_killed_target_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with pytest.raises(NotFoundError, match="no target listens there"):
        send_command(str(path), "status")
    with listening(path):
        assert path.stat().st_mode & 0o077 == 0
        assert send_command(str(path), "status")
    assert not path.exists()


def test_a_path_in_use_is_not_replaced(path: Path, tmp_path: Path) -> None:
    with pytest.raises(AoEError):
        ControlServer(respond, path)
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(AoEError):
        ControlServer(respond, file)
    assert file.read_text() == "precious"
    assert send_command(str(path), "status")


def test_a_scheduled_command_is_executed(tmp_path: Path) -> None:
    done = threading.Event()

    def handle(command: str, _: dict[str, Any]) -> dict[str, Any]:
        assert command == "reload"
        done.set()
        return {}

    with ControlServer(handle, tmp_path / "control") as server:
        server.schedule("reload")
        assert done.wait(10)
