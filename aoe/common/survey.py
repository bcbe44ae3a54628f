"""Query the targets on a link: before serving an address, and for ``doctor``."""

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
_TIMEOUT: Final = 0.1
"""Seconds to wait for responses after each try, before a target starts."""
_SURVEY_TIMEOUT: Final = 0.3
"""The same, where a complete answer matters more: hosts may be busy."""


class TargetInfo(NamedTuple):
    """A target, as its query config response describes it.

    Args:
        address: the target's address.
        mac: the source of the response.
        buffers: the buffer count: requests that it can queue.
        sectors: the largest number of sectors in a frame.
    """

    address: Address
    mac: bytes
    buffers: int
    sectors: int


def survey(link: Link) -> list[TargetInfo]:
    """Return the targets that answer a broadcast query, ordered by address.

    The query is sent three times. A target that answers more than once is returned
    once.

    Args:
        link: an interface that delivers responses.

    Raises:
        NotFoundError: the interface is gone.
    """
    return sorted(set(query_targets(link, [BROADCAST], _SURVEY_TIMEOUT)))


def identify(link: Link, target: TargetInfo) -> Identity | None:
    """Return a target's IDENTIFY page, or None if it sends none.

    Raises:
        NotFoundError: the interface is gone.
    """
    frame = bytearray(FRAME_MINIMUM)
    request = Header(target.mac, link.mac, *target.address, Command.ATA, TAG_USER)
    request.pack_into(frame)
    Registers(0, 0, 1, Opcode.IDENTIFY, 0).pack_into(frame)
    expected = (target.mac, *target.address, Command.ATA, TAG_USER)
    for _ in range(_TRIES):
        link.send(frame)
        for header, response in _responses(link, _SURVEY_TIMEOUT):
            # Responses to other initiators of this host arrive here, too (P11).
            address = header.shelf, header.slot
            if (header.src, *address, header.command, header.tag) != expected:
                continue
            # An error response has no 512 bytes of data and fails to unpack.
            with suppress(DecodeError):
                return Identity.unpack(response[ATA_DATA:])
    return None


def query_targets(
    link: Link, addresses: Collection[Address], timeout: float = _TIMEOUT
) -> Iterator[TargetInfo]:
    """Query each address three times, and yield the responses as they arrive.

    Args:
        link: an interface that delivers responses.
        addresses: the addresses to query.
        timeout: seconds to wait for responses after each try.

    Raises:
        NotFoundError: the interface is gone.
    """
    for _ in range(_TRIES):
        for address in addresses:
            link.send(_query(link.mac, address))
        for header, response in _responses(link, timeout):
            if header.command != Command.CONFIG:
                continue
            config = Config()
            with suppress(DecodeError):
                config = Config.unpack_from(response)
            address = Address(header.shelf, header.slot)
            # A sector count of 0 means 2 (P23).
            sectors = config.sector_count or 2
            yield TargetInfo(address, header.src, config.buffer_count, sectors)


def _responses(link: Link, timeout: float) -> Iterator[tuple[Header, memoryview]]:
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0:
        if not link.wait(left):
            return
        while (frame := link.receive()) is not None:
            with suppress(DecodeError):
                header = Header.unpack_from(frame)
                if header.flags & Flag.RESPONSE:
                    yield header, frame


def _query(mac: bytes, address: Address) -> bytearray:
    frame = bytearray(FRAME_MINIMUM)
    Header(MAC_BROADCAST, mac, *address, Command.CONFIG, TAG_USER).pack_into(frame)
    Config().pack_into(frame)
    return frame
