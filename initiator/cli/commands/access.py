"""``aoe mask`` and ``aoe reserve``: who may use a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from aoe.address import format_mac, parse_mac
from aoe.common.commandline import ADDRESS, Parsed, json_option, print_json
from aoe.errors import AoEError, DeviceError, UsageError
from aoe.macmask import Directive, DirectiveCommand, MaskError
from initiator.cli.common import Connection, VerbGroup, connects
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from aoe.address import Address
    from aoe.macmask import MaskList
    from initiator.client.remote import RemoteTarget

_AT_ONCE: Final = 100
"""Edits of a mask list in one request: what the smallest frame holds, and more."""
_VBLADE_25: Final = 0x4019
"""The firmware version that it announces."""
_MACS_LIMIT: Final = 200
"""MAC addresses that one reservation can name in a frame of 1500 bytes."""

MAC: Final = Parsed("mac", parse_mac)
_one = click.argument("address", type=ADDRESS, shell_complete=complete_address)
_macs = click.argument("macs", type=MAC, nargs=-1, required=True, metavar="MAC...")
_own_macs = click.argument("macs", type=MAC, nargs=-1, metavar="[MAC]...")
_force = click.option(
    "--force", is_flag=True, help="Even if the target will not hear us any more."
)


# --- the MAC mask list ----------------------------------------------------------------


@click.group(cls=VerbGroup)
def mask() -> None:
    """Read and edit the list of clients that a target serves.

    \b
    Try:  aoe mask read e0.0 -i eth0
          aoe mask add e0.0 52:54:00:ae:00:02 -i eth0

    With an empty list a target serves everybody; otherwise nobody else gets any answer
    from it. A client is known by its MAC address, which is no protection against those
    who mean harm.
    """


@mask.command("read")
@_one
@connects(1.0)
@json_option
def read_mask(*, address: Address, connection: Connection, as_json: bool) -> None:
    """Show the MAC addresses that a target serves.

    \b
    Try:  aoe mask read e0.0 -i eth0
    """
    with connection.target(address) as target:
        macs = _listed(target.mask_list())
    _show("mask read", target, macs, "everybody", as_json=as_json)


@mask.command("add")
@_one
@_macs
@_force
@connects(1.0)
@json_option
def add_to_mask(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    force: bool,
    as_json: bool,
) -> None:
    """Put clients on the list.

    \b
    Try:  aoe mask add e0.0 52:54:00:ae:00:02 52:54:00:ae:00:03 -i eth0

    A target that served everybody serves nobody else from then on.
    """
    with connection.target(address) as target:
        before = _listed(target.mask_list())
        if not force:
            _stay_inside(target, {*before, *macs})
        # We first, lest what comes behind shuts us out (P70).
        ordered = sorted(macs, key=lambda mac: mac not in target.own_macs)
        after = _edit(target, DirectiveCommand.ADD, ordered)
    _show("mask add", target, after, "everybody", as_json=as_json)


@mask.command("del")
@_one
@_macs
@_force
@connects(1.0)
@json_option
def delete_from_mask(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    force: bool,
    as_json: bool,
) -> None:
    """Take clients off the list.

    \b
    Try:  aoe mask del e0.0 52:54:00:ae:00:02 -i eth0

    Without the last of them, a target serves everybody again.
    """
    with connection.target(address) as target:
        before = _listed(target.mask_list())
        if not force:
            _spare_vblade(target)
            _stay_inside(target, {*before} - {*macs}, before)
        ordered = sorted(macs, key=lambda mac: mac in target.own_macs)
        after = _edit(target, DirectiveCommand.DELETE, ordered)
    _show("mask del", target, after, "everybody", as_json=as_json)


def _listed(answer: MaskList) -> list[bytes]:
    return [mac for _, mac in answer.directives]


def _stay_inside(
    target: RemoteTarget, after: Collection[bytes], before: Collection[bytes] = ()
) -> None:
    """Make sure that the target still hears us, on each interface as before."""
    ours = [mac for mac in target.own_macs if not before or mac in before]
    shut_out = [mac for mac in ours if mac not in after]
    if after and shut_out:
        names = " ".join(map(format_mac, shut_out))
        where = ",".join(target.own_macs[mac] for mac in shut_out)
        raise UsageError(
            str(target.address),
            f"would hear us no longer on {where}",
            f"Have {names} on its list too, or --force",
        )


def _spare_vblade(target: RemoteTarget) -> None:
    """Refuse what kills this release: it deletes from beyond its list."""
    if target.config.firmware == _VBLADE_25:
        why = "seems to be a vblade 25, which dies when one is taken off its list"
        raise UsageError(str(target.address), why, "Restart it instead, or --force")


def _edit(
    target: RemoteTarget, command: DirectiveCommand, macs: Sequence[bytes]
) -> list[bytes]:
    after: list[bytes] = []
    for first in range(0, len(macs), _AT_ONCE):
        some = macs[first : first + _AT_ONCE]
        answer = target.mask_list(*(Directive(command, mac) for mac in some))
        if answer.merror:
            raise _not_edited(target, answer, some)
        after = _listed(answer)
    return after


def _not_edited(
    target: RemoteTarget, answer: MaskList, macs: Sequence[bytes]
) -> AoEError:
    # The count says how many were done (P64).
    done = len(answer.directives) if answer.declared is None else answer.declared
    at = f" at {format_mac(macs[done])}" if done < len(macs) else ""
    if answer.merror == MaskError.FULL:
        why = f"its mask list is full{at}; those before it are on it"
    else:
        known = answer.merror in list(MaskError)
        name = MaskError(answer.merror).name if known else f"error {answer.merror}"
        why = f"mask list not edited{at}: {name.lower().replace('_', ' ')}"
    return DeviceError(str(target.address), why, f"aoe mask read {target.address}")


# --- reservations ---------------------------------------------------------------------


@click.group(cls=VerbGroup)
def reserve() -> None:
    """Reserve a target for some clients, or release it.

    \b
    Try:  aoe reserve read e0.0 -i eth0
          aoe reserve set e0.0 -i eth0,eth1

    While a target is reserved it refuses ATA commands, all but IDENTIFY, to everybody
    else. Its holders are known by their MAC addresses: a client with several interfaces
    needs all of them on the list, and gets them if none are named.
    """


@reserve.command("read")
@_one
@connects(1.0)
@json_option
def read_reservation(
    *, address: Address, connection: Connection, as_json: bool
) -> None:
    """Show for whom a target is reserved.

    \b
    Try:  aoe reserve read e0.0 -i eth0
    """
    with connection.target(address) as target:
        holders = target.holders()
    _show("reserve read", target, holders, "nobody", as_json=as_json)


@reserve.command("set")
@_one
@_own_macs
@connects(1.0)
@json_option
def set_reservation(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    as_json: bool,
) -> None:
    """Reserve a target for these clients, for ourselves by default.

    \b
    Try:  aoe reserve set e0.0 -i eth0
          aoe reserve set e0.0 52:54:00:ae:00:02 52:54:00:ae:00:03 -i eth0

    Exit codes: 0 it is reserved, 5 others hold it, who are named.
    """
    _reserve("set", address, macs, connection, as_json=as_json)


@reserve.command("force")
@_one
@_own_macs
@connects(1.0)
@json_option
def force_reservation(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    as_json: bool,
) -> None:
    """Reserve a target whoever holds it.

    \b
    Try:  aoe reserve force e0.0 -i eth0

    Those who held it get errors from now on: be sure that they have stopped writing.
    """
    _reserve("force", address, macs, connection, as_json=as_json)


@reserve.command()
@_one
@click.option("--force", is_flag=True, help="Even if others hold it.")
@connects(1.0)
@json_option
def release(
    *, address: Address, connection: Connection, force: bool, as_json: bool
) -> None:
    """Give a target free.

    \b
    Try:  aoe reserve release e0.0 -i eth0

    Exit codes: 0 it is free, 5 others hold it, who are named.
    """
    with connection.target(address) as target:
        holders = target.reserve((), force=force)
    _show("reserve release", target, holders, "nobody", as_json=as_json)


def _reserve(
    name: str,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    *,
    as_json: bool,
) -> None:
    if len(macs) > _MACS_LIMIT:
        raise UsageError("MAC", f"{len(macs)} of them, {_MACS_LIMIT} at most")
    with connection.target(address) as target:
        wanted = tuple(dict.fromkeys(macs or target.own_macs))
        holders = target.reserve(wanted, force=name == "force")
    _show(f"reserve {name}", target, holders, "nobody", as_json=as_json)


# --- both -----------------------------------------------------------------------------


def _show(
    command: str,
    target: RemoteTarget,
    macs: Sequence[bytes],
    without: str,
    *,
    as_json: bool,
) -> None:
    """Print a MAC address in each line, and which of our interfaces has it."""
    if as_json:
        print_json(
            command,
            address=str(target.address),
            mac=format_mac(target.mac),
            interface=target.link.name,
            macs=[format_mac(mac) for mac in macs],
            own_macs=[format_mac(mac) for mac in target.own_macs],
        )
        return
    for mac in macs:
        name = target.own_macs.get(mac, "")
        click.echo(f"{target.address!s:<10} {format_mac(mac)}  {name}".rstrip())
    if not macs:
        click.echo(f"{target.address!s:<10} {without}")
