"""What the subcommands share: argument types, where to look, progress and JSON."""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.address import Address
from aoe.common.commandline import SECONDS
from aoe.common.completion import complete_interfaces
from aoe.errors import NotFoundError, UsageError
from aoe.net.link import open_link
from initiator.driver.options import Options
from initiator.driver.timing import TIMINGS
from initiator.io.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.net.link import Link
    from initiator.client.remote import RemoteTarget

    Command = Callable[..., None]


class VerbGroup(click.Group):
    """Commands that differ in a verb, which is easily forgotten."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; say what goes first if an address stands in its place."""
        if args[0] not in self.commands and _is_address(args[0]):
            fix = f"To look: {ctx.command_path} read {args[0]}"
            raise UsageError(args[0], "a verb comes first", fix)
        return super().resolve_command(ctx, args)


def _is_address(text: str) -> bool:
    try:
        Address.parse(text)
    except UsageError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Connection:
    """Where and how a command talks AoE, as its options say.

    Args:
        interfaces: names; every usable interface, if empty.
        timeout: seconds to wait for a first answer.
        pcap: record all frames there.
        timing: a key of ``initiator.driver.timing.TIMINGS``.
        deadsecs: as in ``initiator.driver.options.Options``.
    """

    interfaces: tuple[str, ...]
    timeout: float
    pcap: Path | None
    timing: str = "prompt"
    deadsecs: float = 60

    @contextmanager
    def _opener(self, *, promiscuous: bool = False) -> Iterator[Callable[[str], Link]]:
        """Provide what opens an interface, such that its frames are recorded."""
        opener = functools.partial(open_link, responses=True, promiscuous=promiscuous)
        with self.recorder() as record:
            yield lambda name: record(opener(name))

    @contextmanager
    def recorder(self) -> Iterator[Callable[[Link], Link]]:
        """Provide what makes a link record its frames; without --pcap it does not."""
        if self.pcap is None:
            yield lambda link: link
            return
        from aoe.capture.annotated import CaptureWriter, CapturingLink

        with CaptureWriter(self.pcap) as writer:
            yield lambda link: CapturingLink(link, writer)

    def names(self) -> Sequence[str]:
        """Name the interfaces to look on.

        Raises:
            NotFoundError: none are named, and none are up.
        """
        return self.interfaces or _usable_interfaces()

    @contextmanager
    def links(self, *, promiscuous: bool = False) -> Iterator[list[Link]]:
        """Open the interfaces until exit; ``promiscuous`` as in open_link."""
        with self._opener(promiscuous=promiscuous) as opener, ExitStack() as stack:
            yield [stack.enter_context(opener(name)) for name in self.names()]

    @contextmanager
    def target(self, address: Address) -> Iterator[RemoteTarget]:
        """Open the interfaces and find a target, to ask it things without a driver."""
        from initiator.client.remote import open_target

        with self.links() as links, open_target(links, address, self.timeout) as target:
            yield target

    @contextmanager
    def host(self, *only: Address) -> Iterator[Host]:
        """Open the interfaces and run a driver on them, for these devices or all."""
        options = Options(timing=self.timing, deadsecs=self.deadsecs, only=only)
        with (
            self._opener() as opener,
            Host.on(*self.names(), options=options, opener=opener) as host,
        ):
            yield host


def _usable_interfaces() -> list[str]:
    from aoe.net.interfaces import usable_interfaces

    names = [interface.name for interface in usable_interfaces()]
    if not names:
        raise NotFoundError(
            "network", "no Ethernet interface is up", "Name one with -i IFACE"
        )
    return names


def _split(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in (value or "").split(",") if name))


_WHERE: Final = (
    click.option(
        "-i",
        "--interface",
        "interfaces",
        envvar="AOE_INTERFACE",
        metavar="IFACE[,IFACE]",
        callback=_split,
        shell_complete=complete_interfaces,
        help="Where to look; every Ethernet interface that is up, by default.",
    ),
    click.option(
        "--pcap",
        type=click.Path(path_type=Path, dir_okay=False, writable=True),
        help="Record all frames, annotated, as pcapng.",
    ),
)
_HOW: Final = (
    click.option(
        "--timing",
        type=click.Choice(sorted(TIMINGS)),
        default="prompt",
        show_default=True,
        help="When to send again: prompt is our way, kernel the Linux driver's.",
    ),
    click.option(
        "--deadsecs",
        type=SECONDS,
        default=60.0,
        show_default=True,
        help="Give up after so many seconds without an answer; 0 is never.",
    ),
)


def connects(
    timeout: float, *, moves_data: bool = False
) -> Callable[[Command], Command]:
    """Give a command the options of a ``Connection`` and pass it as ``connection``."""
    patience = click.option(
        "-t",
        "--timeout",
        type=SECONDS,
        default=timeout,
        show_default=True,
        help="Seconds to wait for a first answer.",
    )

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def connected(**kwargs: object) -> None:
            mine = {name: kwargs.pop(name) for name in names}
            command(connection=Connection(**mine), **kwargs)  # type: ignore[arg-type] # as click made them

        names = ["interfaces", "pcap", "timeout"]
        names += ["timing", "deadsecs"] if moves_data else []
        for option in (*_WHERE, patience, *(_HOW if moves_data else ())):
            option(connected)
        return connected

    return decorate


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far it is, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
