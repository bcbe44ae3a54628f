"""``aoe discover``, ``stat`` and ``ping``: find targets and show their state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

import click

from aoe.address import BROADCAST, Address, format_mac
from aoe.ata import SECTOR
from aoe.common.commandline import ADDRESS, SECONDS, json_option, print_json
from aoe.errors import NotFoundError
from aoe.identify import Identity
from initiator.cli.common import Connection, connection_options
from initiator.cli.complete import complete_address
from initiator.client.discover import Query, QueryResponse, discover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from initiator.driver.aoedev import AoeDev
    from initiator.driver.structs import Refusal
    from initiator.io.host import Host

    Paths: TypeAlias = dict[Address, list[tuple[dict[str, object], str]]]


def _answer_fields(answer: QueryResponse) -> dict[str, object]:
    config = answer.config
    return {
        "address": str(answer.address),
        "mac": format_mac(answer.mac),
        "interface": answer.interface,
        "buffers": config.buffer_count,
        "sectors_per_frame": config.sector_count or 2,
        "firmware": config.firmware,
        "config_string": config.string.decode("utf-8", "backslashreplace"),
        "rtt_seconds": round(answer.rtt, 6),
    }


@click.command("discover")
@connection_options(0.5)
@json_option
def discover_command(*, connection: Connection, as_json: bool) -> None:
    """List the targets that answer.

    \b
    Try:  aoe discover -i eth0
          aoe discover --json
    """
    with connection.links() as links:
        answers = discover(links, timeout=connection.timeout)
    if as_json:
        print_json("discover", targets=[_answer_fields(each) for each in answers])
    for answer in answers if not as_json else ():
        config = answer.config
        click.echo(
            f"{answer.address!s:<10} {format_mac(answer.mac)}  {answer.interface:<8} "
            f"{config.buffer_count:>4} buffers  {config.sector_count or 2:>3} sectors"
            f"{f'  {config.text}' if config.string else ''}"
        )
    if not answers:
        names = ",".join(link.name for link in links)
        fix = f"Find the cause: aoe doctor -i {names}"
        raise NotFoundError("discover", f"no target answered on {names}", fix)


def _device_fields(device: AoeDev, paths: Paths) -> dict[str, object]:
    identity = device.identity
    probed = paths.get(device.address)
    found = {} if probed is None else {"paths": [fields for fields, _ in probed]}
    return {
        "address": str(device.address),
        "size_bytes": device.ssize * SECTOR,
        "interfaces": _interfaces(device),
        "payload_bytes": device.maxbcnt,
        "state": device.status,
        "macs": [format_mac(target.addr) for target in device.targets],
        "model": identity.model if identity else "",
        "serial": identity.serial if identity else "",
        "firmware": identity.firmware if identity else "",
        "lba48": device.ext,
        "refused": [_refusal_fields(each) for each in device.refusals.values()],
        **found,
    }


def _refusal_fields(refusal: Refusal) -> dict[str, object]:
    identity = Identity.unpack(refusal.page) if refusal.page else None
    return {
        "mac": format_mac(refusal.mac),
        "interface": refusal.interface,
        "why": refusal.why,
        "model": identity.model if identity else "",
        "serial": identity.serial if identity else "",
        "size_bytes": identity.sectors * SECTOR if identity else 0,
    }


def _interfaces(device: AoeDev) -> list[str]:
    names = [ifp.netdev.name for target in device.targets for ifp in target.ifs]
    return list(dict.fromkeys(names))


@click.command()
@click.argument(
    "addresses",
    nargs=-1,
    type=ADDRESS,
    metavar="[ADDRESS]...",
    shell_complete=complete_address,
)
@click.option(
    "--probe", is_flag=True, help="Also measure the largest frame on each path."
)
@connection_options(1.0)
@json_option
def stat(
    *,
    addresses: Sequence[Address],
    connection: Connection,
    probe: bool,
    as_json: bool,
) -> None:
    """Show size and state of disks, in the columns of aoe-stat.

    \b
    Try:  aoe stat e0.0 -i eth0
          aoe stat e0.0 -i eth0 --probe

    Without ADDRESS, all disks that answer are shown. The columns are address, size,
    interfaces, bytes of data per frame, and state. A MAC address that answers for the
    same address with another disk is refused, and shown in a line of its own.
    """
    with connection.host(*addresses) as host:
        devices = _survey(host, addresses, connection.timeout)
        names = ",".join(port.name for port in host.ports)
        paths = _probe(host, devices, connection.timeout) if probe else {}
    if as_json:
        print_json("stat", devices=[_device_fields(each, paths) for each in devices])
    for device in devices if not as_json else ():
        size = f"{device.ssize * SECTOR / 1e9:.3f}GB"
        click.echo(
            f"{device.address!s:>10} {size:>15} {','.join(_interfaces(device)):>6} "
            f"{device.maxbcnt:<5} {device.status}"
        )
        for refusal in device.refusals.values():
            click.echo(f"{'':>10} refused {refusal.why}")
        for _, line in paths.get(device.address, ()):
            click.echo(line)
    missing = set(addresses) - {device.address for device in devices}
    if missing or not devices:
        what = ", ".join(map(str, sorted(missing))) or "stat"
        why = f"no response on {names} within {connection.timeout:g} s"
        raise NotFoundError(what, why)


def _probe(host: Host, devices: Sequence[AoeDev], timeout: float) -> Paths:
    """Measure the paths to each device in turn, while the driver is not running."""
    from aoe.common.doctor.report import describe_finding
    from initiator.cli.commands.doctor import path_fields
    from initiator.client.remote import open_targets
    from initiator.doctor import check_path

    links = [port.link for port in host.ports if port.link is not None]
    found: Paths = {}
    for device in devices:
        with open_targets(links, device.address, timeout) as targets:
            examined = [(target, *check_path(target)) for target in targets]
        found[device.address] = [
            (path_fields(target, path), describe_finding(finding))
            for target, path, finding in examined
        ]
    return found


def _survey(host: Host, addresses: Sequence[Address], timeout: float) -> list[AoeDev]:
    """Discover devices with three queries, and return those found.

    Args:
        host: runs the driver.
        addresses: wait only until these are up; all devices if empty.
        timeout: seconds in all.
    """
    devices = host.driver.devices

    def are_up() -> bool:
        return bool(addresses) and all(map(host.is_settled, addresses))

    for _ in range(3):
        for address in addresses or [BROADCAST]:
            host.driver.discover(address)
        if host.run_until(are_up, timeout / 3):
            break
    return [devices[address] for address in sorted(devices)]


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.option(
    "-c",
    "--count",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Queries to send.",
)
@click.option(
    "--interval",
    type=SECONDS,
    default=0.5,
    show_default=True,
    help="Seconds from one query to the next.",
)
@connection_options(1.0)
@json_option
def ping(
    *,
    address: Address,
    connection: Connection,
    count: int,
    interval: float,
    as_json: bool,
) -> None:
    """Measure the response time of a target.

    \b
    Try:  aoe ping e0.0 -i eth0

    Sends query config requests and prints the round-trip time of each.
    """
    echo = (lambda _: None) if as_json else click.echo
    times: list[float] = []
    with connection.links() as links:
        for number in range(count):
            if number:
                time.sleep(interval)
            query = Query(links, address)
            query.send()
            answer = next(query.responses(connection.timeout), None)
            if answer is None:
                echo(f"no response from {address} within {connection.timeout:g} s")
                continue
            times.append(answer.rtt)
            echo(
                f"{address} at {format_mac(answer.mac)} on {answer.interface}: "
                f"seq={number + 1} time={answer.rtt * 1000:.3f} ms"
            )
    if as_json:
        print_json(
            "ping",
            address=str(address),
            sent=count,
            received=len(times),
            rtt_seconds=[round(rtt, 6) for rtt in times],
        )
    echo(f"{count} sent, {len(times)} answered{_spread(times)}")
    if not times:
        why = f"no response within {connection.timeout:g} s"
        raise NotFoundError(str(address), why)


def _spread(times: list[float]) -> str:
    if not times:
        return ""
    least, mean, most = min(times), sum(times) / len(times), max(times)
    return f", min/avg/max {least * 1000:.3f}/{mean * 1000:.3f}/{most * 1000:.3f} ms"
