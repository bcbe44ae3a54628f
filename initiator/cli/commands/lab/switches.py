"""What several commands of ``aoe lab`` have: options, and a console for tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from initiator.cli.complete import complete_axis

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    Command = Callable[..., None]


def _default_to_empty(_: click.Context, __: click.Parameter, value: str | None) -> str:
    return value or ""


_SWITCHES: Final = (
    click.option(
        "--redzone",
        type=click.IntRange(0, 1024),
        default=0,
        metavar="BYTES",
        help="Slab debugging: bytes in front of each object of plain kmalloc below "
        "4 KiB. The submitted object straddles pages, if one does.",
    ),
    click.option(
        "--debug-vm", is_flag=True, help="CONFIG_DEBUG_VM: a get at count 0 is a BUG."
    ),
    click.option(
        "--header",
        type=click.Choice(["early", "late"]),
        callback=_default_to_empty,
        help="When a clone gets its private head (COW): before it is queued or after. "
        "Default: as in the kernel.",
    ),
    click.option(
        "--victim",
        type=click.Choice(["page", "same"]),
        callback=_default_to_empty,
        help="What the new owner allocates: a page, or memory of the same kind. "
        "Default: as in the event.",
    ),
)


def switch_options(command: Command) -> Command:
    """Add the options whose values are the arguments of ``Switches``."""
    for option in reversed(_SWITCHES):
        command = option(command)
    return command


def axis_option(
    axis: str,
    help_text: str,
    *,
    multiple: bool = False,
    **options: Any,  # noqa: ANN401 - the arguments of click.option
) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for names of an axis, and checks them.

    Args:
        axis: policy, submitter, event, nic or kernel.
        help_text: the help.
        multiple: whether it may be repeated; the argument is in the plural then.
        options: further arguments of ``click.option``.
    """

    def check(
        _: click.Context, __: click.Parameter, value: tuple[str, ...] | str | None
    ) -> tuple[str, ...] | str | None:
        if value:
            from initiator.lab.reports.tables import check_names

            check_names(axis, [value] if isinstance(value, str) else value)
        return value

    plural = "policies" if axis == "policy" else f"{axis}s"
    return click.option(
        f"-{axis[0]}",
        f"--{axis}",
        plural if multiple else axis,
        multiple=multiple,
        callback=check,
        shell_complete=complete_axis(axis),
        help=help_text,
        **options,
    )


def kernel_option(*, multiple: bool = False) -> Callable[[Command], Command]:
    """Return a decorator that adds the option for the kernel version."""
    return axis_option(
        "kernel", "Kernel version. Default: that of the policy.", multiple=multiple
    )


def output_file(option: str, help_text: str) -> Callable[[Command], Command]:
    """Return an option that names a file to write."""
    return click.option(
        option, type=click.File("w", lazy=True), metavar="FILE", help=help_text
    )


def table_console() -> Console:
    """Return a console for tables on standard output."""
    from rich.console import Console

    # A file or pipe has no width; this one fits all tables.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
