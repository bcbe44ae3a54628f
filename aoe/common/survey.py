"""Who is on a wire, asked by query config: before serving there, and by doctor."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.address import BROADCAST, MAC_BROADCAST, Address
from aoe.ata import ATA_DATA, Opcode, Registers
from aoe.config import Config
from aoe.errors import DecodeError
from aoe.header import FRAME_MINIMUM, TAG_USER, Command, Flag, Header
from aoe.identify import Identity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from aoe.net.base import Link

_TRIES: Final = 3
_PATIENCE: Final = 0.1
"""Seconds after each try."""


class TargetInfo(NamedTuple):
    """One answer to a query config request.

    Args:
        address: whose it is.
        mac: where it came from.
        buffers: requests that it takes at a time.
        sectors: how many it takes in a frame.
    """

    address: Address
    mac: bytes
    buffers: int
    sectors: int


def survey(link: Link) -> list[TargetInfo]:
    """Ask who is there, three times, and return each answer once, ordered by address.

    Args:
        link: an interface that delivers responses.

    Raises:
        NotFoundError: the interface is gone.
    """
    return sorted(set(query_targets(link, [BROADCAST])))


def identify(link: Link, heard: TargetInfo) -> Identity | None:
    """Ask one that answered for its identity page; None when it does not tell.

    Raises:
        NotFoundError: the interface is gone.
    """
    frame = bytearray(FRAME_MINIMUM)
    question = Header(heard.mac, link.mac, *heard.address, Command.ATA, TAG_USER)
    question.pack_into(frame)
    Registers(0, 0, 1, Opcode.IDENTIFY, 0).pack_into(frame)
    for _ in range(_TRIES):
        link.send(frame)
        for header, answer in _answers(link):
            if (header.src, header.command) != (heard.mac, Command.ATA):
                continue
            # An error is shorter, or a status instead of a page.
            with suppress(DecodeError):
                return Identity.unpack(answer[ATA_DATA:])
    return None


def query_targets(link: Link, addresses: Collection[Address]) -> Iterator[TargetInfo]:
    """Ask for each address three times, and yield every answer as it comes.

    Args:
        link: an interface that delivers responses.
        addresses: whom to ask for.

    Raises:
        NotFoundError: the interface is gone.
    """
    for _ in range(_TRIES):
        for address in addresses:
            link.send(_question(link.mac, address))
        for header, answer in _answers(link):
            if header.command != Command.CONFIG:
                continue
            config = Config()
            with suppress(DecodeError):
                config = Config.unpack_from(answer)
            address = Address(header.shelf, header.slot)
            # None said means two (P23).
            sectors = config.sector_count or 2
            yield TargetInfo(address, header.src, config.buffer_count, sectors)


def _answers(link: Link) -> Iterator[tuple[Header, memoryview]]:
    # What comes until patience ends.
    end = time.monotonic() + _PATIENCE
    while (left := end - time.monotonic()) > 0:
        if not link.wait(left):
            return
        while (frame := link.receive()) is not None:
            with suppress(DecodeError):
                header = Header.unpack_from(frame)
                if header.flags & Flag.RESPONSE:
                    yield header, frame


def _question(mac: bytes, address: Address) -> bytearray:
    frame = bytearray(FRAME_MINIMUM)
    Header(MAC_BROADCAST, mac, *address, Command.CONFIG, TAG_USER).pack_into(frame)
    Config().pack_into(frame)
    return frame
