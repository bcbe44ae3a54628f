"""Names of interfaces: longer than 15 bytes, and alternative names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aoe.errors import NotFoundError, UsageError
from aoe.net import interfaces
from aoe.net.link import open_link
from aoe.net.netdevice import get_link_info
from initiator.io.host import Host
from tests.asking import ata
from tests.programs import AOE, AOE_TARGET
from tests.serving import TIMEOUT, client, finish, ready_line, start

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from aoe.net.netns import Namespace, Wire

pytestmark = pytest.mark.netns

READ = 0x24
PARENT = "storage-nic.123"
MISTYPED = "storage-nic.1234"
LONG, SHORT = "the-network-of-the-storage", "storage"


def run(where: Namespace, *command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    done: subprocess.CompletedProcess[str] = where.run(
        words, capture_output=True, text=True, timeout=TIMEOUT
    )
    return done


def add_names(where: Namespace, *names: str, device: str = "aoe0") -> None:
    for name in names:
        words = ("ip", "link", "property", "add", "dev", device, "altname", name)
        assert run(where, *words).returncode == 0


@pytest.fixture
def named(wire: Wire) -> Wire:
    for host in (wire.target, wire.initiator):
        add_names(host, LONG, SHORT)
    return wire


def test_a_name_that_is_too_long_is_not_cut(wire: Wire, image: Path) -> None:
    """15 bytes of the name are that of another interface."""
    interfaces.set_down("aoe0", wire.target.pid)
    interfaces.rename("aoe0", PARENT, wire.target.pid)
    interfaces.set_up(PARENT, wire.target.pid)
    error = f"{MISTYPED}: no such interface (have: lo, {PARENT}). List them with"
    with wire.target.enter():
        assert get_link_info(PARENT).name == PARENT
        for rings in (True, False):
            with pytest.raises(NotFoundError) as caught:
                open_link(MISTYPED, rings=rings)
            assert str(caught.value).startswith(error)
    config = image.with_name("aoe.toml")
    config.write_text(
        f"[[export]]\naddress = 'e7.3'\npath = '{image}'\ninterfaces = '{MISTYPED}'\n"
    )
    for command in (
        [*AOE_TARGET, "serve", "e7.3", MISTYPED, image, "--no-state"],
        [*AOE_TARGET, "serve", "--config", config],
        [*AOE, "discover", "-i", MISTYPED],
        [*AOE, "copy", "e7.3", image.with_name("copy"), "-i", MISTYPED],
    ):
        done = run(wire.target, *command)
        assert (done.returncode, error in done.stderr) == (3, True), done.stderr
    for command in (
        [*AOE_TARGET, "check", config],
        [*AOE_TARGET, "doctor", MISTYPED],
        [*AOE, "doctor", "-i", MISTYPED],
    ):
        done = run(wire.target, *command)
        assert done.returncode != 0
        assert f"no such interface (have: lo, {PARENT})" in done.stdout + done.stderr


@pytest.mark.parametrize("name", [LONG, SHORT])
def test_an_alternative_name_is_as_good_as_the_name(
    named: Wire, image: Path, name: str
) -> None:
    config = image.with_name("aoe.toml")
    config.write_text(
        f"[[export]]\naddress = 'e7.3'\npath = '{image}'\n"
        f"interfaces = '{name}'\nkeep_state = false\n"
    )
    assert run(named.target, *AOE_TARGET, "check", config).returncode == 0
    target = start(named.target, "serve", "--config", config)
    assert f" on {name} (52:54:00:ae:00:01" in ready_line(target)
    for command in (
        [*AOE, "discover", "-i", name],
        [*AOE, "doctor", "-i", name],
        [*AOE, "sancheck", "-i", name],
        [*AOE, "read", "e7.3", image.with_name("part"), "-i", name, "--length", "512"],
    ):
        done = run(named.initiator, *command)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert image.with_name("part").read_bytes() == image.read_bytes()[:512]
    # Another name of the same interface is the same interface.
    second = run(named.target, *AOE_TARGET, "serve", "e7.3", "aoe0", image)
    assert second.returncode == 5
    done = run(named.target, *AOE_TARGET, "doctor", "aoe0", "--json")
    subjects = {each["subject"] for each in json.loads(done.stdout)["findings"]}
    assert {"aoe0", name} <= subjects
    finish(target, 15)
    assert target.returncode == 0


def test_a_target_follows_an_interface_that_reappears_with_the_alternative_name(
    wire: Wire, image: Path
) -> None:
    add_names(wire.target, LONG)
    target = start(wire.target, "serve", "e7.3", LONG, image, "--no-state", "--force")
    ready_line(target)
    assert target.stderr is not None
    interfaces.set_mtu("aoe0", 4000, wire.target.pid)
    assert f"{LONG}: MTU 4000" in target.stderr.readline()
    # Also while the change of the MTU is being applied.
    interfaces.remove("aoe0", wire.target.pid)
    assert f"{LONG}: interface is gone, waiting" in target.stderr.readline()
    interfaces.create_veth(
        interfaces.VethEnd("usb7", mac=wire.target_mac, netns=wire.target.pid),
        interfaces.VethEnd("aoe0", netns=wire.initiator.pid),
    )
    add_names(wire.target, LONG, device="usb7")
    assert f"{LONG}: available again" in target.stderr.readline()
    with client(wire) as asking:
        assert asking.ask(ata(READ, 1))[36:] == image.read_bytes()[512:1024]
    finish(target, 15)
    assert target.returncode == 0


def test_two_names_of_one_interface_are_refused(named: Wire, image: Path) -> None:
    error = "are names of the same interface. Use only one of them"
    both = f"aoe0,{LONG}"
    for command in (
        [*AOE_TARGET, "serve", "e7.3", both, image, "--no-state"],
        [*AOE, "discover", "-i", both],
        [*AOE, "read", "e7.3", "-i", both],
    ):
        done = run(named.target, *command)
        assert (done.returncode, error in done.stderr) == (2, True), done.stderr
    with named.target.enter(), pytest.raises(UsageError, match=error):
        Host.on("aoe0", SHORT)
