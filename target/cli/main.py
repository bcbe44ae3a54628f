"""The ``aoe-target`` command: serve disk images and block devices over AoE."""

from __future__ import annotations

from typing import Final

import click

from aoe.common.commandline import CommandGroup, run
from aoe.common.completion import completion_command
from target.cli.commands.check import check
from target.cli.commands.doctor import doctor
from target.cli.commands.import_vblade import import_vblade
from target.cli.commands.netboot import netboot
from target.cli.commands.overlay import overlay
from target.cli.commands.running import (
    clear_config,
    clear_mask,
    clear_reserve,
    reload,
    status,
    stop,
)
from target.cli.commands.serve import serve

PROGRAM: Final = "aoe-target"


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyaoe", prog_name=PROGRAM)
def cli() -> None:
    """Serve disk images and block devices over AoE.

    \b
    Try:  aoe-target serve e0.0 eth0 disk.img --create 1G
          aoe-target doctor eth0

    An address is a shelf and a slot, e0.0 or 0.0. Sizes are in bytes; the suffixes K,
    M, G and T are powers of 1024.

    Exit codes: 0 success, 1 failure, 2 usage error, 3 not found or timed out,
    4 permission denied, 5 busy.
    """


for command in (
    serve,
    check,
    status,
    reload,
    stop,
    clear_config,
    clear_mask,
    clear_reserve,
    overlay,
    doctor,
    netboot,
    import_vblade,
    completion_command(PROGRAM),
):
    cli.add_command(command)


def main() -> None:
    """Run the command and exit with its code."""
    run(cli, PROGRAM)
