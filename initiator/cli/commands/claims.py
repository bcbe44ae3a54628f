"""The claim of commands that write to a disk, and its option."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from initiator.client.claims import claimed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.disk.disk import Disk

CLAIM_FIX: Final = "Detach it or wait for the end of the process, or use --force"
force_option: Final = click.option(
    "--force",
    is_flag=True,
    help="Write to the disk although this host has attached or mounted it.",
)


@contextmanager
def writing_to(disk: Disk, *, force: bool, fix: str = CLAIM_FIX) -> Iterator[None]:
    """Claim an open disk while the context is active, unless ``force`` is set.

    Raises:
        BusyError: as ``initiator.client.claims.claimed``.
    """
    if force:
        yield
        return
    device = disk.host.driver.devices[disk.address]
    paths = [
        (interface.netdev.name, target.addr)
        for target in device.targets
        for interface in target.ifs
    ]
    with claimed(disk.address, device.identity, paths, fix):
        yield
