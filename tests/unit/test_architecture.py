from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("aoe", "target", "initiator")
LAYERS = {
    "aoe": {"aoe"},
    "target": {"aoe", "target"},
    "initiator": {"aoe", "initiator"},
}

# Each kind of outside world has its few doors; a folder ends in a slash.
DOORS = {
    "socket": {
        "aoe/common/control.py",
        "aoe/net/ethtool.py",
        "aoe/net/link.py",
        "aoe/net/netdevice.py",
        "aoe/net/packet_socket.py",
        "initiator/export/",
        "target/server/claims.py",
        "target/disks/nbd/address.py",
        "target/admin/metrics.py",
        "target/admin/notify.py",
    },
    "pyroute2": {"aoe/net/interfaces.py", "aoe/net/netns.py"},
    "scapy": {"aoe/capture/dissection.py", "aoe/layers.py"},
}

# A protocol core is driven with frames, requests and `now`; it reaches for nothing.
OUTSIDE = {
    "asyncio",
    "logging",
    "os",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
CORES = {
    "aoe/address.py",
    "aoe/ata.py",
    "aoe/net/bpf.py",
    "aoe/config.py",
    "aoe/describe.py",
    "aoe/header.py",
    "aoe/identify.py",
    "aoe/macmask.py",
    "aoe/common/nbd.py",
    "aoe/reserve.py",
    "aoe/net/rings.py",
    "aoe/common/sizes.py",
    "aoe/smart.py",
    "initiator/driver/responses.py",
    "initiator/driver/aoedev.py",
    "initiator/driver/bio.py",
    "initiator/driver/buf.py",
    "initiator/client/requests.py",
    "initiator/check/expect.py",
    "initiator/check/keep.py",
    "initiator/check/model.py",
    "initiator/check/play.py",
    "initiator/check/rules/config.py",
    "initiator/check/rules/header.py",
    "initiator/check/rules/identify.py",
    "initiator/check/rules/masks.py",
    "initiator/check/rules/reads.py",
    "initiator/check/rules/reserves.py",
    "initiator/check/rules/shape.py",
    "initiator/check/rules/writes.py",
    "initiator/check/subject.py",
    "initiator/check/suite.py",
    "initiator/driver/discovery.py",
    "initiator/driver/driver.py",
    "initiator/export/nbd/handshake.py",
    "initiator/export/nbd/session.py",
    "initiator/lab/kernel/journal.py",
    "initiator/lab/cases.py",
    "initiator/lab/peer.py",
    "initiator/lab/world.py",
    "initiator/lab/kernel/memory.py",
    "initiator/driver/netdev.py",
    "initiator/driver/options.py",
    "initiator/driver/write_order.py",
    "initiator/client/path_mtu.py",
    "initiator/lab/kernel/policy.py",
    "initiator/driver/requests.py",
    "initiator/driver/skbuff.py",
    "initiator/lab/kernel/slab.py",
    "initiator/lab/kernel/submitters.py",
    "initiator/driver/timing.py",
    "initiator/disk/read_modify_write.py",
    "target/protocol/ata.py",
    "target/protocol/commands.py",
    "target/disks/nbd/wire.py",
    "target/protocol/exports.py",
    "target/protocol/features.py",
    "target/filters/disk.py",
    "target/filters/settings.py",
    "target/filters/stack.py",
    "target/filters/target.py",
    "target/filters/trigger.py",
    "target/filters/wire.py",
    "target/protocol/frames.py",
    "target/protocol/lists.py",
    "target/protocol/target.py",
    "target/protocol/transfers.py",
}
# These are too slow to be paid for by a command that does not need them.
LAZY = ("prometheus_client", "pyroute2", "rich", "scapy")


def sources(*folders: str) -> list[str]:
    """Return the Python files below the folders, as paths in the checkout."""
    found = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(CHECKOUT)) for path in found)


MODULES = sources(*PACKAGES)
EVERYTHING = sources(*PACKAGES, "tests", "scripts")
every_module = pytest.mark.parametrize("path", MODULES)
every_file = pytest.mark.parametrize("path", EVERYTHING)


@cache
def parse(path: str) -> ast.Module:
    return ast.parse((CHECKOUT / path).read_text(), path)


def imports(path: str) -> set[str]:
    """Return the full names of what a file imports, wherever in it that stands."""
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def roots(path: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def test_the_three_packages_are_there() -> None:
    missing = [name for name in PACKAGES if f"{name}/__init__.py" not in MODULES]
    assert missing == []


@every_module
def test_a_layer_imports_only_downwards(path: str) -> None:
    allowed = LAYERS[path.partition("/")[0]]
    assert roots(path) & {*PACKAGES, "tests", "scripts"} <= allowed


@every_module
def test_imports_are_absolute(path: str) -> None:
    assert [name for name in imports(path) if name.startswith(".")] == []


@every_module
@pytest.mark.parametrize("outside", DOORS)
def test_only_its_doors_lead_outside(path: str, outside: str) -> None:
    at_a_door = any(
        path.startswith(door) if door.endswith("/") else path == door
        for door in DOORS[outside]
    )
    assert at_a_door or outside not in roots(path)


@pytest.mark.parametrize("path", sorted(CORES & set(MODULES)))
def test_a_protocol_core_does_nothing_but_think(path: str) -> None:
    assert roots(path) & OUTSIDE == set()
    calls = {
        node.func.id
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls & {"open", "print", "input"} == set()


@every_file
def test_nothing_imports_all_of_scapy(path: str) -> None:
    whole = [name for name in imports(path) if re.match(r"scapy\.all(\.|$)", name)]
    assert whole == []


@every_file
def test_a_file_can_be_read_in_one_sitting(path: str) -> None:
    lines = (CHECKOUT / path).read_text().count("\n")
    assert lines <= 500


@every_module
def test_a_module_says_what_it_is(path: str) -> None:
    assert ast.get_docstring(parse(path))


@every_file
def test_nothing_is_left_for_later(path: str) -> None:
    # The words are put together here so that this file does not hold them.
    later = re.compile(r"\b(" + "TO" + "DO|FIX" + r"ME)\b")
    assert not later.search((CHECKOUT / path).read_text())


def test_the_commands_start_without_the_slow_libraries() -> None:
    # A command that is not written yet is not asked; its package is.
    names = [*PACKAGES]
    names += [f"{name}.cli" for name in PACKAGES if f"{name}/cli.py" in MODULES]
    probe = f"import sys, {', '.join(names)}; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", probe]
    result = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) & set(LAZY) == set()
