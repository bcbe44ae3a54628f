"""``aoe detach``: what ``aoe attach`` made, undone."""

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
_GOODBYE: Final = 60.0
"""Seconds that a process gets to end; it has next to nothing left to do."""


@click.command()
@click.argument("name", required=False)
@click.option("--lazy", is_flag=True, help="Out of sight now, gone with its last user.")
@click.option("--list", "listing", is_flag=True, help="Show what is attached.")
@json_option
def detach(*, name: str | None, lazy: bool, listing: bool, as_json: bool) -> None:
    """Detach a disk from where it was attached, and flush it.

    \b
    Try:  aoe detach e0.0
          aoe detach /mnt
          aoe detach --list

    NAME is its address, or its place: the directory, file, device or socket. It is
    unmounted first, and given up last. Who still uses it is named, and it stays.
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
    """Say in a line where a disk is attached."""
    at = [each for each in map(about.get, _PLACES) if each]
    flags = " [read-only]" if about["read_only"] else ""
    size = short_size(about["size_bytes"])
    return f"{about['address']} {size} as {', '.join(at)}{flags}"


def _attached() -> list[tuple[str, dict[str, Any]]]:
    from initiator.export.detach import find_attachments, send_command

    found = []
    for _, socket in find_attachments():
        # One that ends just now is none; another user's is none of ours.
        with suppress(NotFoundError, AccessError):
            found.append((socket, send_command(socket, "status")))
    return found


def _find(
    name: str | None, attached: list[tuple[str, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    have = ", ".join(about["address"] for _, about in attached) or "nothing"
    if name is None:
        raise UsageError("aoe detach", "which one?", f"Attached: {have}")
    names = {name, os.path.realpath(name)}
    with suppress(UsageError):
        names.add(str(Address.parse(name)))
    found = [
        (socket, about)
        for socket, about in attached
        if names & {about.get(key) for key in _NAMES}
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
