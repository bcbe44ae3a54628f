"""Shell completion of the arguments of ``aoe-target``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aoe.common.completion import complete_file, complete_interfaces, starting_with
from aoe.errors import AoEError

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

_TIMEOUT: Final = 0.3
"""Seconds to wait for the status of a running target."""


def complete_export(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str] | list[CompletionItem[str]]:
    """Complete ADDRESS IFACE PATH, or SHELF SLOT IFACE PATH as in vblade."""
    arguments = ctx.params.get("arguments") or ()
    # A shelf is a plain number; an address has a dot.
    interface = 2 if arguments and str(arguments[0]).isdigit() else 1
    if len(arguments) == interface:
        return complete_interfaces(ctx, param, incomplete)
    if len(arguments) == interface + 1:
        return complete_file(ctx, param, incomplete)
    return []


def complete_filter(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[str]:
    """Complete the name of a filter."""
    from target.filters.settings import FILTERS

    return starting_with(incomplete, FILTERS)


def complete_engine(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str] | list[CompletionItem[str]]:
    """Complete the name of an engine, or a file."""
    from target.config.settings import ENGINES

    return starting_with(incomplete, ENGINES) or complete_file(ctx, param, incomplete)


def complete_pid(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete the process ID of a target in this network namespace."""
    from target.admin.control import find_targets

    return starting_with(incomplete, [str(pid) for pid, _ in find_targets()])


def complete_served(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[str]:
    """Complete an address that a running target serves."""
    from target.admin.control import find_targets, send_command

    pid, control = ctx.params.get("pid"), ctx.params.get("control")
    sockets = [name for number, name in find_targets() if pid in (None, number)]
    served: set[str] = set()
    for name in [str(control)] if control else sockets:
        # A target may just have exited, or belong to another user.
        with contextlib.suppress(AoEError):
            found = send_command(name, "status", timeout=_TIMEOUT)
            served |= {export["address"] for export in found["exports"]}
    return starting_with(incomplete, sorted(served))
