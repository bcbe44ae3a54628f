"""Opening a link: errors of one line with a fix, and the fallback to plain links."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from aoe.errors import AoEError, NotFoundError, UsageError
from aoe.net import interfaces
from aoe.net.link import open_link
from aoe.net.netdevice import get_ifreq
from tests.frames import frame_of, receive_all
from tests.requirements import need_user_namespaces

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


def run_in(
    namespace: Namespace, prefix: Sequence[str], code: str, rings: object
) -> str:
    command = [*prefix, sys.executable, "-c", code.format(rings=rings)]
    done = namespace.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return str(done.stdout).strip()


def test_the_error_without_cap_net_raw_says_how_to_get_it(wire: Wire) -> None:
    drop_net_raw = ["setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw"]
    assert run_in(wire.target, drop_net_raw, OPEN, None) == (
        "AccessError; aoe0: raw sockets need CAP_NET_RAW. Run as root, grant it by "
        "systemd (AmbientCapabilities=CAP_NET_RAW), or try it in a user namespace: "
        "unshare -Urn"
    )


def test_a_plain_link_is_opened_if_rings_exceed_memory(
    make_wire: Callable[[int], Wire],
) -> None:
    wire = make_wire(65535)
    # Both rings need more than the remaining 16 MiB.
    limit_memory = """
import resource
import aoe.net.link
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
"""
    assert run_in(wire.target, [], limit_memory + OPEN, None) == "PlainLink"
    assert run_in(wire.target, [], limit_memory + OPEN, rings=True) == (
        "AoEError; aoe0: cannot allocate memory. Try it without packet rings"
    )


def test_the_error_for_a_missing_interface_lists_the_others(
    wire: Wire,
) -> None:
    with wire.target.enter(), pytest.raises(NotFoundError) as caught:
        open_link("eth9")
    assert str(caught.value) == (
        "eth9: no such interface (have: lo, aoe0). List them with: ip link"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "a" * 15, "a" * 16, "aoe0" + "x" * 300, "é"])
def test_invalid_names_are_refused(wire: Wire, name: str) -> None:
    with (
        wire.target.enter(),
        pytest.raises(NotFoundError, match="no such interface"),
    ):
        open_link(name)


def test_the_error_for_an_interface_that_is_down_says_how_to_fix_it(wire: Wire) -> None:
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
    # A tun interface, if the permissions of the device allow it.
    if os.access("/dev/net/tun", os.W_OK):
        wire.target.run(["ip", "tuntap", "add", "tun0", "mode", "tun"], check=True)
        interfaces.set_up("tun0", wire.target.pid)
        with wire.target.enter():
            assert refusal_of("tun0") == f"tun0: {fix}"
    # With another ARPHRD_ETHER, the veth is not Ethernet either.
    monkeypatch.setattr("aoe.net.netdevice._ARPHRD_ETHER", 65534)
    with wire.target.enter():
        assert refusal_of("aoe0") == f"aoe0: {fix}"


@both_kinds
def test_links_work_on_the_loopback_interface(wire: Wire, *, rings: bool) -> None:
    with (
        wire.target.enter(),
        open_link("lo", rings=rings, responses=False) as target,
        open_link("lo", rings=rings, responses=True) as initiator,
    ):
        assert target.mac == bytes(6)
        request, response = frame_of(60, dst=bytes(6)), frame_of(60, response=True)
        assert initiator.send(request)
        assert receive_all(target) == [request]
        assert target.send(bytes(6) + response[6:])
        assert receive_all(initiator) == [bytes(6) + response[6:]]


AS_USER = """
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


def test_links_work_in_a_user_namespace() -> None:
    need_user_namespaces()
    command = ["unshare", "-Urn", sys.executable, "-c", AS_USER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("RingLink True\n", "")


def test_a_missing_interface_is_reported_before_a_missing_capability(
    wire: Wire,
) -> None:
    drop_net_raw = ["setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw"]
    output = run_in(wire.target, drop_net_raw, OPEN.replace("aoe0", "eth9"), None)
    assert output.startswith("NotFoundError; eth9: no such interface (have: lo, aoe0)")


@both_kinds
def test_a_rename_during_the_interface_check_is_handled(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, *, rings: bool
) -> None:
    """The name is read first, then the flags by name; a rename in between fails."""
    names: list[str] = []

    def rename_first(sock: socket.socket, name: str, *args: Any) -> int:  # noqa: ANN401 - forwarded
        if not names:
            interfaces.rename("aoe0", "disk0", wire.target.pid)
        names.append(name)
        return get_ifreq(sock, name, *args)

    with wire.target.enter(), open_link("aoe0", rings=rings) as link:
        interfaces.set_down("aoe0")
        monkeypatch.setattr("aoe.net.link.get_ifreq", rename_first)
        assert link.receive() is None
        assert not link.wait(0.01)
        assert names[:2] == ["aoe0", "disk0"]
        assert not link.up
