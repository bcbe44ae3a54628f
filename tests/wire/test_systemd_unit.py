"""The target runs within the restrictions of its unit; systemd is not needed."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.ata import Opcode
from tests.asking import ata, config
from tests.programs import AOE_TARGET
from tests.requirements import need, program
from tests.serving import TIMEOUT, client, finish, ready_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

CHECKOUT = Path(__file__).resolve().parents[2]
UNIT = CHECKOUT / "target/systemd/aoe-target.service"
CONFIG = """
[[export]]
address = "e7.3"
interfaces = "{interface}"
path = "disk.img"
"""
_CALL = re.compile(r"^\d+ +(\w+)\((.*)", re.MULTILINE)
"""A system call and its arguments in a log of strace."""


def values(key: str) -> list[str]:
    """Return all values of a key of the unit."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def calls(wire: Wire, tmp_path: Path) -> list[tuple[str, str]]:
    """Run a target as the unit does, and return its system calls."""
    need("strace", "systemd-analyze")
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (tmp_path / "state").mkdir()
    settings = tmp_path / "aoe-target.toml"
    settings.write_text(CONFIG.format(interface=wire.interface))
    log = tmp_path / "calls"
    strace = ["strace", "-D", "-f", "-o", str(log)]
    serve = [*AOE_TARGET, "serve", "--config", str(settings)]
    process: subprocess.Popen[str] = wire.target.popen(
        [*strace, *serve],
        cwd=CHECKOUT,
        env={
            "PATH": "/usr/bin:/bin",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "STATE_DIRECTORY": str(tmp_path / "state"),
            "WATCHDOG_USEC": "1000000",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready_line(process)
    _use(wire)
    settings.write_text(f"{settings.read_text()}read_only = true\n")
    process.send_signal(signal.SIGHUP)
    _until(lambda: "read-only" in _status(wire), "the reload took effect")
    finish(process, signal.SIGTERM)
    assert process.returncode == 0
    _until(lambda: "exited with 0" in log.read_text(), "strace has ended")
    return _CALL.findall(log.read_text())


def _use(wire: Wire) -> None:
    with client(wire) as requester:
        for request in (
            config(3, b"claimed"),
            ata(Opcode.WRITE_EXT, lba=1, data=bytes(512)),
            ata(Opcode.READ_EXT, lba=1),
            ata(Opcode.FLUSH_EXT),
        ):
            assert requester.ask(request)


def _status(wire: Wire) -> str:
    done = wire.target.run(
        [*AOE_TARGET, "status"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    return str(done.stdout)


def _until(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@cache
def _sets() -> dict[str, set[str]]:
    """Return systemd's system call sets by name."""
    command = [program("systemd-analyze"), "--no-pager", "syscall-filter"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sets: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            members = sets.setdefault(line.strip(), set())
        elif line.strip() and line[:1] == " " and "#" not in line:
            members.add(line.strip())
    return sets


def _members(name: str) -> set[str]:
    members = _sets()[name]
    inner = (_members(member) for member in members if member[0] == "@")
    return members.union(*inner)


def _allowed() -> set[str]:
    """Return the system calls that the unit allows; its lines add and remove calls."""
    allowed: set[str] = set()
    for line in values("SystemCallFilter"):
        named = set().union(*map(_members, line.removeprefix("~").split()))
        allowed = allowed - named if line[0] == "~" else allowed | named
    return allowed


def test_unit_allows_the_system_calls_of_a_target(calls: list[tuple[str, str]]) -> None:
    # Root drops its privileges; the unit's user has none.
    used = {name for name, _ in calls} - {"capset"}
    assert {"sendto", "pwritev", "fdatasync"} & used
    assert used - _allowed() == set()

    families = {rest.partition(",")[0] for name, rest in calls if name == "socket"}
    assert "AF_PACKET" in families
    assert families <= set(values("RestrictAddressFamilies")[0].split())

    # MemoryDenyWriteExecute refuses these.
    assert values("MemoryDenyWriteExecute") == ["yes"]
    executable = [
        (name, rest)
        for name, rest in calls
        if "PROT_EXEC" in rest and (name == "mprotect" or "PROT_WRITE" in rest)
    ]
    assert executable == []
