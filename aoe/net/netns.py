"""Throw-away network namespaces, and a wire between two of them.

For the demo, the tests and anybody's own experiments: nothing of the machine's real
network is touched, and nothing stays behind, whichever way the program ends.

>>> with Wire(mtu=9000) as wire:  # doctest: +SKIP
...     wire.target.run(["ip", "-brief", "link"])
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self, cast

from aoe.errors import AccessError, AoEError
from aoe.net.interfaces import (
    VethEnd,
    create_bridge,
    create_veth,
    enter_netns,
    join_bridge,
    remove,
    set_mtu,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Their own signatures, eighteen options each in six overloads, are not repeated here.
_run: Callable[..., subprocess.CompletedProcess[Any]] = subprocess.run
_popen: Callable[..., subprocess.Popen[Any]] = subprocess.Popen

_SETTLE: Final = """
ip link set lo up
for scope in all default; do
    file=/proc/sys/net/ipv6/conf/$scope/disable_ipv6
    [ ! -e "$file" ] || echo 1 >"$file"
done
echo ready
exec cat >/dev/null
"""
"""Loopback up; no IPv6, whose neighbour discovery would talk on every wire."""

_PATIENCE: Final = 2.0
"""Seconds that a process gets between being asked to end and being killed."""

_SWITCHES: Final = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""What forbids user namespaces to ordinary users, and the value with which it does."""


class _Closing(ABC):
    # What is gone at the end of a ``with`` statement.

    @abstractmethod
    def close(self) -> None:
        """Take everything away. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Namespace(_Closing):
    """A network namespace of our own, for as long as the object is open.

    It lives in a holder process that waits at the end of a pipe from us: when we are
    gone, even by SIGKILL, the pipe breaks, the holder ends and the kernel takes the
    namespace away with all the interfaces in it. Sockets that were opened inside by
    ``enter`` keep it alive until they are closed.

    Raises:
        AccessError: namespaces need root or a user namespace.
        AoEError: ``unshare`` (util-linux) or ``ip`` (iproute2) is missing.
    """

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[Any]] = []
        try:
            self._holder = subprocess.Popen(
                ["unshare", "--net", "--", "sh", "-ec", _SETTLE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # An interrupt from the keyboard is for us: we close in order.
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise AoEError(
                "unshare", "not installed", "Install it with: apt install util-linux"
            ) from error
        self._expect_ready()

    @property
    def pid(self) -> int:
        """Process id of the holder."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """The file by which others find the namespace: ``/proc/PID/ns/net``."""
        return f"/proc/{self.pid}/ns/net"

    def command(self, args: Sequence[str]) -> list[str]:
        """Return the argument vector that runs ``args`` inside.

        Only the network changes; files, users and process ids are the caller's.
        """
        return ["nsenter", f"--net={self.path}", "--", *args]

    def run(
        self, args: Sequence[str], **options: object
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program inside and wait for it; options as in ``subprocess.run``."""
        return _run(self.command(args), **options)

    def popen(self, args: Sequence[str], **options: object) -> subprocess.Popen[Any]:
        """Start a program inside; options as in ``subprocess.Popen``.

        What still runs when the namespace is closed is ended with it, and its pipes
        are closed.
        """
        child = _popen(self.command(args), **options)
        self._children.append(child)
        return child

    def enter(self) -> AbstractContextManager[None]:
        """Let the calling thread be inside for the length of a ``with`` statement.

        Sockets opened meanwhile stay inside for good, wherever they are used later;
        programs started meanwhile run inside.
        """
        return enter_netns(self.path)

    def terminate_processes(self) -> None:
        """End what still runs inside, and close its pipes."""
        while self._children:
            _finish(self._children.pop())

    def close(self) -> None:
        """End what runs inside, and the namespace. Safe to call twice."""
        self.terminate_processes()
        _finish(self._holder)

    def _expect_ready(self) -> None:
        if cast("IO[str]", self._holder.stdout).readline() == "ready\n":
            return
        words = cast("IO[str]", self._holder.stderr).read().strip().replace("\n", "; ")
        self.close()
        if "not permitted" in words or "denied" in words:
            raise AccessError(
                "network namespace",
                words,
                "Run as root, or root-free inside: unshare -Urn",
            )
        raise AoEError("network namespace", words or "its holder ended at once")


