"""``aoe identify``, ``smart``, ``flush`` and ``trim``: the disk behind a target."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from aoe.ata import Opcode, SmartFeature
from aoe.common.commandline import ADDRESS, SIZE, json_option, print_json
from aoe.common.sizes import format_size, short_size
from aoe.errors import UnsupportedError, UsageError
from aoe.identify import FeatureSet, Identity
from aoe.smart import SMART_FAILING, SMART_KEY, unpack_attributes
from initiator.cli.common import Connection, connects, progress
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from aoe.address import Address
    from aoe.smart import Attribute
    from initiator.client.remote import RemoteTarget

_TRIM_STEP: Final = 1 << 30
"""Bytes between two looks at how far it is."""


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.option("--raw", is_flag=True, help="Write the 512 bytes, and nothing else.")
@connects(1.0)
@json_option
def identify(
    *, address: Address, connection: Connection, raw: bool, as_json: bool
) -> None:
    """Show what a disk says of itself: its IDENTIFY page.

    \b
    Try:  aoe identify e0.0 -i eth0
          aoe identify e0.0 -i eth0 --raw | hdparm --Istdin

    A target that is reserved for others tells it all the same.
    """
    with connection.target(address) as target:
        page = target.identity_page()
    if raw:
        sys.stdout.buffer.write(page)
        return
    identity = Identity.unpack(page)
    if as_json:
        print_json("identify", address=str(address), **_identity_fields(identity, page))
        return
    for name, value in _identity_lines(identity, page):
        click.echo(f"{name:<16} {value}")


def _identity_fields(identity: Identity, page: bytes) -> dict[str, object]:
    return {
        "size_bytes": identity.sectors * 512,
        "model": identity.model,
        "serial": identity.serial,
        "firmware": identity.firmware,
        "wwn": f"{identity.wwn:#018x}" if identity.wwn else "",
        "lba48": identity.lba48,
        "physical_block_bytes": identity.physical_block,
        "rotation": identity.rotation,
        "feature_sets": _names(identity.feature_sets),
        "enabled": _names(identity.enabled),
        "checksum": _checksum(page),
        "page": page.hex(),
    }


def _identity_lines(identity: Identity, page: bytes) -> list[tuple[str, str]]:
    turns = {0: "not told", 1: "none"}.get(identity.rotation)
    block = short_size(identity.physical_block)
    return [
        ("size", format_size(identity.sectors * 512)),
        ("model", identity.model or "-"),
        ("serial", identity.serial or "-"),
        ("firmware", identity.firmware or "-"),
        ("wwn", f"{identity.wwn:#018x}" if identity.wwn else "-"),
        ("addresses", "48 bits" if identity.lba48 else "28 bits"),
        ("physical block", block),
        ("rotation", turns or f"{identity.rotation} a minute"),
        ("feature sets", ", ".join(_names(identity.feature_sets)) or "-"),
        ("switched on", ", ".join(_names(identity.enabled)) or "-"),
        ("checksum", _checksum(page)),
    ]


def _names(feature_sets: FeatureSet) -> list[str]:
    return [str(each.name).lower().replace("_", " ") for each in feature_sets]


def _checksum(page: bytes) -> str:
    if page[510] != 0xA5:
        return "none"
    return "wrong" if sum(page) & 0xFF else "right"


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.option("--enable", is_flag=True, help="Switch SMART on before.")
@click.option("--disable", is_flag=True, help="Switch SMART off, and show nothing.")
@connects(1.0)
@json_option
def smart(
    *,
    address: Address,
    connection: Connection,
    enable: bool,
    disable: bool,
    as_json: bool,
) -> None:
    """Show how well a disk says it is.

    \b
    Try:  aoe smart e0.0 -i eth0

    Exit codes: 0 all is well, 1 the disk foretells its failure, or knows no SMART.
    """
    if enable and disable:
        raise UsageError("--enable --disable", "exclude each other")
    with connection.target(address) as target:
        _check_smart(target, enable=enable or disable)
        if disable:
            _smart(target, SmartFeature.DISABLE)
            _tell_off(address, as_json=as_json)
            return
        if enable:
            _smart(target, SmartFeature.ENABLE)
        health, _ = _smart(target, SmartFeature.RETURN_STATUS)
        _, page = _smart(target, SmartFeature.READ_DATA)
    attributes = unpack_attributes(page)
    word = {SMART_KEY: "well", SMART_FAILING: "failing"}.get(health, "unknown")
    if as_json:
        fields = [_attribute_fields(each) for each in attributes]
        print_json(
            "smart",
            address=str(address),
            enabled=True,
            health=word,
            attributes=fields,
        )
    else:
        _print_smart(word, attributes)
    if word == "failing":
        raise click.exceptions.Exit(1)


def _tell_off(address: Address, *, as_json: bool) -> None:
    if as_json:
        print_json("smart", address=str(address), enabled=False)
    else:
        click.echo("SMART is switched off")


def _check_smart(target: RemoteTarget, *, enable: bool) -> None:
    identity = Identity.unpack(target.identity_page())
    who = str(target.address)
    if FeatureSet.SMART not in identity.feature_sets:
        raise UnsupportedError(who, "its disk knows no SMART")
    if FeatureSet.SMART not in identity.enabled and not enable:
        fix = f"Switch it on: aoe smart {who} --enable"
        raise UnsupportedError(who, "SMART is switched off", fix)


def _smart(target: RemoteTarget, feature: SmartFeature) -> tuple[int, bytes]:
    """Send a SMART command; return the key that comes back, and the data."""
    count = int(feature is SmartFeature.READ_DATA)
    request = target.builder.ata(
        Opcode.SMART, SMART_KEY << 8, count, feature=int(feature)
    )
    registers, data = target.ata(request, f"SMART {feature.name}".replace("_", " "))
    return registers.lba >> 8 & 0xFFFF, data


def _attribute_fields(attribute: Attribute) -> dict[str, object]:
    return {
        "id": attribute.number,
        "name": attribute.name,
        "value": attribute.value,
        "worst": attribute.worst,
        "raw": attribute.raw,
        "foretells": attribute.is_prefailure,
    }


def _print_smart(health: str, attributes: tuple[Attribute, ...]) -> None:
    click.echo(f"the disk says that it is {health}")
    if not attributes:
        return
    click.echo(f"{'id':>3} {'name':<24} {'value':>5} {'worst':>5} {'raw':>15}")
    for each in attributes:
        click.echo(
            f"{each.number:>3} {each.name or '-':<24} {each.value:>5} "
            f"{each.worst:>5} {each.raw:>15}"
        )


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@connects(3.0, moves_data=True)
@json_option
def flush(*, address: Address, connection: Connection, as_json: bool) -> None:
    """Make durable what a target has taken so far, from anybody.

    \b
    Try:  aoe flush e0.0 -i eth0

    Exit codes: 0 it says that all is on stable storage, 1 it cannot, or it failed.
    """
    import time

    from initiator.disk.disk import Disk

    with connection.host(address) as host:
        disk = Disk(host, address, connection.timeout)
        started = time.monotonic()
        disk.flush()
        seconds = time.monotonic() - started
    if as_json:
        print_json("flush", address=str(address), seconds=round(seconds, 6))
    else:
        click.echo(f"{address}: flushed in {seconds * 1000:.1f} ms")


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.option(
    "-o", "--offset", type=SIZE, default="0", help="Where to begin on the disk."
)
@click.option("-l", "--length", type=SIZE, help="How much; all there is by default.")
@click.option("--destroy", is_flag=True, help="Yes, lose what is on the disk there.")
@connects(3.0, moves_data=True)
@json_option
def trim(
    *,
    address: Address,
    connection: Connection,
    offset: int,
    length: int | None,
    destroy: bool,
    as_json: bool,
) -> None:
    """Tell a disk which of its contents nobody wants any more.

    \b
    Try:  aoe trim e0.0 -i eth0 --offset 1G --length 1G --destroy

    A target gives the room back to its file system. What was there is LOST, and what
    reads from there afterwards is the disk's affair, zeroes with most.
    """
    from initiator.disk.disk import Disk

    if not destroy:
        why = "what is trimmed is lost"
        raise UsageError(str(address), why, "If that is what you want: --destroy")
    with connection.host(address) as host:
        disk = Disk(host, address, connection.timeout)
        whole = max(0, disk.size - offset) if length is None else length
        if offset + whole > disk.size:
            why = f"{whole} bytes at {offset} reach beyond its {disk.size} bytes"
            raise UsageError(str(address), why)
        with progress(f"trimming {address}", whole) as advance:
            for done in range(0, whole, _TRIM_STEP):
                step = min(_TRIM_STEP, whole - done)
                disk.trim(offset + done, step)
                advance(step)
    if as_json:
        print_json("trim", address=str(address), offset_bytes=offset, bytes=whole)
    else:
        click.echo(f"{address}: {format_size(whole)} trimmed")
