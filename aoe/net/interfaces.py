"""List, watch, create and configure network interfaces, by rtnetlink.

The functions operate in the network namespace of the calling thread, or in ``netns``: a
process id or a path such as ``/proc/123/ns/net``.
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
"""A process id, or the path of a namespace file (see namespaces(7))."""

_CLONE_NEWNET: Final = 0x4000_0000
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_ARPHRD_ETHER: Final = 1
_FIX: Final = "Run as root, or in a user namespace: unshare -Urn"


@dataclass(frozen=True, slots=True)
class Interface:
    """A snapshot of a network interface.

    Args:
        index: interface index.
        name: at most 15 bytes.
        mac: six bytes, all zero for the loopback interface; other lengths occur if the
            interface is not Ethernet.
        mtu: in bytes, without the Ethernet header.
        up: administratively up (IFF_UP).
        carrier: the link is established.
        loopback: loopback interface (IFF_LOOPBACK).
        ethernet: the link type is ARPHRD_ETHER.
        kind: ``veth``, ``bridge``, ... as in ``ip link add type``; ``ethernet`` for
            hardware, else empty.
        alternative_names: up to 127 bytes each, as in ``ip link property``.
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
    alternative_names: tuple[str, ...] = ()

    def has_name(self, name: str) -> bool:
        """Return True if this is its name, or one of its alternative names."""
        return name == self.name or name in self.alternative_names


@contextmanager
def enter_netns(netns: NetworkNamespace | None) -> Iterator[None]:
    """Move the calling thread into a network namespace for the ``with`` block.

    A socket stays in the namespace in which it was opened. None does nothing.

    Raises:
        NotFoundError: no such process or file.
        AccessError: setns(2) needs CAP_SYS_ADMIN.
    """
    if netns is None:
        yield
        return
    with _open_netns(None) as original, _open_netns(netns) as wanted:
        _set_namespace(wanted)
        try:
            yield
        finally:
            _set_namespace(original)


@contextmanager
def _open_netns(netns: NetworkNamespace | None) -> Iterator[int]:
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
    """Return all interfaces, ordered by index."""
    with _netlink("interfaces", netns) as netlink:
        found = [_from_message(message) for message in netlink.get_links()]
    return sorted(found, key=lambda interface: interface.index)


def find_interface(name: str, netns: NetworkNamespace | None = None) -> Interface:
    """Return the interface of this name or alternative name.

    Raises:
        NotFoundError: no such interface; the message lists the existing ones.
    """
    interfaces = list_interfaces(netns)
    for interface in interfaces:
        if interface.has_name(name):
            return interface
    have = ", ".join(interface.name for interface in interfaces)
    raise NotFoundError(
        name, f"no such interface (have: {have})", "List them with: ip link"
    )


