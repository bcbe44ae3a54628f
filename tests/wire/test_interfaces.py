"""Creation and removal of interfaces and network namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError, AoEError, NotFoundError
from aoe.net import interfaces
from aoe.net.interfaces import Interface, VethEnd
from aoe.net.netns import Namespace, Wire, check_user_namespaces
from tests.requirements import need_namespaces, need_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.netns


def current_namespace() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def eventually(condition: Callable[[], bool], timeout: float = 5) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_find_interface_returns_all_attributes(
    make_wire: Callable[[tuple[int, int]], Wire],
) -> None:
    wire = make_wire((9000, 1500))
    found = interfaces.find_interface("aoe0", wire.target.pid)
    assert found == Interface(
        index=found.index,
        name="aoe0",
        mac=Wire.target_mac,
        mtu=9000,
        up=True,
        carrier=True,
        loopback=False,
        ethernet=True,
        kind="veth",
    )
    other = interfaces.find_interface("aoe0", wire.initiator.path)
    assert (other.mac, other.mtu) == (Wire.initiator_mac, 1500)


def test_interfaces_are_ordered_by_index(wire: Wire) -> None:
    listed = interfaces.list_interfaces(wire.target.pid)
    assert [interface.name for interface in listed] == ["lo", "aoe0"]
    assert listed[0].loopback
    assert not listed[0].ethernet
    assert listed[0].up


def test_the_default_is_the_callers_namespace(wire: Wire) -> None:
    with wire.target.enter():
        assert interfaces.find_interface("aoe0").mac == Wire.target_mac
        assert interfaces.find_interface("aoe0", wire.initiator.pid).mac == (
            Wire.initiator_mac
        )


def test_usable_interfaces_are_up_and_ethernet(wire: Wire) -> None:
    def usable() -> list[str]:
        return [found.name for found in interfaces.usable_interfaces(wire.target.pid)]

    assert usable() == ["aoe0"]
    interfaces.set_down("aoe0", wire.target.pid)
    assert usable() == []
    interfaces.set_up("aoe0", wire.target.pid)
    assert usable() == ["aoe0"]


def test_the_carrier_is_lost_when_the_peer_is_down(wire: Wire) -> None:
    interfaces.set_down("aoe0", wire.initiator.pid)
    found = interfaces.find_interface("aoe0", wire.target.pid)
    assert (found.up, found.carrier) == (True, False)


def test_the_mtu_is_set(wire: Wire) -> None:
    interfaces.set_mtu("aoe0", 4200, wire.target.pid)
    assert interfaces.find_interface("aoe0", wire.target.pid).mtu == 4200


def test_an_invalid_mtu_is_an_error_of_one_line(wire: Wire) -> None:
    with pytest.raises(AoEError) as caught:
        interfaces.set_mtu("aoe0", 70_000, wire.target.pid)
    assert str(caught.value) == "aoe0: mtu 70000: invalid argument"


def test_the_error_for_a_missing_interface_lists_the_others(
    wire: Wire,
) -> None:
    with pytest.raises(NotFoundError) as caught:
        interfaces.set_up("eth9", wire.target.pid)
    assert str(caught.value) == (
        "eth9: no such interface (have: lo, aoe0). List them with: ip link"
    )


def test_a_veth_pair_is_created_and_removed(wire: Wire) -> None:
    mac = bytes.fromhex("525400ae0007")
    interfaces.create_veth(
        VethEnd("left", 2000, mac, wire.target.pid),
        VethEnd("right", 3000, None, wire.target.pid, up=False),
    )
    left = interfaces.find_interface("left", wire.target.pid)
    right = interfaces.find_interface("right", wire.target.pid)
    assert (left.mac, left.mtu, left.up) == (mac, 2000, True)
    assert (right.mtu, right.up) == (3000, False)
    interfaces.remove("left", wire.target.pid)
    names = [found.name for found in interfaces.list_interfaces(wire.target.pid)]
    assert names == ["lo", "aoe0"]


def test_a_veth_pair_connects_the_callers_namespace_to_another(wire: Wire) -> None:
    with wire.initiator.enter():
        interfaces.create_veth(VethEnd("near"), VethEnd("far", netns=wire.target.pid))
        interfaces.create_veth(VethEnd("away", netns=wire.target.pid), VethEnd("home"))
        names = [found.name for found in interfaces.list_interfaces()]
    assert names == ["lo", "aoe0", "near", "home"]
    for name in ("far", "away"):
        assert interfaces.find_interface(name, wire.target.pid).carrier


def test_an_existing_name_is_refused(wire: Wire) -> None:
    with pytest.raises(AoEError) as caught:
        interfaces.create_veth(
            VethEnd("aoe0", netns=wire.target.pid),
            VethEnd("other", netns=wire.target.pid),
        )
    assert str(caught.value) == "aoe0: file exists"


@pytest.mark.parametrize("missing", [2**22 + 1, "/proc/1/ns/no-such-file"])
def test_the_error_names_a_missing_namespace(missing: int | str) -> None:
    path = f"/proc/{missing}/ns/net" if isinstance(missing, int) else missing
    with pytest.raises(NotFoundError, match=f"^{path}: no such file or directory$"):
        interfaces.list_interfaces(missing)


def test_enter_restores_the_namespace_after_an_exception(wire: Wire) -> None:
    home = current_namespace()
    seen = []

    def fail() -> None:
        seen.append(current_namespace())
        raise KeyError

    with pytest.raises(KeyError), wire.target.enter():
        fail()
    assert seen != [home]
    assert current_namespace() == home


def test_programs_run_in_the_namespace(wire: Wire) -> None:
    done = wire.target.run(["ip", "-o", "link"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "52:54:00:ae:00:01" in done.stdout
    assert wire.target.run(["false"]).returncode == 1
    with pytest.raises(subprocess.CalledProcessError):
        wire.target.run(["false"], check=True)


def test_the_kernel_sends_no_frames_on_a_wire(wire: Wire) -> None:
    time.sleep(0.3)
    found = wire.target.run(
        ["cat", "/sys/class/net/aoe0/statistics/rx_packets", "/proc/net/dev"],
        capture_output=True,
        text=True,
    )
    counters = next(line for line in found.stdout.splitlines() if "aoe0:" in line)
    assert counters.split()[2] == "0"


def test_closing_a_wire_ends_processes_and_namespaces() -> None:
    with Wire() as wire:
        holders = [wire.target.pid, wire.initiator.pid]
        sleeper = wire.target.popen(["sleep", "1000"])
    wire.close()
    assert sleeper.poll() is not None
    assert not any(Path(f"/proc/{pid}").exists() for pid in holders)


def test_a_process_that_ignores_sigterm_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aoe.net.netns._TERMINATE_TIMEOUT", 0.1)
    with Namespace() as namespace:
        process = namespace.popen(
            ["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done"],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
    assert process.returncode == -signal.SIGKILL


KILL_SELF = """
import os, signal
from aoe.net.netns import Wire
wire = Wire()
print(wire.target.pid, wire.initiator.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_namespaces_end_when_the_program_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_SELF], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert eventually(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2]
    except FileNotFoundError:
        return False
    return state.split()[0] != "Z"


