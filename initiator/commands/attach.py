"""``aoe attach`` and ``detach``: a disk for programs that know no AoE."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aoe.address import Address
from aoe.commandline import ADDRESS, json_option, print_json
from aoe.errors import AccessError, NotFoundError, UsageError
from aoe.sizes import format_size
from initiator.background import into_background, log_line
from initiator.commands.common import Connection, connects
from initiator.device import Disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.export.attachment import Attachment, Place

_GOODBYE: Final = 10.0
"""Seconds that a process gets to end when it has nothing left to do."""


def _absolute(path: str) -> Path:
    # libfuse goes to the root directory, and so does a process in the background.
    return Path(os.path.realpath(path))


def _resolve(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    return None if value is None else _absolute(value)


@click.command()
@click.argument("address", type=ADDRESS)
@connects(3.0, moves_data=True)
@click.option(
    "--fuse",
    "file",
    callback=_resolve,
    metavar="FILE",
    help="As a file, through FUSE; made if it is not there.",
)
@click.option("--loop", is_flag=True, help="As a block device, /dev/loopN.")
@click.option(
    "--mount",
    "directory",
    type=click.Path(exists=True, file_okay=False),
    callback=_resolve,
    metavar="DIR",
    help="Mount the file system that is on it.",
)
@click.option("--fstype", default="", help="Of what kind it is, if mount cannot tell.")
@click.option("--mount-options", "options", default="", help="As of mount -o.")
@click.option("--read-only", is_flag=True, help="Nothing can be written.")
@click.option("--background", is_flag=True, help="Go on in the background, once ready.")
@json_option
def attach(
    *,
    address: Address,
    connection: Connection,
    background: bool,
    as_json: bool,
    **place: Any,  # noqa: ANN401 - the fields of a Place, as their options say
) -> None:
    """Attach a disk as a file, a block device or a mounted file system.

    It stays until `aoe detach`, Ctrl-C or, if it is mounted, umount. Who uses it then
    keeps it. Block devices and mounts take root and mfusepy: pip install 'pyaoe[fuse]'.

    \b
    Try:  aoe attach e0.0 -i eth0 --mount /mnt
          aoe attach e0.0 -i eth0 --loop --background
          aoe attach e0.0 -i eth0 --fuse disk.img --read-only
    """
    from initiator.export.attachment import Place

    where = Place(**place)
    if where.file is None and where.directory is None and not where.loop:
        raise UsageError(
            str(address), "attach it as what?", "Add --mount DIR, --loop or --fuse FILE"
        )
    if where.directory is None and (where.fstype or where.options):
        raise UsageError(
            "--fstype, --mount-options", "nothing is mounted", "Add --mount DIR"
        )
    ready = into_background() if background else None
    with connection.host(address) as host:
        disk = Disk(host, address, connection.timeout)
        try:
            _keep_attached(disk, where, ready, as_json=as_json)
        finally:
            disk.close()


def _keep_attached(
    disk: Disk, place: Place, ready: Callable[[], None] | None, *, as_json: bool
) -> None:
    from initiator.export.attachment import Attachment
    from initiator.export.keeper import Keeper, flush, signals
    from initiator.export.reclaim import serve_reclaim
    from initiator.export.thread import DiskThread

    serve_reclaim()
    keeper = Keeper(log_line if ready else _warn)
    with signals(keeper), DiskThread(disk, keeper.wake) as thread:
        if not place.read_only and not flush(thread):
            _warn(f"{disk.address}: warning: the target knows no flush")
        attachment = Attachment(thread, place, keeper.wake)
        attachment.attach()
        about = _describe(disk, attachment, place)
        if as_json:
            print_json("attach", **about)
        else:
            click.echo(_line(about))
        sys.stdout.flush()
        if ready is not None:
            ready()
        keeper.keep(thread, attachment, about)


def _describe(disk: Disk, attachment: Attachment, place: Place) -> dict[str, Any]:
    return {
        "address": str(disk.address),
        "size_bytes": disk.size,
        "interfaces": [port.name for port in disk.host.ports],
        "read_only": place.read_only,
        "file": None if place.file is None else str(place.file),
        "device": None if attachment.device is None else str(attachment.device),
        "directory": None if place.directory is None else str(place.directory),
        "pid": os.getpid(),
    }


def _line(about: dict[str, Any]) -> str:
    size = format_size(about["size_bytes"])
    mode = ", read-only" if about["read_only"] else ""
    at = " on ".join(str(about[key]) for key in ("device", "directory") if about[key])
    places = " and ".join(filter(None, (about["file"], at)))
    return (
        f"{about['address']} {size} on {','.join(about['interfaces'])}{mode}: {places}"
    )


def _warn(line: str) -> None:
    click.echo(f"aoe: {line}", err=True)


@click.command()
@click.argument("name", required=False)
@click.option("--lazy", is_flag=True, help="Out of sight now, gone with its last user.")
@click.option("--list", "listing", is_flag=True, help="Show what is attached.")
@json_option
def detach(*, name: str | None, lazy: bool, listing: bool, as_json: bool) -> None:
    """Detach a disk: unmount, let go of the device and the file, and flush.

    NAME is its address, or where it is attached: the directory, file or device. Who
    still uses it is named, and nothing changes.

    \b
    Try:  aoe detach e0.0
          aoe detach /mnt
          aoe detach --list
    """
    from initiator.export.keeper import ask

    attached = _attached()
    if listing:
        documents = [about for _, about in attached]
        if as_json:
            print_json("detach", attachments=documents)
        else:
            click.echo("".join(f"{_line(about)}\n" for about in documents), nl=False)
        return
    socket, about = _find(name, attached)
    ask(socket, "detach", lazy="yes" if lazy else "no", wait=None)
    if not lazy:
        _wait_for_end(about["pid"])
    if as_json:
        print_json("detach", attachments=[about])


def _attached() -> list[tuple[str, dict[str, Any]]]:
    from initiator.export.keeper import ask, find_attachments

    found = []
    for _, socket in find_attachments():
        # One that ends just now is none; another user's is none of ours.
        with suppress(NotFoundError, AccessError):
            found.append((socket, ask(socket, "status")))
    return found


def _find(
    name: str | None, attached: list[tuple[str, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    have = ", ".join(about["address"] for _, about in attached) or "nothing"
    if name is None:
        raise UsageError("aoe detach", "which one?", f"Attached: {have}")
    names = {name, str(_absolute(name))}
    with suppress(UsageError):
        names.add(str(Address.parse(name)))
    found = [
        (socket, about)
        for socket, about in attached
        if names & {about[key] for key in ("address", "file", "device", "directory")}
    ]
    if not found:
        raise NotFoundError(name, f"not attached here (attached: {have})")
    if len(found) > 1:
        raise UsageError(
            name,
            f"attached {len(found)} times",
            "Name the directory, file or device: aoe detach --list",
        )
    return found[0]


def _wait_for_end(pid: int) -> None:
    # It has nothing left to do; what it held of the machine is free when it is gone.
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            select.select([process], [], [], _GOODBYE)
        finally:
            os.close(process)
