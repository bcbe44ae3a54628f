"""What the system knows of its network interfaces, and how to make and change them.

Everything works in the namespace of the calling thread; given ``netns``, a process id
or a path such as ``/proc/123/ns/net``, in that one.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from aoe.errors import NotFoundError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NetworkNamespace: TypeAlias = int | str
"""A process id, or the path of a namespace file."""

_CLONE_NEWNET: Final = 0x4000_0000
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_ARPHRD_ETHER: Final = 1
_FIX: Final = "Run as root, or root-free inside: unshare -Urn"


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface as it was when it was looked at.

    Args:
        index: the number that the kernel knows it by.
        name: at most 15 characters.
        mac: six bytes, all zero for the loopback; shorter where there is no Ethernet.
        mtu: bytes behind the Ethernet header.
        up: switched on by the administrator.
        carrier: a cable is in and somebody answers at its other end.
        loopback: it leads back to this machine only.
        ethernet: it carries Ethernet frames, to whomever.
        kind: ``veth``, ``bridge``, ...; ``ethernet`` for hardware, else empty.
    """

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    carrier: bool
    loopback: bool
    ethernet: bool
    kind: str


@contextmanager
def enter_netns(netns: NetworkNamespace | None) -> Iterator[None]:
    """Move the calling thread into a network namespace and back again.

    Sockets belong for ever to the namespace that they were opened in. Nothing happens
    with None.

    Raises:
        NotFoundError: no such process or file.
        AccessError: entering it needs CAP_SYS_ADMIN.
    """
    if netns is None:
        yield
        return
    with _opened(None) as home, _opened(netns) as there:
        _set_namespace(there)
        try:
            yield
        finally:
            _set_namespace(home)


