"""``aoe scapy``: scapy's interactive session with the AoE layers."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aoe.address import format_mac
from aoe.common.completion import complete_file
from aoe.errors import from_os_error
from initiator.cli.common import Connection, connection_options
from initiator.io.tags import claim_tag_base

if TYPE_CHECKING:
    from aoe.net.link import Link
    from initiator.session.console import Script


@click.command("scapy", context_settings={"allow_interspersed_args": False})
@click.argument(
    "arguments",
    nargs=-1,
    metavar="[FILE] [ARG]...",
    shell_complete=complete_file,
)
@click.option(
    "-c", "--code", metavar="CODE", help="Execute CODE instead of opening a session."
)
@connection_options(1.0)
def scapy_command(
    *, arguments: tuple[str, ...], code: str | None, connection: Connection
) -> None:
    """Open scapy's interactive session with the AoE layers.

    \b
    Try:  aoe scapy -i eth0
          aoe scapy -i eth0 -c 'ask(AoE() / AoEConfig()).show()'
          aoe scapy -i eth0 probe.py

    The session has all of scapy, the layers AoE, AoEATA, AoEConfig, AoEMask and
    AoEReserve, and helpers: ask, ask_all, discover, watch, read_sectors and
    write_sectors; help(ask) describes one. With -c or FILE, or if standard input is not
    a terminal, a program with the same names is executed. - is standard input.
    """
    with ExitStack() as stack:
        # Setting up packet rings would take longer than a request.
        opener = stack.enter_context(connection.opener(rings=False))
        names = connection.names()
        links = [_open_and_close(opener(name)) for name in names]
        # Imported here because it takes half a second.
        from initiator.session.console import interact, run_script
        from initiator.session.helpers import Session

        tag_base, holder = claim_tag_base()
        stack.callback(os.close, holder)
        session = Session(names, opener, tag_base, connection.timeout)
        if code is None and not arguments and sys.stdin.isatty():
            interact(session, _banner(*links))
        else:
            run_script(session, _script(code, arguments))


def _open_and_close(link: Link) -> Link:
    # The session opens an interface for each request; errors are reported here first.
    link.close()
    return link


def _banner(first: Link, *others: Link) -> str:
    also = f"; also {', '.join(link.name for link in others)}" if others else ""
    return f"Interface {first.name} ({format_mac(first.mac)}, MTU {first.mtu}){also}"


def _script(code: str | None, arguments: tuple[str, ...]) -> Script:
    """Return the program to execute.

    Raises:
        AoEError: the file cannot be read.
    """
    from initiator.session.console import Script

    if code is not None:
        return Script(code, "<string>", ["-c", *arguments])
    file, *rest = arguments or ("-",)
    if file == "-":
        return Script(sys.stdin.buffer.read(), "<stdin>", ["-", *rest])
    folder = str(Path(file).resolve().parent)
    try:
        return Script(Path(file).read_bytes(), file, [file, *rest], folder)
    except OSError as error:
        raise from_os_error(file, error) from error
