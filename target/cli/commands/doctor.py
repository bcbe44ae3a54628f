"""``aoe-target doctor``: what is wrong here, and how to mend it."""

from __future__ import annotations

import click

from aoe.common.commandline import json_option
from aoe.common.completion import complete_file, complete_interfaces


@click.command()
@click.argument(
    "interfaces",
    nargs=-1,
    metavar="[IFACE]...",
    shell_complete=complete_interfaces,
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    shell_complete=complete_file,
    help="Look at this disk image, block device or NBD export too.",
)
@json_option
def doctor(
    interfaces: tuple[str, ...], paths: tuple[str, ...], *, as_json: bool
) -> None:
    """Find what is wrong here, and say how to mend it.

    \b
    Try:  aoe-target doctor
          aoe-target doctor eth0 --path disk.img

    It looks at rights, interfaces, MTU, losses, buffers, other targets on the wire and
    those that run here; without IFACE at every Ethernet interface that is up. Nothing
    is changed; queries are broadcast on each.

    Exit codes: 0 nothing keeps AoE from working, 1 something does.
    """
    from aoe.common.doctor.report import report
    from target.doctor import run_checks

    report(run_checks(interfaces, paths), as_json=as_json)
