"""Claims of the disks that a host writes to.

If a host writes to a disk twice, neither writer knows what the other one has changed or
has in its cache: two mounts of a file system corrupt it. Each command that writes to a
disk claims it, by its address on each interface, and by its identity, because a disk
can be available at several addresses or interfaces. Commands that only read claim
nothing.

The kernel's AoE driver cannot claim anything; its devices are in /sys/block.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.files import read_attribute
from aoe.common.uses import find_use
from aoe.errors import AoEError, BusyError
from aoe.net.claims import claim_name
from aoe.net.netdevice import get_link_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aoe.address import Address
    from aoe.identify import Identity

_SYS: Final = Path("/sys/block")
_DEV: Final = Path("/dev/etherd")


@contextmanager
def claimed(
    address: Address,
    identity: Identity | None,
    paths: Iterable[tuple[str, bytes]],
    fix: str,
) -> Iterator[None]:
    """Claim a disk for writing while the context is active.

    Args:
        address: its address.
        identity: its IDENTIFY data, if known.
        paths: interface and target's MAC address of each path to it.
        fix: how to solve it if it is claimed.

    Raises:
        BusyError: another process of this host writes to it, or it is in use through
            the kernel's AoE driver.
    """
    known = list(paths)
    indexes = {_index(interface) for interface, _ in known}
    names = [f"pyaoe/disk/{index}/{address}" for index in sorted(indexes)]
    if identity is not None:
        names += [f"pyaoe/disk/{key}" for key in sorted(disk_keys(identity))]
    with ExitStack() as stack:
        for name in names:
            use = "being written to on this host"
            stack.enter_context(claim_name(name, str(address), use, fix))
        device = _find_kernel_device(address, known)
        if device is not None:
            stack.enter_context(_held(device, address, fix))
        yield


def _index(interface: str) -> int:
    # An interface can have several names. 0 if it has been removed.
    try:
        return get_link_info(interface).number
    except AoEError:
        return 0


def disk_keys(identity: Identity) -> set[str]:
    """Return what no two disks have in common: hashes of serial number and WWN.

    A target may derive one of them from its address, so each is a key of its own.
    """
    texts = []
    if identity.serial:
        texts.append(f"{identity.model}\0{identity.serial}")
    if identity.wwn:
        texts.append(f"{identity.wwn:x}")
    return {blake2b(text.encode(), digest_size=16).hexdigest() for text in texts}


def _find_kernel_device(
    address: Address, paths: list[tuple[str, bytes]]
) -> Path | None:
    """Return the block device that the kernel's AoE driver has made of a disk, if any.

    The driver makes one of each disk that it discovers. Its attributes ``netif`` and
    ``mac`` tell another disk of the same address on another network.
    """
    attributes = _SYS / f"etherd!{address}"
    interfaces = read_attribute(attributes / "netif").split(",")
    mac = read_attribute(attributes / "mac").replace(":", "")
    if not any(
        interface in interfaces or target.hex() == mac for interface, target in paths
    ):
        return None
    device = _DEV / str(address)
    return device if device.is_block_device() else None


@contextmanager
def _held(device: Path, address: Address, fix: str) -> Iterator[None]:
    """Hold a block device, so that it cannot be mounted.

    Only root may. For other users, only the mounts that they see are checked.

    Raises:
        BusyError: it is in use.
    """
    use = find_use(device.stat(), 0, 0)
    if use:
        raise BusyError(str(address), f"the kernel has it as {device}: {use}", fix)
    with ExitStack() as stack:
        try:
            # O_EXCL detects mounts in other mount namespaces as well.
            fd = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
            stack.callback(os.close, fd)
        except OSError as error:
            if error.errno == errno.EBUSY:
                why = f"the kernel has it as {device}: mounted or in use"
                raise BusyError(str(address), why, fix) from error
        yield
