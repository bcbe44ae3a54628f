"""``aoe read``, ``write`` and ``copy``: transfer data between disks and files."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from aoe.address import Address
from aoe.common.commandline import ADDRESS, SIZE, json_option, print_json
from aoe.common.sizes import format_count, format_size
from aoe.errors import AoEError, UnsupportedError, UsageError
from initiator.cli.commands.claims import force_option, writing_to
from initiator.cli.common import Connection, connection_options, progress
from initiator.cli.complete import complete_address, complete_copy_argument
from initiator.client.claims import disk_keys
from initiator.disk.copy import DiskEndpoint, Outcome, copy, verify
from initiator.disk.disk import Disk
from initiator.disk.files import FileSource, StreamEndpoint, open_source
from initiator.disk.output import open_destination, open_standard_output, open_storage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from initiator.disk.output import DeviceDestination, FileDestination

    Output = DeviceDestination | FileDestination | StreamEndpoint


def flush(disk: Disk) -> None:
    """Flush a disk after writing to it.

    A target that does not support FLUSH is a warning only. After any other error,
    data may be lost.

    Raises:
        AoEError: as ``Disk.flush``.
    """
    try:
        disk.flush()
    except UnsupportedError as error:
        click.echo(f"aoe: {disk.address}: warning: not flushed: {error.why}", err=True)
    except AoEError as error:
        why = f"written, but not flushed: {error.why}"
        raise type(error)(error.what, why, error.fix) from error


class _OutputOptions(TypedDict):
    """The options of commands that write to a file or block device."""

    in_place: bool
    force: bool


@contextmanager
def _writing(output: Output) -> Iterator[None]:
    """Commit a destination if all goes well; remove what is left of it otherwise."""
    from initiator.cli.commands.check import Interrupts

    with closing(output), Interrupts():
        yield
        output.commit()


_in_place = click.option(
    "--in-place",
    is_flag=True,
    help="Overwrite an existing file itself, instead of replacing it by a complete "
    "copy at the end.",
)
_force = click.option(
    "--force", is_flag=True, help="Write to a file, device or disk that is in use."
)
_offset = click.option(
    "-o",
    "--offset",
    type=SIZE,
    default="0",
    show_default=True,
    help="Start of the range on the disk, in bytes.",
)


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@_offset
@click.option(
    "-l",
    "--length",
    type=SIZE,
    help="Length of the range in bytes; default: up to the end of the disk.",
)
@_in_place
@_force
@connection_options(3.0, uses_driver=True)
def read(
    *,
    address: Address,
    file: Path,
    connection: Connection,
    offset: int,
    length: int | None,
    in_place: bool,
    force: bool,
) -> None:
    """Read from a disk to a file or to standard output.

    \b
    Try:  aoe read e0.0 -i eth0 --length 512 | hexdump -C
          aoe read e0.0 boot.img -i eth0 --offset 1M --length 64M

    Offset and length need not be multiples of the sector size.
    """
    with connection.host(address) as host:
        source = DiskEndpoint(Disk(host, address, connection.timeout), offset, length)
        end = (
            open_standard_output(sys.stdout.fileno(), force=force)
            if str(file) == "-"
            else open_destination(file, in_place=in_place, force=force)
        )
        with _writing(end), progress(f"reading {address}", source.size) as advance:
            copy(source, end, advance)


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@_offset
@click.option("--pad", is_flag=True, help="Pad the last sector with zeroes.")
@force_option
@connection_options(3.0, uses_driver=True)
def write(
    *,
    address: Address,
    file: Path,
    connection: Connection,
    offset: int,
    pad: bool,
    force: bool,
) -> None:
    """Write a file or standard input to a disk.

    \b
    Try:  aoe write e0.0 boot.img -i eth0 --offset 1M
          zcat disk.img.gz | aoe write e0.0 -i eth0

    Offset and length need not be multiples of the sector size: partial sectors are
    written by read-modify-write, which is not atomic towards other clients. The disk is
    flushed at the end.
    """
    source = (
        StreamEndpoint(sys.stdin.fileno(), "standard input", pad=pad)
        if str(file) == "-"
        else open_source(file, pad=pad)
    )
    with connection.host(address) as host:
        disk = Disk(host, address, connection.timeout)
        with writing_to(disk, force=force):
            with progress(f"writing {address}", source.size) as advance:
                copy(source, DiskEndpoint(disk, offset), advance)
            flush(disk)


def _as_address(name: str) -> Address | None:
    """An address must look like one here: e0.0, not 0.0, which may be a file."""
    if name.startswith(("aoe:", "/dev/etherd/")) or (
        name[:1] == "e" and name[1:2].isdigit() and "/" not in name
    ):
        try:
            return Address.parse(name)
        except UsageError as error:
            fix = f"{error.fix}, or a file as ./{name}"
            raise UsageError(error.what, error.why, fix) from None
    return None


@click.command("copy")
@click.argument("source", shell_complete=complete_copy_argument)
@click.argument("destination", shell_complete=complete_copy_argument)
@connection_options(3.0, uses_driver=True)
@click.option(
    "--verify", "check", is_flag=True, help="Read both again and compare them."
)
@click.option(
    "--target-is-zero",
    is_flag=True,
    help="Assume that the destination disk is all zeroes, and do not write zeroes.",
)
@click.option("--pad", is_flag=True, help="Pad the last sector with zeroes.")
@_in_place
@_force
@json_option
def copy_command(
    *,
    source: str,
    destination: str,
    connection: Connection,
    check: bool,
    target_is_zero: bool,
    pad: bool,
    as_json: bool,
    **output_options: Unpack[_OutputOptions],
) -> None:
    """Copy a disk to a file, a file to a disk, or a disk to a disk.

    \b
    Try:  aoe copy disk.img e0.0 -i eth0 --verify
          aoe copy e0.0 backup.img -i eth0
          aoe copy e0.0 e0.1 -i eth0

    An argument such as e0.0 is a disk, anything else a file; use ./e0.0 for a file with
    such a name. A destination file gets holes where the source has zeroes; an existing
    one is replaced when the copy is complete. The destination is flushed at the end.
    """
    from_address, to_address = _addresses(source, destination)
    file = None if from_address else FileSource(Path(source), pad=pad)
    both = [each for each in (from_address, to_address) if each]
    with connection.host(*both) as host, ExitStack() as stack:
        disks = {each: Disk(host, each, connection.timeout) for each in both}
        left = file or DiskEndpoint(disks[both[0]])
        right: DiskEndpoint | FileDestination | DeviceDestination
        if to_address:
            disk = disks[to_address]
            _check_different(disks.values(), force=output_options["force"])
            stack.enter_context(writing_to(disk, force=output_options["force"]))
            right = DiskEndpoint(disk, is_zero=target_is_zero)
        else:
            right = open_storage(Path(destination), **output_options)
            stack.enter_context(_writing(right))
        started = time.monotonic()
        with progress(f"{source} -> {destination}", left.size) as advance:
            outcome = copy(left, right, advance)
        if to_address:
            flush(disks[to_address])
        seconds = time.monotonic() - started
        if check:
            written = (
                DiskEndpoint(right.disk, length=left.size)
                if isinstance(right, DiskEndpoint)
                else right.open_written()
            )
            with progress("verifying", left.size) as advance:
                verify(left, written, advance)
        retransmits = sum(disk.retransmits for disk in disks.values())
    if as_json:
        print_json(
            "copy",
            source=source,
            destination=destination,
            bytes=outcome.copied,
            bytes_written=outcome.written,
            seconds=round(seconds, 6),
            retransmits=retransmits,
            verified=check,
        )
        return
    details = _details(outcome, seconds, retransmits, check=check)
    click.echo(f"{source} -> {destination}: {', '.join(details)}")


def _check_different(disks: Collection[Disk], *, force: bool) -> None:
    """Check that source and destination are not addresses of the same disk.

    Raises:
        UsageError: they have the same serial number or WWN.
    """
    keys = [disk_keys(disk.identity) for disk in disks]
    if len(keys) > 1 and set.intersection(*keys) and not force:
        raise UsageError(
            " and ".join(str(disk.address) for disk in disks),
            "are the same disk, by their serial number or WWN",
            "If they are not, use --force",
        )


def _details(
    outcome: Outcome, seconds: float, retransmits: int, *, check: bool
) -> list[str]:
    """Return the parts of the line that summarizes a copy."""
    details = [
        f"{format_size(outcome.copied)} in {seconds:.2f} s",
        f"{outcome.copied / max(seconds, 1e-6) / 1e6:.0f} MB/s",
    ]
    if outcome.written < outcome.copied:
        details.append(f"{format_size(outcome.written)} of it not zero")
    if retransmits:
        details.append(f"{format_count(retransmits, 'frame')} retransmitted")
    if check:
        details.append("verified")
    return details


def _addresses(source: str, destination: str) -> tuple[Address | None, Address | None]:
    if "-" in (source, destination):
        raise UsageError(
            "-", "copy does not support pipes", "Use aoe read, aoe write, or ./-"
        )
    addresses = _as_address(source), _as_address(destination)
    if addresses == (None, None):
        raise UsageError(
            f"{source} to {destination}",
            "neither is an AoE address",
            "Write one as e0.0, or use cp",
        )
    if addresses[0] == addresses[1]:
        raise UsageError(source, "is both source and destination")
    return addresses
