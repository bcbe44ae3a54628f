"""``aoe-target doctor``: what is wrong here, and how to mend it."""

from __future__ import annotations

import click

from aoe.commandline import json_option


@click.command()
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Look at this disk image, block device or NBD export too.",
)
@json_option
def doctor(
    interfaces: tuple[str, ...], paths: tuple[str, ...], *, as_json: bool
) -> None:
    """Look at all that a target depends on, and say how to mend what is wrong.

    \b
    Try:  aoe-target doctor
          aoe-target doctor eth0 --path disk.img

    Rights, interfaces, MTU, losses, buffers, other targets on the wire and those that
    run here. Without IFACE it looks at every Ethernet interface that is up. Nothing is
    changed; a query is broadcast on each.

    Exit codes: 0 nothing has failed, 1 something has.
    """
    from aoe.doctor.report import report
    from target.doctor import examine

    report(examine(interfaces, paths), as_json=as_json)
