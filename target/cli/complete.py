"""What can stand in the command line of ``aoe-target``, for shells to complete."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aoe.common.completion import complete_file, complete_interfaces, starting_with
from aoe.errors import AoEError

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

_TIMEOUT: Final = 0.3
"""Seconds that a running target gets to say what it serves."""


def complete_export(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str] | list[CompletionItem[str]]:
    """Complete ADDRESS IFACE PATH, or SHELF SLOT IFACE PATH as vblade has it."""
    words = ctx.params.get("words") or ()
    # A shelf alone is a number; with its slot it has a dot.
    interface = 2 if words and str(words[0]).isdigit() else 1
    if len(words) == interface:
        return complete_interfaces(ctx, param, incomplete)
    if len(words) == interface + 1:
        return complete_file(ctx, param, incomplete)
    return []


def complete_filter(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[str]:
    """Complete the name of a filter."""
    from target.filters.settings import FILTERS

    return starting_with(incomplete, FILTERS)


def complete_pid(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete the process id of a target that runs here."""
    from target.admin.control import find_targets

    return starting_with(incomplete, [str(pid) for pid, _ in find_targets()])


def complete_served(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[str]:
    """Complete an address that is served here."""
    from target.admin.control import find_targets, send_command

    pid, control = ctx.params.get("pid"), ctx.params.get("control")
    sockets = [name for number, name in find_targets() if pid in (None, number)]
    served: set[str] = set()
    for name in [str(control)] if control else sockets:
        # One has just ended, or is somebody else's.
        with contextlib.suppress(AoEError):
            answer = send_command(name, "status", timeout=_TIMEOUT)
            served |= {export["address"] for export in answer["exports"]}
    return starting_with(incomplete, sorted(served))