REEXEC = """
import os, sys
from aoe.net.netns import Wire, ensure_root_or_user_namespace
from aoe.errors import AoEError
before = os.getpid()
try:
    ensure_root_or_user_namespace()
except AoEError as error:
    sys.exit(f"{type(error).__name__}; {error}")
with Wire() as wire:
    wire.target.run(["ip", "link", "show", "aoe0"], check=True, stdout=-3)
print(os.geteuid(), sys.argv[1:], sys.flags.no_user_site)
"""


def as_user(
    command: list[str], setup: str = "true"
) -> subprocess.CompletedProcess[str]:
    """Run a command as an unprivileged user, after ``setup`` ran as root."""
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    script = f'{setup} && exec "$@"'
    return subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script, "sh", *user, *command],
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unprivileged_user_is_re_executed_in_a_user_namespace() -> None:
    done = as_user([sys.executable, "-s", "-c", REEXEC, "a b", "--c"])
    assert (done.stdout, done.stderr) == ("0 ['a b', '--c'] 1\n", "")


def test_root_is_not_re_executed() -> None:
    if os.geteuid():
        need_user_namespaces()
    root = ["unshare", "--user", "--map-root-user"] if os.geteuid() else []
    done = subprocess.run(
        [*root, sys.executable, "-c", REEXEC, "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0 ['x'] 0\n", "")


def test_the_error_has_the_command_that_allows_user_namespaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"kernel.apparmor_restrict_unprivileged_userns": "1"}
    monkeypatch.setattr("aoe.net.netns._read_sysctl", settings.get)
    refuse = subprocess.CompletedProcess((), 1, "", "unshare: not permitted\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refuse)
    with pytest.raises(AccessError) as caught:
        check_user_namespaces()
    assert str(caught.value) == (
        "user namespace: unshare: not permitted. "
        "Run as root, or allow user namespaces: "
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    )


def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unshare", "sh", "cat"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    need_namespaces()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AoEError, match=r"ip: not found\. Install it .* iproute2"):
        Namespace()
    (tmp_path / "unshare").unlink()
    with pytest.raises(AoEError, match=r"^unshare: not installed\. .* util-linux"):
        Namespace()


def test_the_error_names_the_sysctls_of_user_namespaces() -> None:
    done = as_user(
        [sys.executable, "-c", REEXEC],
        # Allows the namespace of the user and no further one.
        setup="echo 1 >/proc/sys/user/max_user_namespaces",
    )
    assert done.returncode == 1
    assert done.stdout == ""
    kind, _, message = done.stderr.strip().partition("; ")
    assert kind == "AccessError"
    assert message == (
        "user namespace: unshare: unshare failed: No space left on device. Run as "
        "root, or allow user namespaces: see the sysctls "
        "kernel.unprivileged_userns_clone, user.max_user_namespaces, "
        "kernel.apparmor_restrict_unprivileged_userns"
    )
