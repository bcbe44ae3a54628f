"""What can stand in the command line of ``aoe``, for shells to complete."""

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

_PATIENCE: Final = 0.3
"""Seconds that disks get to answer."""
completion: Final = completion_command("aoe")
"""The command that prints the completion scripts."""
_DISK: Final = re.compile(r"(e\d*(\.\d*)?)?")
"""The beginning of an address."""


def complete_address(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[str]:
    """Complete the address of a disk that answers now.

    They are asked where ``-i`` says, if that stands before it, or everywhere. Without
    the right to ask there is nothing.
    """
    named = ctx.params.get("interfaces") or ctx.params.get("interface") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return starting_with(incomplete, _who_answers(names))


def _who_answers(names: Sequence[str]) -> list[str]:
    with contextlib.suppress(AoEError, OSError), ExitStack() as stack:
        links = [
            # Rings would take longer to make and to take down than this lasts.
            stack.enter_context(open_link(name, responses=True, rings=False))
            for name in names or usable_names()
        ]
        answers = discover(links, timeout=_PATIENCE) if links else []
        return list(dict.fromkeys(str(answer.address) for answer in answers))
    return []


def complete_end(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete one end of a copy: a disk or a file."""
    from click.shell_completion import CompletionItem

    # Nobody is asked where it can only be a file.
    may_be_disk = _DISK.fullmatch(incomplete) is not None
    disks = complete_address(ctx, param, incomplete) if may_be_disk else []
    return [*complete_file(ctx, param, incomplete), *map(CompletionItem, disks)]


def complete_axis(
    axis: str,
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what completes names of an axis of the lab: policy, submitter, ..."""

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
