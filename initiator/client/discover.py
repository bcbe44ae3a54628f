"""Find targets by broadcasting query config requests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe.address import BROADCAST, MAC_BROADCAST, Address
from aoe.config import CONFIG_STRING, Config
from aoe.errors import DecodeError
from aoe.header import FRAME_MINIMUM, Command, ErrorCode, Flag, Header
from initiator.io.tags import unclaimed_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.net.link import Link


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """A target's response to a query.

    Args:
        address: the target's address, never a broadcast value (P9).
        mac: its MAC address.
        interface: the local interface on which the response was received.
        config: buffer count, sectors per frame, config string and so on.
        rtt: seconds from the query to the response.
        error: the AoE error, if the response is one.
    """

    address: Address
    mac: bytes
    interface: str
    config: Config
    rtt: float
    error: ErrorCode | int | None = None


class Query:
    """A query config request, sent on one or more links.

    Args:
        links: the links to send it on.
        address: the target; by default all targets.
        config: the message; by default it reads the config string.
    """

    def __init__(
        self,
        links: Sequence[Link],
        address: Address = BROADCAST,
        config: Config | None = None,
    ) -> None:
        self._links = links
        self._address = address
        self._config = config or Config()
        self._tag = unclaimed_tag()
        self._sent = 0.0

    def send(self) -> None:
        """Broadcast the query on every link."""
        frame = bytearray(max(FRAME_MINIMUM, CONFIG_STRING + len(self._config.string)))
        self._config.pack_into(frame)
        for link in self._links:
            header = Header(
                MAC_BROADCAST, link.mac, *self._address, Command.CONFIG, self._tag
            )
            header.pack_into(frame)
            link.send(frame)
        self._sent = time.monotonic()

    def responses(self, timeout: float) -> Iterator[QueryResponse]:
        """Yield responses as they arrive, for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            for link in self._links:
                while (frame := link.receive()) is not None:
                    response = self._read(frame, link)
                    if response is not None:
                        yield response
            # wait() covers one link: several are polled every 10 ms.
            self._links[0].wait(left if len(self._links) == 1 else min(left, 0.01))

    def _read(self, frame: memoryview, link: Link) -> QueryResponse | None:
        try:
            header = Header.unpack_from(frame)
            config = Config.unpack_from(frame)
        except DecodeError:
            return None
        if (
            not header.flags & Flag.RESPONSE
            or header.command != Command.CONFIG
            or header.tag != self._tag
            or not self._is_from_queried(header)
        ):
            return None
        error = header.error if header.flags & Flag.ERROR else None
        return QueryResponse(
            Address(header.shelf, header.slot),
            header.src,
            link.name,
            config,
            time.monotonic() - self._sent,
            ErrorCode(error) if error in list(ErrorCode) else error,
        )

    def _is_from_queried(self, header: Header) -> bool:
        shelf, slot = self._address
        address = Address(header.shelf, header.slot)
        return address.matches(shelf, slot) and address != BROADCAST


def discover(
    links: Sequence[Link],
    address: Address = BROADCAST,
    timeout: float = 0.5,
    enough: Callable[[list[QueryResponse]], bool] = lambda _: False,
) -> list[QueryResponse]:
    """Query three times within ``timeout`` seconds.

    Args:
        links: the links to send the query on.
        address: the target; by default all targets.
        timeout: seconds in all.
        enough: returns True for the responses so far to stop early.

    Returns:
        The first response of each address, MAC address and interface, by address; in
        order of arrival if stopped early.
    """
    found: dict[tuple[Address, bytes, str], QueryResponse] = {}
    query = Query(links, address)
    for _ in range(3):
        query.send()
        for response in query.responses(timeout / 3):
            key = (response.address, response.mac, response.interface)
            found.setdefault(key, response)
            if enough(list(found.values())):
                return list(found.values())
    return sorted(found.values(), key=lambda each: (each.address, each.mac))
