"""``aoe-target overlay``: show, commit and reset copy-on-write overlays."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from aoe.common.commandline import CommandGroup, json_option, print_json
from aoe.common.completion import complete_file
from aoe.common.sizes import format_size, short_size

if TYPE_CHECKING:
    from target.disks.overlay.files import OverlayStatus


@click.group(cls=CommandGroup)
def overlay() -> None:
    """Show, commit or reset copy-on-write overlays.

    \b
    Try:  aoe-target serve e0.3 eth0 golden.img --overlay client3.ovl
          aoe-target overlay status client3.ovl
    """


@overlay.command()
@click.argument("path", metavar="OVERLAY", shell_complete=complete_file)
@json_option
def status(path: str, *, as_json: bool) -> None:
    """Show how much an overlay holds and whether its base is unchanged.

    \b
    Try:  aoe-target overlay status client3.ovl --json
    """
    from target.disks.overlay.files import overlay_status

    found = overlay_status(path)
    if as_json:
        print_json("overlay status", **asdict(found))
    else:
        click.echo(_describe(found))


def _describe(found: OverlayStatus) -> str:
    written = (
        f"{found.path}: {found.used:,} of {found.clusters:,} clusters of "
        f"{short_size(found.cluster_size)} written, "
        f"{short_size(found.disk_bytes)} on disk"
    )
    base = f"base {found.base}: {format_size(found.size)}, {found.base_state}"
    lines = [written, base]
    if found.in_use:
        lines.append("in use")
    if found.state != "ready":
        lines.append(f"{found.state} was interrupted")
    return "\n".join(lines)


@overlay.command()
@click.argument("path", metavar="OVERLAY", shell_complete=complete_file)
@click.option("--force", is_flag=True, help="Commit even if the base has changed.")
def commit(path: str, *, force: bool) -> None:
    """Write the data of an overlay to its base, and empty the overlay.

    \b
    Try:  aoe-target overlay commit client3.ovl

    Neither may be in use. Other overlays of the same base are refused afterwards,
    because their base has changed.
    """
    from target.disks.overlay.files import commit_overlay

    done = commit_overlay(path, _show_progress, force=force)
    click.echo(f"{path}: {format_size(done)} committed")


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        text = f"{short_size(done)} of {short_size(total)}"
        click.echo(
            f"\r{text:30}" + ("\r\n" if done == total else ""), nl=False, err=True
        )


@overlay.command()
@click.argument("path", metavar="OVERLAY", shell_complete=complete_file)
def reset(path: str) -> None:
    """Discard the data of an overlay.

    \b
    Try:  aoe-target overlay reset client3.ovl

    The overlay must not be in use. Clients then read the contents of the base again.
    """
    from target.disks.overlay.files import reset_overlay

    reset_overlay(path)
    click.echo(f"{path}: empty")
