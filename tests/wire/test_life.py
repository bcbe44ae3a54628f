"""Interfaces disappear and reappear during a copy, which is complete."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from aoe.net.interfaces import rename, set_down, set_mtu, set_up
from aoe.net.netns import Switch
from tests.programs import AOE, AOE_TARGET
from tests.requirements import need_namespaces
from tests.serving import TIMEOUT, finish, ready_line, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aoe.net.netns import Namespace

pytestmark = pytest.mark.netns

MIB = 1 << 20
SIZE = 96 * MIB
SLOWLY = ("--filter", "delay:seconds=0.01")
"""Delay, so that a copy is still running after the event."""
MAC = bytes.fromhex("525400ae0001")
LONG = 120.0


class Rig:
    """A target and an initiator at a switch, and a copy between them."""

    def __init__(self, switch: Switch, directory: Path) -> None:
        self.switch = switch
        self.target = switch.add_host(MAC)
        self.initiator = switch.add_host()
        self.image = directory / "disk.img"
        self.file = directory / "file"
        self.served: subprocess.Popen[str]

    def serve(self, *options: str) -> None:
        words = ("serve", "e0.0", self.switch.interface, self.image, *options)
        self.served = start(self.target, *words)
        assert ready_line(self.served).startswith("e0.0 ")

    def status(self) -> dict[str, Any]:
        command = [*AOE_TARGET, "status", "--json"]
        done = self.target.run(command, capture_output=True, text=True, check=True)
        document: dict[str, Any] = json.loads(done.stdout)
        [target] = document["targets"]
        return dict(target)

    def moved(self) -> int:
        [export] = self.status()["exports"]
        counters = export["interfaces"][0]["statistics"]
        return int(counters["read_bytes"] + counters["written_bytes"])

    def wait_for_more(self, least: int) -> int:
        """Wait until at least ``least`` bytes have been transferred."""
        end = time.monotonic() + LONG
        while (moved := self.moved()) < least:
            assert time.monotonic() < end
        return moved

    def copy(self, *words: object) -> subprocess.Popen[str]:
        command = [*AOE, "copy", *map(str, words)]
        child: subprocess.Popen[str] = self.initiator.popen(
            [*command, "-i", self.switch.interface],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return child


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    need_namespaces()
    with Switch(9000) as switch:
        yield Rig(switch, tmp_path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_random(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))


def flap(rig: Rig) -> None:
    set_down("aoe0", rig.target.pid)
    time.sleep(0.3)
    set_up("aoe0", rig.target.pid)


def narrow(rig: Rig) -> None:
    # Only at the target's end: the initiator gets only the announcement.
    before = rig.moved()
    set_mtu("aoe0", 1500, rig.target.pid)
    rig.wait_for_more(before + MIB)
    set_mtu("aoe0", 9000, rig.target.pid)


def remove(rig: Rig) -> None:
    rig.switch.detach(rig.target)
    time.sleep(0.3)
    rig.switch.attach(rig.target, MAC)


@pytest.mark.parametrize("event", [flap, narrow, remove])
@pytest.mark.parametrize("direction", ["read", "write"])
def test_copy_survives(rig: Rig, direction: str, event: Callable[[Rig], None]) -> None:
    source, copied = (
        (rig.image, rig.file) if direction == "read" else (rig.file, rig.image)
    )
    make_random(source)
    create = () if direction == "read" else ("--create", str(SIZE))
    rig.serve(*SLOWLY, *create)
    words = ("e0.0", rig.file) if direction == "read" else (rig.file, "e0.0")
    copying = rig.copy(*words)
    rig.wait_for_more(SIZE // 20)
    event(rig)
    assert copying.poll() is None
    output, errors = copying.communicate(timeout=LONG)
    assert (copying.returncode, errors) == (0, "")
    assert "96 MiB" in output
    assert sha256(copied) == sha256(source)
    finish(rig.served, signal.SIGTERM)
    assert rig.served.returncode == 0


def log_of(rig: Rig) -> list[str]:
    return finish(rig.served, signal.SIGTERM).splitlines()


def wait_until(rig: Rig, state: str, **facts: object) -> None:
    end = time.monotonic() + TIMEOUT
    while True:
        [interface] = rig.status()["interfaces"]
        if interface["state"] == state and interface.items() >= facts.items():
            return
        assert time.monotonic() < end, interface


def test_interface_changes_are_logged_and_survived(rig: Rig) -> None:
    rig.image.write_bytes(bytes(MIB))
    rig.serve()
    set_down("aoe0", rig.target.pid)
    wait_until(rig, "down")
    set_up("aoe0", rig.target.pid)
    wait_until(rig, "up")
    set_mtu("aoe0", 500, rig.target.pid)
    wait_until(rig, "gone")
    set_mtu("aoe0", 4000, rig.target.pid)
    wait_until(rig, "up", mtu=4000, sectors_per_frame=7)
    rename_while_down(rig.target, "aoe0", "lan0")
    wait_until(rig, "up", name="lan0")
    rename_while_down(rig.target, "lan0", "aoe0")
    wait_until(rig, "up", name="aoe0")
    rig.switch.detach(rig.target)
    wait_until(rig, "gone")
    rig.switch.attach(rig.target, bytes.fromhex("525400ae0007"))
    wait_until(rig, "up", mac="52:54:00:ae:00:07", mtu=9000)
    assert discover(rig)[0]["mac"] == "52:54:00:ae:00:07"
    log = "\n".join(log_of(rig))
    for words in (
        "aoe0: is down",
        "aoe0: is up",
        "an MTU of 500 has no room for a sector, waiting",
        "aoe0: available again, MTU 4000",
        "aoe0: renamed to lan0",
        "aoe0: interface is gone, waiting for it to reappear",
        "aoe0: available again, MTU 9000",
    ):
        assert words in log
    assert rig.served.returncode == 0


def rename_while_down(host: Namespace, name: str, new: str) -> None:
    # Older kernels rename an interface only while it is down.
    set_down(name, host.pid)
    rename(name, new, host.pid)
    set_up(new, host.pid)


def discover(rig: Rig) -> list[dict[str, Any]]:
    command = [*AOE, "discover", "-i", "aoe0", "--json"]
    done = rig.initiator.run(command, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["targets"]
    return found
