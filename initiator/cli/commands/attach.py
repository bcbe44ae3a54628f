"""``aoe attach``: export a disk to programs that do not support AoE."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aoe.common.commandline import ADDRESS, json_option, print_json
from aoe.errors import UsageError, from_os_error
from initiator.cli.commands.claims import force_option, writing_to
from initiator.cli.commands.detach import attached_line
from initiator.cli.common import Connection, connection_options
from initiator.disk.disk import Disk

if TYPE_CHECKING:
    from aoe.address import Address
    from initiator.export.attachment import AttachSpec


_CLAIMED: Final = "Detach it first, or use --read-only or --force"


def _resolve(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    # libfuse and a daemon change to the root directory.
    return None if value is None else Path(os.path.realpath(value))


@click.command()
@click.argument("address", type=ADDRESS)
@click.option(
    "--nbd",
    metavar="SOCKET|HOST:PORT",
    help="Serve it to NBD clients, on a Unix socket or a TCP port.",
)
@click.option(
    "--fuse",
    "file",
    callback=_resolve,
    metavar="FILE",
    help="Make it available as this file, through FUSE; created if it does not exist.",
)
@click.option(
    "--loop", is_flag=True, help="Make it available as a block device, /dev/loopN."
)
@click.option(
    "--mount",
    "directory",
    type=click.Path(exists=True, file_okay=False),
    callback=_resolve,
    metavar="DIR",
    help="Mount its file system on this directory.",
)
@click.option("--fstype", default="", help="Type of the file system; default: detect.")
@click.option(
    "--mount-options", "options", default="", help="Mount options, as of mount -o."
)
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@force_option
@click.option(
    "--run",
    "command",
    default="",
    metavar="CMD",
    help="Serve NBD while this shell command runs, with $uri in its environment; exit "
    "with its exit code.",
)
@click.option(
    "--background", is_flag=True, help="Run as a daemon: return when it is ready."
)
@click.option(
    "--ready-fd",
    type=int,
    metavar="N",
    help="Write READY=1 to this file descriptor when ready.",
)
@connection_options(3.0, uses_driver=True)
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
    **spec: Any,  # noqa: ANN401 - the other fields of an AttachSpec, and force
) -> None:
    """Attach a disk as a block device, mount, file or NBD.

    \b
    Try:  aoe attach e0.0 -i eth0 --nbd /run/e0.0.sock
          aoe attach e0.0 -i eth0 --nbd e0.0.sock --run 'qemu-img info "$uri"'
          aoe attach e0.0 -i eth0 --mount /mnt --background
          aoe attach e0.0 -i eth0 --loop
          aoe attach e0.0 -i eth0 --fuse disk.img --read-only

    The disk stays attached until Ctrl-C, SIGTERM, aoe detach, or umount of a mounted
    disk. Outstanding requests are then finished and the disk is flushed. While a
    process uses the mount, device or file, the disk stays attached. With --nbd, clients
    are disconnected, and a second signal does not wait for outstanding requests.

    --loop and --mount need root, and with --fuse they need mfusepy: pip install
    'pyaoe[fuse]'.
    """
    force: bool = spec.pop("force")
    _check(nbd, command, spec, background=background)
    process = _Process([] if ready_fd is None else [ready_fd])
    if command:
        from initiator.export.nbd.listener import planned_uri

        process.run_supervised(command, planned_uri(str(nbd), str(address)))
    elif background:
        process.daemonize()
    opening = _Opening(
        address=address, connection=connection, read_only=read_only, force=force
    )
    announcer = _Announcer(process, as_json=as_json, quiet=bool(command))
    if nbd is not None:
        _serve_nbd(opening, nbd, announcer)
        return
    from initiator.export.attachment import AttachSpec

    _attach(opening, AttachSpec(read_only=read_only, **spec), announcer)


def _check(
    nbd: str | None, command: str, spec: dict[str, Any], *, background: bool
) -> None:
    if nbd is None and not any(spec.values()):
        fix = "Add one of --nbd SOCKET, --mount DIR, --loop and --fuse FILE"
        raise UsageError("attach", "no option says how to attach", fix)
    if nbd is not None and any(spec.values()):
        why = "excludes --mount, --loop and --fuse"
        raise UsageError("--nbd", why, "Choose one of them")
    if not spec["directory"] and (spec["fstype"] or spec["options"]):
        raise UsageError("--fstype, --mount-options", "need --mount", "Add --mount DIR")
    if command and nbd is None:
        raise UsageError("--run", "needs --nbd", "Add --nbd SOCKET")
    if command and background:
        why = "--run and --background exclude each other"
        raise UsageError("attach", why, "Choose one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    # How to open the disk, and how to refuse it if this host writes to it already.
    address: Address
    connection: Connection
    read_only: bool
    force: bool

    def enter(self, stack: ExitStack) -> Disk:
        """Open the disk until the end of the stack, and claim it unless read-only."""
        host = stack.enter_context(self.connection.host(self.address))
        disk = Disk(
            host, self.address, self.connection.timeout, read_only=self.read_only
        )
        stack.enter_context(disk)
        is_free = self.force or self.read_only
        stack.enter_context(writing_to(disk, force=is_free, fix=_CLAIMED))
        return disk


def _serve_nbd(opening: _Opening, nbd: str, announcer: _Announcer) -> None:
    from initiator.export.detach import serve_control
    from initiator.export.frontend import catch_termination
    from initiator.export.nbd.frontend import NbdFrontend
    from initiator.export.nbd.listener import Listener

    def terminate(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with ExitStack() as stack:
        # First, because its errors need no network access to detect. Clients that
        # connect early wait in the backlog.
        listener = stack.enter_context(closing(Listener(nbd)))
        disk = opening.enter(stack)
        ended = stack.enter_context(catch_termination(disk.host))
        read_only = opening.read_only
        frontend = NbdFrontend(disk, listener, read_only=read_only, report=_report)
        stack.enter_context(closing(frontend))
        about = _describe(
            disk, read_only=read_only, uri=frontend.uri, socket=listener.path
        )
        stack.enter_context(serve_control(about, terminate))
        announcer.ready(about)
        frontend.run(ended)


def _attach(opening: _Opening, spec: AttachSpec, announcer: _Announcer) -> None:
    from initiator.export.attachment import Attachment
    from initiator.export.detach import Detacher, detach_on_signals, flush
    from initiator.export.disk_thread import DiskThread
    from initiator.export.reclaim import become_io_flusher

    become_io_flusher()
    detacher = Detacher(_report)
    with ExitStack() as stack:
        disk = opening.enter(stack)
        stack.enter_context(detach_on_signals(detacher))
        thread = stack.enter_context(DiskThread(disk, _report))
        if not spec.read_only and not flush(thread):
            _report(f"{disk.address}: warning: the target does not support FLUSH")
        attachment = Attachment(thread, spec, detacher.request_detach)
        attachment.attach()
        about = _describe(
            disk,
            read_only=spec.read_only,
            file=spec.file,
            device=attachment.device,
            directory=spec.directory,
        )
        announcer.ready(about)
        detacher.wait(thread, attachment, about)


def _describe(disk: Disk, *, read_only: bool, **places: object) -> dict[str, Any]:
    """Return the description of an attached disk, for JSON and ``aoe detach``.

    Args:
        disk: the disk.
        read_only: whether writes are refused.
        places: where it is attached: uri, socket, file, device, directory.
    """
    texts = {name: None if each is None else str(each) for name, each in places.items()}
    return {
        "address": str(disk.address),
        **texts,
        "size_bytes": disk.size,
        "read_only": read_only,
        "pid": os.getpid(),
    }


def _report(line: str) -> None:
    """Print a message on standard error."""
    click.echo(f"aoe: {line}", err=True)


class _Announcer:
    # Reports that the disk is attached. With --run it prints nothing, because standard
    # output belongs to the command.

    def __init__(self, process: _Process, *, as_json: bool, quiet: bool) -> None:
        self._process = process
        self._as_json = as_json
        self._quiet = quiet

    def ready(self, about: dict[str, Any]) -> None:
        if self._as_json and not self._quiet:
            print_json("attach", **about)
        elif not self._quiet:
            click.echo(attached_line(about))
        sys.stdout.flush()
        self._process.signal_ready()


class _Process:
    # The descriptors that get READY=1, and whether this is a daemon.

    def __init__(self, ready_fds: list[int]) -> None:
        self._ready_fds = ready_fds
        self._is_daemon = False

    def run_supervised(self, command: str, uri: str) -> None:
        from aoe.common.process.daemon import run_supervised

        supervised = run_supervised(command, {"uri": uri}, self._ready_fds)
        self._ready_fds.append(supervised.ready_fd)

    def daemonize(self) -> None:
        from aoe.common.process.daemon import daemonize

        self._ready_fds.append(daemonize(self._ready_fds))
        self._is_daemon = True

    def signal_ready(self) -> None:
        for fd in self._ready_fds:
            try:
                os.write(fd, b"READY=1\n")
                os.close(fd)
            except OSError as error:
                raise from_os_error(f"--ready-fd {fd}", error) from error
        if self._is_daemon:
            from aoe.common.process.daemon import close_terminal

            close_terminal()
