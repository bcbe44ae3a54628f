"""``aoe-target status``, ``reload``, ``stop``, ``clear-*``: control running targets."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aoe.common.commandline import ADDRESS, json_option, print_json
from aoe.common.sizes import format_count, short_size
from aoe.errors import AoEError, NotFoundError, UsageError
from target.cli.complete import complete_pid, complete_served

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.address import Address

_RATES: Final = ("reads", "writes", "read_bytes", "written_bytes", "flushes")
"""Counters that ``--watch`` shows as rates."""
_INTERVAL: Final = 1.0
"""Seconds."""
_CLEAR_SCREEN: Final = "\x1b[H\x1b[J"


def _target_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--pid",
            type=int,
            shell_complete=complete_pid,
            help="Select the target with this process ID.",
        ),
        click.option(
            "--control",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Select the target that listens on this control socket.",
        ),
    ):
        option(command)
    return command


def _find_sockets(pid: int | None, control: Path | None) -> list[str]:
    # A socket at a path can belong to a target in another network namespace, which
    # find_targets does not list.
    from target.admin.control import find_targets

    if control is not None:
        return [str(control)]
    found = [name for number, name in find_targets() if pid in (None, number)]
    if not found:
        raise NotFoundError(
            "targets" if pid is None else f"process {pid}",
            "none runs in this network namespace",
            "Start one: aoe-target serve e0.0 eth0 disk.img",
        )
    return found


def _find_only_socket(pid: int | None, control: Path | None) -> str:
    sockets = _find_sockets(pid, control)
    if len(sockets) > 1:
        pids = ", ".join(str(each["pid"]) for each, _ in _query_status(pid, control))
        why = f"{len(sockets)} targets run"
        raise UsageError("aoe-target", why, f"Select one: --pid {pids}")
    return sockets[0]


def _query_status(
    pid: int | None, control: Path | None
) -> list[tuple[dict[str, Any], str]]:
    # Return the status of each target and its socket.
    from target.admin.control import send_command

    found = []
    last_error: AoEError | None = None
    for name in _find_sockets(pid, control):
        try:
            found.append((send_command(name, "status"), name))
        except AoEError as error:
            # Not fatal if another target responds: this one may just have exited, or
            # belong to another user.
            last_error = error
    if not found and last_error is not None:
        raise last_error
    return found


@click.command()
@_target_options
@json_option
@click.option("--watch", is_flag=True, help="Repeat every second, with rates.")
def status(
    *, pid: int | None, control: Path | None, as_json: bool, watch: bool
) -> None:
    """Show the disks, clients and counters of running targets.

    \b
    Try:  aoe-target status --watch
          aoe-target status --json

    Without --pid or --control, all targets of this network namespace are shown.
    """
    previous: list[dict[str, Any]] = []
    while True:
        targets = [each for each, _ in _query_status(pid, control)]
        if as_json:
            print_json("status", targets=targets)
        else:
            text = "\n\n".join(_describe(each, previous) for each in targets)
            click.echo(f"{_CLEAR_SCREEN}{text}" if watch else text)
        if not watch:
            return
        previous = targets
        time.sleep(_INTERVAL)


def _describe(target: dict[str, Any], previous: list[dict[str, Any]]) -> str:
    earlier = next((each for each in previous if each["pid"] == target["pid"]), {})
    uptime = timedelta(seconds=int(target["uptime_seconds"]))
    source = f", from {target['config']}" if target["config"] else ""
    lines = [f"process {target['pid']}, up {uptime}{source}"]
    lines += map(_describe_interface, target["interfaces"])
    for export in target["exports"]:
        was = _lookup(earlier.get("exports", []), "address", export["address"])
        lines.append(_describe_export(export))
        lines += [
            _describe_counters(
                interface,
                _lookup(was.get("interfaces", []), "name", interface["name"]),
            )
            for interface in export["interfaces"]
        ]
        lines += map(_describe_filter, export["filters"])
    return "\n".join(lines)


def _lookup(entries: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    return next((each for each in entries if each[key] == value), {})


def _describe_interface(interface: dict[str, Any]) -> str:
    counters = interface["statistics"]
    kinds = ["received", "sent"]
    others = ("dropped", "truncated", "unsent", "repeats")
    kinds += [kind for kind in others if counters[kind]]
    frames = ", ".join(f"{counters[kind]} {kind}" for kind in kinds)
    return (
        f"{interface['name']:<10} {interface['state']:<5} {interface['mac']}  "
        f"MTU {interface['mtu']}  {frames}"
    )


def _describe_export(export: dict[str, Any]) -> str:
    flags = [
        name for name in ("read_only", "sync", "direct", "flush_failed") if export[name]
    ]
    flags = [flag.replace("_", "-") for flag in flags]
    for name, label in (
        ("fault", "fault: {}"),
        ("overlay", "overlay {}"),
        ("config_string", "config string {}"),
        ("mask", "mask {}"),
        ("reserved_for", "reserved for {}"),
    ):
        value = export[name]
        text = ",".join(value) if isinstance(value, list) else value
        flags += [label.format(text)] if text else []
    notes = f"  [{', '.join(flags)}]" if flags else ""
    size = short_size(export["size_bytes"])
    return f"{export['address']:<10} {size:>10}  {export['path']}{notes}"


def _describe_filter(filtering: dict[str, Any]) -> str:
    # None: the filter has no trigger to count.
    times = filtering["triggered"]
    triggered = "" if times is None else f" triggered {format_count(times, 'time')}"
    return f"  filter {filtering['filter']}{triggered}"


def _describe_counters(interface: dict[str, Any], previous: dict[str, Any]) -> str:
    counters = interface["statistics"]
    if not counters:
        return f"  {interface['name']:<8} is being reopened"
    if was := previous.get("statistics"):
        # Differences are shown as rates: the interval is about a second.
        counters = {
            **counters,
            **{name: counters[name] - was.get(name, 0) for name in _RATES},
        }
    per = "/s" if was else ""
    parts = [
        f"{counters[kind]} {kind}{per} ({short_size(counters[size])}{per})"
        for kind, size in (("reads", "read_bytes"), ("writes", "written_bytes"))
    ]
    parts.append(f"{counters['flushes']} flushes{per}")
    for title in ("errors", "dropped"):
        kinds = sorted(counters[title].items())
        parts += (
            [f"{title}: " + " ".join(f"{k} {n}" for k, n in kinds)] if kinds else []
        )
    return f"  {interface['name']:<8} {', '.join(parts)}"


@click.command()
@_target_options
def reload(*, pid: int | None, control: Path | None) -> None:
    """Make a target read its configuration again.

    \b
    Try:  aoe-target reload

    It also checks the sizes of its disks, and reopens those whose files were replaced,
    truncated or removed. Disks that have not changed are served without interruption.
    If anything cannot be opened, nothing changes.
    """
    from target.admin.control import send_command

    changes = send_command(_find_only_socket(pid, control), "reload")
    parts = [f"{name} {', '.join(items)}" for name, items in changes.items() if items]
    click.echo("; ".join(parts) or "nothing has changed")


@click.command()
@_target_options
def stop(*, pid: int | None, control: Path | None) -> None:
    """Stop a target after it has answered all received requests.

    \b
    Try:  aoe-target stop --pid 4242
    """
    from target.admin.control import send_command

    send_command(_find_only_socket(pid, control), "stop")


def _clear_command(name: str, summary: str, description: str) -> click.Command:
    @click.command(
        name, help=f"{summary}\n\n\b\nTry:  aoe-target {name} e0.0\n\n{description}"
    )
    @click.argument("address", type=ADDRESS, shell_complete=complete_served)
    @_target_options
    def clear(*, address: Address, pid: int | None, control: Path | None) -> None:
        from target.admin.control import send_command

        send_command(_find_serving(address, pid, control), name, address=str(address))

    return clear


def _find_serving(address: Address, pid: int | None, control: Path | None) -> str:
    for status, name in _query_status(pid, control):
        if _lookup(status["exports"], "address", str(address)):
            return name
    raise NotFoundError(
        str(address), "not served by a target on this host", "See: aoe-target status"
    )


clear_config: Final = _clear_command(
    "clear-config",
    "Clear the config string of ADDRESS.",
    "Clients store the name of the host that has claimed the disk in it.",
)
clear_mask: Final = _clear_command(
    "clear-mask",
    "Clear the MAC mask list of ADDRESS.",
    "All clients are served again. Use it when no client on the list is available to "
    "edit it.",
)
clear_reserve: Final = _clear_command(
    "clear-reserve",
    "Clear the reservation of ADDRESS.",
    "All clients are served again. Use it when the client that made the reservation is "
    "gone.",
)
