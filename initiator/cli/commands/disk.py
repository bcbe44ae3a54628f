"""``aoe identify``, ``smart``, ``flush`` and ``trim``: ATA commands of a disk."""

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
from initiator.cli.commands.claims import force_option, writing_to
from initiator.cli.common import Connection, connection_options, progress
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from aoe.address import Address
    from aoe.smart import Attribute
    from initiator.client.remote import RemoteTarget

_TRIM_STEP: Final = 1 << 30
"""Bytes per TRIM, after each of which the progress bar is updated."""


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.option("--raw", is_flag=True, help="Write the 512 bytes and nothing else.")
@connection_options(1.0)
@json_option
def identify(
    *, address: Address, connection: Connection, raw: bool, as_json: bool
) -> None:
    """Show the IDENTIFY data of a disk.

    \b
    Try:  aoe identify e0.0 -i eth0
          aoe identify e0.0 -i eth0 --raw | hdparm --Istdin

    This also works while the target is reserved for other clients.
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
    rotation = {0: "not reported", 1: "non-rotating"}.get(identity.rotation)
    block = short_size(identity.physical_block)
    return [
        ("size", format_size(identity.sectors * 512)),
        ("model", identity.model or "-"),
        ("serial", identity.serial or "-"),
        ("firmware", identity.firmware or "-"),
        ("wwn", f"{identity.wwn:#018x}" if identity.wwn else "-"),
        ("addresses", "48 bits" if identity.lba48 else "28 bits"),
        ("physical block", block),
        ("rotation", rotation or f"{identity.rotation} rpm"),
        ("feature sets", ", ".join(_names(identity.feature_sets)) or "-"),
        ("enabled", ", ".join(_names(identity.enabled)) or "-"),
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
@click.option("--enable", is_flag=True, help="Enable SMART first.")
@click.option("--disable", is_flag=True, help="Disable SMART and show nothing.")
@connection_options(1.0)
@json_option
def smart(
    *,
    address: Address,
    connection: Connection,
    enable: bool,
    disable: bool,
    as_json: bool,
) -> None:
    """Show SMART health.

    \b
    Try:  aoe smart e0.0 -i eth0

    Exit codes: 0 passed, 1 the disk predicts its failure, or does not support SMART.
    """
    if enable and disable:
        raise UsageError("--enable --disable", "exclude each other")
    with connection.target(address) as target:
        _check_smart(target, enable=enable or disable)
        if disable:
            _smart(target, SmartFeature.DISABLE)
            _print_disabled(address, as_json=as_json)
            return
        if enable:
            _smart(target, SmartFeature.ENABLE)
        key, _ = _smart(target, SmartFeature.RETURN_STATUS)
        _, page = _smart(target, SmartFeature.READ_DATA)
    attributes = unpack_attributes(page)
    health = {SMART_KEY: "passed", SMART_FAILING: "failing"}.get(key, "unknown")
    if as_json:
        fields = [_attribute_fields(each) for each in attributes]
        print_json(
            "smart",
            address=str(address),
            enabled=True,
            health=health,
            attributes=fields,
        )
    else:
        _print_smart(health, attributes)
    if health == "failing":
        raise click.exceptions.Exit(1)


def _print_disabled(address: Address, *, as_json: bool) -> None:
    if as_json:
        print_json("smart", address=str(address), enabled=False)
    else:
        click.echo("SMART is disabled")


def _check_smart(target: RemoteTarget, *, enable: bool) -> None:
    identity = Identity.unpack(target.identity_page())
    address = str(target.address)
    if FeatureSet.SMART not in identity.feature_sets:
        raise UnsupportedError(address, "its disk does not support SMART")
    if FeatureSet.SMART not in identity.enabled and not enable:
        fix = f"Enable it: aoe smart {address} --enable"
        raise UnsupportedError(address, "SMART is disabled", fix)


def _smart(target: RemoteTarget, feature: SmartFeature) -> tuple[int, bytes]:
    """Send a SMART command, and return LBA mid and high of the response, and the data.

    After RETURN STATUS the two LBA registers hold ``SMART_KEY`` or ``SMART_FAILING``.
    """
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
        "prefailure": attribute.is_prefailure,
    }


def _print_smart(health: str, attributes: tuple[Attribute, ...]) -> None:
    click.echo(f"SMART health: {health}")
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
@connection_options(3.0, uses_driver=True)
@json_option
def flush(*, address: Address, connection: Connection, as_json: bool) -> None:
    """Flush the write cache of a disk.

    \b
    Try:  aoe flush e0.0 -i eth0

    All acknowledged writes, also those of other clients, are then on stable storage.

    Exit codes: 0 flushed, 1 the flush failed or is not supported.
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
    "-o", "--offset", type=SIZE, default="0", help="Start of the range, in bytes."
)
@click.option(
    "-l",
    "--length",
    type=SIZE,
    help="Length of the range in bytes; default: up to the end of the disk.",
)
@click.option("--destroy", is_flag=True, help="Allow discarding data on the disk.")
@force_option
@connection_options(3.0, uses_driver=True)
@json_option
def trim(
    *,
    address: Address,
    connection: Connection,
    offset: int,
    length: int | None,
    destroy: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Discard a range of a disk (ATA TRIM).

    \b
    Try:  aoe trim e0.0 -i eth0 --offset 1G --length 1G --destroy

    The data in the range is LOST. aoe-target deallocates the range of its image. Later
    reads of the range return zeroes from most disks, but this is not guaranteed.
    """
    from initiator.disk.disk import Disk

    if not destroy:
        why = "trim discards data on the disk"
        raise UsageError(str(address), why, "To allow that, add --destroy")
    with connection.host(address) as host:
        disk = Disk(host, address, connection.timeout)
        whole = max(0, disk.size - offset) if length is None else length
        if offset + whole > disk.size:
            why = f"{whole} bytes at {offset} reach beyond its {disk.size} bytes"
            raise UsageError(str(address), why)
        with (
            writing_to(disk, force=force),
            progress(f"trimming {address}", whole) as advance,
        ):
            for done in range(0, whole, _TRIM_STEP):
                step = min(_TRIM_STEP, whole - done)
                disk.trim(offset + done, step)
                advance(step)
    if as_json:
        print_json("trim", address=str(address), offset_bytes=offset, bytes=whole)
    else:
        click.echo(f"{address}: {format_size(whole)} trimmed")
