"""Temporary network namespaces, connected by a veth pair or a bridge.

Used by the demo, the tests and the pytest plugin. The host's own network configuration
is not changed, and the kernel removes the namespaces even if the program is killed.

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

# Untyped aliases, because their overloads do not accept **options: object.
_run: Callable[..., subprocess.CompletedProcess[Any]] = subprocess.run
_popen: Callable[..., subprocess.Popen[Any]] = subprocess.Popen

_HOLDER_SCRIPT: Final = """
ip link set lo up
for scope in all default; do
    file=/proc/sys/net/ipv6/conf/$scope/disable_ipv6
    [ ! -e "$file" ] || echo 1 >"$file"
done
echo ready
exec cat >/dev/null
"""
"""Program of the holder process: set lo up, disable IPv6, wait for end of file.

IPv6 is disabled because its neighbour discovery sends frames on every interface.
"""

_TERMINATE_TIMEOUT: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

_SYSCTLS: Final = {
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "user.max_user_namespaces": ("0", "10000"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
}
"""The sysctls of unprivileged user namespaces: a value that disables them, and one that
allows them."""


class _Closable(ABC):
    # Context manager that calls close() on exit.

    @abstractmethod
    def close(self) -> None:
        """Release the resources. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Namespace(_Closable):
    """A network namespace that exists until the object is closed.

    A holder process keeps it alive. The holder reads from a pipe to this process and
    exits at end of file, so that the kernel removes the namespace and its interfaces
    even if this process is killed by SIGKILL. Open sockets inside the namespace, made
    under ``enter``, keep it alive until they are closed.

    Raises:
        AccessError: neither root nor in a user namespace.
        AoEError: ``unshare`` (util-linux) or ``ip`` (iproute2) is not installed.
    """

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[Any]] = []
        try:
            self._holder = subprocess.Popen(
                ["unshare", "--net", "--", "sh", "-ec", _HOLDER_SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Keep SIGINT of the terminal from the holder: close() ends it.
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise AoEError(
                "unshare", "not installed", "Install it with: apt install util-linux"
            ) from error
        self._wait_ready()

    @property
    def pid(self) -> int:
        """Process id of the holder process."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """Path of the namespace file, ``/proc/PID/ns/net``."""
        return f"/proc/{self.pid}/ns/net"

    def command(self, args: Sequence[str]) -> list[str]:
        """Return the argument vector that runs ``args`` in the namespace.

        Only the network namespace differs from the caller's.
        """
        return ["nsenter", f"--net={self.path}", "--", *args]

    def run(
        self, args: Sequence[str], **options: object
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program in the namespace; options as in ``subprocess.run``."""
        return _run(self.command(args), **options)

    def popen(self, args: Sequence[str], **options: object) -> subprocess.Popen[Any]:
        """Start a program in the namespace; options as in ``subprocess.Popen``.

        ``close`` terminates the program if it is still running, and closes its pipes.
        """
        child = _popen(self.command(args), **options)
        self._children.append(child)
        return child

    def enter(self) -> AbstractContextManager[None]:
        """Move the calling thread into the namespace for the ``with`` block.

        Sockets opened in the block stay in the namespace afterwards. Processes started
        in the block run in it.
        """
        return enter_netns(self.path)

    def terminate_processes(self) -> None:
        """Terminate the processes started by ``popen`` and close their pipes."""
        while self._children:
            _terminate_and_close(self._children.pop())

    def close(self) -> None:
        """Terminate the processes and remove the namespace. Safe to call twice."""
        self.terminate_processes()
        _terminate_and_close(self._holder)

    def _wait_ready(self) -> None:
        if cast("IO[str]", self._holder.stdout).readline() == "ready\n":
            return
        why = cast("IO[str]", self._holder.stderr).read().strip().replace("\n", "; ")
        self.close()
        if "not permitted" in why or "denied" in why:
            raise AccessError(
                "network namespace",
                why,
                "Run as root, or in a user namespace: unshare -Urn",
            )
        fix = "Install it with: apt install iproute2" if "ip: not found" in why else ""
        raise AoEError("network namespace", why or "the holder process exited", fix)


class Wire(_Closable):
    """Two network namespaces, ``target`` and ``initiator``, joined by a veth pair.

    Args:
        mtu: MTU in bytes, of both ends or as a pair (target, initiator).
        interface: the name of the interface in both namespaces.

    Raises:
        AccessError: neither root nor in a user namespace.
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
        """Terminate the processes, remove namespaces and veth pair; may be repeated."""
        # Processes end before the interfaces are removed, so that none logs an error.
        for host in (self.initiator, self.target):
            host.terminate_processes()
        self._stack.close()


class Switch(_Closable):
    """A bridge in its own network namespace, joined to other namespaces by veth pairs.

    Hosts can be attached and detached without a carrier change at the other hosts.

    Args:
        mtu: MTU in bytes of all interfaces.
        interface: the name of the interface in each host's namespace.

    Raises:
        AccessError: neither root nor in a user namespace.
    """

    def __init__(self, mtu: int = 1500, *, interface: str = "aoe0") -> None:
        self.interface = interface
        self._mtu = mtu
        self._ports: dict[Namespace, str] = {}
        self._hosts: list[Namespace] = []
        self._count = 0
        with ExitStack() as stack:
            self._namespace = stack.enter_context(Namespace())
            create_bridge("bridge", self._namespace.pid)
            self._stack = stack.pop_all()

    def add_host(self, mac: bytes | None = None) -> Namespace:
        """Create and attach a namespace; it is closed together with the switch.

        Args:
            mac: MAC address of the host's interface; None for a random one.
        """
        host = self._stack.enter_context(Namespace())
        self._hosts.append(host)
        self.attach(host, mac)
        return host

    def attach(self, host: Namespace, mac: bytes | None = None) -> None:
        """Connect a detached host by a new veth pair; see ``add_host``."""
        self._count += 1
        port = f"port{self._count}"
        create_veth(
            VethEnd(port, self._mtu, netns=self._namespace.pid),
            VethEnd(self.interface, self._mtu, mac, host.pid),
        )
        join_bridge(port, "bridge", self._namespace.pid)
        self._ports[host] = port

    def limit_mtu(self, host: Namespace, mtu: int) -> None:
        """Set the MTU of a host's bridge port; the host's own MTU does not change."""
        set_mtu(self._ports[host], mtu, self._namespace.pid)

    def detach(self, host: Namespace) -> None:
        """Delete a host's veth pair, and with it the interface in the host."""
        remove(self._ports.pop(host), self._namespace.pid)

    def close(self) -> None:
        """Terminate the processes and remove all namespaces. Safe to call twice."""
        for host in self._hosts:
            host.terminate_processes()
        self._stack.close()


_UNSHARE: Final = ("unshare", "--user", "--map-root-user", "--net", "--")


def ensure_root_or_user_namespace() -> None:
    """Re-execute the program as root of a new user namespace, unless run by root.

    Process id and arguments do not change. In the user namespace an unprivileged user
    may create network namespaces and raw sockets, but cannot reach the host's network.

    Raises:
        AccessError: the system does not allow unprivileged user namespaces.
        AoEError: ``unshare`` (util-linux) is not installed.
    """
    if os.geteuid() == 0:
        return
    check_user_namespaces()
    command = [*_UNSHARE, sys.executable, *sys.orig_argv[1:]]
    os.execvp(command[0], command)  # noqa: S606 - no shell is needed


def check_user_namespaces() -> None:
    """Raise an error if the caller cannot create a user and a network namespace.

    Raises:
        AccessError: the system does not allow unprivileged user namespaces.
        AoEError: ``unshare`` (util-linux) is not installed.
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
    settings = [
        f"{name}={allowing}"
        for name, (disabling, allowing) in _SYSCTLS.items()
        if _read_sysctl(name) == disabling
    ]
    how = f"see the sysctls {', '.join(_SYSCTLS)}"
    if settings:
        how = f"sudo sysctl -w {' '.join(settings)}"
    return f"Run as root, or allow user namespaces: {how}"


def _read_sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text("ascii").strip()
    except OSError:
        return ""


def _terminate_and_close(process: subprocess.Popen[Any]) -> None:
    _terminate(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _terminate(process: subprocess.Popen[Any]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_TERMINATE_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