@contextmanager
def _opened(netns: NetworkNamespace | None) -> Iterator[int]:
    if netns is None:
        path = "/proc/thread-self/ns/net"
    else:
        path = f"/proc/{netns}/ns/net" if isinstance(netns, int) else netns
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(path, error, _fix_for(error.errno)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def list_interfaces(netns: NetworkNamespace | None = None) -> list[Interface]:
    """List all interfaces, ordered by index."""
    with _netlink("interfaces", netns) as netlink:
        found = [_from_message(message) for message in netlink.get_links()]
    return sorted(found, key=lambda interface: interface.index)


def find_interface(name: str, netns: NetworkNamespace | None = None) -> Interface:
    """Find an interface by its name.

    Raises:
        NotFoundError: there is none; the message names those that there are.
    """
    interfaces = list_interfaces(netns)
    for interface in interfaces:
        if interface.name == name:
            return interface
    have = ", ".join(interface.name for interface in interfaces)
    raise NotFoundError(
        name, f"no such interface (have: {have})", "List them with: ip link"
    )


@dataclass(frozen=True, slots=True)
class InterfaceDetails:
    """What else is known of an interface, for whoever looks for trouble.

    Args:
        interface: what everybody wants to know.
        mtu_limit: bytes that the MTU can be at most; 0 where nobody knows.
        watchers: how many want to see frames for other machines too.
        master: the bridge or bond that it is a port of; empty for none.
        master_kind: ``bridge``, ``bond``, ``team``, ...
        above: interfaces made on top of it, VLANs for example.
        counters: frames, errors and losses since it exists, by the names that they have
            in ``struct rtnl_link_stats64``.
    """

    interface: Interface
    max_mtu: int
    promiscuity: int
    master: str
    master_kind: str
    upper: tuple[str, ...]
    counters: Mapping[str, int]


def get_interface_details(
    name: str, netns: NetworkNamespace | None = None
) -> InterfaceDetails:
    """Look at an interface more closely; raises as ``find_interface`` does."""
    with _netlink(name, netns) as netlink:
        messages = {m["index"]: m for m in netlink.get_links()}
    index = find_interface(name, netns).index
    message = messages[index]
    master = messages.get(message.get("master"))
    upper = (m for m in messages.values() if _is_upper(m, index))
    return InterfaceDetails(
        interface=_from_message(message),
        max_mtu=int(message.get("max_mtu") or 0),
        promiscuity=int(message.get("promiscuity") or 0),
        master="" if master is None else str(master.get("ifname")),
        master_kind="" if master is None else _from_message(master).kind,
        upper=tuple(str(m.get("ifname")) for m in upper),
        counters=dict(message.get("stats64") or {}),
    )


def _is_upper(message: Mapping[str, Any], index: int) -> bool:
    # A veth has a link too, its peer, and maybe in another namespace.
    is_ours = message.get("link_netnsid") is None and message.get("link") == index
    return is_ours and _from_message(message).kind not in ("veth", "ethernet")


def usable_interfaces(netns: NetworkNamespace | None = None) -> list[Interface]:
    """List the interfaces that AoE can be spoken on: Ethernet, up, not loopback."""
    return [
        interface
        for interface in list_interfaces(netns)
        if interface.ethernet and interface.up and not interface.loopback
    ]


class InterfaceMonitor:
    """Rings when any interface of the caller's namespace changes.

    ``fileno`` is readable then; ``refresh`` takes note, and says how the interfaces are
    by now. What changed in between, and how often, is not told: a crowd of changes is
    one ring, and none is lost when the kernel's queue runs over.
    """

    def __init__(self) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink import rtnl

        self._netlink: Any = IPRoute()
        self._bell: Any = IPRoute()
        self._bell.bind(groups=rtnl.RTMGRP_LINK)

    def fileno(self) -> int:
        """Return the descriptor that is readable after a change."""
        return int(self._bell.fileno())

    def refresh(self) -> list[Interface]:
        """List all interfaces, as ``list_interfaces`` does, and be quiet again."""
        _drain(self.fileno())
        found = [_from_message(message) for message in self._netlink.get_links()]
        return sorted(found, key=lambda interface: interface.index)

    def close(self) -> None:
        """Stop watching."""
        self._bell.close()
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drain(descriptor: int) -> None:
    os.set_blocking(descriptor, False)
    while True:
        try:
            os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            # A queue that ran over says so once, and goes on.
            if error.errno != errno.ENOBUFS:
                raise


def set_up(name: str, netns: NetworkNamespace | None = None) -> None:
    """Switch an interface on.

    Raises:
        NotFoundError: no such interface.
        AccessError: this needs CAP_NET_ADMIN.
    """
    _change(name, netns, state="up")


def set_down(name: str, netns: NetworkNamespace | None = None) -> None:
    """Switch an interface off; raises as ``set_up`` does."""
    _change(name, netns, state="down")


def set_mtu(name: str, mtu: int, netns: NetworkNamespace | None = None) -> None:
    """Set an interface's MTU, in bytes; raises as ``set_up`` does.

    Raises:
        AoEError: the interface cannot do this MTU.
    """
    _change(name, netns, mtu=mtu)


def remove(name: str, netns: NetworkNamespace | None = None) -> None:
    """Delete a virtual interface, a veth with its peer; raises as ``set_up`` does."""
    index = find_interface(name, netns).index
    with _netlink(name, netns) as netlink:
        netlink.link("del", index=index)


@dataclass(frozen=True, slots=True)
class VethEnd:
    """What one end of a new veth pair shall look like.

    Args:
        name: its name.
        mtu: bytes behind the Ethernet header.
        mac: six bytes; None lets the kernel draw a random one.
        netns: where it shall appear; None is the caller's namespace.
        up: switch it on at once.
    """

    name: str
    mtu: int = 1500
    mac: bytes | None = None
    netns: NetworkNamespace | None = None
    up: bool = True


def create_veth(first: VethEnd, second: VethEnd) -> None:
    """Make a virtual cable with an interface at each end.

    Raises:
        AccessError: this needs CAP_NET_ADMIN, in both namespaces.
        AoEError: a name is taken, an MTU out of range, or what else the kernel may
            object to.
    """
    # The first end's namespace is entered and the second's is named: one message makes
    # both ends, and neither passes through a third namespace.
    with _opened(second.netns) as there, _netlink(first.name, first.netns) as netlink:
        peer = {**_attributes(second), "net_ns_fd": there}
        netlink.link("add", kind="veth", **_attributes(first), peer=peer)
    for end in (first, second):
        if end.up:
            set_up(end.name, end.netns)


def create_bridge(name: str, netns: NetworkNamespace | None = None) -> None:
    """Make a switch, switched on, without ports.

    Raises:
        AccessError: this needs CAP_NET_ADMIN.
        AoEError: the name is taken.
    """
    with _netlink(name, netns) as netlink:
        netlink.link("add", kind="bridge", ifname=name, state="up")


def join_bridge(name: str, bridge: str, netns: NetworkNamespace | None = None) -> None:
    """Make an interface a port of a bridge; raises as ``set_up`` does."""
    _change(name, netns, master=find_interface(bridge, netns).index)


def rename(name: str, new: str, netns: NetworkNamespace | None = None) -> None:
    """Give an interface another name; raises as ``set_up`` does.

    Raises:
        AoEError: the name is taken, or the kernel wants the interface down for it.
    """
    _change(name, netns, ifname=new)


def _attributes(end: VethEnd) -> dict[str, Any]:
    attributes: dict[str, Any] = {"ifname": end.name, "mtu": end.mtu}
    if end.mac is not None:
        attributes["address"] = end.mac.hex(":")
    return attributes


def _change(name: str, netns: NetworkNamespace | None, **change: object) -> None:
    index = find_interface(name, netns).index
    words = " ".join(f"{key} {value}" for key, value in change.items())
    with _netlink(f"{name}: {words}", netns) as netlink:
        netlink.link("set", index=index, **change)


@contextmanager
def _netlink(what: str, netns: NetworkNamespace | None) -> Iterator[Any]:
    # Imported here because it takes an eighth of a second. The thread enters the
    # namespace itself: pyroute2's own netns= forks and leaves sockets open.
    from pyroute2 import IPRoute, NetlinkError

    try:
        with enter_netns(netns), IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        code = int(error.code)
        raise from_os_error(
            what, OSError(code, os.strerror(code)), _fix_for(code)
        ) from error


def _fix_for(code: int | None) -> str:
    return _FIX if code in (errno.EPERM, errno.EACCES) else ""


def _from_message(message: Mapping[str, Any]) -> Interface:
    flags = int(message["flags"])
    loopback = bool(flags & _IFF_LOOPBACK)
    ethernet = message["ifi_type"] == _ARPHRD_ETHER
    info = message.get("linkinfo")
    kind = info.get("kind") if info else None
    return Interface(
        index=message["index"],
        name=str(message.get("ifname")),
        mac=bytes.fromhex((message.get("address") or "").replace(":", "")),
        mtu=int(message.get("mtu") or 0),
        up=bool(flags & _IFF_UP),
        carrier=bool(message.get("carrier")),
        loopback=loopback,
        ethernet=ethernet,
        kind=kind or ("ethernet" if ethernet else ""),
    )


def _set_namespace(descriptor: int) -> None:
    # os.setns is there from Python 3.12 on only.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        error = OSError(code, os.strerror(code))
        raise from_os_error("network namespace", error, _fix_for(code))
