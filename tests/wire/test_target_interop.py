from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.identify import Identity
from tests.asking import ata, config, frame
from tests.requirements import program
from tests.serving import Client, client, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns


@pytest.fixture
def served(wire: Wire, image: Path) -> Iterator[Wire]:
    with serving(wire, image, "--serial", "S-7", "--model", "pyaoe test"):
        yield wire


def run(wire: Wire, *words: str) -> str:
    done = wire.initiator.run(words, capture_output=True, text=True, timeout=20)
    return str(done.stdout)


def test_aoeping_reads_the_identity(served: Wire) -> None:
    aoeping = program("aoeping")
    out = run(served, aoeping, "-i", "7", "3", served.interface)
    page = bytes.fromhex("".join(out.splitlines()[1:]).replace(" ", ""))
    identity = Identity.unpack(page)
    assert (identity.sectors, identity.serial) == (2048, "S-7")
    assert identity.model == "pyaoe test"


def test_aoeping_query(served: Wire) -> None:
    aoeping = program("aoeping")
    out = run(served, aoeping, "-v", "7", "3", served.interface)
    assert "config query response" in out


def test_aoeping_reads_smart_data(served: Wire) -> None:
    aoeping = program("aoeping")
    out = run(served, aoeping, "-s", "5", "-S", "read_data", "7", "3", served.interface)
    page = bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", out)))
    assert len(page) == 512
    assert sum(page) % 256 == 0
    assert page[:3] == b"\x10\0\xbb"


def test_aoecfg_reads_sets_tests_and_clears_the_config_string(served: Wire) -> None:
    aoecfg = program("aoecfg")

    def ask(command: str, string: str | None = None) -> str:
        words = ["-s", string] if string is not None else []
        where = ["7", "3", served.interface]
        return run(served, aoecfg, "-t", "1", "-c", command, *words, *where)

    # It prints the string of a target that responds, and nothing without a response.
    assert ask("read") == "\n"
    assert ask("set", "owner") == "owner\n"
    assert ask("read") == "owner\n"
    assert ask("test", "owner") == "owner\n"
    assert ask("test", "own") == ""
    assert ask("prefix", "own") == "owner\n"
    assert ask("prefix", "x") == ""
    assert ask("fset", "another") == "another\n"
    assert ask("read") == "another\n"
    assert ask("fset", "") == "\n"


SAME = {
    "read": ata(0x24, lba=5, count=2),
    "read of 28 bits": ata(0x20, lba=0xE000_0007, aflags=0),
    "read of the last sector": ata(0x24, lba=2047),
    "read beyond the end": ata(0x24, lba=2048),
    "read across the end": ata(0x24, lba=2047, count=2),
    "write beyond the end": ata(0x34, lba=5000, aflags=0x41, data=bytes(512)),
    "unknown opcode": ata(0xB0, count=3),
    "unknown command": frame(9, bytes(range(100))),
    "config read": config(0),
    "config test of the empty string": config(1),
    "config prefix": config(2),
    "config set": config(3, b"hello"),
    "config set once more": config(3, b"hello"),
    "config set by another": config(3, b"other"),
    "config force": config(4, b"third"),
    "unknown config command": config(9),
}
SILENT = {
    "test of another string": config(1, b"x"),
    "prefix of another string": config(2, b"x"),
    "another address": frame(1, bytes(8), slot=4),
    "a response": frame(1, bytes(8), verfl=0x18),
    "half a header": frame(1)[:20],
}


def comparable(response: bytes) -> bytes:
    # The firmware versions differ, and vblade does not pad.
    if response[19] == 1:
        response = response[:26] + bytes(2) + response[28:]
    return response[12:].ljust(48, b"\0")


def ask_both(asking: Client) -> dict[str, bytes]:
    responses = {
        name: comparable(asking.ask(request)) for name, request in SAME.items()
    }
    for name, request in SILENT.items():
        responses[name] = asking.ask(request, timeout=0.1)
    return responses


def test_responses_equal_those_of_vblade_where_it_conforms(
    wire: Wire, image: Path
) -> None:
    vblade = program("vblade")
    peer = wire.target.popen(
        [vblade, "-b", "64", "7", "3", wire.interface, str(image)],
        stdout=subprocess.PIPE,
    )
    assert peer.stdout is not None
    peer.stdout.readline()
    with client(wire) as asking:
        theirs = ask_both(asking)
    peer.terminate()
    peer.wait(10)
    with serving(wire, image), client(wire) as asking:
        ours = ask_both(asking)
    assert ours == theirs
