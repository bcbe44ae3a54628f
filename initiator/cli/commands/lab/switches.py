"""Options of ``aoe lab`` that deviate from the defaults of the modelled kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., None]


def switch_options(command: Command) -> Command:
    """Add the options, whose values are the arguments of ``Switches``."""
    return click.option(
        "--redzone",
        type=click.IntRange(0, 1024),
        default=0,
        metavar="BYTES",
        help="Slab debugging: bytes in front of each object of plain kmalloc below "
        "4 KiB. The submitted object straddles pages, if one does.",
    )(command)
