"""The ``aoe`` command: find AoE disks, look at them, read, write and copy them.

A command is imported when it is asked for: each costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Final, NamedTuple

import click

from aoe.common.commandline import run


class Entry(NamedTuple):
    """A command that can be imported.

    Args:
        place: its module in ``initiator.cli.commands``, or after a dot in
            ``initiator.cli``, and its name there.
        summary: the first sentence of its help.
    """

    place: str
    summary: str


SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "Look": {
        "discover": Entry("discover:discover_command", "List the targets that answer."),
        "stat": Entry(
            "discover:stat", "Show size and state of disks, in the columns of aoe-stat."
        ),
        "ping": Entry(
            "discover:ping", "Measure how fast a target answers config queries."
        ),
        "identify": Entry(
            "disk:identify", "Show what a disk says of itself: its IDENTIFY page."
        ),
        "smart": Entry("disk:smart", "Show how well a disk says it is."),
    },
    "Move data": {
        "read": Entry("io:read", "Read from a disk to a file or to standard output."),
        "write": Entry(
            "io:write", "Write a file or standard input to a disk, and flush it."
        ),
        "copy": Entry(
            "io:copy_command",
            "Copy a disk to a file, a file to a disk, or a disk to a disk.",
        ),
        "flush": Entry(
            "disk:flush", "Make durable what a target has taken so far, from anybody."
        ),
        "trim": Entry(
            "disk:trim", "Tell a disk which of its contents nobody wants any more."
        ),
        "attach": Entry(
            "attach:attach", "Attach a disk for programs that know no AoE."
        ),
        "detach": Entry(
            "detach:detach", "Detach a disk from where it was attached, and flush it."
        ),
    },
    "Claim and fence": {
        "config": Entry(
            "config:config",
            "Read, test and set the string that a target is claimed with.",
        ),
        "mask": Entry(
            "access:mask", "Read and edit the list of clients that a target serves."
        ),
        "reserve": Entry(
            "access:reserve", "Reserve a target for some clients, or release it."
        ),
    },
    "Measure and mend": {
        "bench": Entry("bench:bench", "Measure how fast a disk reads or writes."),
        "doctor": Entry(
            "doctor:doctor",
            "Say what is wrong here and on the wire, and how to mend it.",
        ),
        "sancheck": Entry(
            "doctor:sancheck",
            "Check the interfaces at both ends, and what paths carry.",
        ),
        "decode": Entry("decode:decode", "Say in words what frames ask and answer."),
        "check": Entry(
            "check:check", "Check whether a target keeps the rules of the protocol."
        ),
    },
    "Understand": {
        "lab": Entry(
            "lab:lab", "Play what AoE does to memory pages, under ten policies."
        ),
        "rule": Entry(
            "rule:rule", "Print rules of the protocol (P) and of the Linux driver (K)."
        ),
    },
    "Set up": {
        "completion": Entry(
            ".complete:completion",
            "Print what a shell needs to complete this command.",
        ),
    },
}
"""All commands, in the order in which help lists them, under what they are for."""
ENTRIES: Final = {
    name: entry for section in SECTIONS.values() for name, entry in section.items()
}


class _Commands(Mapping[str, click.Command]):
    # Knows the names of all commands, and imports those that are looked up.

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = ENTRIES[name].place.partition(":")
        found = import_module(f".{module}", "initiator.cli.commands")
        command: click.Command = getattr(found, attribute)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


class _Sections(click.Group):
    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands under what they are for."""
        del ctx
        widest = max(map(len, ENTRIES))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{name:<{widest}}", each.summary)
                        for name, each in section.items()
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


cli.commands = _Commands()  # type: ignore[assignment] # nobody adds to it


def main() -> None:
    """Run the command and exit with its code."""
    run(cli, "aoe")
