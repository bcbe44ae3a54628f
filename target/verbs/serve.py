"""``aoe-target serve``: from the command line to a service that runs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aoe.address import Address, parse_macs
from aoe.ata import SECTOR
from aoe.commandline import SIZE, Parsed
from aoe.errors import UsageError, from_os_error
from aoe.identify import parse_wwn
from aoe.sizes import parse_size

if TYPE_CHECKING:
    from target.filters.settings import FilterSettings
    from target.settings import ExportSettings, Settings

PROGRAM: Final = "aoe-target"
WINDOW: Final = Parsed("sectors or size", partial(parse_size, unit=SECTOR))


def parse_filter(text: str) -> FilterSettings:
    """Read a filter, ``name`` or ``name:key=value,...``.

    Raises:
        UsageError: no such filter, key or value.
    """
    from target.filters import settings

    return settings.parse_filter(text)


FILTER: Final = Parsed("name[:key=value,...]", parse_filter)
WWN: Final = Parsed("hex", parse_wwn)
MACS: Final = Parsed("mac[,mac]", parse_macs)


@click.command()
@click.argument("words", nargs=-1, metavar="ADDRESS IFACE PATH")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Serve what this TOML file says; HUP, or aoe-target reload, reads it again.",
)
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@click.option("-s", "--sync", is_flag=True, help="Answer writes when they are stable.")
@click.option("-d", "--direct", is_flag=True, help="Go around the page cache.")
@click.option(
    "-b",
    "--buffers",
    default=64,
    show_default=True,
    help="Requests that a client may have outstanding, at least 2.",
)
@click.option(
    "-o",
    "--offset",
    type=WINDOW,
    default=0,
    help="Where the disk begins in PATH: a plain number counts sectors as it does for "
    "vblade, a suffix makes it bytes: 1M.",
)
@click.option("-l", "--length", type=WINDOW, help="How long it is, in the same units.")
@click.option(
    "--create", type=SIZE, metavar="SIZE", help="Make PATH, sparse, if there is none."
)
@click.option(
    "--overlay", default="", metavar="FILE", help="Keep there what is written to PATH."
)
@click.option("--serial", default="", help="Serial number; made of address and host.")
@click.option("--model", default="pyaoe", show_default=True, help="Model name.")
@click.option("--wwn", type=WWN, help="World wide name; made of address and serial.")
@click.option(
    "--rotation",
    default=1,
    show_default=True,
    metavar="RPM",
    help="Turns a minute that clients are told, 1 for a disk that does not turn.",
)
@click.option(
    "--physical-block",
    type=click.Choice([512, 4096]),
    default=512,
    show_default=True,
    help="Bytes that clients are told to write at a time.",
)
@click.option(
    "-m",
    "--mask",
    type=MACS,
    default=(),
    help="Serve these clients alone, whatever list was kept; clients may edit it.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep what clients set there; beside PATH where it is an image.",
)
@click.option("--no-state", is_flag=True, help="Keep nothing of what clients set.")
@click.option(
    "--filter",
    "filters",
    type=FILTER,
    multiple=True,
    help="Misbehave on purpose: delay, error, drop, duplicate, reorder, corrupt; also "
    "log and readonly. Repeat it to stack them; the first is nearest to the wire.",
)
@click.option(
    "--force", is_flag=True, help="Serve although address or disk seem to be in use."
)
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Record all frames, annotated, as pcapng.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Listen there too for aoe-target status, reload and the like.",
)
@click.option("--plain", is_flag=True, help="Do without packet rings.")
@click.option(
    "--ready-fd", type=int, metavar="N", help="Write the ready line there too."
)
@click.option("-v", "--verbose", is_flag=True, help="Log statistics at the end.")
def serve(
    words: tuple[str, ...], ready_fd: int | None, *, verbose: bool, **options: object
) -> None:
    """Serve the disk at PATH under ADDRESS on the interface IFACE.

    \b
    Try:  aoe-target serve e0.0 eth0 disk.img --create 1G
          aoe-target serve e0.0 eth0,eth1 /dev/vg0/disk --sync
          aoe-target serve 0 0 eth0 disk.img -r      (as vblade has it)
          aoe-target serve e0.3 eth0 golden.img --overlay client3.ovl
          aoe-target serve e0.0 eth0 disk.img --filter drop:probability=0.02
          aoe-target serve --config /etc/aoe-target.toml

    PATH is a disk image, a block device, or an NBD export: nbd://host/name or
    nbd+unix:///name?socket=/path. It is served in the foreground until Ctrl-C or
    SIGTERM; SIGUSR1 logs statistics. See aoe-target status for how it is doing.

    A write is answered when it is in the page cache, with --sync when it is on stable
    storage.
    """
    settings = build_settings(words, options)
    serve_until_stopped(settings, ready_fd, verbose=verbose)


def build_settings(words: tuple[str, ...], options: dict[str, Any]) -> Settings:
    """Make settings of the command line of ``serve``.

    Raises:
        UsageError: neither ADDRESS IFACE PATH, SHELF SLOT IFACE PATH nor --config FILE,
            or a bad value.
        AoEError: the file cannot be read.
    """
    from msgspec.structs import replace

    from target.config_file import load_settings
    from target.settings import Settings

    if options["config"] is None:
        settings = Settings(exports=(_build_export(words, options),))
    elif words:
        raise UsageError("serve", "there is --config too", "Say it all in the file")
    else:
        settings = load_settings(options["config"])
    return replace(
        settings,
        rings=False if options["plain"] else None,
        force=options["force"] or settings.force,
        capture=options["pcap"],
        control=options["control"] or settings.control,
    )


def _build_export(words: tuple[str, ...], options: dict[str, Any]) -> ExportSettings:
    from target.disks import OpenFlags
    from target.settings import ExportSettings

    if len(words) not in (3, 4):
        raise UsageError(
            "serve",
            "needs ADDRESS IFACE PATH",
            f"Try: {PROGRAM} serve e0.0 eth0 disk.img",
        )
    *address, interfaces, path = words
    disk = OpenFlags(
        read_only=options["read_only"],
        sync=options["sync"],
        direct=options["direct"],
        offset=options["offset"],
        length=options["length"],
        create=options["create"],
        force=options["force"],
    )
    return ExportSettings(
        address=Address.parse(" ".join(address)),
        interfaces=tuple(interfaces.split(",")),
        path=path,
        disk=disk,
        overlay=options["overlay"],
        buffers=options["buffers"],
        serial=options["serial"],
        model=options["model"],
        wwn=options["wwn"] or 0,
        rotation=options["rotation"],
        physical_block=options["physical_block"],
        mask=options["mask"],
        state_dir=options["state_dir"],
        keep_state=not options["no_state"],
        filters=options["filters"],
    )


def serve_until_stopped(
    settings: Settings, ready_fd: int | None = None, *, verbose: bool = False
) -> None:
    """Open everything, say that it is ready, and serve.

    Args:
        settings: what to serve.
        ready_fd: where to write ``READY=1`` as well, once it is.
        verbose: log the statistics at the end.

    Raises:
        AoEError: something could not be opened.
    """
    from target.control import ControlServer
    from target.opening import open_service, ready_lines
    from target.operations import Operations
    from target.service import signals

    _set_up_logging()
    with ExitStack() as stack:
        inventory = open_service(settings, stack)
        service = inventory.service
        operations = Operations(inventory, settings)
        control = ControlServer(operations.ask, settings.control)
        service.reload = partial(control.request, "reload")
        stack.enter_context(control)
        stack.enter_context(signals(service))
        for line in ready_lines(inventory):
            click.echo(line)
        if ready_fd is not None:
            _tell_ready(ready_fd)
        inventory.go_live()
        service.run()
        if verbose:
            service.log_statistics()


def _tell_ready(fd: int) -> None:
    try:
        os.write(fd, b"READY=1\n")
        os.close(fd)
    except OSError as error:
        raise from_os_error(f"--ready-fd {fd}", error) from error


def _set_up_logging() -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{PROGRAM}: %(message)s"))
    logger = logging.getLogger(PROGRAM)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
