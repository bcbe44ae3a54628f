"""``aoe doctor`` and ``aoe sancheck``: diagnose host, interfaces and paths."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aoe.address import BROADCAST, format_mac
from aoe.ata import SECTOR
from aoe.common.commandline import json_option, print_json
from initiator.cli.common import Connection, connection_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aoe.address import Address
    from aoe.net.interfaces import Interface
    from initiator.client.path_mtu import PathMtu
    from initiator.client.remote import RemoteTarget


@click.command()
@connection_options(0.5)
@json_option
def doctor(*, connection: Connection, as_json: bool) -> None:
    """Check host, network and targets for problems.

    \b
    Try:  aoe doctor
          aoe doctor -i eth0

    Checks capabilities, the Linux aoe driver, interfaces, MTU, frame loss, buffers, the
    targets that answer, and the largest frame on the path to each. A problem is printed
    with its fix. Nothing is changed or written.

    Exit codes: 0 no failures, 1 at least one check failed.
    """
    from aoe.common.doctor.report import report
    from initiator.doctor import run_checks

    names = connection.names()
    with connection.recorder() as record:
        report(run_checks(names, connection.timeout, record), as_json=as_json)


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Also print checks that passed.")
@connection_options(0.5)
@json_option
def sancheck(*, connection: Connection, verbose: bool, as_json: bool) -> None:
    """Check the interfaces and paths to all targets.

    \b
    Try:  aoe sancheck -i eth0,eth1

    The largest frame on a path is measured with padded IDENTIFY requests and with READs
    of the first sectors. Nothing is written.

    Exit codes: 0 no failures, 1 at least one check failed, 3 no target answers.
    """
    from aoe.common.doctor.report import describe_finding, exit_if_failed
    from aoe.net.interfaces import find_interface
    from initiator.client.remote import open_targets
    from initiator.doctor import check_path, check_san

    with (
        connection.links() as links,
        open_targets(links, BROADCAST, connection.timeout) as targets,
    ):
        interfaces = [find_interface(link.name) for link in links]
        if not as_json:
            _print_interfaces(interfaces)
        examined = [(target, *check_path(target)) for target in targets]
        findings = [*check_san(links, targets)]
        findings += [finding for _, _, finding in examined]
    paths = [(target, path) for target, path, _ in examined]
    if as_json:
        print_json(
            "sancheck",
            interfaces=[_interface_fields(each) for each in interfaces],
            devices=[
                {
                    "address": str(address),
                    "paths": [path_fields(*each) for each in device_paths],
                }
                for address, device_paths in _by_address(paths).items()
            ],
            findings=[asdict(each) for each in findings],
        )
    else:
        _print_devices(paths)
        for finding in findings:
            if verbose or finding.verdict != "ok":
                click.echo(describe_finding(finding))
    exit_if_failed(findings)


def _print_interfaces(interfaces: Sequence[Interface]) -> None:
    click.echo(f"{'interface':<16} {'state':<12} {'mtu':>5}  {'mac':<17}  pci id")
    for each in interfaces:
        click.echo(
            f"{each.name:<16} {_state(each):<12} {each.mtu:>5}  "
            f"{format_mac(each.mac):<17}  {_pci_id(each.name) or '-'}"
        )
    click.echo()


def _interface_fields(interface: Interface) -> dict[str, object]:
    return {
        "name": interface.name,
        "state": _state(interface),
        "mtu": interface.mtu,
        "mac": format_mac(interface.mac),
        "pci_id": _pci_id(interface.name),
    }


def _state(interface: Interface) -> str:
    if not interface.up:
        return "down"
    return "up" if interface.carrier else "no carrier"


def _pci_id(name: str) -> str:
    """Return vendor and device ID of the NIC, or an empty string if it has none."""
    device = Path("/sys/class/net", name, "device")
    try:
        ids = [(device / part).read_text("ascii") for part in ("vendor", "device")]
    except OSError:
        return ""
    return ":".join(each.strip().removeprefix("0x") for each in ids)


def _print_devices(paths: Sequence[tuple[RemoteTarget, PathMtu]]) -> None:
    click.echo(f"{'device':<10} {'macs':>4} {'payload':>7}  interfaces")
    for address, device_paths in _by_address(paths).items():
        macs = {target.mac for target, _ in device_paths}
        names = ",".join(dict.fromkeys(target.link.name for target, _ in device_paths))
        payload = min(path.sectors for _, path in device_paths) * SECTOR
        click.echo(f"{address!s:<10} {len(macs):>4} {payload:>7}  {names}")
    click.echo()


def _by_address(
    paths: Sequence[tuple[RemoteTarget, PathMtu]],
) -> dict[Address, list[tuple[RemoteTarget, PathMtu]]]:
    found: dict[Address, list[tuple[RemoteTarget, PathMtu]]] = {}
    for target, path in paths:
        found.setdefault(target.address, []).append((target, path))
    return found


def path_fields(target: RemoteTarget, path: PathMtu) -> dict[str, object]:
    """Return the JSON of a path, with frame sizes in bytes of data."""
    from_target = path.from_target
    return {
        "interface": target.link.name,
        "mac": format_mac(target.mac),
        "payload_bytes": path.expected * SECTOR,
        "to_target_bytes": max(path.to_target, 0) * SECTOR,
        "from_target_bytes": None if from_target is None else from_target * SECTOR,
    }
