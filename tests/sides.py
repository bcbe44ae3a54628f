"""Ports with four targets on files, to compare implementations of the target."""

from __future__ import annotations

import os
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING

from aoe.address import Address
from target.disks.file import FileDisk
from target.protocol.exports import Export
from target.protocol.target import Target
from target.server.ports import Port
from tests.asking import SECTORS, ata, sector
from tests.fuzz_frames import Mutator, at
from tests.links import MemoryRingLink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from aoe.net.rings import Rings
    from target.protocol.engine import MakeEngine

CONTENT = b"".join(sector(number) for number in range(SECTORS))
GUARD = 4096
"""Bytes of the file before and after the disk."""


class SlowRingLink(MemoryRingLink):
    """The same link without access to its rings: all frames take the slow path."""

    @property
    def rings(self) -> Rings | None:
        return None


class Side:
    """A port with four targets on files, with or without the fast path.

    Args:
        link: the port's link.
        stack: closes the port and the files.
        make_engine: the engine of the targets.
    """

    def __init__(
        self, link: MemoryRingLink, stack: ExitStack, make_engine: MakeEngine = Target
    ) -> None:
        self.link = link
        self.files: list[int] = []
        self._stack = stack
        self._make_engine = make_engine
        self.port = Port(link)
        self._add(Address(7, 3))
        self._add(Address(0, 0), offset=GUARD)
        self._add(Address(7, 4), read_only=True)
        self._add(Address(9, 1), sync=True)
        stack.callback(self.port.close)

    def _add(
        self,
        address: Address,
        *,
        offset: int = 0,
        read_only: bool = False,
        sync: bool = False,
    ) -> None:
        fd = os.memfd_create(str(address))
        os.pwrite(fd, CONTENT, offset)
        os.truncate(fd, offset + len(CONTENT) + offset)
        self.files.append(fd)
        disk = FileDisk(fd, offset, len(CONTENT), read_only=read_only)
        self._stack.callback(disk.close)
        self.port.add(Export(address, disk, sync=sync), self._make_engine)

    def serve(self, *requests: bytes, now: float = 0.0) -> list[bytes]:
        """Pass all requests at once, and return the responses."""
        self.link.sent.clear()
        self.link.deliver(*requests)
        while self.port.serve(now):
            pass
        assert not self.link.incoming
        return list(self.link.sent)

    def disks(self) -> list[bytes]:
        return [os.pread(fd, os.fstat(fd).st_size, 0) for fd in self.files]

    def counted(self) -> list[object]:
        counts = [asdict(each.statistics()) for each in self.port.targets]
        return [*counts, self.port.unmatched, self.link.statistics()]


def plain_request(chance: Random) -> bytes:
    """Draw a plain READ or WRITE, also at the ends of the disk."""
    writes = chance.random() < 0.5
    count = chance.choice((1, 1, 2, 2, 3))
    lba = chance.choice((chance.randrange(SECTORS), SECTORS - count, SECTORS - 1))
    data = chance.randbytes(count * 512) if writes else bytes(chance.choice((0, 24)))
    opcode = chance.choice((0x30, 0x34, 0x35, 0xCA) if writes else (0x20, 0x24, 0x25))
    aflags = (0x40, 0x00, 0x50, 0x42)[chance.randrange(4)] | writes
    address = chance.choice(((7, 3), (7, 3), (0, 0), (7, 4), (9, 1), (5, 5)))
    return at(address, ata(opcode, lba, count, aflags=aflags, data=data))


def request_mix(seed: int) -> Iterator[bytes]:
    """Draw mostly plain requests, mixed with others."""
    chance, mutator = Random(seed), Mutator(seed)
    while True:
        yield plain_request(chance) if chance.random() < 0.8 else next(mutator)
