"""The ``aoe`` command: discover AoE disks, read, write, attach and diagnose them.

A subcommand is imported when it is used, so that each pays only for its own imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Final, NamedTuple

import click

from aoe.common.commandline import CommandGroup, run


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
    "Discover and inspect": {
        "discover": Entry("discover:discover_command", "List the targets that answer."),
        "stat": Entry(
            "discover:stat", "Show size and state of disks, in the columns of aoe-stat."
        ),
        "ping": Entry("discover:ping", "Measure the response time of a target."),
        "identify": Entry("disk:identify", "Show the IDENTIFY data of a disk."),
        "smart": Entry("disk:smart", "Show SMART health."),
    },
    "Read, write and attach": {
        "read": Entry("io:read", "Read from a disk to a file or to standard output."),
        "write": Entry("io:write", "Write a file or standard input to a disk."),
        "copy": Entry(
            "io:copy_command",
            "Copy a disk to a file, a file to a disk, or a disk to a disk.",
        ),
        "flush": Entry("disk:flush", "Flush the write cache of a disk."),
        "trim": Entry("disk:trim", "Discard a range of a disk (ATA TRIM)."),
        "attach": Entry(
            "attach:attach", "Attach a disk as a block device, mount, file or NBD."
        ),
        "detach": Entry("detach:detach", "Detach an attached disk."),
    },
    "Control access": {
        "config": Entry(
            "config:config", "Read, test or set the config string of a target."
        ),
        "mask": Entry("access:mask", "Read or edit the MAC mask list of a target."),
        "reserve": Entry(
            "access:reserve", "Reserve a target for some clients, or release it."
        ),
    },
    "Measure and diagnose": {
        "bench": Entry("bench:bench", "Measure throughput and latency of a disk."),
        "doctor": Entry(
            "doctor:doctor", "Check host, network and targets for problems."
        ),
        "sancheck": Entry(
            "doctor:sancheck", "Check the interfaces and paths to all targets."
        ),
        "decode": Entry("decode:decode", "Decode AoE frames to readable text."),
        "check": Entry(
            "check:check", "Check whether a target conforms to the protocol."
        ),
    },
    "Study protocol and driver": {
        "lab": Entry(
            "lab.cases:lab", "Simulate the page reference counts of AoE block I/O."
        ),
        "rule": Entry(
            "rule:rule", "Print rules of the protocol (P) and of the Linux driver (K)."
        ),
        "scapy": Entry(
            "session:scapy_command",
            "Open scapy's interactive session with the AoE layers.",
        ),
    },
    "Set up the shell": {
        "completion": Entry(".complete:completion", "Print a shell completion script."),
    },
}
"""All commands by section, in the order of ``aoe --help``."""
ENTRIES: Final = {
    name: entry for section in SECTIONS.values() for name, entry in section.items()
}


class _Commands(Mapping[str, click.Command]):
    # Lists the names of all commands, and imports a command on lookup.

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = ENTRIES[name].place.partition(":")
        found = import_module(f".{module}", "initiator.cli.commands")
        command: click.Command = getattr(found, attribute)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


class _Sections(CommandGroup):
    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the commands by section."""
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
    """Discover, read, write, attach and diagnose AoE disks on the network.

    \b
    Try:  aoe discover -i eth0
          aoe copy disk.img e0.0 -i eth0 --verify
          aoe doctor

    An address is a shelf and a slot, e0.0 or 0.0. Sizes are in bytes; the suffixes K,
    M, G and T are powers of 1024.

    Exit codes: 0 success, 1 failure, 2 usage error, 3 not found or timed out,
    4 permission denied, 5 busy.
    """


cli.commands = _Commands()  # type: ignore[assignment] # a read-only mapping


def main() -> None:
    """Run the command and exit with its code."""
    run(cli, "aoe")
