"""Disks with one address on a real network: data goes to one of them, or to none."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AoEError
from aoe.net.netns import Switch
from initiator.disk.disk import Disk
from tests.programs import AOE
from tests.requirements import need_namespaces
from tests.serving import TIMEOUT, finish, ready_line, start

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Namespace

pytestmark = pytest.mark.netns

SIZE = 1 << 20


@pytest.fixture
def switch() -> Iterator[Switch]:
    need_namespaces()
    with Switch() as made:
        yield made


class Site:
    """An initiator, and targets with a disk of their own at one address."""

    def __init__(self, switch: Switch, folder: Path) -> None:
        self.here = switch.add_host()
        self.switch, self._folder = switch, folder
        self._processes: list[subprocess.Popen[str]] = []

    def serve(
        self, name: str, where: Namespace | None = None, content: bytes = b""
    ) -> Namespace:
        """Serve a disk with default options; return where."""
        where = where or self.switch.add_host()
        path = self._folder / name
        if content:
            path.write_bytes(content)
        words = ("e7.3", "aoe0", path, "--force", "--no-state")
        create = () if path.exists() else ("--create", str(SIZE))
        self._processes.append(start(where, "serve", *words, *create))
        ready_line(self._processes[-1])
        return where

    def stop_last(self) -> None:
        finish(self._processes.pop(), signal.SIGKILL)

    def stop(self) -> None:
        for process in self._processes:
            finish(process, signal.SIGTERM)

    def content(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def aoe(self, *words: object) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self.here.run(
            [*AOE, *map(str, words)], capture_output=True, text=True, timeout=60
        )
        return done


@pytest.fixture
def site(switch: Switch, tmp_path: Path) -> Iterator[Site]:
    made = Site(switch, tmp_path)
    yield made
    made.stop()


def test_a1_copy_to_an_address_with_two_disks_writes_to_none(
    site: Site, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\7" * SIZE)
    site.serve("one")
    site.serve("other")
    done = site.aoe("copy", source, "e7.3", "-i", "aoe0")
    assert done.returncode == 1
    assert "different disks at one address" in done.stderr
    assert done.stderr.count(" on aoe0 serves ") >= 2
    assert not any(site.content("one") + site.content("other"))


def test_a1_stat_shows_two_disks_at_one_address(site: Site) -> None:
    site.serve("one")
    site.serve("other")
    done = site.aoe("stat", "e7.3", "-i", "aoe0", "--json")
    [device] = json.loads(done.stdout)["devices"]
    assert device["state"] == "down"
    first, second = device["refused"]
    assert first["mac"] != second["mac"]
    assert first["serial"] != second["serial"]
    text = site.aoe("stat", "e7.3", "-i", "aoe0").stdout
    assert first["mac"] in text
    assert second["mac"] in text


@pytest.mark.parametrize(
    "words",
    [
        "trim e7.3 --offset 0 --length 1M --destroy",
        "config set e7.3 mine",
        "reserve set e7.3",
        "identify e7.3",
        "read e7.3 /dev/null",
    ],
)
def test_a1_a_command_refuses_an_address_with_two_disks(site: Site, words: str) -> None:
    for name in ("one", "other"):
        site.serve(name, content=b"\1" * SIZE)
    done = site.aoe(*words.split(), "-i", "aoe0")
    assert done.returncode == 1, done.stderr
    assert "different disks at one address" in done.stderr
    assert site.content("one") + site.content("other") == b"\1" * (2 * SIZE)


def test_a1_a_second_disk_does_not_get_data_of_an_open_one(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.serve("one")
    with site.here.enter(), Disk.open("e7.3", "aoe0") as disk:
        disk.write(0, b"\1" * (SIZE // 2))
        site.serve("other")
        disk.host.run_until(lambda: False, 0.2)
        disk.write(SIZE // 2, b"\1" * (SIZE // 2))
        assert disk.read(0, SIZE) == b"\1" * SIZE
    assert site.content("one") == b"\1" * SIZE
    assert not any(site.content("other"))
    assert "serves another disk" in caplog.text


@pytest.mark.parametrize("is_same_host", [True, False])
def test_a1_a_disk_that_takes_over_an_address_gets_no_data(
    site: Site, *, is_same_host: bool
) -> None:
    where = site.serve("one")
    with site.here.enter(), Disk.open("e7.3", "aoe0") as disk:
        disk.write(0, b"\1" * 4096)
        site.stop_last()
        site.serve("other", where if is_same_host else None)
        if is_same_host:
            with pytest.raises(AoEError, match="serves another disk"):
                disk.write(4096, b"\1" * 4096)
            with pytest.raises(AoEError, match="serves another disk"):
                disk.read(0, 4096)
            site.stop_last()
            site.serve("one", where)
            disk.host.run_until(lambda: False, 0.2)
        else:
            disk.host.run_until(lambda: False, 0.2)
            site.serve("one", where)
        disk.write(4096, b"\2" * 4096)
    assert site.content("one")[:8192] == b"\1" * 4096 + b"\2" * 4096
    assert not any(site.content("other"))


def test_a1_the_disk_is_used_again_after_its_target_restarts(site: Site) -> None:
    where = site.serve("one")
    with site.here.enter(), Disk.open("e7.3", "aoe0") as disk:
        for number in range(3):
            disk.write(0, bytes([number]) * 4096)
            site.stop_last()
            site.serve("one", where)
            assert disk.read(0, 4096) == bytes([number]) * 4096
        assert disk.host.driver.devices[disk.address].refusals == {}


def test_a2_forged_announcements_do_not_disturb_a_disk(site: Site) -> None:
    """They come from another host, while data is written and read."""
    site.serve("one")
    forger = site.switch.add_host()
    script = f"""
from aoe.config import Config
from aoe.header import Header, Command, Flag
from aoe.net.link import open_link
with open_link("aoe0") as link:
    for number in range(3000):
        frame = bytearray(60)
        mac = b"\\2\\xee" + number.to_bytes(4, "big")
        Header(bytes.fromhex("{"ff" * 6}"), mac, 7, 3, Command.CONFIG, 0,
               Flag.RESPONSE).pack_into(frame)
        Config(buffer_count=64, firmware=1, sector_count=2).pack_into(frame)
        link.send(frame)
"""
    with site.here.enter(), Disk.open("e7.3", "aoe0") as disk:
        disk.write(0, b"\1" * SIZE)
        forged = forger.popen([sys.executable, "-c", script])
        for number in range(20):
            disk.write(0, bytes([number]) * SIZE)
            assert disk.read(0, SIZE) == bytes([number]) * SIZE
        assert forged.wait(TIMEOUT) == 0
        device = disk.host.driver.devices[disk.address]
        assert len(device.targets) == 1
        assert len(device.candidates) <= 8
