"""Options, connections and progress bars shared by the subcommands of ``aoe``."""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.address import Address
from aoe.common.commandline import SECONDS, CommandGroup
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


class VerbGroup(CommandGroup):
    """A group of subcommands that users tend to leave out, such as ``read``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand, or raise an error that explains a missing one.

        Raises:
            UsageError: an address is in the place of the subcommand.
        """
        if args[0] not in self.commands and _is_address(args[0]):
            fix = f"For example: {ctx.command_path} read {args[0]}"
            raise UsageError(args[0], "missing command before the address", fix)
        return super().resolve_command(ctx, args)


def _is_address(text: str) -> bool:
    try:
        Address.parse(text)
    except UsageError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Connection:
    """The interfaces and protocol options of a command.

    Args:
        interfaces: names; all usable interfaces if empty.
        timeout: seconds to wait for the first response.
        pcap: a file to capture all frames to.
        timing: a key of ``initiator.driver.timing.TIMINGS``.
        deadsecs: as in ``initiator.driver.options.Options``.
    """

    interfaces: tuple[str, ...]
    timeout: float
    pcap: Path | None
    timing: str = "prompt"
    deadsecs: float = 60

    @contextmanager
    def opener(
        self, *, promiscuous: bool = False, rings: bool | None = None
    ) -> Iterator[Callable[[str], Link]]:
        """Yield a function that opens an interface, capturing its frames if wanted.

        Args:
            promiscuous: as in open_link.
            rings: as in open_link.
        """
        opener = functools.partial(
            open_link, responses=True, promiscuous=promiscuous, rings=rings
        )
        with self.recorder() as record:
            yield lambda name: record(opener(name))

    @contextmanager
    def recorder(self) -> Iterator[Callable[[Link], Link]]:
        """Yield a function that wraps a link to capture its frames if --pcap is set."""
        if self.pcap is None:
            yield lambda link: link
            return
        from aoe.capture.annotated import CaptureWriter, CapturingLink

        with CaptureWriter(self.pcap) as writer:
            yield lambda link: CapturingLink(link, writer)

    def names(self) -> Sequence[str]:
        """Return the names of the interfaces to use.

        Raises:
            NotFoundError: none are given, and none are up.
        """
        return self.interfaces or _usable_interfaces()

    @contextmanager
    def links(self, *, promiscuous: bool = False) -> Iterator[list[Link]]:
        """Open the interfaces until exit; ``promiscuous`` as in open_link."""
        with self.opener(promiscuous=promiscuous) as opener, ExitStack() as stack:
            yield [stack.enter_context(opener(name)) for name in self.names()]

    @contextmanager
    def target(self, address: Address) -> Iterator[RemoteTarget]:
        """Open the interfaces and find a target, for commands without a driver."""
        from initiator.client.remote import open_target

        with self.links() as links, open_target(links, address, self.timeout) as target:
            yield target

    @contextmanager
    def host(self, *only: Address) -> Iterator[Host]:
        """Open the interfaces and run a driver on them.

        Args:
            only: the addresses to bring up; all that answer if empty.
        """
        options = Options(timing=self.timing, deadsecs=self.deadsecs, only=only)
        with (
            self.opener() as opener,
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


_LINK_OPTIONS: Final = (
    click.option(
        "-i",
        "--interface",
        "interfaces",
        envvar="AOE_INTERFACE",
        metavar="IFACE[,IFACE]",
        callback=_split,
        shell_complete=complete_interfaces,
        help="Interfaces to use; default: every Ethernet interface that is up.",
    ),
    click.option(
        "--pcap",
        type=click.Path(path_type=Path, dir_okay=False, writable=True),
        help="Capture all frames to this pcapng file, with comments.",
    ),
)
_DRIVER_OPTIONS: Final = (
    click.option(
        "--timing",
        type=click.Choice(sorted(TIMINGS)),
        default="prompt",
        show_default=True,
        help="Retransmission timing: prompt, or kernel for that of the Linux driver.",
    ),
    click.option(
        "--deadsecs",
        type=SECONDS,
        default=60.0,
        show_default=True,
        help="Fail if a request stays unanswered for this many seconds; 0 means never.",
    ),
)


def connection_options(
    timeout: float, *, uses_driver: bool = False
) -> Callable[[Command], Command]:
    """Return a decorator that adds the options of a ``Connection`` to a command.

    Args:
        timeout: the default of --timeout in seconds.
        uses_driver: whether to add the options of the driver.

    Returns:
        The decorator; the command gets the ``Connection`` as ``connection``.
    """
    timeout_option = click.option(
        "-t",
        "--timeout",
        type=SECONDS,
        default=timeout,
        show_default=True,
        help="Seconds to wait for the first response.",
    )

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def connected(**kwargs: object) -> None:
            values = {name: kwargs.pop(name) for name in names}
            command(connection=Connection(**values), **kwargs)  # type: ignore[arg-type] # as click made them

        names = ["interfaces", "pcap", "timeout"]
        names += ["timing", "deadsecs"] if uses_driver else []
        driver_options = _DRIVER_OPTIONS if uses_driver else ()
        for option in (*_LINK_OPTIONS, timeout_option, *driver_options):
            option(connected)
        return connected

    return decorate


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if standard error is a terminal.

    Args:
        what: the label of the bar.
        total: the bytes to be done, None if unknown.

    Yields:
        A function to call with the number of bytes done since the last call.
    """
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
