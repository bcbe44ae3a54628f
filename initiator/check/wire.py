"""Asks over a link: sends, listens, and asks again where a frame may have been lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.describe import describe
from aoe.errors import AoEError, DecodeError
from aoe.header import Header
from initiator.check.runner import UnreachableError

if TYPE_CHECKING:
    from aoe.net.link import Link
    from initiator.client.requests import RequestBuilder

_PARTS: Final = (0.25, 0.25, 0.5)
"""A request is sent as often as this, and waited for so much of our patience."""
_GRACE: Final = 0.02
"""Seconds in which a reply may come after that to a later request."""


class WireExchange:
    """Asks one target over one link; see ``initiator.check.runner.Ask``.

    Silence is not waited for. A query config that is sent behind a request, and is
    answered, tells that the request has been seen and passed over.

    Args:
        link: where to ask; it hears the replies to other clients too if it can.
        t: whom to ask.
        patience: seconds until a reply counts as silence.
    """

    def __init__(self, link: Link, t: RequestBuilder, patience: float) -> None:
        self._link = link
        self._t = t
        self._patience = patience

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        """Return the reply, nothing for silence.

        Raises:
            GoneError: nothing at all is answered any more.
            AoEError: the interface takes no frames.
        """
        if is_silence:
            return self._not_answered(request)
        strays: list[bytes] = []
        for part in _PARTS:
            self._send(request)
            response = self._hear([request], part * self._patience, strays)
            if response:
                return response
        self._not_answered(request)
        # A tag that nobody has sent: better judged than ignored (P10).
        return strays[0] if strays else b""

    def _not_answered(self, request: bytes) -> bytes:
        fence = self._t.config()
        self._send(request)
        for part in _PARTS:
            self._send(fence)
            response = self._hear([request, fence], part * self._patience)
            if response and _tag(response) == _tag(fence):
                return self._hear([request], _GRACE)
            if response:
                return response
        raise UnreachableError(
            str(self._t.address),
            f"answers nothing any more after: {describe(request)}",
        )

    def _send(self, frame: bytes) -> None:
        end = time.monotonic() + self._patience
        while not self._link.send(frame):
            if time.monotonic() > end:
                raise AoEError(self._link.name, "takes no frames")
            self._link.wait(_GRACE)

    def _hear(
        self, requests: list[bytes], wait: float, strays: list[bytes] | None = None
    ) -> bytes:
        tags = {_tag(request) for request in requests}
        end = time.monotonic() + wait
        while True:
            while (frame := self._link.receive()) is not None:
                response = bytes(frame)
                if not self._is_from_target(response):
                    continue
                if _tag(response) in tags:
                    return response
                if strays is not None and _could_answer(requests[0], response):
                    strays.append(response)
            left = end - time.monotonic()
            if left <= 0:
                return b""
            self._link.wait(left)

    def _is_from_target(self, response: bytes) -> bool:
        # A broadcast address is none that a reply may have, so it is its fault (P9).
        try:
            header = Header.unpack_from(response)
        except DecodeError:
            return False
        is_broadcast = header.shelf == SHELF_ALL or header.slot == SLOT_ALL
        return is_broadcast or self._t.address == (header.shelf, header.slot)


def _tag(frame: bytes) -> bytes:
    return frame[20:24]


def _could_answer(request: bytes, response: bytes) -> bool:
    return response[:6] == request[6:12] and response[19] == request[19]
