"""Shell completion of the arguments of ``aoe``."""

from __future__ import annotations

import contextlib
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from aoe.common.completion import (
    complete_file,
    completion_command,
    starting_with,
)
from aoe.errors import AoEError
from aoe.net.link import open_link
from aoe.net.netdevice import usable_names
from initiator.client.discover import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import click
    from click.shell_completion import CompletionItem

_TIMEOUT: Final = 0.3
"""Seconds to wait for targets."""
completion: Final = completion_command("aoe")
"""The command that prints the completion scripts."""
_DISK: Final = re.compile(r"(e\d*(\.\d*)?)?")
"""The beginning of an address."""


def complete_address(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[str]:
    """Complete the address of a target that answers a query.

    The query is sent on the interfaces of ``-i``, if that comes first on the command
    line, or on all. Without CAP_NET_RAW there are no candidates.
    """
    given = ctx.params.get("interfaces") or ctx.params.get("interface") or ()
    names = (given,) if isinstance(given, str) else tuple(given)
    return starting_with(incomplete, _discover(names))


def _discover(names: Sequence[str]) -> list[str]:
    with contextlib.suppress(AoEError, OSError), ExitStack() as stack:
        links = [
            # Setting up packet rings would take longer than the query.
            stack.enter_context(open_link(name, responses=True, rings=False))
            for name in names or usable_names()
        ]
        responses = discover(links, timeout=_TIMEOUT) if links else []
        return list(dict.fromkeys(str(each.address) for each in responses))
    return []


def complete_copy_argument(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete source or destination of a copy: a disk or a file."""
    from click.shell_completion import CompletionItem

    # No query is sent if the text can only become a file name.
    may_be_disk = _DISK.fullmatch(incomplete) is not None
    disks = complete_address(ctx, param, incomplete) if may_be_disk else []
    return [*complete_file(ctx, param, incomplete), *map(CompletionItem, disks)]


def complete_axis(
    axis: str,
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a function that completes the names of an axis of the lab.

    Args:
        axis: policy, submitter, event or nic.
    """

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        from initiator.lab.reports.tables import AXES

        return starting_with(incomplete, AXES[axis])

    return complete


def complete_rule(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete the number of a rule, in the case in which it was begun."""
    from click.shell_completion import CompletionItem

    from initiator.rules import load_all_rules

    is_lower = incomplete[:1].islower()
    titles = {
        rule.anchor if is_lower else rule.number: rule.title
        for rule in load_all_rules().values()
    }
    return [
        CompletionItem(number, help=titles[number])
        for number in starting_with(incomplete, titles)
    ]
