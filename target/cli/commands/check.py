"""``aoe-target check``: check a configuration file without serving it."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from aoe.common.commandline import json_option, print_json
from aoe.errors import AoEError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from target.config.settings import ExportSettings, Settings


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def check(config: Path, *, as_json: bool) -> None:
    """Check whether a configuration file can be served.

    \b
    Try:  aoe-target check /etc/aoe-target.toml

    Reads the TOML file CONFIG and tries what serve does at the start with the disks,
    interfaces, engines and state files that it names. Nothing is opened for writing,
    created or locked, and no frame is sent: it does not notice that another target
    serves a disk or an address.
    """
    from target.config.toml import load_settings

    settings = load_settings(config)
    results = [(chosen, _problems(chosen)) for chosen in settings.exports]
    for (first, _), (second, found) in combinations(results, 2):
        found.extend(find_conflicts(first, second))
    general = _general_problems(settings)
    if as_json:
        exports = [_fields(*result) for result in results]
        print_json("check", exports=exports, problems=general)
    else:
        for line in (*(_line(*result) for result in results), *general):
            click.echo(line)
    count = sum(bool(problems) for _, problems in results)
    if count:
        raise AoEError(
            str(config), f"{count} of {len(results)} disks could not be served"
        )
    if general:
        raise AoEError(str(config), "could not be served")


def _problems(chosen: ExportSettings) -> list[str]:
    from target.disks import check_disk
    from target.server.client_state import open_state
    from target.server.opening import find_engine

    steps: list[Callable[[], object]] = [
        *(partial(_check_interface, name) for name in chosen.interfaces),
        lambda: find_engine(chosen.engine),
        lambda: check_disk(chosen.path, chosen.disk, chosen.overlay),
        lambda: open_state(chosen),
    ]
    return _collect(steps)


def _general_problems(settings: Settings) -> list[str]:
    from target.cli.metrics import import_metrics
    from target.disks.opening import check_directory

    steps: list[Callable[[], object]] = [partial(_check_distinct, settings)]
    if settings.metrics is not None:
        endpoint = settings.metrics
        steps.append(lambda: import_metrics().check_metrics(endpoint))
    if settings.control is not None:
        steps.append(partial(check_directory, settings.control))
    return _collect(steps)


def _collect(steps: Iterable[Callable[[], object]]) -> list[str]:
    from target.config.toml import advise_keys

    problems = []
    for step in steps:
        try:
            step()
        except AoEError as error:
            problems.append(str(advise_keys(error)))
    return problems


def _check_interface(name: str) -> None:
    from aoe.net.netdevice import get_link_info
    from target.server.ports import check_mtu

    check_mtu(name, get_link_info(name).mtu)


def _check_distinct(settings: Settings) -> None:
    from aoe.net.base import check_distinct
    from aoe.net.netdevice import get_link_info

    found = []
    for name in settings.frames():
        with suppress(AoEError):
            found.append(get_link_info(name))
    check_distinct((info.number, info.name) for info in found)


def find_conflicts(first: ExportSettings, second: ExportSettings) -> list[str]:
    """Return a message if the lock of one export's disk excludes that of the other."""
    if first.disk.force or second.disk.force:
        return []
    return [
        f"{theirs.path}: {first.address} serves the same part of it, and one of them "
        "writes. Give each its own file or window"
        for mine in _windows(first)
        for theirs in _windows(second)
        if mine.excludes(theirs)
    ]


class _Window(NamedTuple):
    # A part of a file that an export opens and locks.
    path: str
    file: tuple[int, int]
    begin: int
    end: float
    writes: bool

    def excludes(self, other: _Window) -> bool:
        if self.file != other.file or not (self.writes or other.writes):
            return False
        # A block device is opened for writing only once (O_EXCL).
        is_device = not self.file[0]
        return (is_device and self.writes and other.writes) or (
            self.begin < other.end and other.begin < self.end
        )


def _windows(chosen: ExportSettings) -> Iterator[_Window]:
    from target.disks import identify_files

    flags = chosen.disk
    writes = not flags.read_only
    end = math.inf if flags.length is None else flags.offset + flags.length
    for path, begin, limit, is_written in (
        (chosen.path, flags.offset, end, writes and not chosen.overlay),
        (chosen.overlay, 0, math.inf, writes),
    ):
        # What cannot be found has been reported already.
        with suppress(AoEError):
            for file in identify_files(path) if path else ():
                yield _Window(path, file, begin, limit, is_written)


def _line(chosen: ExportSettings, problems: list[str]) -> str:
    where = ",".join(chosen.interfaces)
    result = "".join(f"\n    {problem}" for problem in problems) or "  ok"
    return f"{chosen.address}  {where}  {chosen.path}{result}"


def _fields(chosen: ExportSettings, problems: list[str]) -> dict[str, object]:
    return {
        "address": str(chosen.address),
        "interfaces": list(chosen.interfaces),
        "path": chosen.path,
        "problems": problems,
    }
