"""The ``aoe`` command: find AoE disks, look at them, read, write and copy them."""

from __future__ import annotations

import click

from aoe.commandline import run
from initiator.commands import look, move
from initiator.commands.attach import attach
from initiator.commands.check import check
from initiator.commands.lab import lab


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyaoe", prog_name="aoe")
def cli() -> None:
    """Find AoE disks on the network, and read, write and copy them.

    \b
    Try:  aoe discover -i eth0
          aoe copy disk.img e0.0 -i eth0 --verify

    An address is a shelf and a slot, e0.0 or 0.0. Sizes are bytes and take the
    suffixes K, M, G and T, powers of 1024.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found or timed out,
    4 not permitted, 5 busy.
    """


for command in (
    look.discover_command,
    look.stat,
    look.ping,
    move.read,
    move.write,
    move.copy_command,
    attach,
    check,
    lab,
):
    cli.add_command(command)


def main() -> None:
    """Run the command and exit with its code."""
    run(cli, "aoe")
