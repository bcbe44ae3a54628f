"""``aoe-target status``, ``reload``, ``stop`` and ``clear-*``: ask those that run."""

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
_INTERVAL: Final = 1.0
_CLEAR_SCREEN: Final = "\x1b[H\x1b[J"


def _where(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--pid",
            type=int,
            shell_complete=complete_pid,
            help="Ask the target with this process id.",
        ),
        click.option(
            "--control",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Ask the target that listens at this socket.",
        ),
    ):
        option(command)
    return command


def _find(pid: int | None, control: Path | None) -> list[str]:
    # The sockets to ask. One at a path is in no table, and may be in any namespace.
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


def _only(pid: int | None, control: Path | None) -> str:
    found = _find(pid, control)
    if len(found) > 1:
        pids = ", ".join(str(answer["pid"]) for answer, _ in _survey(pid, control))
        why = f"{len(found)} targets run"
        raise UsageError("aoe-target", why, f"Name one: --pid {pids}")
    return found[0]


def _survey(pid: int | None, control: Path | None) -> list[tuple[dict[str, Any], str]]:
    # What each says, and its socket.
    from target.admin.control import send_command

    answers = []
    problem: AoEError | None = None
    for name in _find(pid, control):
        try:
            answers.append((send_command(name, "status"), name))
        except AoEError as error:
            # One that has just ended, or is somebody else's, hides no other.
            problem = error
    if not answers and problem is not None:
        raise problem
    return answers


@click.command()
@_where
@json_option
@click.option("--watch", is_flag=True, help="Show it again every second, with rates.")
def status(
    *, pid: int | None, control: Path | None, as_json: bool, watch: bool
) -> None:
    """Show what is served here, to whom, and how much.

    \b
    Try:  aoe-target status --watch
          aoe-target status --json

    All targets of this network namespace are asked.
    """
    before: list[dict[str, Any]] = []
    while True:
        answers = [answer for answer, _ in _survey(pid, control)]
        if as_json:
            print_json("status", targets=answers)
        else:
            text = "\n\n".join(_describe(answer, before) for answer in answers)
            click.echo(f"{_CLEAR_SCREEN}{text}" if watch else text)
        if not watch:
            return
        before = answers
        time.sleep(_INTERVAL)


def _describe(target: dict[str, Any], before: list[dict[str, Any]]) -> str:
    earlier = next((each for each in before if each["pid"] == target["pid"]), {})
    uptime = timedelta(seconds=int(target["uptime_seconds"]))
    source = f", from {target['config']}" if target["config"] else ""
    lines = [f"process {target['pid']}, up {uptime}{source}"]
    lines += map(_describe_interface, target["interfaces"])
    for export in target["exports"]:
        was = _named(earlier.get("exports", []), "address", export["address"])
        lines.append(_describe_export(export))
        lines += [
            _describe_counters(place, _named(was.get("interfaces", []), "name", place))
            for place in export["interfaces"]
        ]
        lines += map(_describe_filter, export["filters"])
    return "\n".join(lines)


def _named(
    those: list[dict[str, Any]], key: str, like: str | dict[str, Any]
) -> dict[str, Any]:
    name = like if isinstance(like, str) else like[key]
    return next((each for each in those if each[key] == name), {})


def _describe_interface(interface: dict[str, Any]) -> str:
    counters = interface["statistics"]
    kinds = ["received", "sent"]
    kinds += [kind for kind in ("dropped", "truncated", "unsent") if counters[kind]]
    frames = ", ".join(f"{counters[kind]} {kind}" for kind in kinds)
    return (
        f"{interface['name']:<10} {interface['state']:<5} {interface['mac']}  "
        f"MTU {interface['mtu']}  {frames}"
    )


def _describe_export(export: dict[str, Any]) -> str:
    flags = [name for name in ("read_only", "sync", "direct") if export[name]]
    flags = [flag.replace("_", "-") for flag in flags]
    for name, words in (
        ("overlay", "overlay {}"),
        ("config_string", "config string {}"),
        ("mask", "mask {}"),
        ("reserved_for", "reserved for {}"),
    ):
        value = export[name]
        text = ",".join(value) if isinstance(value, list) else value
        flags += [words.format(text)] if text else []
    words = f"  [{', '.join(flags)}]" if flags else ""
    size = short_size(export["size_bytes"])
    return f"{export['address']:<10} {size:>10}  {export['path']}{words}"


def _describe_filter(filtering: dict[str, Any]) -> str:
    # None: the filter has no trigger to count.
    times = filtering["triggered"]
    triggered = "" if times is None else f" triggered {format_count(times, 'time')}"
    return f"  filter {filtering['filter']}{triggered}"


def _describe_counters(place: dict[str, Any], before: dict[str, Any]) -> str:
    counters = place["statistics"]
    if not counters:
        return f"  {place['name']:<8} is being opened anew"
    if was := before.get("statistics"):
        # A second between the two, or what comes near it.
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
    return f"  {place['name']:<8} {', '.join(parts)}"


@click.command()
@_where
def reload(*, pid: int | None, control: Path | None) -> None:
    """Have a target read its configuration again.

    \b
    Try:  aoe-target reload

    The sizes of its disks are looked at too. What stays the same is served on without a
    pause. If anything cannot be opened, nothing changes.
    """
    from target.admin.control import send_command

    done = send_command(_only(pid, control), "reload")
    parts = [f"{name} {', '.join(those)}" for name, those in done.items() if those]
    click.echo("; ".join(parts) or "nothing has changed")


@click.command()
@_where
def stop(*, pid: int | None, control: Path | None) -> None:
    """Have a target answer what it has received, and end.

    \b
    Try:  aoe-target stop --pid 4242
    """
    from target.admin.control import send_command

    send_command(_only(pid, control), "stop")


def _clearing(name: str, what: str, why: str) -> click.Command:
    @click.command(name, help=f"{what}\n\n\b\nTry:  aoe-target {name} e0.0\n\n{why}")
    @click.argument("address", type=ADDRESS, shell_complete=complete_served)
    @_where
    def clear(*, address: Address, pid: int | None, control: Path | None) -> None:
        from target.admin.control import send_command

        send_command(_serving(address, pid, control), name, address=str(address))

    return clear


def _serving(address: Address, pid: int | None, control: Path | None) -> str:
    for answer, name in _survey(pid, control):
        if _named(answer["exports"], "address", str(address)):
            return name
    raise NotFoundError(
        str(address), "served by no target here", "See: aoe-target status"
    )


clear_config: Final = _clearing(
    "clear-config",
    "Empty the config string of ADDRESS.",
    "It is where clients note who has claimed the disk.",
)
clear_mask: Final = _clearing(
    "clear-mask",
    "Empty the MAC mask list of ADDRESS.",
    "All clients are served again, also where none of those listed is left.",
)
clear_reserve: Final = _clearing(
    "clear-reserve",
    "Lift the reservation of ADDRESS.",
    "All clients are served again, also where the one that reserved it is gone.",
)
