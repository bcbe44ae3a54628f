"""``aoe attach``: a disk for programs that know no AoE."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aoe.common.commandline import ADDRESS, json_option, print_json
from aoe.errors import UsageError, from_os_error
from initiator.cli.commands.detach import attached_line
from initiator.cli.common import Connection, connects
from initiator.disk.disk import Disk

if TYPE_CHECKING:
    from aoe.address import Address
    from initiator.export.attachment import AttachSpec


def _resolve(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    # libfuse goes to the root directory, and so does a process in the background.
    return None if value is None else Path(os.path.realpath(value))


@click.command()
@click.argument("address", type=ADDRESS)
@click.option(
    "--nbd",
    metavar="SOCKET|HOST:PORT",
    help="Serve it to NBD clients, at a Unix socket or a TCP port.",
)
@click.option(
    "--fuse",
    "file",
    callback=_resolve,
    metavar="FILE",
    help="Show it as a file, through FUSE; made if it is not there.",
)
@click.option("--loop", is_flag=True, help="Make it a block device, /dev/loopN.")
@click.option(
    "--mount",
    "directory",
    type=click.Path(exists=True, file_okay=False),
    callback=_resolve,
    metavar="DIR",
    help="Mount the file system that is on it.",
)
@click.option("--fstype", default="", help="What file system, if mount cannot tell.")
@click.option("--mount-options", "options", default="", help="As of mount -o.")
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "--run",
    "command",
    default="",
    metavar="CMD",
    help="Serve NBD while this shell command runs, with $uri in its environment; exit "
    "as it does.",
)
@click.option(
    "--background", is_flag=True, help="Return when it is ready, and go on serving."
)
@click.option(
    "--ready-fd", type=int, metavar="N", help="Write READY=1 there when it is ready."
)
@connects(3.0, moves_data=True)
@json_option
def attach(
    *,
    address: Address,
    connection: Connection,
    nbd: str | None,
    read_only: bool,
    command: str,
    background: bool,
    ready_fd: int | None,
    as_json: bool,
    **place: Any,  # noqa: ANN401 - the other fields of a Place, as their options say
) -> None:
    """Attach a disk for programs that know no AoE.

    \b
    Try:  aoe attach e0.0 -i eth0 --nbd /run/e0.0.sock
          aoe attach e0.0 -i eth0 --nbd e0.0.sock --run 'qemu-img info "$uri"'
          aoe attach e0.0 -i eth0 --mount /mnt --background
          aoe attach e0.0 -i eth0 --loop
          aoe attach e0.0 -i eth0 --fuse disk.img --read-only

    It is there until Ctrl-C, SIGTERM or `aoe detach`; what is under way is then
    finished, and the disk flushed. Served by NBD, a second signal ends it at once.
    Otherwise who uses it keeps it, and umount is enough to detach what is mounted.

    --loop and --mount take root, they and --fuse mfusepy: pip install 'pyaoe[fuse]'.
    """
    _check(nbd, command, place, background=background)
    life = _Life([] if ready_fd is None else [ready_fd])
    if command:
        from initiator.export.nbd.listener import planned_uri

        life.run_supervised(command, planned_uri(str(nbd), str(address)))
    elif background:
        life.daemonize()
    say = _Announcer(life, as_json=as_json, quiet=bool(command))
    if nbd is not None:
        _serve_nbd(address, connection, nbd, say, read_only=read_only)
        return
    from initiator.export.attachment import AttachSpec

    _show(address, connection, AttachSpec(read_only=read_only, **place), say)


def _check(
    nbd: str | None, command: str, place: dict[str, Any], *, background: bool
) -> None:
    places = "--nbd SOCKET, --mount DIR, --loop or --fuse FILE"
    if nbd is None and not any(place.values()):
        raise UsageError("attach", "no place to attach it to", f"Name one: {places}")
    if nbd is not None and any(place.values()):
        raise UsageError("--nbd", "goes alone", "Attach the disk once more")
    if not place["directory"] and (place["fstype"] or place["options"]):
        raise UsageError("--fstype, --mount-options", "no --mount DIR")
    if command and nbd is None:
        raise UsageError("--run", "no $uri for the command", "Add --nbd SOCKET")
    if command and background:
        raise UsageError("attach", "--run needs the foreground", "Choose one of them")


def _serve_nbd(
    address: Address,
    connection: Connection,
    nbd: str,
    say: _Announcer,
    *,
    read_only: bool,
) -> None:
    from initiator.export.detach import serve_control
    from initiator.export.frontend import catch_termination
    from initiator.export.nbd.frontend import NbdFrontend
    from initiator.export.nbd.listener import Listener

    def end(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with ExitStack() as stack:
        # First, since this fails without a network; who calls early is kept waiting.
        listener = stack.enter_context(closing(Listener(nbd)))
        host = stack.enter_context(connection.host(address))
        disk = stack.enter_context(Disk(host, address, connection.timeout))
        ended = stack.enter_context(catch_termination(host))
        front = NbdFrontend(disk, listener, read_only=read_only, report=_report)
        stack.enter_context(closing(front))
        about = _describe(
            disk, read_only=read_only, uri=front.uri, socket=listener.path
        )
        stack.enter_context(serve_control(about, end))
        say.ready(about)
        front.run(ended)


def _show(
    address: Address, connection: Connection, place: AttachSpec, say: _Announcer
) -> None:
    from initiator.export.attachment import Attachment
    from initiator.export.detach import Detacher, detach_on_signals, flush
    from initiator.export.disk_thread import DiskThread
    from initiator.export.reclaim import become_io_flusher

    become_io_flusher()
    detacher = Detacher(_report)
    with ExitStack() as stack:
        host = stack.enter_context(connection.host(address))
        disk = Disk(host, address, connection.timeout, read_only=place.read_only)
        stack.enter_context(disk)
        stack.enter_context(detach_on_signals(detacher))
        thread = stack.enter_context(DiskThread(disk, _report))
        if not place.read_only and not flush(thread):
            _report(f"{address}: warning: the target knows no flush")
        attachment = Attachment(thread, place, detacher.request_detach)
        attachment.attach()
        about = _describe(
            disk,
            read_only=place.read_only,
            file=place.file,
            device=attachment.device,
            directory=place.directory,
        )
        say.ready(about)
        detacher.wait(thread, attachment, about)


def _describe(disk: Disk, *, read_only: bool, **places: object) -> dict[str, Any]:
    """Say of an attached disk what scripts and ``aoe detach`` want to know."""
    named = {name: None if each is None else str(each) for name, each in places.items()}
    return {
        "address": str(disk.address),
        **named,
        "size_bytes": disk.size,
        "read_only": read_only,
        "pid": os.getpid(),
    }


def _report(line: str) -> None:
    """Show a line, behind our name."""
    click.echo(f"aoe: {line}", err=True)


class _Announcer:
    # Says that it is attached; not where standard output is a command's.

    def __init__(self, life: _Life, *, as_json: bool, quiet: bool) -> None:
        self._life = life
        self._as_json = as_json
        self._quiet = quiet

    def ready(self, about: dict[str, Any]) -> None:
        if self._as_json and not self._quiet:
            print_json("attach", **about)
        elif not self._quiet:
            click.echo(attached_line(about))
        sys.stdout.flush()
        self._life.is_ready()


class _Life:
    # Who waits for us to be ready, and what becomes of us then.

    def __init__(self, ready_fds: list[int]) -> None:
        self._ready_fds = ready_fds
        self._leaves_terminal = False

    def run_supervised(self, command: str, uri: str) -> None:
        from aoe.common.daemon import run_supervised

        beside = run_supervised(command, {"uri": uri}, self._ready_fds)
        self._ready_fds.append(beside.ready_fd)

    def daemonize(self) -> None:
        from aoe.common.daemon import daemonize

        self._ready_fds.append(daemonize(self._ready_fds))
        self._leaves_terminal = True

    def is_ready(self) -> None:
        for fd in self._ready_fds:
            try:
                os.write(fd, b"READY=1\n")
                os.close(fd)
            except OSError as error:
                raise from_os_error(f"--ready-fd {fd}", error) from error
        if self._leaves_terminal:
            from aoe.common.daemon import close_terminal

            close_terminal()
