"""Policies, submitters, events and drivers of a user, from a Python file (plug-in).

A plug-in calls ``register`` with what it adds. ``load_file`` executes a file. The
commands also import the modules that installed packages name in the entry point group
``pyaoe.lab``.
"""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Final

from aoe.errors import UsageError
from initiator.lab.cases import ALL_SUBMITTERS, EVENTS, Event
from initiator.lab.drivers.models import DRIVERS, DriverModel
from initiator.lab.kernel.policy import POLICIES, Policy
from initiator.lab.kernel.submitters import Submitter

if TYPE_CHECKING:
    from pathlib import Path

Plugin = Policy | Submitter | Event | DriverModel


def register(*items: Plugin) -> None:
    """Add names to their axes; a driver takes the place of a policy in a case.

    A name that a plug-in has registered before is replaced.

    Raises:
        UsageError: the lab itself has this name.
    """
    for item in items:
        if item.name in _BUILT_IN:
            raise UsageError(item.name, "the lab has this name", "Choose another one")
        match item:
            case Policy():
                POLICIES[item.name] = item
            case Submitter():
                ALL_SUBMITTERS[item.name] = item
            case Event():
                EVENTS[item.name] = item
            case DriverModel():
                DRIVERS[item.name] = item


_BUILT_IN: Final = frozenset([*POLICIES, *ALL_SUBMITTERS, *EVENTS, *DRIVERS])


def load_file(path: Path) -> None:
    """Execute a plug-in.

    Raises:
        UsageError: there is no such file, or it fails.
    """
    try:
        runpy.run_path(str(path))
    except UsageError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UsageError(str(path), why, "A plug-in is a Python file") from error