@dataclass(frozen=True, slots=True)
class InterfaceDetails:
    """Further attributes of an interface, for diagnosis.

    Args:
        interface: the basic attributes.
        max_mtu: the largest MTU that the driver supports, in bytes; 0 if unknown.
        promiscuity: number of users of promiscuous mode.
        master: the bridge or bond that it is a port of; empty for none.
        master_kind: ``bridge``, ``bond``, ``team``, ...
        upper: interfaces on top of it, for example VLANs.
        counters: frames, errors and drops, named as in ``struct rtnl_link_stats64``.
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
    """Return further attributes of an interface; raises as ``find_interface``."""
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
    # IFLA_LINK of a veth is its peer, which may be in another namespace.
    is_lower = message.get("link_netnsid") is None and message.get("link") == index
    return is_lower and _from_message(message).kind not in ("veth", "ethernet")


def usable_interfaces(netns: NetworkNamespace | None = None) -> list[Interface]:
    """Return the interfaces that AoE can use: Ethernet, up, not loopback."""
    return [
        interface
        for interface in list_interfaces(netns)
        if interface.ethernet and interface.up and not interface.loopback
    ]


class InterfaceMonitor:
    """A monitor of interface changes in the caller's namespace (RTMGRP_LINK).

    ``fileno`` is readable after a change; ``refresh`` discards the notifications and
    returns the current state. Because the state is read anew, notifications that are
    coalesced or lost by a queue overflow (ENOBUFS) do no harm.
    """

    def __init__(self) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink import rtnl

        self._netlink: Any = IPRoute()
        self._notifications: Any = IPRoute()
        self._notifications.bind(groups=rtnl.RTMGRP_LINK)

    def fileno(self) -> int:
        """Return the descriptor that is readable after a change."""
        return int(self._notifications.fileno())

    def refresh(self) -> list[Interface]:
        """Discard pending notifications and return all interfaces, ordered by index."""
        _drain(self.fileno())
        found = [_from_message(message) for message in self._netlink.get_links()]
        return sorted(found, key=lambda interface: interface.index)

    def close(self) -> None:
        """Stop watching."""
        self._notifications.close()
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
            # An overflow of the receive queue is reported once.
            if error.errno != errno.ENOBUFS:
                raise


def set_up(name: str, netns: NetworkNamespace | None = None) -> None:
    """Set an interface up.

    Raises:
        NotFoundError: no such interface.
        AccessError: CAP_NET_ADMIN is missing.
    """
    _set_link(name, netns, state="up")


def set_down(name: str, netns: NetworkNamespace | None = None) -> None:
    """Set an interface down; raises as ``set_up``."""
    _set_link(name, netns, state="down")


def set_mtu(name: str, mtu: int, netns: NetworkNamespace | None = None) -> None:
    """Set the MTU of an interface, in bytes; raises as ``set_up``.

    Raises:
        AoEError: the driver does not support this MTU.
    """
    _set_link(name, netns, mtu=mtu)


def remove(name: str, netns: NetworkNamespace | None = None) -> None:
    """Delete a virtual interface, a veth with its peer; raises as ``set_up``."""
    index = find_interface(name, netns).index
    with _netlink(name, netns) as netlink:
        netlink.link("del", index=index)


@dataclass(frozen=True, slots=True)
class VethEnd:
    """Parameters of one end of a new veth pair.

    Args:
        name: interface name.
        mtu: in bytes, without the Ethernet header.
        mac: six bytes; None for a random address.
        netns: network namespace to create it in; None for the caller's.
        up: set the interface up.
    """

    name: str
    mtu: int = 1500
    mac: bytes | None = None
    netns: NetworkNamespace | None = None
    up: bool = True


def create_veth(first: VethEnd, second: VethEnd) -> None:
    """Create a veth pair.

    Raises:
        AccessError: CAP_NET_ADMIN is missing in one of the namespaces.
        AoEError: the kernel refused, for example because a name exists or an MTU is out
            of range.
    """
    # One message, sent in the first end's namespace, creates both ends in their final
    # namespaces; neither has to be moved.
    with (
        _open_netns(second.netns) as netns,
        _netlink(first.name, first.netns) as netlink,
    ):
        peer = {**_veth_attributes(second), "net_ns_fd": netns}
        netlink.link("add", kind="veth", **_veth_attributes(first), peer=peer)
    for end in (first, second):
        if end.up:
            set_up(end.name, end.netns)


def create_bridge(name: str, netns: NetworkNamespace | None = None) -> None:
    """Create a bridge without ports and set it up.

    Raises:
        AccessError: CAP_NET_ADMIN is missing.
        AoEError: an interface of this name exists.
    """
    with _netlink(name, netns) as netlink:
        netlink.link("add", kind="bridge", ifname=name, state="up")


def join_bridge(name: str, bridge: str, netns: NetworkNamespace | None = None) -> None:
    """Make an interface a port of a bridge; raises as ``set_up``."""
    _set_link(name, netns, master=find_interface(bridge, netns).index)


def rename(name: str, new: str, netns: NetworkNamespace | None = None) -> None:
    """Rename an interface; raises as ``set_up``.

    Raises:
        AoEError: the name exists, or the kernel requires the interface to be down.
    """
    _set_link(name, netns, ifname=new)


def _veth_attributes(end: VethEnd) -> dict[str, Any]:
    attributes: dict[str, Any] = {"ifname": end.name, "mtu": end.mtu}
    if end.mac is not None:
        attributes["address"] = end.mac.hex(":")
    return attributes


def _set_link(name: str, netns: NetworkNamespace | None, **attributes: object) -> None:
    index = find_interface(name, netns).index
    text = " ".join(f"{key} {value}" for key, value in attributes.items())
    with _netlink(f"{name}: {text}", netns) as netlink:
        netlink.link("set", index=index, **attributes)


@contextmanager
def _netlink(what: str, netns: NetworkNamespace | None) -> Iterator[Any]:
    # Imported here because the import takes 125 ms. The netns= argument of pyroute2 is
    # not used, because it forks and leaks sockets.
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
        alternative_names=_alternative_names(message),
    )


def _alternative_names(message: Mapping[str, Any]) -> tuple[str, ...]:
    properties = message.get("prop_list")
    names = properties.get_attrs("IFLA_ALT_IFNAME") if properties else ()
    return tuple(map(str, names))


def _set_namespace(descriptor: int) -> None:
    # os.setns is new in Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        error = OSError(code, os.strerror(code))
        raise from_os_error("network namespace", error, _fix_for(code))
