"""``aoe detach``: detach disks that ``aoe attach`` has attached."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Any, Final

import click

from aoe.address import Address
from aoe.common.commandline import json_option, print_json
from aoe.common.sizes import short_size
from aoe.errors import AccessError, NotFoundError, UsageError

_PLACES: Final = ("uri", "file", "device", "directory")
_NAMES: Final = ("address", "socket", *_PLACES)
_EXIT_TIMEOUT: Final = 60.0
"""Seconds to wait for the process to exit after it has detached the disk."""


@click.command()
@click.argument("name", required=False)
@click.option(
    "--lazy",
    is_flag=True,
    help="Unmount now, and detach when the last process stops using it.",
)
@click.option("--list", "listing", is_flag=True, help="List the attached disks.")
@json_option
def detach(*, name: str | None, lazy: bool, listing: bool, as_json: bool) -> None:
    """Detach an attached disk.

    \b
    Try:  aoe detach e0.0
          aoe detach /mnt
          aoe detach --list

    NAME is the address of the disk, or the directory, file, device or socket where it
    is attached. The disk is unmounted and flushed. If processes still use it, they are
    printed and the disk stays attached.
    """
    from initiator.export.detach import send_command

    attached = _attached()
    if listing:
        _list([about for _, about in attached], as_json=as_json)
        return
    socket, about = _find(name, attached)
    send_command(socket, "detach", lazy="yes" if lazy else "no", timeout=None)
    if not lazy:
        _wait_for_end(about["pid"])
    if as_json:
        print_json("detach", attachments=[about])


def _list(documents: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json("detach", attachments=documents)
        return
    for about in documents:
        click.echo(attached_line(about))


def attached_line(about: dict[str, Any]) -> str:
    """Return a line that says where a disk is attached."""
    places = [each for each in map(about.get, _PLACES) if each]
    flags = " [read-only]" if about["read_only"] else ""
    size = short_size(about["size_bytes"])
    return f"{about['address']} {size} as {', '.join(places)}{flags}"


def _attached() -> list[tuple[str, dict[str, Any]]]:
    from initiator.export.detach import find_attachments, send_command

    found = []
    for _, socket in find_attachments():
        # Skip a process that has just exited, or that belongs to another user.
        with suppress(NotFoundError, AccessError):
            found.append((socket, send_command(socket, "status")))
    return found


def _find(
    name: str | None, attached: list[tuple[str, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    addresses = ", ".join(about["address"] for _, about in attached) or "nothing"
    if name is None:
        raise UsageError("aoe detach", "no NAME", f"Attached disks: {addresses}")
    names = {name, os.path.realpath(name)}
    with suppress(UsageError):
        names.add(str(Address.parse(name)))
    found = [
        (socket, about)
        for socket, about in attached
        if names & {about.get(key) for key in _NAMES}
    ]
    if not found:
        raise NotFoundError(name, f"not attached here (attached: {addresses})")
    if len(found) > 1:
        raise UsageError(
            name,
            f"attached {len(found)} times",
            "Give the directory, file or device: aoe detach --list",
        )
    return found[0]


def _wait_for_end(pid: int) -> None:
    # The process responds before it exits; its lock and sockets are free only then.
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            select.select([process], [], [], _EXIT_TIMEOUT)
        finally:
            os.close(process)
