"""The ``aoe`` command: find AoE disks, look at them, read, write and copy them."""

from __future__ import annotations

from typing import Final

import click

from aoe.commandline import run
from aoe.completion import completion_command
from initiator.commands import bench, config, decode, disk, doctor, fence, look, move
from initiator.commands.attach import attach
from initiator.commands.check import check
from initiator.commands.detach import detach
from initiator.commands.lab import lab

SECTIONS: Final[dict[str, tuple[click.Command, ...]]] = {
    "Look": (
        look.discover_command,
        look.stat,
        look.ping,
        disk.identify,
        disk.smart,
    ),
    "Move data": (
        move.read,
        move.write,
        move.copy_command,
        disk.flush,
        disk.trim,
        attach,
        detach,
    ),
    "Claim and fence": (config.config, fence.mask, fence.reserve),
    "Measure and mend": (
        bench.bench,
        doctor.doctor,
        doctor.sancheck,
        decode.decode,
        check,
    ),
    "Understand": (lab,),
    "Set up": (completion_command("aoe"),),
}
"""All commands, in the order in which help lists them."""


class _Sections(click.Group):
    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands under what they are for."""
        del ctx
        widest = max(map(len, self.commands))
        limit = formatter.width - widest - 6
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{each.name:<{widest}}", each.get_short_help_str(limit))
                        for each in commands
                    ]
                )


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyaoe", prog_name="aoe")
def cli() -> None:
    """Find AoE disks on the network, read, write and copy them, and look after them.

    \b
    Try:  aoe discover -i eth0
          aoe copy disk.img e0.0 -i eth0 --verify
          aoe doctor

    An address is a shelf and a slot, e0.0 or 0.0. Sizes are bytes and take the
    suffixes K, M, G and T, powers of 1024.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found or timed out,
    4 not permitted, 5 busy.
    """


for section in SECTIONS.values():
    for command in section:
        cli.add_command(command)


def main() -> None:
    """Run the command and exit with its code."""
    run(cli, "aoe")
