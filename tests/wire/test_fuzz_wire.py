"""Fuzzed frames on a veth pair, to an ``aoe-target`` process."""

from __future__ import annotations

import os
from itertools import product
from typing import TYPE_CHECKING

import pytest

from target.admin.control import find_targets, send_command
from tests.asking import ata, ata_response
from tests.fuzz_frames import Mutator
from tests.serving import client, finish, ready_line, start

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.serving import Client

pytestmark = pytest.mark.netns

GUARD, SIZE = 1 << 16, 1 << 20
FRAMES, BURST, CLEAR_INTERVAL = 20_000, 32, 400
ADDRESSES = ("e0.0", "e7.3")
CLEAR = ("clear-mask", "clear-reserve")
EXPORT = """
[[export]]
address = "{address}"
interfaces = ["{interface}"]
path = "{path}"
offset = {guard}
length = {size}
keep_state = false
"""


def configure(directory: Path, interface: str) -> tuple[Path, list[Path]]:
    """Write a configuration of two exports, each a range of an image."""
    images, text = [], ""
    for address in ADDRESSES:
        image = directory / address
        image.write_bytes(os.urandom(2 * GUARD + SIZE))
        words = {"address": address, "interface": interface, "path": image}
        text += EXPORT.format(**words, guard=GUARD, size=SIZE)
        images.append(image)
    path = directory / "fuzz.toml"
    path.write_text(text)
    return path, images


def guards(image: Path) -> bytes:
    content = image.read_bytes()
    assert len(content) == 2 * GUARD + SIZE
    return content[:GUARD] + content[-GUARD:]


def drain(asking: Client, timeout: float = 0.002) -> int:
    """Receive all responses, check their header, and return their number."""
    count = 0
    while (response := asking.receive(timeout)) != b"":
        assert 60 <= len(response) <= 1514
        assert response[14] in (0x18, 0x1C)
        count += 1
    return count


def clear_lists(wire: Wire) -> None:
    """Clear mask lists and reservations over the control socket."""
    with wire.target.enter():
        ((_, name),) = find_targets()
        for command, address in product(CLEAR, ADDRESSES):
            send_command(name, command, address=address)


def fuzz(wire: Wire, asking: Client, source: Mutator) -> int:
    """Send frames in bursts; return the number of responses."""
    responses = 0
    for number in range(FRAMES):
        if number % CLEAR_INTERVAL == 0:
            clear_lists(wire)
        frame = next(source)
        if 14 <= len(frame) <= 1514:
            # Real MAC addresses: the interfaces would drop others.
            addressed = wire.target_mac + wire.initiator_mac + frame[12:]
            assert asking.link.send(addressed)
        if number % BURST == 0:
            responses += drain(asking)
    return responses + drain(asking, 0.5)


def test_target_survives_fuzzed_frames(wire: Wire, tmp_path: Path) -> None:
    path, images = configure(tmp_path, wire.interface)
    before = [guards(image) for image in images]
    process = start(wire.target, "serve", "--config", path)
    ready_line(process)
    with client(wire) as asking:
        assert fuzz(wire, asking, Mutator(11)) > FRAMES // 4
        clear_lists(wire)
        data = os.urandom(1024)
        written = asking.ask(ata(0x34, 5, 2, aflags=0x41, data=data))
        assert written == ata_response(0x40, lba=5, aflags=0x41)
        assert asking.ask(ata(0x24, 5, 2)) == ata_response(0x40, lba=5, data=data)
    log = finish(process, 15).splitlines()
    assert set(log) == {
        f"aoe-target: {address}: {command}"
        for command, address in product(CLEAR, ADDRESSES)
    }
    assert process.returncode == 0
    assert [guards(image) for image in images] == before
