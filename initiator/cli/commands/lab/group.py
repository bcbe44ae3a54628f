"""The group ``aoe lab``: its option for plug-ins, and the names of each axis."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.common.commandline import CommandGroup
from aoe.common.completion import complete_file
from aoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Modules of the lab are imported on use, so that other commands start faster.

GROUP: Final = "pyaoe.lab"
"""The group of entry points that name modules with plug-ins."""


def _load_plugins(
    ctx: click.Context, _: click.Parameter, files: tuple[str, ...]
) -> None:
    if files and not ctx.resilient_parsing:
        from initiator.lab.plugins import load_file

        for file in files:
            load_file(Path(file))


def load_entry_points() -> None:
    """Load the plug-ins of installed packages.

    Raises:
        UsageError: one of them fails.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except UsageError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            fix = "Uninstall or update its package"
            raise UsageError(f"{GROUP}:{point.name}", why, fix) from error


plugin_option: Final = click.option(
    "--plugin",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_load_plugins,
    shell_complete=complete_file,
    metavar="FILE",
    help="Python file with policies, submitters, events or drivers of your own.",
)


class LabGroup(CommandGroup):
    """A group whose help lists the names of each axis, those of plug-ins included."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each name with its description."""
        super().format_epilog(ctx, formatter)
        for heading, names in _axes().items():
            with formatter.section(heading):
                formatter.write_dl(list(names.items()))


def _axes() -> Mapping[str, Mapping[str, str]]:
    from initiator.lab.cases import ALL_SUBMITTERS, EVENTS
    from initiator.lab.drivers.models import DRIVERS
    from initiator.lab.kernel.kernels import KERNELS
    from initiator.lab.kernel.policy import POLICIES
    from initiator.lab.reports.legend import NICS

    load_entry_points()
    return {
        "Policies": {name: each.summary for name, each in POLICIES.items()},
        "Drivers, in place of a policy": {
            name: each.summary for name, each in DRIVERS.items()
        },
        "Submitters": {
            name: f"{each.owner}: {each.summary}"
            for name, each in ALL_SUBMITTERS.items()
        },
        "Events": {name: each.summary for name, each in EVENTS.items()},
        "NICs": dict(NICS),
        "Kernels": {
            name: f"Linux {name}; its own AoE driver has policy {each.driver_policy}"
            for name, each in KERNELS.items()
        },
    }
