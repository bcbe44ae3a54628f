"""Opening a link: what stands in the way is said in one line, with its fix."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from aoe.errors import AoEError, NotFoundError, UsageError
from aoe.net import interfaces
from aoe.net.link import open_link
from aoe.net.netdevice import ask
from tests.frames import arriving, frame_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from aoe.net.netns import Namespace, Wire

pytestmark = pytest.mark.netns

both_kinds = pytest.mark.parametrize("rings", [True, False], ids=["rings", "plain"])

OPEN = """
import sys
from aoe.errors import AoEError
from aoe.net.link import open_link
try:
    print(type(open_link("aoe0", rings={rings})).__name__)
except AoEError as error:
    print(type(error).__name__, error, sep="; ")
"""


def opened_by(
    namespace: Namespace, prefix: Sequence[str], code: str, rings: object
) -> str:
    command = [*prefix, sys.executable, "-c", code.format(rings=rings)]
    done = namespace.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return str(done.stdout).strip()


def test_without_permission_the_error_says_how_to_get_it(wire: Wire) -> None:
    without = ["setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw"]
    assert opened_by(wire.target, without, OPEN, None) == (
        "AccessError; aoe0: raw sockets need CAP_NET_RAW. Run as root, grant it by "
        "systemd (AmbientCapabilities=CAP_NET_RAW), or try it root-free inside: "
        "unshare -Urn"
    )


def test_where_there_is_no_memory_for_rings_it_goes_without(
    make_wire: Callable[[int], Wire],
) -> None:
    wire = make_wire(65535)
    # Both rings take more than the 16 MiB that are left.
    limited = """
import resource
import aoe.net.link
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
"""
    assert opened_by(wire.target, [], limited + OPEN, None) == "PlainLink"
    assert opened_by(wire.target, [], limited + OPEN, rings=True) == (
        "AoEError; aoe0: cannot allocate memory. Try it without packet rings"
    )


def test_an_interface_that_is_not_there_is_answered_with_those_that_are(
    wire: Wire,
) -> None:
    with wire.target.enter(), pytest.raises(NotFoundError) as caught:
        open_link("eth9")
    assert str(caught.value) == (
        "eth9: no such interface (have: lo, aoe0). List them with: ip link"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "a" * 15, "a" * 16, "aoe0" + "x" * 300, "é"])
def test_a_strange_name_is_no_interface(wire: Wire, name: str) -> None:
    with (
        wire.target.enter(),
        pytest.raises(NotFoundError, match="no such interface"),
    ):
        open_link(name)


def test_an_interface_that_is_down_is_answered_with_the_cure(wire: Wire) -> None:
    interfaces.set_down("aoe0", wire.target.pid)
    with wire.target.enter(), pytest.raises(AoEError) as caught:
        open_link("aoe0")
    assert str(caught.value) == (
        "aoe0: interface is down. Bring it up with: ip link set aoe0 up"
    )
    assert type(caught.value) is AoEError


def refusal_of(name: str) -> str:
    with pytest.raises(UsageError) as caught:
        open_link(name)
    return str(caught.value)


def test_an_interface_without_ethernet_is_refused(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix = "not an Ethernet interface. List the interfaces with: ip -details link"
    # A tunnel is such an interface; making one is a matter of the device's permissions.
    if os.access("/dev/net/tun", os.W_OK):
        wire.target.run(["ip", "tuntap", "add", "tun0", "mode", "tun"], check=True)
        interfaces.set_up("tun0", wire.target.pid)
        with wire.target.enter():
            assert refusal_of("tun0") == f"tun0: {fix}"
    # Ethernet is number 1: as long as it is another number, this is none either.
    monkeypatch.setattr("aoe.net.netdevice._ARPHRD_ETHER", 65534)
    with wire.target.enter():
        assert refusal_of("aoe0") == f"aoe0: {fix}"


@both_kinds
def test_the_loopback_serves_too(wire: Wire, *, rings: bool) -> None:
    with (
        wire.target.enter(),
        open_link("lo", rings=rings, responses=False) as target,
        open_link("lo", rings=rings, responses=True) as initiator,
    ):
        assert target.mac == bytes(6)
        request, reply = frame_of(60, dst=bytes(6)), frame_of(60, reply=True)
        assert initiator.send(request)
        assert arriving(target) == [request]
        assert target.send(bytes(6) + reply[6:])
        assert arriving(initiator) == [bytes(6) + reply[6:]]


ROOT_FREE = """
from aoe.net.link import RingLink, open_link
from aoe.net.netns import Wire
with Wire(9000) as wire:
    with wire.target.enter():
        target = open_link("aoe0")
    with wire.initiator.enter():
        initiator = open_link("aoe0")
    frame = wire.target_mac + wire.initiator_mac + bytes.fromhex("88a2") + bytes(9000)
    with target, initiator:
        assert initiator.send(frame) and target.wait(1)
        print(type(target).__name__, target.receive() == frame)
"""


def test_it_all_works_without_root_in_a_user_namespace() -> None:
    command = ["unshare", "-Urn", sys.executable, "-c", ROOT_FREE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"{done.stderr.strip()}; sysctl user.max_user_namespaces")
    assert (done.stdout, done.stderr) == ("RingLink True\n", "")


def test_permission_is_not_asked_for_before_the_name_is_known(wire: Wire) -> None:
    without = ["setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw"]
    answer = opened_by(wire.target, without, OPEN.replace("aoe0", "eth9"), None)
    assert answer.startswith("NotFoundError; eth9: no such interface (have: lo, aoe0)")


@both_kinds
def test_a_link_is_not_lost_when_its_interface_is_renamed_under_a_look(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, *, rings: bool
) -> None:
    """Its name is asked for, then whether what is called so is up."""
    asked: list[str] = []

    def rename_first(asking: socket.socket, name: str, *rest: Any) -> int:  # noqa: ANN401 - handed on
        if not asked:
            interfaces.rename("aoe0", "disk0", wire.target.pid)
        asked.append(name)
        return ask(asking, name, *rest)

    with wire.target.enter(), open_link("aoe0", rings=rings) as link:
        interfaces.set_down("aoe0")
        monkeypatch.setattr("aoe.net.link.ask", rename_first)
        assert link.receive() is None
        assert not link.wait(0.01)
        assert asked[:2] == ["aoe0", "disk0"]
        assert not link.up
