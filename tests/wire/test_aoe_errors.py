"""Common mistakes with ``aoe``: a one-line error with a fix, and the exit code."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.net.interfaces import set_down
from tests.programs import AOE, AOE_TARGET

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns


def fails(wire: Wire, code: int, *words: str) -> str:
    """Run ``aoe``, check its exit code, and return its one-line error message."""
    done = wire.initiator.run([*AOE, *words], capture_output=True, text=True)
    line: str
    (line,) = done.stderr.splitlines()
    assert done.returncode == code, line
    assert line.startswith("aoe: ")
    return line.removeprefix("aoe: ")


@pytest.mark.parametrize(
    "words",
    [
        ["discover"],
        ["stat", "e0.0"],
        ["ping", "e0.0"],
        ["read", "e0.0"],
        ["copy", "e0.0", "file"],
    ],
    ids=lambda words: words[0],
)
def test_no_such_interface(wire: Wire, tmp_path: Path, words: list[str]) -> None:
    words = [str(tmp_path / word) if word == "file" else word for word in words]
    line = fails(wire, 3, *words, "-i", "eth9")
    assert line.startswith("eth9: no such interface (have: lo, aoe0)")


def test_interface_is_down(wire: Wire) -> None:
    with wire.initiator.enter():
        set_down("aoe0")
    line = fails(wire, 1, "discover", "-i", "aoe0")
    assert line.startswith("aoe0: interface is down. Bring it up")
    assert "ip link set aoe0 up" in line


def test_no_interface_is_up(wire: Wire) -> None:
    with wire.initiator.enter():
        set_down("aoe0")
    line = fails(wire, 3, "discover")
    assert line == "network: no Ethernet interface is up. Name one with -i IFACE"


def test_no_raw_sockets(wire: Wire) -> None:
    """Root without CAP_NET_RAW gets the same error as other users."""
    dropped = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"]
    done = wire.initiator.run(
        [*dropped, *AOE, "discover", "-i", "aoe0"], capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 4
    assert line.startswith("aoe: aoe0: raw sockets need CAP_NET_RAW. ")
    assert "root" in line
    assert "unshare -Urn" in line


def test_no_such_file(wire: Wire, tmp_path: Path) -> None:
    missing = tmp_path / "missing.img"
    line = fails(wire, 3, "copy", str(missing), "e0.0", "-i", "aoe0")
    assert line == f"{missing}: no such file or directory"


def test_an_image_size_that_is_not_a_multiple_of_512(
    wire: Wire, tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(1000))
    line = fails(wire, 2, "copy", str(odd), "e0.0", "-i", "aoe0")
    assert line == (
        f"{odd}: 1000 bytes are not a multiple of 512. "
        "Nearest sizes: 512 and 1024; see also --pad"
    )


def test_no_target_answers(wire: Wire) -> None:
    line = fails(wire, 3, "read", "e5.1", "-i", "aoe0", "-t", "0.2")
    assert line == (
        "e5.1: no response on aoe0 within 0.2 s. "
        "List the targets with: aoe discover -i aoe0"
    )
    assert fails(wire, 3, "discover", "-i", "aoe0", "-t", "0.1") == (
        "discover: no target answered on aoe0. Find the cause: aoe doctor -i aoe0"
    )


@pytest.mark.parametrize("command", ["config", "mask", "reserve"])
def test_a_missing_subcommand(wire: Wire, command: str) -> None:
    line = fails(wire, 2, command, "e7.3", "-i", "aoe0")
    assert line == (
        "e7.3: missing command before the address. "
        f"For example: aoe {command} read e7.3"
    )


def test_a_suggestion_ends_with_a_question_mark(wire: Wire) -> None:
    line = fails(wire, 2, "discover", "-i", "aoe0", "--timout", "1")
    assert "? Try: aoe discover --help" in line or "?) Try: aoe discover --h" in line


def test_not_an_address(wire: Wire) -> None:
    line = fails(wire, 2, "stat", "e70000.1", "-i", "aoe0")
    assert "e70000.1: AoE address out of range" in line
    assert "e0.0" in line
    neither = fails(wire, 2, "copy", "one", "other", "-i", "aoe0")
    assert neither.startswith("one to other: neither is an AoE address")


def test_beyond_the_end(wire: Wire, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    target = wire.target.popen(
        [*AOE_TARGET, "serve", "e0.0", "aoe0", str(disk)],
        stdout=subprocess.PIPE,
    )
    assert target.stdout is not None
    target.stdout.readline()
    big = tmp_path / "big"
    big.write_bytes(os.urandom(8192))
    line = fails(wire, 2, "copy", str(big), "e0.0", "-i", "aoe0")
    assert line == "e0.0: 8192 bytes do not fit into the 4096 bytes from 0 on"
    line = fails(wire, 2, "read", "e0.0", "-i", "aoe0", "--length", "8192")
    assert line == (
        "e0.0: 8192 bytes at 0 are not within the disk. Its size is 4 KiB (4,096 bytes)"
    )
