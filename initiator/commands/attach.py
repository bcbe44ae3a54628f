"""``aoe attach``: a disk for programs that know no AoE."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import click

from aoe.commandline import ADDRESS, json_option, print_json
from aoe.errors import UsageError, from_os_error
from aoe.sizes import short_size
from initiator.commands.common import Connection, connects
from initiator.device import Disk

if TYPE_CHECKING:
    from aoe.address import Address


@click.command()
@click.argument("address", type=ADDRESS)
@click.option(
    "--nbd",
    metavar="SOCKET|HOST:PORT",
    help="Serve it to NBD clients, at a Unix socket or a TCP port.",
)
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "--run",
    "command",
    default="",
    metavar="CMD",
    help="Serve while this shell command runs, with $uri in its environment; exit as "
    "it does.",
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
    nbd: str | None,
    read_only: bool,
    command: str,
    background: bool,
    ready_fd: int | None,
    connection: Connection,
    as_json: bool,
) -> None:
    """Attach a disk for programs that know no AoE.

    \b
    Try:  aoe attach e0.0 -i eth0 --nbd /run/e0.0.sock
          aoe attach e0.0 -i eth0 --nbd localhost:10809 --read-only
          aoe attach e0.0 -i eth0 --nbd e0.0.sock --run 'qemu-img info "$uri"'

    It is served in the foreground until Ctrl-C or SIGTERM; what is under way is then
    finished, and the disk flushed. A second one ends it at once.
    """
    from initiator.export.front import ending
    from initiator.export.nbd_front import NbdFrontEnd
    from initiator.export.nbd_listener import Listener, planned_uri

    if nbd is None:
        raise UsageError("attach", "no place to attach it to", "Name one: --nbd SOCKET")
    if command and background:
        raise UsageError("attach", "--run needs the foreground", "Choose one of them")
    life = _Life([] if ready_fd is None else [ready_fd])
    if command:
        life.run_beside(command, planned_uri(nbd, str(address)))
    elif background:
        life.go_to_background()
    with ExitStack() as stack:
        # First, since this fails without a network; who calls early is kept waiting.
        listener = stack.enter_context(closing(Listener(nbd)))
        host = stack.enter_context(connection.host(address))
        disk = stack.enter_context(Disk(host, address, connection.timeout))
        ended = stack.enter_context(ending(host))
        front = NbdFrontEnd(disk, listener, read_only=read_only, report=_report)
        stack.enter_context(closing(front))
        # With a command, standard output is the command's.
        # With a command, standard output is the command's.
        if not command:
            _announce(disk, front.uri, read_only=read_only, as_json=as_json)
        life.is_ready()
        front.run(ended)


def _announce(disk: Disk, uri: str, *, read_only: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            "attach",
            address=str(disk.address),
            uri=uri,
            size_bytes=disk.size,
            read_only=read_only,
            pid=os.getpid(),
        )
        return
    flags = " [read-only]" if read_only else ""
    click.echo(f"{disk.address} {short_size(disk.size)} as {uri}{flags}")


def _report(line: str) -> None:
    click.echo(f"aoe: {line}", err=True)


class _Life:
    # Who waits for us to be ready, and what becomes of us then.

    def __init__(self, ready_fds: list[int]) -> None:
        self._ready_fds = ready_fds
        self._leaves_terminal = False

    def run_beside(self, command: str, uri: str) -> None:
        from aoe.beside import run_beside

        beside = run_beside(command, {"uri": uri}, self._ready_fds)
        self._ready_fds.append(beside.ready_fd)

    def go_to_background(self) -> None:
        from aoe.beside import go_to_background

        self._ready_fds.append(go_to_background(self._ready_fds))
        self._leaves_terminal = True

    def is_ready(self) -> None:
        for fd in self._ready_fds:
            try:
                os.write(fd, b"READY=1\n")
                os.close(fd)
            except OSError as error:
                raise from_os_error(f"--ready-fd {fd}", error) from error
        if self._leaves_terminal:
            from aoe.beside import leave_terminal

            leave_terminal()
