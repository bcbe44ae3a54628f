"""``aoe-target doctor``: diagnose the host, its network and disk images."""

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
    help="Also check this disk image, block device or NBD URI; may be repeated.",
)
@json_option
def doctor(
    interfaces: tuple[str, ...], paths: tuple[str, ...], *, as_json: bool
) -> None:
    """Check host, network and disks for problems.

    \b
    Try:  aoe-target doctor
          aoe-target doctor eth0 --path disk.img

    Checks capabilities, interfaces, MTU, frame loss, buffers, other targets on the
    network and the targets that run on this host. Without IFACE, all Ethernet
    interfaces that are up are checked. Nothing is changed; query config requests are
    broadcast on each interface.

    Exit codes: 0 no failures, 1 at least one check failed.
    """
    from aoe.common.doctor.report import report
    from target.doctor import run_checks

    report(run_checks(interfaces, paths), as_json=as_json)
