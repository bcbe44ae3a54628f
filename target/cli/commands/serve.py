"""``aoe-target serve``: build settings from the command line and run the service."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from aoe.address import Address, parse_macs
from aoe.ata import SECTOR
from aoe.common.commandline import SIZE, Parsed, SectionedCommand
from aoe.common.completion import complete_file
from aoe.common.sizes import parse_size
from aoe.errors import UsageError, from_os_error
from aoe.identify import parse_wwn
from target.cli.complete import complete_engine, complete_export, complete_filter
from target.config.endpoint import parse_endpoint

if TYPE_CHECKING:
    from target.config.settings import ExportSettings, Settings
    from target.filters.settings import FilterSettings

PROGRAM: Final = "aoe-target"
_PROCESS_OPTIONS: Final = frozenset(
    {
        *("arguments", "config", "pcap", "command", "force", "plain", "control"),
        *("metrics", "user", "exit_with_parent", "pidfile", "log_format", "ready_fd"),
        *("verbose", "help"),
    }
)
"""The parameters that apply to the process and not to a disk, by their Python names."""
WINDOW: Final = Parsed("sectors or size", partial(parse_size, unit=SECTOR))


def parse_filter(text: str) -> FilterSettings:
    """Parse a filter, ``name`` or ``name:key=value,...``.

    Raises:
        UsageError: unknown filter or key, or a bad value.
    """
    from target.filters import settings

    return settings.parse_filter(text)


FILTER: Final = Parsed("name[:key=value,...]", parse_filter)
WWN: Final = Parsed("hex", parse_wwn)
MACS: Final = Parsed("mac[,mac]", parse_macs)
ENDPOINT: Final = Parsed("[address:]port", parse_endpoint)


class _Serve(SectionedCommand):
    headings = MappingProxyType(
        {
            "config": "Disk",
            "buffers": "Device parameters reported to clients",
            "mask": "Access control and client state",
            "filters": "Testing",
            "force": "Process",
        }
    )


@click.command(cls=_Serve)
@click.argument(
    "arguments",
    nargs=-1,
    metavar="[ADDRESS IFACE PATH]",
    shell_complete=complete_export,
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Serve the disks of this TOML file; SIGHUP and aoe-target reload read it "
    "again.",
)
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "-s",
    "--sync",
    is_flag=True,
    help="Acknowledge a write only when it is on stable storage.",
)
@click.option(
    "-d", "--direct", is_flag=True, help="Bypass the page cache, with O_DIRECT."
)
@click.option(
    "-o",
    "--offset",
    type=WINDOW,
    default=0,
    help="Where the disk begins in PATH: in sectors, as for vblade, or with a suffix "
    "in bytes, such as 1M.",
)
@click.option(
    "-l",
    "--length",
    type=WINDOW,
    help="Length of the disk, in the same units; default: up to the end of PATH.",
)
@click.option(
    "--create",
    type=SIZE,
    metavar="SIZE",
    help="Create PATH as a sparse file of this size if it does not exist.",
)
@click.option(
    "--overlay",
    default="",
    metavar="FILE",
    shell_complete=complete_file,
    help="Copy-on-write: store writes in this file and leave PATH unchanged.",
)
@click.option(
    "-b",
    "--buffers",
    default=64,
    show_default=True,
    help="Buffer count: requests that clients may have outstanding, 2 to 65535.",
)
@click.option(
    "--serial",
    default="",
    help="Serial number, at most 20 characters; default: made from address, host "
    "name and file.",
)
@click.option(
    "--model",
    default="pyaoe",
    show_default=True,
    help="Model name, at most 40 characters.",
)
@click.option(
    "--wwn",
    type=WWN,
    help="World wide name, 16 hex digits; default: made from address and serial "
    "number.",
)
@click.option(
    "--rotation",
    default=1,
    show_default=True,
    metavar="RPM",
    help="Rotation rate in revolutions per minute; 1 means non-rotating (SSD).",
)
@click.option(
    "--physical-block",
    type=click.Choice(("512", "4096")),
    default="512",
    show_default=True,
    help="Physical block size in bytes.",
)
@click.option(
    "-m",
    "--mask",
    type=MACS,
    default=(),
    help="Mask list: serve only clients with these MAC addresses. Replaces a stored "
    "list; clients may edit it.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Store config string, mask list, reservation and write cache setting in this "
    "directory; default: that of PATH for an image, otherwise /var/lib/aoe-target.",
)
@click.option("--no-state", is_flag=True, help="Do not store them.")
@click.option(
    "--filter",
    "filters",
    type=FILTER,
    multiple=True,
    shell_complete=complete_filter,
    help="Inject faults: delay, error, drop, duplicate, reorder, corrupt; also log and "
    "readonly. May be repeated; the first filter is the closest to the network. "
    "See aoe-target.toml(5) for the parameters.",
)
@click.option(
    "--engine",
    default="struct",
    show_default=True,
    metavar="NAME",
    shell_complete=complete_engine,
    help="What executes the requests: struct; scapy, the slow reference in scapy "
    "packets; or a Python file with a subclass of it, FILE.py or FILE.py:CLASS.",
)
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Capture all frames to this pcapng file, with comments.",
)
@click.option(
    "--run",
    "command",
    default="",
    metavar="CMD",
    help="Serve while this shell command runs, with $aoe and $iface in its "
    "environment; exit with its exit code.",
)
@click.option(
    "--force", is_flag=True, help="Serve even if address or disk seem to be in use."
)
@click.option("--plain", is_flag=True, help="Do not use packet rings.")
@click.option(
    "--control",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also listen on this Unix socket for aoe-target status and other commands.",
)
@click.option(
    "--metrics",
    type=ENDPOINT,
    help="Serve Prometheus metrics on this port; default address: 127.0.0.1.",
)
@click.option(
    "--user",
    default="",
    metavar="NAME[:GROUP]",
    help="Change to this user when everything is open.",
)
@click.option(
    "--exit-with-parent", is_flag=True, help="Exit when the parent process exits."
)
@click.option(
    "--pidfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the process ID to this file when ready; it is removed on exit.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="Format of the messages on standard error.",
)
@click.option(
    "--ready-fd",
    type=int,
    metavar="N",
    help="Write READY=1 to this file descriptor when ready.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log statistics on exit.")
def serve(arguments: tuple[str, ...], **options: object) -> None:
    """Serve a disk at an AoE address on one or more interfaces.

    \b
    Try:  aoe-target serve e0.0 eth0 disk.img --create 1G
          aoe-target serve e0.0 eth0,eth1 /dev/vg0/disk --sync
          aoe-target serve 0 0 eth0 disk.img -r      (as vblade has it)
          aoe-target serve e0.3 eth0 golden.img --overlay client3.ovl
          aoe-target serve e0.0 eth0 disk.img --filter drop:probability=0.02
          aoe-target serve --config /etc/aoe-target.toml
          aoe-target serve e0.0 eth0 disk.img --run './test-with "$aoe" "$iface"'

    ADDRESS is a shelf and a slot, e0.0. IFACE is an Ethernet interface, or several
    separated by commas. PATH is a disk image, a block device, or an NBD export:
    nbd://host/name or nbd+unix:///name?socket=/path. The target runs in the foreground
    until Ctrl-C or SIGTERM. SIGUSR1 logs statistics; aoe-target status shows them.

    A write is acknowledged when it is in the page cache, or with --sync when it is on
    stable storage.
    """
    from target.admin.logs import logging_to_stderr

    if options["config"] is not None:
        _refuse_disk_options(click.get_current_context())
    with logging_to_stderr(str(options["log_format"])):
        serve_until_stopped(
            build_settings(arguments, options), build_process_options(options)
        )


def _refuse_disk_options(ctx: click.Context) -> None:
    # They would be ignored; a disk would be served for writing despite --read-only.
    for parameter in ctx.command.params:
        name = str(parameter.name)
        source = ctx.get_parameter_source(name)
        if name not in _PROCESS_OPTIONS and source is ParameterSource.COMMANDLINE:
            why = "applies to a disk of the command line, not to those of --config"
            fix = "Set it in the file, see aoe-target.toml(5)"
            raise UsageError(parameter.opts[-1], why, fix)


def build_settings(arguments: tuple[str, ...], options: dict[str, Any]) -> Settings:
    """Return the settings for the command line of ``serve``.

    Args:
        arguments: ADDRESS IFACE PATH, SHELF SLOT IFACE PATH, or nothing with --config.
        options: the options, by their Python names.

    Raises:
        UsageError: wrong number of arguments, or a bad value.
        AoEError: the configuration file cannot be read.
    """
    from msgspec.structs import replace

    from target.config.settings import Settings
    from target.config.toml import load_settings

    if options["config"] is None:
        settings = Settings(exports=(_build_export(arguments, options),))
    elif arguments:
        why = "ADDRESS IFACE PATH and --config exclude each other"
        raise UsageError("serve", why, "Define all disks in the file")
    else:
        settings = load_settings(options["config"])
    return replace(
        settings,
        rings=False if options["plain"] else None,
        force=options["force"] or settings.force,
        capture=options["pcap"],
        control=options["control"] or settings.control,
        metrics=options["metrics"] or settings.metrics,
    )


def _build_export(
    arguments: tuple[str, ...], options: dict[str, Any]
) -> ExportSettings:
    from target.config.settings import ExportSettings
    from target.disks import OpenFlags

    if len(arguments) not in (3, 4):
        raise UsageError(
            "serve",
            "needs ADDRESS IFACE PATH",
            f"Try: {PROGRAM} serve e0.0 eth0 disk.img",
        )
    *address, interfaces, path = arguments
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
        physical_block=int(options["physical_block"]),
        mask=options["mask"],
        state_dir=options["state_dir"],
        keep_state=not options["no_state"],
        filters=options["filters"],
        engine=options["engine"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """Options of the process rather than of what it serves.

    Args:
        user: the user to change to, ``NAME[:GROUP]``; empty keeps the current one.
        command: a shell command; serve until it exits. Empty serves until a signal.
        exit_with_parent: exit when the parent process exits.
        pidfile: a file for the process ID.
        ready_fd: a file descriptor that gets ``READY=1``.
        verbose: log statistics on exit.
    """

    user: str = ""
    command: str = ""
    exit_with_parent: bool = False
    pidfile: Path | None = None
    ready_fd: int | None = None
    verbose: bool = False


def build_process_options(options: dict[str, Any]) -> ProcessOptions:
    """Return the process options of the command line."""
    return ProcessOptions(
        **{field.name: options[field.name] for field in fields(ProcessOptions)}
    )


def serve_until_stopped(settings: Settings, process: ProcessOptions) -> None:
    """Open disks and interfaces, drop privileges, signal readiness, and serve.

    Args:
        settings: the exports.
        process: the process options.

    Raises:
        AoEError: a disk, interface or socket could not be opened.
        SystemExit: in the supervisor, with the exit code of the command.
    """
    from target.admin.control import ControlServer
    from target.admin.notify import Notifier
    from target.admin.operations import Operations
    from target.admin.privileges import drop, find_account
    from target.cli.captive import exit_with_parent, pidfile
    from target.cli.metrics import open_metrics
    from target.server.service import signals
    from target.server.startup import open_service, ready_lines

    account = find_account(process.user) if process.user else None
    with ExitStack() as stack:
        notifier = stack.enter_context(Notifier.from_environment())
        ready_fds, parent = _fork_command(settings, process)
        inventory = open_service(settings, stack)
        service = inventory.service
        operations = Operations(inventory, settings, notifier)
        control = ControlServer(operations.ask, settings.control)
        stack.callback(control.close)
        metrics = open_metrics(settings, operations.status, stack)
        drop(account, _state_files(settings))
        if parent is not None:
            exit_with_parent(parent)
        service.reload = partial(control.schedule, "reload")
        service.timers.append(notifier)
        stack.enter_context(signals(service))
        control.start()
        if metrics is not None:
            metrics.start()
        if process.pidfile is not None:
            stack.enter_context(pidfile(process.pidfile))
        lines = ready_lines(inventory)
        # With --run, standard output belongs to the command.
        _announce_ready([] if process.command else lines, ready_fds)
        notifier.ready(lines[0] if len(lines) == 1 else f"{len(lines)} disks")
        inventory.go_live()
        service.run()
        notifier.stopping()
        if process.verbose:
            service.log_statistics()


def _fork_command(
    settings: Settings, process: ProcessOptions
) -> tuple[list[int], int | None]:
    # Return the descriptors that get READY=1, and the process to exit with, if any.
    from aoe.common.process.daemon import run_supervised
    from target.cli.captive import exit_with_parent

    ready_fds = [] if process.ready_fd is None else [process.ready_fd]
    parent = os.getppid() if process.exit_with_parent else None
    if not process.command:
        return ready_fds, parent
    if parent is not None:
        exit_with_parent(parent)
    first = settings.exports[0]
    variables = {"aoe": str(first.address), "iface": first.interfaces[0]}
    supervised = run_supervised(process.command, variables, ready_fds)
    return [*ready_fds, supervised.ready_fd], supervised.parent


def _state_files(settings: Settings) -> list[Path]:
    # Before dropping privileges, after which a directory may not be searchable.
    from target.server.client_state import state_path

    return [state_path(each) for each in settings.exports if each.keep_state]


def _announce_ready(lines: list[str], fds: list[int]) -> None:
    for line in lines:
        click.echo(line)
    for fd in fds:
        try:
            os.write(fd, b"READY=1\n")
            os.close(fd)
        except OSError as error:
            raise from_os_error(f"--ready-fd {fd}", error) from error
