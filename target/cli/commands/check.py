"""``aoe-target check``: check a configuration file without serving it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aoe.common.commandline import json_option, print_json
from aoe.errors import AoEError

if TYPE_CHECKING:
    from target.config.settings import ExportSettings


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def check(config: Path, *, as_json: bool) -> None:
    """Check whether a configuration file can be served.

    \b
    Try:  aoe-target check /etc/aoe-target.toml

    Reads the TOML file CONFIG and checks the disks and interfaces that it names.
    Nothing is opened for writing, created or locked, and no frame is sent.
    """
    from target.config.toml import load_settings

    settings = load_settings(config)
    results = [(chosen, _problems(chosen)) for chosen in settings.exports]
    if as_json:
        print_json("check", exports=[_fields(*result) for result in results])
    for chosen, problems in results if not as_json else ():
        click.echo(_line(chosen, problems))
    count = sum(bool(problems) for _, problems in results)
    if count:
        raise AoEError(
            str(config), f"{count} of {len(results)} disks could not be served"
        )


def _problems(chosen: ExportSettings) -> list[str]:
    from aoe.net.netdevice import get_link_info
    from target.disks import measure_disk
    from target.server.client_state import open_state

    problems = []
    for name in chosen.interfaces:
        try:
            get_link_info(name)
        except AoEError as error:
            problems.append(str(error))
    try:
        if chosen.disk.create is None or Path(chosen.path).exists():
            measure_disk(chosen.path, chosen.disk, chosen.overlay)
        open_state(chosen)
    except AoEError as error:
        problems.append(str(error))
    return problems


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
