"""A target that changes to a user who cannot read its code, such as that in /root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR
from aoe.identify import Identity
from aoe.net.interfaces import set_mtu
from tests.accounts import NOBODY, OTHER_USER
from tests.asking import ata
from tests.nbd_servers import exported
from tests.programs import AOE_TARGET
from tests.serving import NO_PROBE, TIMEOUT, client, finish, ready_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

CHECKOUT = Path(__file__).parents[2]
METRICS = 19469
FILTER = 'filter = [{ name = "drop", probability = 0.5 }]'


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory of OTHER_USER, with disks and with code that only root reads."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        code = path / "root"
        code.mkdir(0o700)
        (code / "libraries").symlink_to(sysconfig.get_path("purelib"))
        for package in ("aoe", "target"):
            shutil.copytree(CHECKOUT / package, code / package)
        for disk in ("0", "1", "2"):
            (path / disk).write_bytes(bytes(1 << 20))
            (path / disk).chmod(0o666)
        path.chmod(0o755)
        if OTHER_USER == "nobody":
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        yield path


def configure(place: Path, *exports: str) -> Path:
    """Write a configuration file with these lines of exports e7.0, e7.1, ...

    The disk of an export without a path is the file named after its slot.
    """
    text = f'metrics = "{METRICS}"\n[defaults]\ninterfaces = "aoe0"\n'
    for slot, lines in enumerate(exports):
        path = "" if "path" in lines else f'path = "{place}/{slot}"'
        text += f'[[export]]\naddress = "e7.{slot}"\n{path}\n{lines}\n'
    file = place / "aoe.toml"
    file.write_text(text)
    return file


class Target:
    """``aoe-target serve --config`` as OTHER_USER, from the code in ``place``."""

    def __init__(self, wire: Wire, place: Path, *exports: str) -> None:
        self._host = wire.target
        self._place = place
        serve = ["serve", "--config", str(configure(place, *exports)), NO_PROBE]
        # With -S, it finds the libraries by PYTHONPATH only.
        *python, main = AOE_TARGET
        program = [*python, "-S", main.replace(str(CHECKOUT), f"{place}/root")]
        self.process: subprocess.Popen[str] = wire.target.popen(
            [*program, *serve, "--user", OTHER_USER],
            env={**os.environ, "PYTHONPATH": f"{place}/root/libraries"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in exports:
            ready_line(self.process)

    def reload(self, *exports: str) -> str:
        configure(self._place, *exports)
        done = self._host.run([*AOE_TARGET, "reload"], capture_output=True, text=True)
        return str(done.stdout + done.stderr)


def test_everything_works_without_reading_the_code(wire: Wire, place: Path) -> None:
    target = Target(wire, place, "")
    with client(wire) as asking:
        identify = ata(0xEC, slot=0)
        identity = asking.ask(identify)
        overlay = f'overlay = "{place}/overlay"\n{FILTER}'
        assert target.reload("", overlay) == "added e7.1\n"
        missing = exported(place / "none")
        refusal = target.reload("", overlay, f'path = "{missing}"')
        assert "no such file" in refusal
        set_mtu(wire.interface, 9000, wire.target.pid)
        assert asking.ask(identify) == identity
        assert Identity.unpack(identity[36:]).sectors == (1 << 20) // SECTOR
        with wire.target.enter():
            page = urllib.request.urlopen(f"http://127.0.0.1:{METRICS}", None, TIMEOUT)
        assert b"aoe_export_size_bytes" in page.read()
    assert "Traceback" not in finish(target.process, 15)


def test_the_scapy_engine_serves_if_it_was_used_from_the_start(
    wire: Wire, place: Path
) -> None:
    target = Target(wire, place, 'engine = "scapy"')
    assert target.reload('engine = "scapy"', 'engine = "scapy"') == "added e7.1\n"
    with client(wire) as asking:
        assert asking.ask(ata(0x24, slot=1))[36:] == bytes(SECTOR)
    assert "Traceback" not in finish(target.process, 15)


def test_a_late_scapy_engine_is_refused_with_a_fix(wire: Wire, place: Path) -> None:
    target = Target(wire, place, "")
    answer = target.reload("", 'engine = "scapy"')
    if OTHER_USER == "nobody":
        assert "engine scapy: cannot be imported: " in answer
        assert answer.endswith(". Restart the target\n")
    else:
        assert answer == "added e7.1\n"
    assert "Traceback" not in finish(target.process, 15)
