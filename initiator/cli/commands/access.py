"""``aoe mask`` and ``aoe reserve``: access control of a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from aoe.address import format_mac, parse_mac
from aoe.common.commandline import ADDRESS, Parsed, json_option, print_json
from aoe.errors import AoEError, DeviceError, UsageError
from aoe.macmask import Directive, DirectiveCommand, MaskError
from initiator.cli.common import Connection, VerbGroup, connection_options
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from aoe.address import Address
    from aoe.macmask import MaskList
    from initiator.client.remote import RemoteTarget

_AT_ONCE: Final = 100
"""Directives per request; they fit into a frame of 1500 bytes."""
_VBLADE_25: Final = 0x4019
"""The firmware version in its query config response."""
_MACS_LIMIT: Final = 200
"""MAC addresses per reservation; they fit into a frame of 1500 bytes."""
_ALL_CLIENTS: Final = "all clients"
_NOT_RESERVED: Final = "not reserved"

MAC: Final = Parsed("mac", parse_mac)
_one = click.argument("address", type=ADDRESS, shell_complete=complete_address)
_macs = click.argument("macs", type=MAC, nargs=-1, required=True, metavar="MAC...")
_own_macs = click.argument("macs", type=MAC, nargs=-1, metavar="[MAC]...")
_force = click.option(
    "--force", is_flag=True, help="Edit even if the target then ignores this host."
)


# --- the MAC mask list ----------------------------------------------------------------


@click.group(cls=VerbGroup)
def mask() -> None:
    """Read or edit the MAC mask list of a target.

    \b
    Try:  aoe mask read e0.0 -i eth0
          aoe mask add e0.0 52:54:00:ae:00:02 -i eth0

    A target with a mask list responds only to the MAC addresses on it; with an empty
    list, to all clients. This prevents mistakes, not attacks: a MAC address can be
    forged.
    """


@mask.command("read")
@_one
@connection_options(1.0)
@json_option
def read_mask(*, address: Address, connection: Connection, as_json: bool) -> None:
    """Show the mask list of a target.

    \b
    Try:  aoe mask read e0.0 -i eth0
    """
    with connection.target(address) as target:
        macs = _listed(target.mask_list())
    _show("mask read", target, macs, _ALL_CLIENTS, as_json=as_json)


@mask.command("add")
@_one
@_macs
@_force
@connection_options(1.0)
@json_option
def add_to_mask(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    force: bool,
    as_json: bool,
) -> None:
    """Add MAC addresses to the mask list.

    \b
    Try:  aoe mask add e0.0 52:54:00:ae:00:02 52:54:00:ae:00:03 -i eth0

    If the list was empty, all other clients are ignored from then on.
    """
    with connection.target(address) as target:
        before = _listed(target.mask_list())
        if not force:
            _check_own_access(target, {*before, *macs})
        # Own addresses first: otherwise the first request could mask out the others
        # (P70).
        ordered = sorted(macs, key=lambda mac: mac not in target.own_macs)
        after = _edit(target, DirectiveCommand.ADD, ordered)
    _show("mask add", target, after, _ALL_CLIENTS, as_json=as_json)


@mask.command("del")
@_one
@_macs
@_force
@connection_options(1.0)
@json_option
def delete_from_mask(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    force: bool,
    as_json: bool,
) -> None:
    """Remove MAC addresses from the mask list.

    \b
    Try:  aoe mask del e0.0 52:54:00:ae:00:02 -i eth0

    When the list becomes empty, the target serves all clients again.
    """
    with connection.target(address) as target:
        before = _listed(target.mask_list())
        if not force:
            _check_not_vblade_25(target)
            _check_own_access(target, {*before} - {*macs}, before)
        ordered = sorted(macs, key=lambda mac: mac in target.own_macs)
        after = _edit(target, DirectiveCommand.DELETE, ordered)
    _show("mask del", target, after, _ALL_CLIENTS, as_json=as_json)


def _listed(response: MaskList) -> list[bytes]:
    return [mac for _, mac in response.directives]


def _check_own_access(
    target: RemoteTarget, after: Collection[bytes], before: Collection[bytes] = ()
) -> None:
    """Check that an edit keeps this host's interfaces on the list.

    Args:
        target: the target.
        after: the mask list after the edit.
        before: the mask list before it; empty counts all interfaces as served.

    Raises:
        UsageError: an interface would be masked out.
    """
    own = [mac for mac in target.own_macs if not before or mac in before]
    masked = [mac for mac in own if mac not in after]
    if after and masked:
        names = " ".join(map(format_mac, masked))
        where = ",".join(target.own_macs[mac] for mac in masked)
        raise UsageError(
            str(target.address),
            f"would ignore this host on {where}",
            f"Keep {names} on its list, or use --force",
        )


def _check_not_vblade_25(target: RemoteTarget) -> None:
    """Check that the target is not vblade 25, which crashes on DELETE.

    It reads beyond the end of its list.

    Raises:
        UsageError: it has the firmware version of vblade 25.
    """
    if target.config.firmware == _VBLADE_25:
        why = "seems to be vblade 25, which crashes when an address is deleted"
        raise UsageError(str(target.address), why, "Restart it instead, or use --force")


def _edit(
    target: RemoteTarget, command: DirectiveCommand, macs: Sequence[bytes]
) -> list[bytes]:
    after: list[bytes] = []
    for first in range(0, len(macs), _AT_ONCE):
        chunk = macs[first : first + _AT_ONCE]
        response = target.mask_list(*(Directive(command, mac) for mac in chunk))
        if response.merror:
            raise _edit_error(target, response, chunk)
        after = _listed(response)
    return after


def _edit_error(
    target: RemoteTarget, response: MaskList, macs: Sequence[bytes]
) -> AoEError:
    # In an error response the count is the number of directives executed (P64).
    done = len(response.directives) if response.declared is None else response.declared
    at = f" at {format_mac(macs[done])}" if done < len(macs) else ""
    if response.merror == MaskError.FULL:
        why = f"its mask list is full{at}; the addresses before it were added"
    else:
        known = response.merror in list(MaskError)
        name = MaskError(response.merror).name if known else f"error {response.merror}"
        why = f"mask list not edited{at}: {name.lower().replace('_', ' ')}"
    return DeviceError(str(target.address), why, f"aoe mask read {target.address}")


# --- reservations ---------------------------------------------------------------------


@click.group(cls=VerbGroup)
def reserve() -> None:
    """Reserve a target for some clients, or release it.

    \b
    Try:  aoe reserve read e0.0 -i eth0
          aoe reserve set e0.0 -i eth0,eth1

    A reserved target refuses ATA commands other than IDENTIFY from all other clients.
    Clients are identified by MAC address: one with several interfaces needs all of them
    on the list. Without MAC, those of all interfaces in use are reserved.
    """


@reserve.command("read")
@_one
@connection_options(1.0)
@json_option
def read_reservation(
    *, address: Address, connection: Connection, as_json: bool
) -> None:
    """Show which MAC addresses a target is reserved for.

    \b
    Try:  aoe reserve read e0.0 -i eth0
    """
    with connection.target(address) as target:
        holders = target.holders()
    _show("reserve read", target, holders, _NOT_RESERVED, as_json=as_json)


@reserve.command("set")
@_one
@_own_macs
@connection_options(1.0)
@json_option
def set_reservation(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    as_json: bool,
) -> None:
    """Reserve a target for the given clients, by default for this host.

    \b
    Try:  aoe reserve set e0.0 -i eth0
          aoe reserve set e0.0 52:54:00:ae:00:02 52:54:00:ae:00:03 -i eth0

    Exit codes: 0 reserved, 5 reserved for other clients, which are printed.
    """
    _reserve("set", address, macs, connection, as_json=as_json)


@reserve.command("force")
@_one
@_own_macs
@connection_options(1.0)
@json_option
def force_reservation(
    *,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    as_json: bool,
) -> None:
    """Reserve a target even if other clients have reserved it.

    \b
    Try:  aoe reserve force e0.0 -i eth0

    The other clients get errors from then on. Make sure first that they have stopped
    writing.
    """
    _reserve("force", address, macs, connection, as_json=as_json)


@reserve.command()
@_one
@click.option("--force", is_flag=True, help="Release it even if reserved for others.")
@connection_options(1.0)
@json_option
def release(
    *, address: Address, connection: Connection, force: bool, as_json: bool
) -> None:
    """Release the reservation of a target.

    \b
    Try:  aoe reserve release e0.0 -i eth0

    Exit codes: 0 released, 5 reserved for other clients, which are printed.
    """
    with connection.target(address) as target:
        holders = target.reserve((), force=force)
    _show("reserve release", target, holders, _NOT_RESERVED, as_json=as_json)


def _reserve(
    name: str,
    address: Address,
    macs: Sequence[bytes],
    connection: Connection,
    *,
    as_json: bool,
) -> None:
    if len(macs) > _MACS_LIMIT:
        why = f"{len(macs)} addresses, at most {_MACS_LIMIT} fit into a request"
        raise UsageError("MAC", why, "Reserve it for fewer clients")
    with connection.target(address) as target:
        wanted = tuple(dict.fromkeys(macs or target.own_macs))
        holders = target.reserve(wanted, force=name == "force")
    _show(f"reserve {name}", target, holders, _NOT_RESERVED, as_json=as_json)


# --- both -----------------------------------------------------------------------------


def _show(
    command: str,
    target: RemoteTarget,
    macs: Sequence[bytes],
    empty: str,
    *,
    as_json: bool,
) -> None:
    """Print a MAC address per line, with the local interface that has it, if any.

    Args:
        command: the command's name, for JSON.
        target: the target.
        macs: the addresses.
        empty: printed if there are none.
        as_json: print JSON instead.
    """
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
        click.echo(f"{target.address!s:<10} {empty}")