class Wire(_Closing):
    """Two namespaces with a veth pair between them, one interface in each.

    Args:
        mtu: bytes behind the Ethernet header, for both ends or for each: target's
            first.
        interface: the name that the interface has on both sides.

    Raises:
        AccessError: namespaces need root or a user namespace.
    """

    target_mac: Final = bytes.fromhex("525400ae0001")
    initiator_mac: Final = bytes.fromhex("525400ae0002")

    def __init__(
        self, mtu: int | tuple[int, int] = 1500, *, interface: str = "aoe0"
    ) -> None:
        target_mtu, initiator_mtu = mtu if isinstance(mtu, tuple) else (mtu, mtu)
        self.interface = interface
        with ExitStack() as stack:
            self.target = stack.enter_context(Namespace())
            self.initiator = stack.enter_context(Namespace())
            create_veth(
                VethEnd(interface, target_mtu, self.target_mac, self.target.pid),
                VethEnd(
                    interface, initiator_mtu, self.initiator_mac, self.initiator.pid
                ),
            )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Take everything away. Safe to call twice."""
        # Nobody shall see the wire go before it has to go itself.
        for host in (self.initiator, self.target):
            host.terminate_processes()
        self._stack.close()


class Switch(_Closing):
    """A bridge in a namespace of its own, and cables from it to as many others.

    Unlike a wire's end, a cable can be pulled, put back and exchanged, and whoever is
    at the others notices nothing.

    Args:
        mtu: bytes behind the Ethernet header that all of it carries.
        interface: the name of the interface at the far end of each cable.

    Raises:
        AccessError: namespaces need root or a user namespace.
    """

    def __init__(self, mtu: int = 1500, *, interface: str = "aoe0") -> None:
        self.interface = interface
        self._mtu = mtu
        self._cables: dict[Namespace, str] = {}
        self._hosts: list[Namespace] = []
        self._count = 0
        with ExitStack() as stack:
            self._inside = stack.enter_context(Namespace())
            create_bridge("bridge", self._inside.pid)
            self._stack = stack.pop_all()

    def add_host(self, mac: bytes | None = None) -> Namespace:
        """Make another namespace at the end of a cable; it is closed with the switch.

        Args:
            mac: the interface's address; None lets the kernel draw one.
        """
        host = self._stack.enter_context(Namespace())
        self._hosts.append(host)
        self.attach(host, mac)
        return host

    def attach(self, host: Namespace, mac: bytes | None = None) -> None:
        """Lay a cable to a host that has none; see ``add_host``."""
        self._count += 1
        near = f"port{self._count}"
        create_veth(
            VethEnd(near, self._mtu, netns=self._inside.pid),
            VethEnd(self.interface, self._mtu, mac, host.pid),
        )
        join_bridge(near, "bridge", self._inside.pid)
        self._cables[host] = near

    def limit_mtu(self, host: Namespace, mtu: int) -> None:
        """Let the switch carry no longer frames to and from a host, who is not told."""
        set_mtu(self._cables[host], mtu, self._inside.pid)

    def detach(self, host: Namespace) -> None:
        """Take a host's cable away, and its interface with it."""
        remove(self._cables.pop(host), self._inside.pid)

    def close(self) -> None:
        """Take everything away. Safe to call twice."""
        for host in self._hosts:
            host.terminate_processes()
        self._stack.close()


_UNSHARE: Final = ("unshare", "--user", "--map-root-user", "--net", "--")


def ensure_root_or_user_namespace() -> None:
    """Start the program anew as root of a user namespace, unless we are root already.

    The process id stays, and so does the argument vector. Ordinary users may make
    network namespaces and raw sockets in there, and reach no real network.

    Raises:
        AccessError: this system lets ordinary users make no user namespaces.
        AoEError: ``unshare`` (util-linux) is missing.
    """
    if os.geteuid() == 0:
        return
    check_user_namespaces()
    again = [*_UNSHARE, sys.executable, *sys.orig_argv[1:]]
    os.execvp(again[0], again)  # noqa: S606 - to be replaced is the point


def check_user_namespaces() -> None:
    """Make sure that we could be root of a user namespace, as an ordinary user may be.

    Raises:
        AccessError: this system does not let us.
        AoEError: ``unshare`` (util-linux) is missing.
    """
    try:
        probe = subprocess.run(
            [*_UNSHARE, "true"], check=False, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise AoEError(
            "unshare", "not installed", "Install it with: apt install util-linux"
        ) from error
    if probe.returncode:
        raise AccessError(
            "user namespace", probe.stderr.strip() or "refused", _userns_fix()
        )


def _userns_fix() -> str:
    guilty = [
        f"sysctl {path.removeprefix('/proc/sys/').replace('/', '.')} is {forbidding}"
        for path, forbidding in _SWITCHES.items()
        if _content(path) == forbidding
    ]
    names = ", ".join(
        path.removeprefix("/proc/sys/").replace("/", ".") for path in _SWITCHES
    )
    because = ", ".join(guilty) or f"See the sysctls {names}"
    return f"Run as root, or allow user namespaces: {because}"


def _content(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except OSError:
        return ""


def _finish(process: subprocess.Popen[Any]) -> None:
    _end(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
