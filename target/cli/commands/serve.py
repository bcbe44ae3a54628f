"""``aoe-target serve``: from the command line to a service that runs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import click

from aoe.address import Address, parse_macs
from aoe.ata import SECTOR
from aoe.common.commandline import SIZE, Parsed, SectionedCommand
from aoe.common.completion import complete_file
from aoe.common.sizes import parse_size
from aoe.errors import UsageError, from_os_error
from aoe.identify import parse_wwn
from target.cli.complete import complete_export, complete_filter
from target.config.endpoint import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.admin.metrics import MetricsServer
    from target.config.settings import ExportSettings, Settings
    from target.filters.settings import FilterSettings

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
ENDPOINT: Final = Parsed("[address:]port", parse_endpoint)


class _Serve(SectionedCommand):
    headings = MappingProxyType(
        {
            "config": "What is served",
            "buffers": "What clients are told",
            "mask": "What clients may do, and what is kept of it",
            "filters": "For tests",
            "force": "How it runs",
        }
    )


@click.command(cls=_Serve)
@click.argument(
    "words",
    nargs=-1,
    metavar="[ADDRESS IFACE PATH]",
    shell_complete=complete_export,
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Serve what this TOML file says; HUP, or aoe-target reload, reads it again.",
)
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "-s", "--sync", is_flag=True, help="Answer writes when they are on stable storage."
)
@click.option(
    "-d", "--direct", is_flag=True, help="Read and write around the page cache."
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
    "--overlay",
    default="",
    metavar="FILE",
    shell_complete=complete_file,
    help="Keep there what is written to PATH.",
)
@click.option(
    "-b",
    "--buffers",
    default=64,
    show_default=True,
    help="Requests that a client may have outstanding, at least 2.",
)
@click.option(
    "--serial",
    default="",
    help="Serial number, at most 20 characters; made of address and host by default.",
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
    help="World wide name, 16 hex digits; made of address and serial by default.",
)
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
    help="Keep there what clients set; by default beside PATH where that is an image, "
    "in /var/lib/aoe-target where not.",
)
@click.option("--no-state", is_flag=True, help="Keep nothing of what clients set.")
@click.option(
    "--filter",
    "filters",
    type=FILTER,
    multiple=True,
    shell_complete=complete_filter,
    help="Misbehave on purpose: delay, error, drop, duplicate, reorder, corrupt; also "
    "log and readonly. Repeat it to stack them; the first is nearest to the wire. "
    "aoe-target.toml(5) has their keys.",
)
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Record all frames, annotated, as pcapng.",
)
@click.option(
    "--run",
    "command",
    default="",
    metavar="CMD",
    help="Serve while this shell command runs, with $aoe and $iface in its "
    "environment; exit as it does.",
)
@click.option(
    "--force", is_flag=True, help="Serve although address or disk seem to be in use."
)
@click.option("--plain", is_flag=True, help="Do without packet rings.")
@click.option(
    "--control",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Listen at this socket too, for aoe-target status and the like.",
)
@click.option(
    "--metrics",
    type=ENDPOINT,
    help="Show statistics to Prometheus there; ADDRESS is 127.0.0.1 by default.",
)
@click.option(
    "--user",
    default="",
    metavar="NAME[:GROUP]",
    help="Become this user once everything is open.",
)
@click.option(
    "--exit-with-parent", is_flag=True, help="End when whoever started this ends."
)
@click.option(
    "--pidfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the process id there, from when it is ready.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="How messages on standard error are written.",
)
@click.option(
    "--ready-fd",
    type=int,
    metavar="N",
    help="Write READY=1 to this file descriptor once it is ready.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log statistics at the end.")
def serve(words: tuple[str, ...], **options: object) -> None:
    """Serve a disk under an address on an interface.

    \b
    Try:  aoe-target serve e0.0 eth0 disk.img --create 1G
          aoe-target serve e0.0 eth0,eth1 /dev/vg0/disk --sync
          aoe-target serve 0 0 eth0 disk.img -r      (as vblade has it)
          aoe-target serve e0.3 eth0 golden.img --overlay client3.ovl
          aoe-target serve e0.0 eth0 disk.img --filter drop:probability=0.02
          aoe-target serve --config /etc/aoe-target.toml
          aoe-target serve e0.0 eth0 disk.img --run './test-with "$aoe" "$iface"'

    ADDRESS is a shelf and a slot, e0.0. IFACE is an Ethernet interface, or several with
    commas between them. PATH is a disk image, a block device, or an NBD export:
    nbd://host/name or nbd+unix:///name?socket=/path. It is served in the foreground
    until Ctrl-C or SIGTERM; SIGUSR1 logs statistics. See aoe-target status for how it
    is doing.

    A write is answered when it is in the page cache, with --sync when it is on stable
    storage.
    """
    from target.admin.logs import logging_to_stderr

    with logging_to_stderr(str(options["log_format"])):
        serve_until_stopped(build_settings(words, options), build_life(options))


def build_settings(words: tuple[str, ...], options: dict[str, Any]) -> Settings:
    """Make settings of the command line of ``serve``.

    Raises:
        UsageError: neither ADDRESS IFACE PATH, SHELF SLOT IFACE PATH nor --config FILE,
            or a bad value.
        AoEError: the file cannot be read.
    """
    from msgspec.structs import replace

    from target.config.settings import Settings
    from target.config.toml import load_settings

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
        metrics=options["metrics"] or settings.metrics,
    )


def _build_export(words: tuple[str, ...], options: dict[str, Any]) -> ExportSettings:
    from target.config.settings import ExportSettings
    from target.disks import OpenFlags

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How the process begins and ends.

    Args:
        user: whom to become, ``NAME[:GROUP]``; empty stays whoever we are.
        command: a shell command to serve for as long as it runs; empty for ever.
        exit_with_parent: end when the process ends that started us.
        pidfile: where to keep the process id.
        ready_fd: where to write ``READY=1``.
        verbose: log the statistics at the end.
    """

    user: str = ""
    command: str = ""
    exit_with_parent: bool = False
    pidfile: Path | None = None
    ready_fd: int | None = None
    verbose: bool = False


