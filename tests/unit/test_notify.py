from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from aoe.errors import UsageError
from target.admin.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """A service manager that receives notifications."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        self.socket.setblocking(False)

    def received(self) -> list[str]:
        received = []
        while True:
            try:
                received.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return received


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "notify")
    return f"@pyaoe-test-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    with manager.socket:
        yield manager


def test_notifications_from_start_to_stop(address: str, manager: Manager) -> None:
    with Notifier(address) as notifier:
        notifier.ready("2 disks")
        notifier.reloading(12.000_001_5)
        notifier.ready()
        notifier.status("one line\nand another")
        notifier.stopping()
    assert manager.received() == [
        "READY=1\nSTATUS=2 disks",
        "RELOADING=1\nMONOTONIC_USEC=12000001",
        "READY=1",
        "STATUS=one line and another",
        "STOPPING=1",
    ]


def test_keep_alive_is_sent_when_due(address: str, manager: Manager) -> None:
    with Notifier(address, watchdog_interval=5.0) as notifier:
        due = []
        for now in (100.0, 101.0, 104.9, 105.0, 111.0):
            notifier.tick(now)
            due.append(notifier.next_timeout())
    assert due == [105.0, 105.0, 105.0, 110.0, 116.0]
    assert manager.received() == ["WATCHDOG=1"] * 3


def test_first_keep_alive_is_sent_at_once(address: str, manager: Manager) -> None:
    with Notifier(address, watchdog_interval=5.0) as notifier:
        assert notifier.next_timeout() == 0.0
        notifier.tick(7.0)
    assert manager.received() == ["WATCHDOG=1"]


def test_nothing_is_sent_without_notify_socket() -> None:
    with Notifier("", watchdog_interval=1.0) as notifier:
        notifier.ready("here")
        notifier.tick(5.0)
        notifier.stopping()
        assert notifier.next_timeout() is None


def test_environment_is_read_and_cleared() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    with Notifier.from_environment(environ) as notifier:
        assert notifier.watchdog_interval == 1.5
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "many"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-4"},
        {},
    ],
)
def test_watchdog_of_another_process_or_none_is_ignored(
    variables: dict[str, str],
) -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", **variables}
    with Notifier.from_environment(environ) as notifier:
        assert notifier.next_timeout() is None


@pytest.mark.parametrize("address", ["relative", "@", "/"])
def test_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(
        UsageError, match=r"^NOTIFY_SOCKET .*: neither an absolute path"
    ):
        Notifier(address)


def test_missing_manager_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Notifier(str(tmp_path / "gone"), watchdog_interval=1.0) as notifier:
        notifier.ready()
        notifier.tick(1.0)
        notifier.tick(9.0)
    (received,) = caplog.messages
    assert received.startswith("service manager: READY=1 not sent: ")


def test_full_socket_does_not_block(
    address: str, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    with Notifier(address) as notifier:
        for _ in range(5000):
            notifier.status("x" * 200)
    assert len(caplog.messages) == 1
    assert manager.received()


def test_notifications_after_close_are_discarded(
    address: str, manager: Manager
) -> None:
    notifier = Notifier(address)
    notifier.close()
    notifier.close()
    notifier.stopping()
    assert manager.received() == []
