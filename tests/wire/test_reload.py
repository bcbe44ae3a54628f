"""Reloads under load: other exports are not disturbed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from aoe.errors import UsageError
from aoe.identify import Identity
from aoe.net.link import open_link
from aoe.net.netns import Switch
from initiator.disk.disk import Disk
from tests.asking import ata, config
from tests.programs import AOE_TARGET
from tests.requirements import need_namespaces
from tests.serving import TIMEOUT, Client, finish, start

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.link import Link
    from aoe.net.netns import Namespace

pytestmark = pytest.mark.netns

READ, WRITE, IDENTIFY, FLUSH = 0x24, 0x34, 0xEC, 0xE7
MIB = 1 << 20
MAC = bytes.fromhex("525400ae0001")
LONGEST_PAUSE = 1.0


class Served:
    """A target with a configuration file, and its commands."""

    def __init__(self, switch: Switch, directory: Path) -> None:
        self.host = switch.add_host(MAC)
        self.directory = directory
        self.file = directory / "aoe.toml"
        self.exports: dict[str, str] = {}
        self.is_stopping = False
        self.process: subprocess.Popen[str]

    def image(self, name: str, size: int = MIB) -> Path:
        path = self.directory / name
        path.write_bytes(os.urandom(size))
        return path

    def write(self, **exports: str) -> None:
        """Write a configuration file with an export for each slot, with these lines."""
        self.exports |= exports
        tables = [
            f'[[export]]\naddress = "e7.{name[1:]}"\n{lines}\n'
            for name, lines in self.exports.items()
            if lines
        ]
        self.file.write_text('[defaults]\ninterfaces = "aoe0"\n' + "\n".join(tables))

    def start(self, count: int) -> list[str]:
        self.process = start(self.host, "serve", "--config", self.file)
        assert self.process.stdout is not None
        return [self.process.stdout.readline() for _ in range(count)]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [*AOE_TARGET, *map(str, words)]
        return self.host.run(command, capture_output=True, text=True, timeout=60)

    def reload(self) -> str:
        done = self.run("reload")
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    def exports_now(self) -> dict[str, dict[str, Any]]:
        [target] = json.loads(self.run("status", "--json").stdout)["targets"]
        return {export["address"]: export for export in target["exports"]}


@pytest.fixture
def switch() -> Iterator[Switch]:
    need_namespaces()
    with Switch() as made:
        yield made


@pytest.fixture
def served(switch: Switch, tmp_path: Path) -> Iterator[Served]:
    served = Served(switch, tmp_path)
    yield served
    if not served.is_stopping:
        served.process.send_signal(signal.SIGTERM)
    finish(served.process)
    assert served.process.returncode == 0


@pytest.fixture
def asking(switch: Switch) -> Iterator[Client]:
    with open_at(switch.add_host()) as link:
        yield Client(link, MAC)


def open_at(host: Namespace) -> Link:
    with host.enter():
        return open_link("aoe0", responses=True)


def at(slot: int, request: bytes) -> bytes:
    return request[:18] + bytes((slot,)) + request[19:]


def announced(client: Client, slot: int) -> bytes:
    """Return the next announcement of this slot."""
    while (frame := client.receive_announcement())[18] != slot:
        pass
    return frame


def size_of(client: Client, slot: int) -> int:
    """Return the size from IDENTIFY, ignoring announcements."""
    response = client.ask(at(slot, ata(IDENTIFY, aflags=0)))
    return int.from_bytes(response[36 + 200 : 36 + 208], "little") * 512


def epoch_of(client: Client, slot: int) -> int:
    """Return the epoch from IDENTIFY."""
    return Identity.unpack(client.ask(at(slot, ata(IDENTIFY, aflags=0)))[36:]).epoch


class Load:
    """A load of reads, one after the other."""

    def __init__(self, switch: Switch) -> None:
        # On a host of its own, which receives only its responses.
        self._link = open_at(switch.add_host())
        self._client = Client(self._link, MAC)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        self.longest = 0.0
        self.wrong: list[bytes] = []

    def _run(self) -> None:
        request = at(0, ata(READ, 5))
        while not self._ending.is_set():
            begin = time.monotonic()
            response = self._client.ask(request)
            self.longest = max(self.longest, time.monotonic() - begin)
            self.count += 1
            if response[24:28] != bytes((0x40, 0, 0, 0x40)):
                self.wrong.append(response)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._link.close()


@contextmanager
def undisturbed(switch: Switch) -> Iterator[None]:
    """Check that a load on slot 0 has no errors and no pauses meanwhile."""
    with Load(switch) as load:
        yield
    assert load.wrong == []
    assert load.count > 100
    assert load.longest < LONGEST_PAUSE


def test_exports_are_added_resized_replaced_and_removed_under_load(
    served: Served, switch: Switch, asking: Client
) -> None:
    zero, one, two = (served.image(name) for name in ("0.img", "1.img", "2.img"))
    served.write(s0=f"path = '{zero}'", s1=f"path = '{one}'")
    ready = served.start(2)
    assert ready[0].startswith("e7.0 1 MiB on aoe0 (")
    assert ready[1].startswith("e7.1 1 MiB on aoe0 (")
    with undisturbed(switch):
        served.write(s2=f"path = '{two}'")
        assert served.reload() == "added e7.2\n"
        announced(asking, 2)
        assert size_of(asking, 2) == MIB

        os.truncate(two, 3 * MIB)
        assert served.reload() == "resized e7.2\n"
        announced(asking, 2)
        assert size_of(asking, 2) == 3 * MIB
        os.truncate(two, MIB)
        assert served.reload() == "resized e7.2\n"
        assert size_of(asking, 2) == MIB

        write = at(2, ata(WRITE, 1, aflags=0x41, data=bytes(512)))
        assert asking.ask(write)[27] == 0x40
        served.write(s2=f"path = '{two}'\nread_only = true")
        assert served.reload() == "changed e7.2\n"
        assert asking.ask(write)[25:28] == b"\x04\x01\x41"
        served.write(s2=f"path = '{two}'")
        assert served.reload() == "changed e7.2\n"
        assert asking.ask(write)[27] == 0x40

        served.write(s2="")
        assert served.reload() == "removed e7.2\n"
        assert asking.ask(write, 0.2) == b""
        assert served.reload() == "nothing has changed\n"
    # The unchanged export was not reopened: its counters were not reset.
    counters = served.exports_now()["e7.0"]["interfaces"][0]["statistics"]
    assert counters["reads"] > 100
    assert (two.read_bytes()[512:1024], two.stat().st_size) == (bytes(512), MIB)


def test_resized_disk_is_reopened(served: Served, switch: Switch) -> None:
    """A larger disk does not disturb its clients; a smaller one has a new end."""
    image = served.image("0.img", 2 * MIB)
    served.write(s0=f"path = '{image}'")
    served.start(1)
    sizes: list[int] = []
    with switch.add_host().enter(), Disk.open("e7.0", "aoe0") as disk:
        disk.on_resize(sizes.append)
        for size in (3 * MIB, MIB):
            os.truncate(image, size)
            assert served.reload() == "resized e7.0\n"
            assert disk.host.run_until(lambda: disk.size == size, TIMEOUT)  # noqa: B023 - called at once
            disk.write(size - 3, b"end")
        with pytest.raises(UsageError, match="beyond the disk's 1048576 bytes"):
            disk.write(2 * MIB, b"too far")
    assert sizes == [3 * MIB, MIB]
    assert image.read_bytes()[-3:] == b"end"


def test_image_can_move_to_another_address(served: Served, asking: Client) -> None:
    zero, one = served.image("0.img"), served.image("1.img")
    served.write(s0=f"path = '{zero}'", s1=f"path = '{one}'")
    served.start(2)
    served.write(s1="", s2=f"path = '{one}'")
    assert served.reload() == "added e7.2; removed e7.1\n"
    assert asking.ask(at(1, ata(READ)), 0.2) == b""
    served.write(s0=f"path = '{one}'", s2=f"path = '{zero}'")
    done = served.run("reload")
    assert done.returncode == 5
    assert "served or in use by another program" in done.stderr
    assert {a: e["path"] for a, e in served.exports_now().items()} == {
        "e7.0": str(zero),
        "e7.2": str(one),
    }


def test_failed_reload_is_rolled_back(served: Served, asking: Client) -> None:
    zero, one = served.image("0.img"), served.image("1.img")
    served.write(s0=f"path = '{zero}'", s1=f"path = '{one}'")
    served.start(2)
    before = served.exports_now()
    for lines, code, words in (
        ("path = 'missing.img'", 3, "missing.img: no such file"),
        (f"path = '{one}'\nreadonly = true", 2, "Did you mean read_only?"),
        (f"path = '{one}'\ninterfaces = 'eth9'", 3, "eth9: no such interface"),
        (f"path = '{one}'\noffset = '9M'", 2, "the window ends at"),
        (f"path = '{zero}'", 5, "served or in use"),
    ):
        served.write(s1=lines)
        done = served.run("reload")
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        after = served.exports_now()
        assert {a: e["path"] for a, e in after.items()} == {
            a: e["path"] for a, e in before.items()
        }
        assert asking.ask(at(1, ata(READ)))[27] == 0x40


def test_sighup_reloads_and_logs_the_changes(served: Served, asking: Client) -> None:
    zero = served.image("0.img")
    served.write(s0=f"path = '{zero}'")
    served.start(1)
    served.write(s3=f"path = '{served.image('3.img')}'")
    served.process.send_signal(signal.SIGHUP)
    announced(asking, 3)
    served.file.write_text("[[export")
    served.process.send_signal(signal.SIGHUP)
    assert served.process.stderr is not None
    assert served.process.stderr.readline() == "aoe-target: reload: added e7.3\n"
    assert "aoe.toml: not TOML: " in served.process.stderr.readline()


def test_client_state_survives_a_replacement_and_can_be_cleared(
    served: Served, asking: Client
) -> None:
    zero = served.image("0.img")
    for extra in ("", "\nkeep_state = false"):
        served.write(s0=f"path = '{zero}'{extra}")
        served.start(1)
        assert asking.ask(at(0, config(4, b"owner")))[32:37] == b"owner"
        served.write(s0=f"path = '{zero}'{extra}\nmodel = 'other'")
        assert served.reload() == "changed e7.0\n"
        while announced(asking, 0)[32:37] != b"owner":
            pass
        assert served.run("clear-config", "e7.0").returncode == 0
        assert asking.ask(at(0, config(0)))[30:32] == b"\0\0"
        if not extra:
            finish(served.process, signal.SIGTERM)


def test_reload_without_a_configuration_file_checks_sizes(
    served: Served, asking: Client
) -> None:
    image = served.directory / "disk.img"
    served.process = start(
        served.host, "serve", "e7.0", "aoe0", image, "--create", "1M"
    )
    assert served.process.stdout is not None
    served.process.stdout.readline()
    os.truncate(image, 2 * MIB)
    assert served.reload() == "resized e7.0\n"
    assert size_of(asking, 0) == 2 * MIB


def test_replaced_image_of_the_same_size_is_reopened(
    served: Served, asking: Client
) -> None:
    image, new = served.image("0.img"), served.image("new.img")
    served.write(s0=f"path = '{image}'")
    served.start(1)
    content = new.read_bytes()
    write = at(0, ata(WRITE, 1, aflags=0x41, data=bytes(512)))
    assert asking.ask(write)[27] == 0x40
    new.rename(image)
    # The deleted file is still there, but what is written to it is gone at the end.
    assert asking.ask(at(0, ata(READ, 1)))[36:] == bytes(512)
    assert asking.ask(at(0, ata(FLUSH, count=0)))[27] & 1
    assert asking.ask(write)[27] & 1
    assert served.process.stderr is not None
    line = served.process.stderr.readline()
    assert line.startswith(
        f"aoe-target: {image}: was removed or replaced while it was served"
    )
    assert served.reload() == "reopened e7.0\n"
    assert asking.ask(at(0, ata(READ, 1)))[36:] == content[512:1024]
    assert asking.ask(write)[27] == 0x40
    assert asking.ask(at(0, ata(FLUSH, count=0)))[27] == 0x40
    assert image.read_bytes()[512:1024] == bytes(512)


def test_renamed_image_is_served_until_the_reload(
    served: Served, asking: Client
) -> None:
    image, old = served.image("0.img"), served.directory / "old.img"
    served.write(s0=f"path = '{image}'")
    served.start(1)
    image.rename(old)
    content = served.image("0.img").read_bytes()
    assert served.process.stderr is not None
    line = served.process.stderr.readline()
    assert line.startswith(f"aoe-target: {image}: now names another file, or none")
    write = at(0, ata(WRITE, 1, aflags=0x41, data=bytes(512)))
    assert asking.ask(write)[27] == 0x40
    assert served.reload() == "reopened e7.0\n"
    assert old.read_bytes()[512:1024] == bytes(512)
    assert asking.ask(at(0, ata(READ, 1)))[36:] == content[512:1024]


def test_truncated_image_fails_until_it_is_restored_and_reopened(
    served: Served, asking: Client
) -> None:
    image = served.image("0.img")
    served.write(s0=f"path = '{image}'")
    served.start(1)
    content = image.read_bytes()
    os.truncate(image, 4096)
    write = at(0, ata(WRITE, 100, aflags=0x41, data=bytes(512)))
    assert asking.ask(write)[27] & 1
    assert asking.ask(at(0, ata(READ, 100)))[27] & 1
    assert asking.ask(at(0, ata(READ, 1)))[36:] == content[512:1024]
    assert image.stat().st_size == 4096
    assert served.exports_now()["e7.0"]["fault"] == "was truncated to 4,096 bytes"
    assert "[fault: was truncated to 4,096 bytes]" in served.run("status").stdout
    done = served.run("doctor", "aoe0")
    assert f"e7.0: target {served.process.pid}: {image}: was truncated" in done.stdout
    image.write_bytes(content)
    assert asking.ask(at(0, ata(READ, 100)))[27] & 1
    assert served.reload() == "reopened e7.0\n"
    assert asking.ask(at(0, ata(READ, 100)))[36:] == content[51200:51712]
    assert asking.ask(write)[27] == 0x40


def test_disk_that_cannot_be_reopened_stays_open(
    served: Served, asking: Client
) -> None:
    base, new = served.image("0.img"), served.image("new.img")
    content = base.read_bytes()
    overlay = f"overlay = '{served.directory / '0.ovl'}'"
    served.write(s0=f"path = '{base}'\n{overlay}")
    served.start(1)
    write = at(0, ata(WRITE, 1, aflags=0x41, data=bytes(512)))
    assert asking.ask(write)[27] == 0x40
    new.rename(base)
    done = served.run("reload")
    assert done.returncode == 2
    assert "has changed since the overlay was made" in done.stderr
    assert asking.ask(at(0, ata(READ, 1)))[36:] == bytes(512)
    assert asking.ask(at(0, ata(READ, 2)))[36:] == content[1024:1536]


def test_removed_image_is_reported_while_no_client_uses_it(served: Served) -> None:
    image = served.image("0.img")
    served.write(s0=f"path = '{image}'")
    served.start(1)
    image.unlink()
    assert served.process.stderr is not None
    line = served.process.stderr.readline()
    assert line.startswith(
        f"aoe-target: {image}: was removed or replaced while it was served"
    )
    assert served.reload() == "failed e7.0\n"


def test_p46_reload_reopens_a_disk_whose_flush_failed(
    served: Served, asking: Client
) -> None:
    broken, image = served.directory / "broken", served.image("0.img")
    fault = f"[[export.filter]]\nname = 'error'\non = 'flush'\nfile = '{broken}'"
    served.write(s0=f"path = '{image}'\n{fault}", s1=f"path = '{served.image('1')}'")
    served.start(2)
    flush = at(0, ata(FLUSH, count=0))
    epochs = [epoch_of(asking, 0)]
    assert asking.ask(flush)[27] == 0x40
    broken.touch()
    assert asking.ask(flush)[27] == 0x61
    broken.unlink()
    assert [asking.ask(flush)[27] for _ in range(3)] == [0x61] * 3
    assert asking.ask(at(1, ata(FLUSH, count=0)))[27] == 0x40
    failed = {a: e["flush_failed"] for a, e in served.exports_now().items()}
    assert failed == {"e7.0": True, "e7.1": False}
    assert "[flush-failed]" in served.run("status").stdout
    epochs.append(epoch_of(asking, 0))
    assert served.reload() == "reopened e7.0\n"
    assert asking.ask(flush)[27] == 0x40
    assert served.reload() == "nothing has changed\n"
    epochs.append(epoch_of(asking, 0))
    assert len(set(epochs)) == 3


def test_p46_reload_keeps_a_disk_whose_flush_fails_now_until_it_is_repeated(
    served: Served, asking: Client
) -> None:
    broken, image = served.directory / "broken", served.image("0.img")
    fault = f"[[export.filter]]\nname = 'error'\non = 'flush'\nfile = '{broken}'"
    served.write(s0=f"path = '{image}'\n{fault}")
    served.start(1)
    broken.touch()
    served.write(s0=f"path = '{image}'\nmodel = 'other'\n{fault}")
    done = served.run("reload")
    assert done.returncode == 1
    assert "Reload again to reopen it all the same" in done.stderr
    broken.unlink()
    assert asking.ask(at(0, ata(FLUSH, count=0)))[27] == 0x61
    assert served.reload() == "changed e7.0\n"
    assert asking.ask(at(0, ata(FLUSH, count=0)))[27] == 0x40


def test_several_targets_are_selected_by_pid(served: Served) -> None:
    zero, one = served.image("0.img"), served.image("1.img")
    served.write(s0=f"path = '{zero}'")
    served.start(1)
    control = served.directory / "control"
    other = start(served.host, "serve", "e7.1", "aoe0", one, "--control", control)
    assert other.stdout is not None
    other.stdout.readline()
    found = json.loads(served.run("status", "--json").stdout)["targets"]
    assert [t["exports"][0]["address"] for t in found] == ["e7.0", "e7.1"]
    refused = served.run("reload")
    assert refused.returncode == 2
    assert "2 targets run. Select one: --pid " in refused.stderr
    assert served.run("clear-mask", "e7.1").returncode == 0
    missing = served.run("clear-mask", "e7.9")
    assert missing.returncode == 3
    assert control.stat().st_mode & 0o777 == 0o700
    assert served.run("stop", "--control", control).returncode == 0
    finish(other)
    assert other.returncode == 0
    assert not control.exists()
    ended = served.run("status", "--control", control)
    assert ended.stderr == f"aoe-target: {control}: no target listens there\n"
    assert served.run("stop", "--pid", served.process.pid).returncode == 0
    served.is_stopping = True
