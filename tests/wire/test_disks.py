from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.asking import ata, ata_response
from tests.serving import client, finish, ready_line, serving, start

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

READ, WRITE = 0x24, 0x34
SIZE = 1 << 20


def write(lba: int, data: bytes) -> bytes:
    return ata(WRITE, lba, len(data) // 512, aflags=0x41, data=data)


def test_overlay_survives_a_killed_target(wire: Wire, tmp_path: Path) -> None:
    golden, overlay = tmp_path / "golden.img", tmp_path / "client3.ovl"
    golden.write_bytes(os.urandom(SIZE))
    before, data = golden.read_bytes(), os.urandom(1024)
    words = ("serve", "e7.3", wire.interface, golden, "--overlay", overlay)
    process = start(wire.target, *words)
    assert ready_line(process).endswith(f" from {golden} [overlay {overlay}]\n")
    with client(wire) as asking:
        assert asking.ask(write(5, data)) == ata_response(0x40, lba=5, aflags=0x41)
    finish(process, 9)
    with serving(wire, golden, "--overlay", overlay), client(wire) as asking:
        assert asking.ask(ata(READ, 5, 2))[36:] == data
        assert asking.ask(ata(READ, 7, 2))[36:] == before[7 * 512 : 9 * 512]
    assert golden.read_bytes() == before