def build_life(options: dict[str, Any]) -> Life:
    """Take out of the command line what is about the process."""
    return Life(**{field.name: options[field.name] for field in fields(Life)})


def serve_until_stopped(settings: Settings, life: Life) -> None:
    """Open everything, give up what rights are left over, say it is ready, and serve.

    Args:
        settings: what to serve.
        life: how the process begins and ends.

    Raises:
        AoEError: something could not be opened.
        SystemExit: the command has ended, with its exit code.
    """
    from target.admin.control import ControlServer
    from target.admin.notify import Notifier
    from target.admin.operations import Operations
    from target.admin.privileges import drop, find_account
    from target.cli.captive import end_with_parent, pidfile
    from target.server.service import signals
    from target.server.startup import open_service, ready_lines

    account = find_account(life.user) if life.user else None
    with ExitStack() as stack:
        notifier = stack.enter_context(Notifier.from_environment())
        ready_fds, parent = _beside_command(settings, life)
        inventory = open_service(settings, stack)
        service = inventory.service
        operations = Operations(inventory, settings, notifier)
        control = ControlServer(operations.ask, settings.control)
        stack.callback(control.close)
        metrics = _open_metrics(settings, operations.status, stack)
        drop(account, _state_files(settings))
        if parent is not None:
            end_with_parent(parent)
        service.reload = partial(control.schedule, "reload")
        service.timers.append(notifier)
        stack.enter_context(signals(service))
        control.start()
        if metrics is not None:
            metrics.start()
        if life.pidfile is not None:
            stack.enter_context(pidfile(life.pidfile))
        lines = ready_lines(inventory)
        # With a command, standard output is the command's.
        _say_ready([] if life.command else lines, ready_fds)
        notifier.ready(lines[0] if len(lines) == 1 else f"{len(lines)} disks")
        inventory.go_live()
        service.run()
        notifier.stopping()
        if life.verbose:
            service.log_statistics()


def _beside_command(settings: Settings, life: Life) -> tuple[list[int], int | None]:
    # Who waits for us to be ready, and with whom we end.
    from aoe.common.daemon import run_supervised
    from target.cli.captive import end_with_parent

    ready_fds = [] if life.ready_fd is None else [life.ready_fd]
    parent = os.getppid() if life.exit_with_parent else None
    if not life.command:
        return ready_fds, parent
    if parent is not None:
        end_with_parent(parent)
    first = settings.exports[0]
    variables = {"aoe": str(first.address), "iface": first.interfaces[0]}
    beside = run_supervised(life.command, variables, ready_fds)
    return [*ready_fds, beside.ready_fd], beside.parent


def _open_metrics(
    settings: Settings, status: Callable[[], dict[str, Any]], stack: ExitStack
) -> MetricsServer | None:
    if settings.metrics is None:
        return None
    from target.admin.metrics import MetricsServer

    return stack.enter_context(MetricsServer(settings.metrics, status))


def _state_files(settings: Settings) -> list[Path]:
    # Looked up while all of the path can still be seen.
    from target.server.client_state import state_path

    return [state_path(each) for each in settings.exports if each.keep_state]


def _say_ready(lines: list[str], fds: list[int]) -> None:
    for line in lines:
        click.echo(line)
    for fd in fds:
        try:
            os.write(fd, b"READY=1\n")
            os.close(fd)
        except OSError as error:
            raise from_os_error(f"--ready-fd {fd}", error) from error
